# SPDX-License-Identifier: MIT
"""Digests of open files."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

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
