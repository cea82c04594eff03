# SPDX-License-Identifier: MIT
"""`nitroctl parent`: run a parent program that was written for AF_VSOCK."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from nitroctl.base.errors import NitroError
from nitroctl.commands import PATH


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--library", type=PATH, help="The vsock-preload.so to use.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def parent(library: Path | None, program: str, arguments: tuple[str, ...]) -> NoReturn:
    """Run PROGRAM, a parent program written for AF_VSOCK, unchanged.

    It connects to the context IDs of this user's enclaves and serves ports of CID 3 or VMADDR_CID_ANY for
    all of them, also where the host has no vsock. It takes the place of this command: signals and the exit
    status are its own. Programs that are statically linked, set-user-ID, or written in Go are refused.
    """
    from nitroctl.toolchain import tree
    from nitroctl.vsock import parent as parent_module
    from nitroctl.vsock import sockets

    library = library.absolute() if library else tree.preload()
    argv = [program, *arguments]
    file = parent_module.check(argv, library)
    environment = parent_module.environment(library, os.environ)
    sockets.sweep_shared()
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and what is ignored stays so
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        os.execve(file, argv, environment)
    except OSError as e:
        raise NitroError(f"cannot run {file}: {e.strerror}") from e
