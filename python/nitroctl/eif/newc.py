# SPDX-License-Identifier: MIT
"""Reads a cpio archive ("newc", the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)
entry by entry from a stream: ramdisks, and the payload of an RPM. `cpio` and `linuxkit` write such archives.

The input is not trusted: names and their number are limited, and no size in a header makes this module
allocate.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nitroctl.eif.extract import read_section
from nitroctl.eif.format import Section
from nitroctl.eif.measure import CHUNK
from nitroctl.eif.unpack import Damaged, unpacked_any

NAMES_MAX = 500_000
NAME_BYTES_MAX = 4096  # PATH_MAX
_HEADER = 110
_TRAILER = b"TRAILER!!!"


class NotReadable(Exception):
    """The archive cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one entry, with its name exactly as in the archive."""

    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    size: int
    file_system: tuple[int, int]  # the device on which the file was
    device: tuple[int, int]  # of a device node


def read(stream: BinaryIO) -> Iterator[tuple[Header, Iterator[bytes]]]:
    """The entries up to the trailer, each with its content in pieces. Read the content before asking for the
    next entry; what has not been read by then is skipped. Raises NotReadable."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        try:
            data = stream.read(size)
        except Damaged as e:
            raise NotReadable(f"damaged: {e}") from None
        if len(data) < size:
            raise NotReadable("the archive ends within an entry")
        at += size
        return data

    def content(size: int) -> Iterator[bytes]:
        for begin in range(0, size, CHUNK):
            yield take(min(CHUNK, size - begin))

    for _ in range(NAMES_MAX):
        text = take(_HEADER)
        if text[:6] not in (b"070701", b"070702"):
            raise NotReadable("not a cpio archive of the kind newc")
        try:
            # Not int(), for which signs, blanks and underscores are of a number as well.
            fields = struct.unpack(">13I", bytes.fromhex(text[6:].decode("ascii")))
        except (ValueError, struct.error):
            raise NotReadable("an entry's header has a field that is not a hexadecimal number") from None
        ino, mode, uid, gid, links, mtime, size, *numbers, name_size, _ = fields
        if not 1 <= name_size <= NAME_BYTES_MAX:
            raise NotReadable(f"a name of {name_size} bytes; it must have 1 to {NAME_BYTES_MAX}")
        name = take(name_size)[:-1]
        take(-at % 4)
        if name == _TRAILER:
            return
        major, minor, rmajor, rminor = numbers
        pieces = content(size)
        yield Header(name, ino, mode, uid, gid, links, mtime, size, (major, minor), (rmajor, rminor)), pieces
        for _ in pieces:
            pass
        take(-at % 4)
    raise NotReadable(f"more than {NAMES_MAX} names")


def in_section(fd: int, section: Section, path: Path) -> Iterator[tuple[Header, Iterator[bytes]]]:
    """Like `read`, for a ramdisk in an EIF, with any compression except lzo."""
    return read(unpacked_any(_Pieces(read_section(fd, section, path))))


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file object, for readers of the standard library."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or memoryview(next(self._pieces, b""))
        n = min(len(buffer), len(self._left))
        buffer[:n] = self._left[:n]
        self._left = self._left[n:]
        return n
