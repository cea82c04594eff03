# SPDX-License-Identifier: MIT
"""`nitroctl which`: print where something that nitroctl made is, for scripts."""

from __future__ import annotations

import click

from nitroctl.base import arch as arches
from nitroctl.base import shown
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError
from nitroctl.commands import arch_option

WHAT = ("qemu", "plugin", "vsock", "preload", "kernel", "prebuilt", "init")
# What there is for enclaves of each architecture; the others are programs of this host.
BY_ARCH = ("qemu", "plugin", "kernel", "prebuilt", "init")


@click.command()
@click.argument("what", type=click.Choice(WHAT))
@arch_option
@click.option("--sanitize", is_flag=True, help="Print the QEMU built with ASan and UBSan.")
def which(what: str, arch: Arch | None, sanitize: bool) -> None:
    """Print the path of the QEMU that `nitroctl run` takes, the plugin's QEMU, the vsock backend, the library
    of `nitroctl parent`, a guest kernel or the guests' init."""
    if sanitize and what != "qemu":
        raise click.UsageError(f"there is no sanitized {what}")
    if arch and what not in BY_ARCH:
        raise click.UsageError(f"{what} is for enclaves of any architecture")
    arch = arch or arches.default()
    if what == "qemu" and not sanitize:
        from nitroctl.toolchain import choice

        path = choice.choose(arch=arch)
    elif what in ("qemu", "vsock"):
        from nitroctl.toolchain import places

        path = places.locate(what, sanitize=sanitize, arch=arch)
    elif what == "preload":
        from nitroctl.toolchain import places

        path = places.preload()
    elif what == "plugin":
        from nitroctl.toolchain import plugin

        path = plugin.locate(arch)
    else:
        from nitroctl.toolchain import guest

        path = guest.locate(what, arch)
    if not path.exists():
        raise NitroError(f"{path} is not there any more", hint="build it again: nitroctl build")
    shown.bare(path)
