# SPDX-License-Identifier: MIT
"""Digests of open files, and files of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nitroctl.base.errors import NitroError

if TYPE_CHECKING:
    import hashlib

_BLOCK = 1 << 20


def digest(file: BinaryIO, name: str) -> hashlib._Hash:
    """What hashlib.file_digest is from Python 3.11 on: the digest of the rest of the file, streamed."""
    import hashlib

    found = hashlib.new(name)
    block = memoryview(bytearray(_BLOCK))
    while size := file.readinto(block):  # type: ignore[attr-defined]
        found.update(block[:size])
    return found


def read_at_most(path: Path, most: int, *, over: str, name: str = "") -> bytes:
    """A user's file, which `name` calls so in errors (default: its path). Raises NitroError if it cannot be
    read, and with the text `over` if it has more than `most` bytes."""
    try:
        with open(path, "rb") as f:
            data = f.read(most + 1)
    except OSError as e:
        raise NitroError(f"cannot read {name or path}: {e.strerror}") from e
    if len(data) > most:
        raise NitroError(over)
    return data
