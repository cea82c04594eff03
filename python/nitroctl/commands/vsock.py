# SPDX-License-Identifier: MIT
"""`nitroctl vsock`: connect to a port of an enclave, serve one of its parent, or look at all that passes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nitroctl.base import shown
from nitroctl.base.errors import EnclaveError, NitroError, UsageError
from nitroctl.commands import PATH, enclave_names
from nitroctl.vsock import pipe, sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

STDIN, STDOUT = 0, 1


@click.group()
def vsock() -> None:
    """Connect to an enclave's port or serve a port of its parent, like nc; dump vsock packets."""


@vsock.command()
@click.argument("name", shell_complete=enclave_names)
@click.argument("port", type=int)
@click.option("-w", "--timeout", type=click.FloatRange(0), metavar="SECONDS",
              default=sockets.LISTEN_SECONDS, show_default=True,
              help="How long to wait for the application to listen, and to accept; 0: one try.")  # fmt: skip
def connect(name: str, port: int, timeout: float) -> None:
    """Connect standard input and output to PORT of the enclave NAME (or its ID or CID).

    An enclave that has booted may not listen yet, so a refused connection is tried again. The end of standard
    input is passed on; what the enclave still has to say is printed. Exit status: 0 when the connection has
    been closed, 1 if it was refused or reset.
    """
    from nitroctl.enclaves import records

    found = records.find(name, running=True)

    def refused(_: sockets.PortRefused) -> None:
        records.check_runs(found)

    try:
        if timeout:
            connection = sockets.connect_soon(found.uds, port, timeout=timeout, refused=refused)
        else:
            connection = sockets.connect(found.uds, port)
    except sockets.PortRefused as e:
        hint = f"what the application has to say: nitroctl console {found.name}"
        raise EnclaveError(f"nobody listens on port {port} of enclave {name}", hint=hint, record=found) from e
    with connection, pipe.wakeup() as wake:
        pipe.join(connection, STDIN, STDOUT, wake=wake)


@vsock.command()
@click.argument("name", shell_complete=enclave_names)
@click.argument("port", type=int)
@click.option("-k", "--keep", is_flag=True, help="Keep serving, one connection after the other.")
def listen(name: str, port: int, keep: bool) -> None:
    """Join the next connection to the parent's PORT from the enclave NAME (or its ID or CID) to standard
    input and output.

    Exit status: 0 when it has been closed, 1 if it was reset or the enclave ended before it came.
    """
    from nitroctl.enclaves import records

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


@vsock.command()
@click.argument("name", shell_complete=enclave_names)
@click.option("-w", "--write", "to", type=PATH, metavar="FILE",
              help="Write a pcap file for Wireshark and tshark; - is standard output.")  # fmt: skip
@click.option("--snaplen", type=click.IntRange(0, 65536), default=65536, metavar="BYTES",
              help="Bytes of data to keep of each packet; 0: none.  [default: all]")  # fmt: skip
@click.option("--limit", default="1G", metavar="SIZE", show_default=True, help="Stop at this size.")
def dump(name: str, to: Path | None, snaplen: int, limit: str) -> None:
    """Print the packets of the enclave NAME's vsock, a line for each, or write them as pcap (LINKTYPE_VSOCK).

    Ends with the enclave, with Ctrl-C, or at the limit. How many there were is said on standard error; if we
    are too slow, some are left out, and counted. A file holds what was said: it is readable for you alone.
    """
    from nitroctl.base.memory import MIB, parse_memory
    from nitroctl.enclaves import capture, records

    sink = _Sink(to)
    with contextlib.closing(sink), pipe.wakeup() as wake, _stopping():
        found = records.find(name, running=True)
        limit_mib = parse_memory(limit)
        reading = capture.Pipe(found, snaplen=snaplen, limit_mib=limit_mib)
        with contextlib.closing(reading):
            counts: dict[str, int] | None = None
            while True:
                ready = select.select([reading.fd, *([wake] if counts is None else [])], [], [])[0]
                if reading.fd in ready:
                    data = os.read(reading.fd, 1 << 18)
                    if not data:
                        break
                    sink.take(data)
                elif counts is None:
                    counts = reading.stop()
        if counts is None:
            full = limit_mib * MIB - sink.bytes < capture.RECORD_MAX
            shown.say(f"{f'{limit} are reached' if full else 'the enclave has ended'}; {sink.bytes} bytes")
        else:
            dropped = f", {counts['dropped']} were left out" if counts.get("dropped") else ""
            shown.say(f"{counts.get('packets', 0)} packets, {sink.bytes} bytes{dropped}")


class _Sink:
    """Where a capture goes."""

    def __init__(self, to: Path | None) -> None:
        from nitroctl.enclaves import capture
        from nitroctl.vsock.packets import Lines

        self.bytes = 0
        self._lines = Lines() if to is None else None
        self._fd = STDOUT
        if to is not None and os.fspath(to) != "-":
            self._fd = capture.open_file(to)
        elif to is not None and os.isatty(STDOUT):
            raise UsageError(
                "a capture would do the terminal no good", hint="-w - is for a pipe: | tshark -r -"
            )

    def take(self, data: bytes) -> None:
        self.bytes += len(data)
        if self._lines:
            for line in self._lines.feed(data):
                shown.echo(line)
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError:
            raise
        except OSError as e:
            raise NitroError(f"cannot write the capture: {e.strerror}") from e

    def close(self) -> None:
        if self._fd != STDOUT:
            os.close(self._fd)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """A signal only wakes: what has been read is written before the end. A second one ends as ever."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {int(number): signal.getsignal(number) for number in numbers}

    def once(number: int, _: object) -> None:
        signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, once)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


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
