# SPDX-License-Identifier: MIT
"""LZ4's legacy frame: what the lz4 program has packed, and what nobody would."""

from __future__ import annotations

import io
import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitroctl.eif import lz4
from nitroctl.eif.unpack import Damaged, unpacked_any


def frame(*blocks: bytes) -> bytes:
    return lz4.MAGIC + b"".join(len(block).to_bytes(4, "little") + block for block in blocks)


def unpack(data: bytes) -> bytes:
    return b"".join(lz4.blocks(io.BytesIO(data)))


def test_what_the_program_packs() -> None:
    """More than one block; long runs, long literals, matches that overlap themselves."""
    rng = random.Random(7)
    plain = b"".join(
        rng.choice((rng.randbytes(rng.randrange(2000)), b"ab" * rng.randrange(9000), bytes(70000)))
        for _ in range(500)
    )
    assert len(plain) > lz4.BLOCK
    packed = subprocess.run(["lz4", "-l", "-9", "-c"], input=plain, capture_output=True, check=True).stdout
    with unpacked_any(io.BytesIO(packed)) as stream:  # type: ignore[arg-type]
        assert stream.read() == plain
    with unpacked_any(io.BytesIO(packed[:-1])) as stream, pytest.raises(Damaged):  # type: ignore[arg-type]
        stream.read()


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x22\x4d\x18",  # the newer frame
        frame(b"\x00\x01\x00\x00"),  # a match where nothing is yet
        frame(b"\x10a\x00\x00\x00"),  # at distance 0
        frame(b"\x50abc"),
        frame(b"\xf0\xff"),
        frame(b"\x1fa\x01\x00" + b"\xff" * 40000 + b"\x00\x00"),  # ten MiB of one byte
        lz4.MAGIC + b"\x00\x00\x00\x00",
        lz4.MAGIC + b"\xff\xff\xff\xff" + bytes(99),
        lz4.MAGIC + b"\x09\x00\x00\x00" + bytes(8),
        lz4.MAGIC + b"\x09",
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(lz4.Invalid):
        unpack(data)


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_hostile(blocks: list[bytes]) -> None:
    try:
        assert len(unpack(frame(*blocks))) <= 3 * lz4.BLOCK
    except lz4.Invalid:
        pass
