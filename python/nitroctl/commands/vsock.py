# SPDX-License-Identifier: MIT
"""`nitroctl vsock`: connect to a port of an enclave, or serve one of its parent, from a shell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from nitroctl.base.errors import EnclaveError
from nitroctl.commands import enclave_names

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from nitroctl.vsock import sockets

STDIN, STDOUT = 0, 1


@click.group()
def vsock() -> None:
    """Connect to a port of an enclave, or serve a port of its parent, like nc."""


@vsock.command()
@click.argument("name", shell_complete=enclave_names)
@click.argument("port", type=int)
@click.option("-w", "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="How long to wait for the enclave to accept.")  # fmt: skip
def connect(name: str, port: int, timeout: float | None) -> None:
    """Connect standard input and output to PORT of the enclave NAME (or its ID or CID).

    The end of standard input is passed on; what the enclave still has to say is printed. Exit status: 0 when
    the connection has been closed, 1 if it was refused or reset.
    """
    from nitroctl.enclaves import records
    from nitroctl.vsock import pipe, sockets

    found = records.find(name, running=True)
    try:
        connection = sockets.connect(found.uds, port, timeout=timeout)
    except sockets.PortRefused as e:
        hint = f"what the application has to say: nitroctl console {found.name}"
        raise EnclaveError(f"nobody listens on port {port} of enclave {name}", hint=hint, record=found) from e
    with connection, pipe.wakeup() as wake:
        pipe.join(connection, STDIN, STDOUT, wake=wake)


@vsock.command()
@click.argument("name", shell_complete=enclave_names)
@click.argument("port", type=int)
@click.option("-k", "--keep", is_flag=True, help="Serve one connection after the other.")
def listen(name: str, port: int, keep: bool) -> None:
    """Join the next connection to the parent's PORT from the enclave NAME (or its ID or CID) to standard
    input and output.

    Exit status: 0 when it has been closed, 1 if it was reset or the enclave ended before it came.
    """
    from nitroctl.enclaves import records
    from nitroctl.vsock import pipe, sockets

    found = records.find(name, running=True)
    signal.signal(signal.SIGTERM, _terminated)
    with contextlib.ExitStack() as stack:
        enclave = records.supervisor_fd(found)
        if enclave is None:
            raise EnclaveError(f"enclave {name} has just ended")
        stack.callback(os.close, enclave)
        with _signals_later():  # no socket file without somebody to remove it
            listener = stack.enter_context(sockets.listen(found.uds, port))
        wake = stack.enter_context(pipe.wakeup())
        while True:
            with _accept(listener, enclave, wake, name) as connection:
                if not keep:
                    listener.close()
                pipe.join(connection, STDIN, STDOUT, wake=wake)
            if not keep:
                return


def _terminated(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # by way of those who clean up


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _accept(listener: sockets.Listener, enclave: int, wake: int, name: str) -> socket.socket:
    connection = listener.socket.fileno()
    while connection not in (ready := select.select([connection, enclave, wake], [], [])[0]):
        if enclave in ready:
            raise EnclaveError(f"enclave {name} ended before it connected", hint=f"nitroctl inspect {name}")
    return listener.accept()
