# SPDX-License-Identifier: MIT
"""`nitroctl build`: make QEMU and the vsock backend, and link them where a shell finds them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from nitroctl.base import output, shown
from nitroctl.base.arch import ARCHES, Arch
from nitroctl.commands import PATH, json_option


@click.command()
@click.option(
    "--source",
    type=PATH,
    metavar="DIR|TARBALL|DSC",
    help="QEMU's source. Default: Debian's source package, fetched without root.",
)
@click.option("--series", metavar="X.Y", help="QEMU release series. Default: 10.0, or what --source is.")
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Parallel compile jobs. Default: ninja's."
)
@click.option(
    "--prefix",
    type=click.Path(path_type=Path, readable=False, file_okay=False),
    metavar="DIR",
    help="Link the programs into DIR/bin. Default: the virtual environment, else ~/.local.",
)
@click.option(
    "--sanitize", is_flag=True, help="Also build QEMU with ASan and UBSan, for tests; it is not linked."
)
@click.option(
    "--arch",
    type=click.Choice((*ARCHES, "all")),
    default="x86_64",
    show_default=True,
    help="Architecture of the enclaves that it is to run.",
)
@click.option("--plugin", is_flag=True, help="Build a plugin for the installed QEMU instead of a QEMU.")
@click.option(
    "--qemu",
    type=PATH,
    metavar="PATH",
    help="The QEMU that the plugin is for. Default: the distribution's in PATH.",
)
@click.option("--update", is_flag=True, help="Look for a newer source package first.")
@json_option("Print what was built, and from what, in JSON.")
def build(
    source: Path | None,
    series: str | None,
    jobs: int | None,
    prefix: Path | None,
    sanitize: bool,
    arch: str,
    plugin: bool,
    qemu: Path | None,
    update: bool,
    as_json: bool,
) -> None:
    """Build QEMU with the nitro-enclave machine, and the vsock backend.

    With --plugin, build the machine for the distribution's QEMU, from the source of exactly its version, and
    link a qemu-system-x86_64, or -aarch64, that starts it with the machine in it.

    What is built already is found again at once; a change of nitroctl's C sources rebuilds only these.
    """
    if as_json and arch == "all":
        raise click.UsageError("--json tells of one build: name one --arch")
    wanted = ARCHES if arch == "all" else tuple(a for a in ARCHES if a == arch)
    if plugin:
        if qemu and arch == "all":
            raise click.UsageError("--qemu names one QEMU: leave --arch out")
        if series or sanitize or update:
            raise click.UsageError("--plugin takes neither --series, --sanitize nor --update")
        for one in wanted:
            _build_plugin(source, qemu, one, jobs, prefix, as_json)
        return
    if qemu:
        raise click.UsageError("--qemu goes with --plugin")
    for one in wanted:
        _build_tree(source, series, one, jobs, prefix, sanitize, update, as_json)


def _build_tree(
    source: Path | None,
    series: str | None,
    arch: Arch,
    jobs: int | None,
    prefix: Path | None,
    sanitize: bool,
    update: bool,
    as_json: bool,
) -> None:
    from nitroctl.base.config import default_prefix
    from nitroctl.toolchain.tree import BuildOptions, build_backend, build_qemu, link_programs

    options = BuildOptions(source=source, series=series, jobs=jobs, update=update, arch=arch)
    manifest = build_qemu(options)
    backend = build_backend(jobs=jobs)
    sanitized = build_qemu(dataclasses.replace(options, sanitize=True, update=False)) if sanitize else None
    links = link_programs([manifest.qemu, backend], (prefix or default_prefix()).absolute())
    if as_json:
        output.document({
            **manifest.to_json(),
            "vsock": backend,
            "links": [link for link, _, _ in links],
            "sanitized": sanitized.to_json() if sanitized else None,
        })  # fmt: skip
        return
    shown.echo(f"QEMU {manifest.version} from {manifest.source}")
    for link, program, changed in links:
        shown.echo(f"{'linked' if changed else 'up to date:'} {link} -> {program}")
    if sanitized:
        shown.echo(f"with sanitizers: {sanitized.qemu}")


def _build_plugin(
    source: Path | None,
    qemu: Path | None,
    arch: Arch,
    jobs: int | None,
    prefix: Path | None,
    as_json: bool,
) -> None:
    from nitroctl.base.config import default_prefix
    from nitroctl.toolchain.plugin_build import build_plugin
    from nitroctl.toolchain.tree import build_backend, link_programs

    manifest = build_plugin(qemu, arch=arch, source=source, jobs=jobs)
    backend = build_backend(jobs=jobs)
    links = link_programs([manifest.launcher, backend], (prefix or default_prefix()).absolute())
    if as_json:
        output.document({**manifest.to_json(), "vsock": backend, "links": [link for link, _, _ in links]})
        return
    shown.echo(f"plugin for {manifest.qemu} ({manifest.package} {manifest.version}) from {manifest.source}")
    for link, program, changed in links:
        shown.echo(f"{'linked' if changed else 'up to date:'} {link} -> {program}")
