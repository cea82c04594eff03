# SPDX-License-Identifier: MIT
"""`nitroctl which`: print where something that nitroctl made is, for scripts."""

from __future__ import annotations

import click

from nitroctl.base import shown
from nitroctl.base.errors import NitroError

WHAT = ("qemu", "plugin", "vsock", "preload", "kernel", "prebuilt", "init")


@click.command()
@click.argument("what", type=click.Choice(WHAT))
@click.option("--sanitize", is_flag=True, help="The QEMU built with ASan and UBSan.")
def which(what: str, sanitize: bool) -> None:
    """Print the path of the QEMU that `nitroctl run` takes, the plugin's QEMU, the vsock backend, the library
    of `nitroctl parent`, a guest kernel or the guests' init."""
    if sanitize and what != "qemu":
        raise click.UsageError(f"there is no sanitized {what}")
    if what == "qemu" and not sanitize:
        from nitroctl.toolchain import plugin

        path = plugin.choose()
    elif what in ("qemu", "vsock"):
        from nitroctl.toolchain import tree

        path = tree.locate(what, sanitize=sanitize)
    elif what == "preload":
        from nitroctl.toolchain import tree

        path = tree.preload()
    elif what == "plugin":
        from nitroctl.toolchain import plugin

        path = plugin.locate()
    else:
        from nitroctl.toolchain import guest

        path = guest.locate(what)
    if not path.exists():
        raise NitroError(f"{path} is not there any more", hint="build it again: nitroctl build")
    shown.bare(path)
