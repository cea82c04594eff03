# SPDX-License-Identifier: MIT
"""`nitroctl guest`: the kernels and programs for enclaves that we make."""

from __future__ import annotations

import json
import os

import click

from nitroctl.base import progress, shown


@click.group()
def guest() -> None:
    """Fetch or build kernels and the init for enclaves."""


@guest.command()
@click.option("--prebuilt", is_flag=True, help="Debian's kernel for clouds: no compiling, but needs acpi=on.")
@click.option("--update", is_flag=True, help="Look for a newer package than the one that is here.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Compilers at once. Default: one per CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print what it was made from, as JSON.")
def kernel(prebuilt: bool, update: bool, jobs: int | None, as_json: bool) -> None:
    """Build the guest kernel, or fetch a prebuilt one; print its path.

    The kernel is Debian's source with a configuration of ours: small, without ACPI and PCI, virtio-mmio from
    the command line as on AWS. Made once, then found again.
    """
    from nitroctl.toolchain import guest as guests

    if as_json:
        progress.set_quiet(True)
    about: dict[str, object] = {}
    if prebuilt:
        found = guests.fetch_prebuilt(update=update)
        path = found.bzimage
        about = {"modules_dir": os.fspath(found.modules_dir), "acpi": True}
    else:
        path = guests.build_kernel(jobs=jobs, update=update)
        about = {"config": os.fspath(path.parent / "config"), "acpi": False}
    if as_json:
        about = {"kernel": os.fspath(path), **about, **guests.manifest_of(path)}
        shown.data(json.dumps(about, indent=2))
    else:
        shown.bare(path)


@guest.command()
@click.option("--json", "as_json", is_flag=True, help="Print the paths of all programs, as JSON.")
def init(as_json: bool) -> None:
    """Compile the init and the test applications; print the init's path."""
    from nitroctl.toolchain import guest as guests

    if as_json:
        progress.set_quiet(True)
    folder = guests.build_init()
    if as_json:
        shown.data(json.dumps({name: os.fspath(folder / name) for name in guests.PROGRAMS}, indent=2))
    else:
        shown.bare(folder / "init")
