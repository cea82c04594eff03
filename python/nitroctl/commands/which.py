# SPDX-License-Identifier: MIT
"""`nitroctl which`: print where something that nitroctl made is, for scripts."""

from __future__ import annotations

import click

from nitroctl import shown
from nitroctl.errors import NitroError

WHAT = ("qemu", "plugin", "vsock", "preload", "kernel", "prebuilt", "init")


@click.command()
@click.argument("what", type=click.Choice(WHAT))
@click.option("--sanitize", is_flag=True, help="The QEMU built with ASan and UBSan.")
def which(what: str, sanitize: bool) -> None:
    """Print the path of QEMU (the plugin's, if no other was built), the plugin's QEMU, the vsock backend, the
    library of `nitroctl parent`, a guest kernel or the guests' init."""
    if sanitize and what != "qemu":
        raise click.UsageError(f"there is no sanitized {what}")
    if what == "qemu" and not sanitize:
        from nitroctl import plugin

        path = plugin.any_qemu()
    elif what in ("qemu", "vsock"):
        from nitroctl import build

        path = build.locate(what, sanitize=sanitize)
    elif what == "preload":
        from nitroctl import build

        path = build.preload()
    elif what == "plugin":
        from nitroctl import plugin

        path = plugin.locate()
    else:
        from nitroctl import guest

        path = guest.locate(what)
    if not path.exists():
        raise NitroError(f"{path} is not there any more", hint="build it again: nitroctl build")
    shown.bare(path)
