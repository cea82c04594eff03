# SPDX-License-Identifier: MIT
"""Connects standard input and output to a connection, like nc: bytes are unchanged, and each direction ends
on its own. The caller makes the connection.

Each direction has a thread that uses blocking calls. So a slow reader does not stop the other direction. And
no descriptor is made non-blocking: that flag is shared with the shell and would disturb other users of the
terminal.
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
    """A descriptor that becomes readable at a signal with a Python handler. Without it, a signal just before
    a wait would be noticed only after the wait. For the main thread."""
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
    """Copy `source` to the connection, and the connection to `sink`, until both are at their end or the
    connection is closed. The end of `source` ends only that direction. Everything that is read from `source`
    is sent, so another connection can follow. `wake`: the descriptor of `wakeup`, if signals shall end it.

    Raises EnclaveError for a reset, NitroError if `source` cannot be read or `sink` cannot be written, and
    BrokenPipeError if nobody reads from `sink`."""
    stop, stopper = os.pipe()
    failures: list[NitroError] = []
    sender = threading.Thread(target=_send, args=(connection, source, stop, failures), daemon=True)
    sender.start()
    try:
        _receive(connection, sink, wake)
        # The peer has closed one half and may still want our data. When both are closed, the kernel reports
        # it.
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
        pass  # a signal, whose handler did not raise


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
            # A hang-up of the stop pipe means stop; a hang-up of the source means its end.
            if stop in dict(ready.poll()):
                return
            data = os.read(source, CHUNK)
            if not data:
                break
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except ConnectionError:
        pass  # the other thread reports how the connection ended
    except OSError as e:
        failures.append(NitroError(f"cannot read what to send: {e.strerror}"))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
