# SPDX-License-Identifier: MIT
"""The growing files of an enclave: written with a bound, read, and followed as they grow.

Bytes in, bytes out; what they mean is `console`'s business. A log has at most LOG_MAX bytes: when NAME.log
has half of that it becomes NAME.0.log, in the place of the older half, and a new file begins.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nitroctl.base import shown

CONSOLE = "console"
SUPERVISOR = "supervisor"
EVENTS = "events"  # a line of JSON for each
NSM = "nsm"  # the same for its requests

# What a guest that prints for ever may cost: some hundred thousand lines of it stay.
LOG_MAX = 64 << 20
EVENTS_MAX = 4 << 20

_PIECE = 1 << 16

# inotify(7)
IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800

_libc = ctypes.CDLL(None, use_errno=True)


def paths(home: Path, name: str) -> tuple[Path, Path]:
    """The older half and the newer one; either may be absent."""
    return home / f"{name}.0.log", home / f"{name}.log"


class LogSink:
    """Appends to a log. A disk that is full must not end an enclave: what does not fit is lost, with one
    warning, and a line in the log once there is room again."""

    def __init__(self, home: Path, name: str, *, limit: int = LOG_MAX) -> None:
        self._older, self._path = paths(home, name)
        self._half = limit // 2
        self._fd = -1
        self._size = 0
        self._lost = 0

    @classmethod
    def at(cls, path: Path) -> LogSink:
        """A log in a file of the user's; its older half is beside it, with .0 added."""
        sink = cls(path.parent, path.name)
        sink._older, sink._path = path.with_name(f"{path.name}.0"), path
        return sink

    async def write(self, data: bytes) -> None:
        self.append(data)

    def append(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._open()
            if self._lost:
                self._put(b"\n[nitroctl: %d bytes were lost]\n" % self._lost)
                self._lost = 0
            self._put(data)
        except OSError as e:
            if not self._lost:
                shown.say(f"warning: {self._path}: {e.strerror}; the log will have a gap")
            self._lost += len(data)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _put(self, data: bytes) -> None:
        if self._size >= self._half:
            with contextlib.suppress(FileNotFoundError):  # somebody has moved it away
                os.replace(self._path, self._older)
            os.close(self._fd)
            self._fd = -1
            self._open()
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            self._size += count
            view = view[count:]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(home: Path, name: str) -> Iterator[bytes]:
    """All that the log has now, in pieces."""
    return follow(home, name, None)


def size(home: Path, name: str) -> int:
    """How many bytes the log has now."""
    found = 0
    for path in paths(home, name):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def read_tail(home: Path, name: str, size: int) -> bytes:
    """The last `size` bytes of the log, fewer if it is shorter."""
    found = b""
    for path in reversed(paths(home, name)):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - (size - len(found))))
            found = file.read(size - len(found)) + found
    return found


class _Reader:
    """Reads both halves, and goes on where it was when the newer one has become the older one."""

    def __init__(self, home: Path, name: str) -> None:
        self._older, self._path = paths(home, name)
        self._fd = -1

    def pieces(self) -> Iterator[bytes]:
        if self._fd < 0:
            self._fd = self._open_first()
        while self._fd >= 0:
            # In this order: only a file that was the older half before it was read has been read whole.
            older = self._is_older()
            while data := os.read(self._fd, _PIECE):
                yield data
            if not older:
                return
            try:
                newer = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # it became the older half meanwhile; a newer one comes at once
                return
            os.close(self._fd)
            self._fd = newer

    def _open_first(self) -> int:
        for path in (self._older, self._path):
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return -1

    def _is_older(self) -> bool:
        """Whether the file that is read has a newer one behind it."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def follow(home: Path, name: str, supervisor: int | None, *, timeout: float | None = None) -> Iterator[bytes]:
    """The log from its beginning, then what is added, until the process behind the pidfd `supervisor` has
    ended (None: it has). Waits for events (inotify(7)), never polls. Raises TimeoutError if that process
    still runs after `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    reader = _Reader(home, name)
    try:
        if supervisor is None:
            yield from reader.pieces()
            return
        with watch(home) as wait:
            ended = False
            while not ended:
                # What is written after this is an event for the next wait.
                yield from reader.pieces()
                ended = wait(supervisor, None if deadline is None else deadline - time.monotonic())
            yield from reader.pieces()
    finally:
        reader.close()


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[Callable[[int, float | None], bool]]:
    """Gives a function that waits until a file in `folder` has changed since the last call, or the process
    behind a pidfd has ended; True for the latter, and for a folder that is gone. It raises TimeoutError after
    so many seconds, if any."""
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify")
    try:
        mask = IN_MODIFY | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF
        if _libc.inotify_add_watch(fd, os.fsencode(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(folder))

        def wait(pidfd: int, timeout: float | None = None) -> bool:
            ready, _, _ = select.select([fd, pidfd], [], [], None if timeout is None else max(0.0, timeout))
            if not ready:
                raise TimeoutError
            gone = False
            if fd in ready:
                events = os.read(fd, 1 << 16)
                # Only events on the folder itself have no name, and begin with these bits.
                while events:
                    bits = int.from_bytes(events[4:8], sys.byteorder)
                    gone = gone or bool(bits & (IN_DELETE_SELF | IN_MOVE_SELF))
                    events = events[16 + int.from_bytes(events[12:16], sys.byteorder) :]
            return gone or pidfd in ready

        yield wait
    finally:
        os.close(fd)
