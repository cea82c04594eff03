# SPDX-License-Identifier: MIT
"""`nitroctl guest`: the kernels and programs for enclaves that we make."""

from __future__ import annotations

from pathlib import Path

import click

from nitroctl.base import output, shown
from nitroctl.base.arch import Arch
from nitroctl.base.errors import UsageError
from nitroctl.commands import PATH, arch_option, json_option


@click.group()
def guest() -> None:
    """Build or fetch the kernels, the init and the tools that run inside enclaves."""


@guest.command()
@arch_option
@click.option(
    "--prebuilt",
    is_flag=True,
    help="Fetch Debian's cloud kernel instead; on x86_64 it needs acpi=on.",
)
@click.option("--update", is_flag=True, help="Look for a newer package than the one that is here.")
@click.option(
    "--config",
    type=PATH,
    metavar="FILE",
    help="File with kernel options to add or change, as in a .config. The kernel does not become the "
    "default: give its path to `eif build --kernel`.",
)
@click.option(
    "--vmlinux", is_flag=True, help="Print the path of vmlinux (the kernel with its symbols) instead."
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Parallel compile jobs. Default: one per CPU.")
@json_option("Print what it was made from, in JSON.")
def kernel(
    arch: Arch | None,
    prebuilt: bool,
    update: bool,
    config: Path | None,
    vmlinux: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Build the guest kernel, or fetch a prebuilt one; print its path.

    The kernel is Debian's source with a configuration of ours: small, without ACPI and PCI, virtio-mmio from
    the command line as on AWS (aarch64: from the device tree). Made once, then found again.
    """
    from nitroctl.toolchain import guest as guests
    from nitroctl.toolchain import kernel as kernels
    from nitroctl.toolchain import prebuilt as debians

    if prebuilt and (config or vmlinux):
        raise UsageError("--config and --vmlinux are for a kernel that is built here, not for --prebuilt")
    about: dict[str, object] = {}
    if prebuilt:
        found = debians.fetch(arch=arch, update=update)
        path = found.image
        about = {"modules_dir": found.modules_dir, "acpi": found.acpi}
    else:
        path = kernels.build(arch=arch, jobs=jobs, update=update, config=config, symbols=vmlinux)
        with_symbols = path.parent / "vmlinux"  # not where the package brings the kernel
        about = {"config": path.parent / "config", "acpi": False}
        about["vmlinux"] = with_symbols if with_symbols.is_file() else None
    if as_json:
        output.document({"kernel": path, **about, **guests.manifest_of(path)})
    else:
        shown.bare(path.parent / "vmlinux" if vmlinux else path)


@guest.command()
@arch_option
@json_option("Print the paths of all programs, in JSON.")
def init(arch: Arch | None, as_json: bool) -> None:
    """Compile the init and the test applications; print the init's path."""
    from nitroctl.toolchain import guest as guests

    folder = guests.build_init(arch)
    if as_json:
        output.document({"programs": {name: folder / name for name in guests.PROGRAMS}})
    else:
        shown.bare(folder / "init")


@guest.command()
@arch_option
@click.option("--update", is_flag=True, help="Look for a newer package than the one that is here.")
@json_option("Print the paths of both programs, in JSON.")
def tools(arch: Arch | None, update: bool, as_json: bool) -> None:
    """Make what `nitroctl run --tools` brings into a guest: our agent, and Debian's static busybox; print
    busybox's path.
    """
    from nitroctl.toolchain import busybox
    from nitroctl.toolchain import guest as guests

    folder = guests.build_init(arch)
    box = busybox.fetch(arch=arch, update=update)
    if as_json:
        output.document({"agent": folder / "tools", "busybox": box})
    else:
        shown.bare(box)
