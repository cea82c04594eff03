# SPDX-License-Identifier: MIT
"""`nitroctl parent`: run a parent program that was written for AF_VSOCK."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from nitroctl.base import proc
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.commands import PATH


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--library", type=PATH, help="vsock-preload.so to use.")
@click.option(
    "--imds",
    is_flag=True,
    help="Run a stand-in for the EC2 instance metadata service, whose credentials the local KMS accepts.",
)
@click.option("--role", metavar="ARN", help="With --imds: the parent's role, as for `nitroctl run --role`.")
@click.option(
    "--instance-id",
    metavar="ID",
    default="i-0000000000000000",
    show_default=True,
    help="With --imds: the parent's id, as for `nitroctl run --instance-id`.",
)
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def parent(
    library: Path | None,
    imds: bool,
    role: str | None,
    instance_id: str,
    program: str,
    arguments: tuple[str, ...],
) -> NoReturn:
    """Run PROGRAM, a parent program written for AF_VSOCK, unchanged.

    It connects to the context IDs of this user's enclaves and serves ports of CID 3 or VMADDR_CID_ANY for
    all of them, also where the host has no vsock. It takes the place of this command: signals and the exit
    status are its own. Programs that are statically linked, set-user-ID, or written in Go are refused.
    """
    from nitroctl.toolchain import places
    from nitroctl.vsock import parent as parent_module
    from nitroctl.vsock import sockets

    library = library.absolute() if library else places.preload()
    argv = [program, *arguments]
    file = parent_module.check(argv, library)
    environment = parent_module.environment(library, os.environ)
    sockets.sweep_shared()
    if imds:
        environment |= _metadata(role, instance_id)
    elif role:
        raise UsageError("--role is what --imds tells")
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and what is ignored stays so
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        os.execve(file, argv, environment)
    except OSError as e:
        raise NitroError(f"cannot run {file}: {e.strerror}") from e


def _metadata(role: str | None, instance_id: str) -> dict[str, str]:
    """Where the metadata service is from now on: for the library that takes the place of its address, and for
    SDKs in programs that the library cannot stand before."""
    from nitroctl.kms import imds, local

    region = local.default_region()
    account = role.split(":")[4] if role and role.count(":") >= 5 else local.DEFAULT_ACCOUNT
    instance = imds.Instance(role, instance_id, region, account)
    ports = imds.beside(instance)
    return {
        imds.ENDPOINT: f"http://127.0.0.1:{ports[0]}",
        proc.PARENT_METADATA: str(ports[1]),
        "AWS_REGION": region,
    }
