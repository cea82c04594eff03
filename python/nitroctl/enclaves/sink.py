# SPDX-License-Identifier: MIT
"""Where a console's bytes go: what a sink has to do, and the one for descriptors such as standard output.

Files that others may have moved away meanwhile are `logs`' business.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Protocol

from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves.waiting import writable


class Sink(Protocol):
    async def write(self, data: bytes) -> None:
        """Take console bytes. While it waits no more are read, and the guest's console fills up."""


class FdSink:
    """Console bytes to a descriptor such as standard output, never blocking the loop.

    The file description may be shared with a shell or with other programs, so it is not made
    non-blocking: pipes and terminals are opened a second time, sockets take MSG_DONTWAIT, and a regular file
    never blocks.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own: int | None = None
        self._socket: socket.socket | None = None
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode) or os.isatty(fd):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            # Another user's terminal (su, sudo) may refuse; then writes may block.
            with contextlib.suppress(OSError):
                self._own = os.open(f"/proc/self/fd/{fd}", flags)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                if self._socket:
                    count = self._socket.send(view, socket.MSG_DONTWAIT)
                else:
                    count = os.write(self._fd if self._own is None else self._own, view)
            except BlockingIOError:
                await writable(self._socket or self._own or self._fd)
            except BrokenPipeError:
                raise  # nobody wants it any more
            except OSError as e:
                raise EnclaveError(f"cannot write the console: {e.strerror}") from e
            else:
                view = view[count:]

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        if self._own is not None:
            os.close(self._own)
