# SPDX-License-Identifier: MIT
"""Packets of an enclave's vsock, captured into files and pipes while it runs. The backend writes them
(docs/vsock.md); here is how it is asked, by its supervisor for `run --pcap` and by others for as long as they
look on. A capture holds what the enclave says and hears: a file is its user's alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from nitroctl.base.errors import EnclaveError, NitroError, UsageError
from nitroctl.base.memory import MIB
from nitroctl.enclaves import remote
from nitroctl.enclaves.records import Record

SNAPLEN = 65536  # bytes of a packet's data: all that there can be
LIMIT_MIB = 1024
RECORD_MAX = 16 + 32 + 44 + SNAPLEN  # bytes of a packet in a capture
PIPE = 1 << 20  # bytes; what an ordinary user's pipe can have


def open_file(path: Path) -> int:
    """For writing, new or emptied, its user's alone. Raises NitroError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NitroError(
                f"{path} is no file", hint="`nitroctl vsock dump NAME -w -` writes a capture into a pipe"
            )
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
    except OSError as e:
        raise NitroError(f"cannot write {path}: {e.strerror}") from e
    return fd


def check(path: Path, hint: str | None = "`nitroctl vsock dump NAME -w -` writes into a pipe") -> None:
    """Whether it could be opened, before anything runs. Raises NitroError, `hint` where it is no file."""
    folder = path.parent
    if not folder.is_dir():
        raise NitroError(f"cannot write {path}: there is no folder {folder}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file", hint=hint)
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise NitroError(f"cannot write {path}: Permission denied")


# How a supervisor asks its own backend.
Ask = Callable[[dict[str, Any], list[int]], Awaitable[dict[str, Any]]]


async def begin(ask: Ask, path: Path, *, snaplen: int, limit_mib: int) -> None:
    """From here on all packets go there, until the enclave ends. Raises NitroError."""
    fd = open_file(path)
    try:
        await ask(_request(snaplen, limit_mib), [fd])
    finally:
        os.close(fd)


def ended(event: dict[str, Any]) -> str | None:
    """What a user should know of an event: that a capture has ended before its enclave."""
    if event.get("event") != "dump-ended" or event.get("why") in ("stopped", "the backend ends"):
        return None
    return f"a capture of packets has ended with {event.get('packets')} of them: {event.get('why')}"


def _request(snaplen: int, limit_mib: int) -> dict[str, Any]:
    return {"do": "dump", "snaplen": snaplen, "limit": limit_mib * MIB}


def _begin(record: Record, fd: int, snaplen: int, limit_mib: int) -> int:
    """Its number."""
    found = remote.ask(record, "vsock", fds=[fd], request=_request(snaplen, limit_mib))
    return int(found["dump"])


def _stop(record: Record, dump: int) -> dict[str, int]:
    """What it counted. Raises EnclaveError where it has ended before."""
    found: dict[str, int] = remote.ask(record, "vsock", request={"do": "dump-stop", "dump": dump})
    return found


@contextlib.contextmanager
def into_file(
    record: Record, path: Path, *, snaplen: int = SNAPLEN, limit_mib: int = LIMIT_MIB
) -> Iterator[dict[str, int]]:
    """A capture as long as the block lasts; what it gives is filled at the end: `packets`, `dropped`,
    `bytes`, or stays empty where the enclave or the limit has ended it before."""
    counts: dict[str, int] = {}
    fd = open_file(path)
    try:
        dump = _begin(record, fd, snaplen, limit_mib)
    finally:
        os.close(fd)
    try:
        yield counts
    finally:
        with contextlib.suppress(EnclaveError):
            counts |= _stop(record, dump)


class Pipe:
    """A capture that is read from `fd`, until it ends by itself, `stop` or `close`."""

    def __init__(self, record: Record, *, snaplen: int = SNAPLEN, limit_mib: int = LIMIT_MIB) -> None:
        self._record = record
        self.fd, writer = os.pipe()
        try:
            with contextlib.suppress(OSError):
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
            os.set_blocking(writer, False)
            self._dump = _begin(record, writer, snaplen, limit_mib)
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.close(writer)

    def stop(self) -> dict[str, int]:
        """No packet comes any more; those that are there can still be read. What it counted; nothing where it
        has ended before."""
        with contextlib.suppress(EnclaveError):
            return _stop(self._record, self._dump)
        return {}

    def close(self) -> None:
        os.close(self.fd)
