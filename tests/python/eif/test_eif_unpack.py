# SPDX-License-Identifier: MIT
"""Packed streams: the same bytes, and the same refusals, as from Python's own gzip and the zstd library."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from typing import Any, BinaryIO

import pytest
import zstandard

from nitroctl.base.errors import EifError
from nitroctl.eif.unpack import Damaged, unpacked, unpacked_any

PLAIN = b"".join(b"line %d of a text that repeats itself\n" % (i % 700) for i in range(9000))
PLAIN += random.Random(0).randbytes(3000)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip -1": lambda data: gzip.compress(data, 1),
    "stored": lambda data: gzip.compress(data, 0),
    "two members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "zeros after": lambda data: gzip.compress(data) + bytes(512),
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd, no size": zstandard.ZstdCompressor(write_content_size=False).compress,
    "two frames": lambda data: b"".join(map(zstandard.ZstdCompressor().compress, (data[:1000], data[1000:]))),
    "neither": bytes,
}


class Source(io.RawIOBase):
    """Bytes, and then their end or an error."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self._data = data
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = min(len(buffer), len(self._data))
        if not n and self._error:
            raise self._error
        buffer[:n], self._data = self._data[:n], self._data[n:]
        return n


def opened(packed: bytes) -> BinaryIO:
    return unpacked(Source(packed))


@pytest.mark.parametrize("packer", PACKERS)
def test_plain_bytes(packer: str) -> None:
    packed = PACKERS[packer](PLAIN)
    assert opened(packed).read() == PLAIN
    if packer == "neither":
        return  # as its source can
    stream = opened(packed)
    assert stream.read(10) == PLAIN[:10]
    stream.seek(200_000)
    assert stream.read(10) == PLAIN[200_000:200_010]


def test_streams_that_end_early() -> None:
    """gzip says so; a zstd stream just ends, and who reads it misses something."""
    for packer in ("gzip", "zstd"):
        packed = PACKERS[packer](PLAIN)
        for end in (len(packed) - 1, len(packed) // 2, 20):
            if packer == "gzip":
                with pytest.raises(Damaged):
                    opened(packed[:end]).read()
            else:
                assert len(opened(packed[:end]).read()) < len(PLAIN)


def test_streams_go_forwards() -> None:
    for packer in ("gzip", "zstd"):
        stream = opened(PACKERS[packer](PLAIN * 10))
        stream.seek(2_000_000)
        with pytest.raises(Damaged, match="backwards"):
            stream.seek(0)


def test_the_verdict_on_damage_is_gzips_own() -> None:
    """Thousands of damaged streams, against Python's own reader, which is zlib's."""
    chance = random.Random(1)
    packed = gzip.compress(PLAIN[-6000:])
    refused = 0
    for _ in range(3000):
        damaged = bytearray(packed)
        damaged[chance.randrange(2, len(packed))] ^= 1 << chance.randrange(8)
        try:
            expected = gzip.decompress(damaged)
        except Exception:
            refused += 1
            with pytest.raises(Damaged):
                opened(bytes(damaged)).read()
        else:
            assert opened(bytes(damaged)).read() == expected
    assert 1000 < refused < 3000


def test_an_error_of_the_source_stays_itself() -> None:
    for packer in ("gzip", "zstd", "neither"):
        with pytest.raises(EifError, match="shorter"):
            unpacked(Source(PACKERS[packer](PLAIN)[:100], EifError("io", "it became shorter"))).read()


def test_what_kernels_and_packages_are_packed_with_besides() -> None:
    """xz, lzma and bzip2, by Python's own: one stream of each, and nothing of what follows it; one that is
    cut is damaged, and does not look like a shorter one."""
    for pack in (
        lzma.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        bz2.compress,
    ):
        packed = pack(PLAIN)
        assert unpacked_any(Source(packed)).read() == PLAIN
        assert unpacked_any(Source(packed + b"and more")).read() == PLAIN
        for end in (len(packed) - 1, len(packed) // 2, 20):
            with pytest.raises(Damaged, match="ends within"):
                unpacked_any(Source(packed[:end])).read()
    flipped = bytearray(lzma.compress(PLAIN))
    flipped[len(flipped) // 2] ^= 1
    with pytest.raises(Damaged):
        unpacked_any(Source(bytes(flipped))).read()
