# SPDX-License-Identifier: MIT
"""LZ4 decompression for kernels and ramdisks: Linux uses the lz4 program's legacy frame with blocks of 8 MiB
(lz4_Frame_format.md, lz4_Block_format.md). The newer frame, with another magic number, is not read. Slower
than a library (seconds for a kernel), but enough to look into a kernel.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

MAGIC = b"\x02\x21\x4c\x18"
BLOCK = 8 << 20
_PACKED_MAX = BLOCK + BLOCK // 255 + 16  # of a block that cannot be compressed


class Invalid(OSError):
    """The data are not valid LZ4."""


def blocks(packed: BinaryIO) -> Iterator[bytes]:
    """What the frame's blocks hold; raises Invalid."""
    if packed.read(4) != MAGIC:
        raise Invalid("not a legacy frame of LZ4")
    while word := packed.read(4):
        size = int.from_bytes(word, "little")
        if len(word) < 4 or not 0 < size <= _PACKED_MAX:
            raise Invalid("LZ4: a block of a wrong size")
        data = packed.read(size)
        if len(data) < size:
            raise Invalid("LZ4: a block that is cut short")
        try:
            yield bytes(_block(data))
        except IndexError:
            raise Invalid("LZ4: a sequence that is cut short") from None


def _length(length: int, data: bytes, at: int) -> tuple[int, int]:
    """One that begins with these four bits and, if they are full, goes on in bytes; and what is behind it."""
    if length == 15:
        more = 255
        while more == 255:
            more = data[at]
            at += 1
            length += more
    return length, at


def _block(data: bytes) -> bytearray:
    """IndexError where it ends too early."""
    out = bytearray()
    at, end = 0, len(data)
    while True:
        token = data[at]
        at += 1
        literals, at = _length(token >> 4, data, at)
        if at + literals > end or len(out) + literals > BLOCK:
            raise Invalid("LZ4: more literals than there are")
        out += data[at : at + literals]
        at += literals
        if at == end:
            return out
        offset = data[at] | data[at + 1] << 8
        at += 2
        length, at = _length(token & 15, data, at)
        length += 4
        begin = len(out) - offset
        if not offset or begin < 0 or len(out) + length > BLOCK:
            raise Invalid("LZ4: an impossible match")
        if length <= offset:
            out += out[begin : begin + length]
        else:
            out += (out[begin:] * (length // offset + 1))[:length]


class Reader(io.RawIOBase):
    """The plain bytes, as a file."""

    def __init__(self, packed: BinaryIO) -> None:
        self._blocks = blocks(packed)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        data = self._rest[: len(buffer)]
        buffer[: len(data)] = data
        self._rest = self._rest[len(data) :]
        return len(data)
