# SPDX-License-Identifier: MIT
"""Standard input and output joined to a connection, as nc does it: bytes as they are, each direction ending
by itself. How the connection came about is the caller's business.

Two threads that block, one for each direction: a reader who takes his time stops neither the other direction
nor, by flags that descriptors share with a shell, anybody else's terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator

from nitroctl.base.errors import EnclaveError, NitroError

CHUNK = 1 << 18


@contextlib.contextmanager
def wakeup() -> Iterator[int]:
    """A descriptor that a signal with a Python handler makes readable: one right before a wait would
    otherwise be noticed after it. For the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def join(connection: socket.socket, source: int, sink: int, *, wake: int | None = None) -> None:
    """Carry `source` to the connection and the connection to `sink` until both are at their end, or the
    connection is closed. The end of `source` ends that direction alone. Reads nothing of `source` that it
    does not send, so another connection can follow. Raises EnclaveError for a reset, NitroError where
    `source` cannot be read or `sink` not be written, BrokenPipeError where nobody reads what is written.
    `wake`: of `wakeup`, if signals end it."""
    stop, stopper = os.pipe()
    failures: list[NitroError] = []
    sender = threading.Thread(target=_send, args=(connection, source, stop, failures), daemon=True)
    sender.start()
    try:
        _receive(connection, sink, wake)
        # Half closed: what we have to say may still be wanted. With both halves closed the kernel says so.
        _wait(connection, 0, wake)
    finally:
        os.close(stopper)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sender.join()
        os.close(stop)
    if failures:
        raise failures[0]


def _wait(connection: socket.socket, events: int, wake: int | None) -> None:
    ready = select.poll()
    ready.register(connection, events)
    if wake is not None:
        ready.register(wake, select.POLLIN)
    while connection.fileno() not in dict(ready.poll()):
        pass  # a signal, whose handler has run and not raised


def _receive(connection: socket.socket, sink: int, wake: int | None) -> None:
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    while True:
        _wait(connection, select.POLLIN, wake)
        try:
            count = connection.recv_into(buffer)
        except ConnectionError as e:
            raise EnclaveError("the enclave reset the connection") from e
        if not count:
            return
        done = 0
        while done < count:
            try:
                done += os.write(sink, view[done:count])
            except BrokenPipeError:
                raise
            except OSError as e:
                raise NitroError(f"cannot write what the enclave sends: {e.strerror}") from e


def _send(connection: socket.socket, source: int, stop: int, failures: list[NitroError]) -> None:
    ready = select.poll()
    ready.register(source, select.POLLIN)
    ready.register(stop, select.POLLIN)
    try:
        while True:
            # A hang-up of the stop pipe means stop, one of the source its end.
            if stop in dict(ready.poll()):
                return
            data = os.read(source, CHUNK)
            if not data:
                break
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except ConnectionError:
        pass  # the other thread sees how it ended
    except OSError as e:
        failures.append(NitroError(f"cannot read what to send: {e.strerror}"))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
