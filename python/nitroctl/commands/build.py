# SPDX-License-Identifier: MIT
"""`nitroctl build`: make QEMU and the vsock backend, and link them where a shell finds them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--source", type=click.Path(path_type=Path), metavar="DIR|TARBALL|DSC",
              help="QEMU's source. Default: Debian's source package, through a private apt root.")
@click.option("--series", metavar="X.Y", help="QEMU release series. Default: 10.0, or what --source is.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N",
              help="Compilers at once. Default: ninja's.")
@click.option("--prefix", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Link the programs into DIR/bin. Default: the virtual environment, else ~/.local.")
@click.option("--sanitize", is_flag=True,
              help="Also build QEMU with ASan and UBSan, for tests; it is not linked.")
@click.option("--update", is_flag=True, help="Look for a newer source package first.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def build(
    source: Path | None, series: str | None, jobs: int | None, prefix: Path | None, sanitize: bool,
    update: bool, as_json: bool,
) -> None:
    """Build QEMU with the nitro-enclave machine, and the vsock backend.

    What is built already is found again at once; a change of nitroctl's C sources rebuilds only these.
    """
    from nitroctl import progress
    from nitroctl.build import BuildOptions, build_backend, build_qemu, link_programs
    from nitroctl.config import default_prefix

    progress.set_quiet(as_json)
    options = BuildOptions(source=source, series=series, jobs=jobs, update=update)
    manifest = build_qemu(options)
    backend = build_backend(jobs=jobs)
    sanitized = None
    if sanitize:
        sanitized = build_qemu(BuildOptions(source=source, series=series, jobs=jobs, sanitize=True))
    links = link_programs([manifest.qemu, backend], (prefix or default_prefix()).absolute())
    if as_json:
        import json

        answer = manifest.to_json()
        answer["vsock"] = str(backend)
        answer["links"] = [str(link) for link, _, _ in links]
        if sanitized:
            answer["sanitized"] = sanitized.to_json()
        click.echo(json.dumps(answer, indent=2, sort_keys=True))
        return
    click.echo(f"QEMU {manifest.version} from {manifest.source}")
    for link, program, changed in links:
        click.echo(f"{'linked' if changed else 'up to date:'} {link} -> {program}")
    if sanitized:
        click.echo(f"with sanitizers: {sanitized.qemu}")
