# SPDX-License-Identifier: MIT
"""Decompresses streams while they are read: gzip and zstd for images' layers, and the other formats of
ramdisks, kernels and packages.

Memory use is a buffer or two, and for zstd its window. ISA-L is used because it unpacks gzip two to three
times as fast as zlib, and an image's layers are unpacked twice.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from nitroctl.base.errors import NitroError
from nitroctl.eif import lz4
from nitroctl.eif.measure import CHUNK

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

# The largest window that the zstd program accepts by default.
_ZSTD_WINDOW = 1 << 27
_XZ_MEMORY = 256 << 20  # xz -9 takes 65 MiB to unpack, a kernel's 128 MiB


class Damaged(OSError):
    """The compressed stream is damaged."""


def unpacked(raw: io.RawIOBase, hash: Any = None) -> BinaryIO:
    """The uncompressed bytes of a stream that is gzip, zstd or uncompressed, which its first bytes tell. A
    compressed stream can only be seeked forwards. Reading raises Damaged, but a truncated zstd stream just
    ends. `hash` is fed with all uncompressed bytes that are read or skipped; with it an uncompressed stream,
    too, can only be seeked forwards."""
    packed = io.BufferedReader(raw, CHUNK)
    head = packed.peek(4)[:4]
    if head.startswith(GZIP_MAGIC):
        from isal import igzip

        stream: Any = igzip.IGzipFile(fileobj=packed, mode="rb")  # type: ignore[no-untyped-call]
    elif head == ZSTD_MAGIC:
        import zstandard

        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        stream = unpacker.stream_reader(packed, read_across_frames=True, read_size=CHUNK)
    elif hash is None:
        return packed
    else:
        stream = packed
    return io.BufferedReader(_Forward(stream, hash), CHUNK)


def unpacked_any(raw: io.RawIOBase) -> BinaryIO:
    """Like `unpacked`, and also for xz, lzma and bzip2 (the first stream of each) and LZ4's legacy frame."""
    packed = io.BufferedReader(raw, CHUNK)
    head = packed.peek(6)[:6]
    if head.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        import lzma

        return io.BufferedReader(_OneStream(packed, lzma.LZMADecompressor(memlimit=_XZ_MEMORY)), CHUNK)
    if head.startswith(b"BZh"):
        import bz2

        return io.BufferedReader(_OneStream(packed, bz2.BZ2Decompressor()), CHUNK)
    if head.startswith(lz4.MAGIC):
        return io.BufferedReader(_Forward(lz4.Reader(packed), None), CHUNK)
    return unpacked(packed)  # type: ignore[arg-type]  # which reads it as it reads a raw one


class _OneStream(io.RawIOBase):
    """One stream of a decompressor of the standard library; it never returns more than was asked for."""

    def __init__(self, packed: BinaryIO, decompressor: Any) -> None:
        self._packed = packed
        self._decompressor = decompressor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decompressor.eof:
            packed = self._packed.read(CHUNK) if self._decompressor.needs_input else b""
            if self._decompressor.needs_input and not packed:
                raise Damaged("it ends within the stream")
            try:
                data = self._decompressor.decompress(packed, len(buffer))
            except Exception as e:  # lzma.LZMAError, OSError, MemoryError of the limit
                raise Damaged(str(e)) from None
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


class _Forward(io.RawIOBase):
    """A decompressing stream that can be seeked forwards. Feeds a hash, if there is one."""

    def __init__(self, stream: Any, hash: Any) -> None:
        self._stream = stream
        self._hash = hash
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            n = int(self._stream.readinto(buffer))
        except (NitroError, MemoryError):
            raise
        except Exception as e:  # each library has errors of its own
            raise Damaged(str(e)) from None
        if self._hash is not None:
            self._hash.update(memoryview(buffer)[:n])
        self._at += n
        return n

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset + (self._at if whence == os.SEEK_CUR else 0)
        if whence == os.SEEK_END or target < self._at:
            raise Damaged("the stream cannot be seeked backwards")
        skip = memoryview(bytearray(min(CHUNK, target - self._at)))
        while self._at < target and self.readinto(skip[: target - self._at]):
            pass
        return self._at
