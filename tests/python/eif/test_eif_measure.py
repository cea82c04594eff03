# SPDX-License-Identifier: MIT
"""Measurements and checksum: AWS's vectors, any layout against the model, memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eifmodel as model
from nitroctl.base.errors import EifError
from nitroctl.eif import measure, pcr
from nitroctl.eif.build import crc32_combine


def scan_bytes(data: bytes) -> measure.Scan:
    fd = os.memfd_create("eif")
    try:
        os.write(fd, data)
        return measure.scan_fd(fd, len(data))
    finally:
        os.close(fd)


def hexes(m: pcr.Measurements) -> tuple[str, str, str]:
    return m.pcr0.hex(), m.pcr1.hex(), m.pcr2.hex()


def test_the_vector(tmp_path: Path) -> None:
    path = tmp_path / "tiny.eif"
    path.write_bytes(model.pack(model.TINY))
    found = measure.measure(path)
    assert hexes(found) == model.TINY_PCRS
    assert found.pcr8 is None
    assert found.to_json() == {
        "HashAlgorithm": "Sha384 { ... }",
        **{f"PCR{i}": value for i, value in enumerate(model.TINY_PCRS)},
    }


def test_extend() -> None:
    """AWS's published values: a PCR extended by three bytes, and PCR3 and PCR4 of the user guide."""
    assert pcr.extend(bytes(48), b"\1\2\3").hex() == (
        "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8be911098f199958add55d0c27f04826d27b44d949a650694e"
    )
    role = b"arn:aws:iam::123456789012:role/Webserver"
    assert pcr.extend(bytes(48), role).hex() == (
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6"
    )
    assert pcr.extend(bytes(48), b"i-1234567890abcdef0").hex() == (
        "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541f2ac09d6545ac812719327281c401a67a10fcba87ae79ce0"
    )


@pytest.mark.parametrize("ramdisks", [0, 1])
def test_without_application_ramdisks(ramdisks: int) -> None:
    found = scan_bytes(model.pack([*model.TINY[:3], *model.TINY[3:4][:ramdisks]])).measurements
    assert found.pcr2.hex() == model.EMPTY_PCR2
    assert found.pcr0 == found.pcr1


def test_empty_first_ramdisk_is_the_first() -> None:
    sections = [*model.TINY[:3], (model.RAMDISK, b""), (model.RAMDISK, b"app")]
    assert hexes(scan_bytes(model.pack(sections)).measurements) == model.measure(sections)


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Good sections in any order that is allowed, some larger than the reader's buffers."""
    size = st.one_of(st.integers(0, 40), st.integers(0, 3000))

    def content(n: int, salt: int) -> bytes:
        return hashlib.shake_128(b"%d %d" % (n, salt)).digest(n).replace(b"\0", b"\1")

    others = [model.CMDLINE, model.METADATA] + [model.RAMDISK] * draw(st.integers(0, 5))
    order = draw(st.permutations(others))
    first_ramdisk = order.index(model.RAMDISK) if model.RAMDISK in order else len(order)
    order.insert(draw(st.integers(0, first_ramdisk)), model.KERNEL)
    return [(type, content(draw(size), i)) for i, type in enumerate(order)]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(layouts(), st.sampled_from([1, 7, 256, 4096]))
def test_any_layout(sections: list[tuple[int, bytes]], chunk: int) -> None:
    """Whatever the order of sections and the size of the buffers: the model's PCRs, checksum and texts."""
    data = model.pack(sections)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "CHUNK", chunk)
        scan = scan_bytes(data)
    assert hexes(scan.measurements) == model.measure(sections)
    assert scan.crc_matches
    texts = dict(sections)
    assert scan.cmdline == texts[model.CMDLINE]
    assert scan.metadata == texts[model.METADATA]


@pytest.mark.parametrize("at", [0, 9, 10, 11, 25, 30])
def test_nul_is_found_where_it_is(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first NUL, in any buffer of the command line, with its offset in the file."""
    monkeypatch.setattr(measure, "CHUNK", 10)
    cmdline = b"x" * at + b"\0" + b"y" * 5 + b"\0"
    scan = scan_bytes(model.pack([model.TINY[0], (model.CMDLINE, cmdline), model.TINY[2]]))
    with pytest.raises(EifError) as e:
        scan.check()
    assert e.value.rule == "cmdline-nul"
    assert e.value.offset == 548 + 12 + 16 + 12 + at


def test_a_crc_mismatch_shows_both_numbers() -> None:
    data = bytearray(model.pack(model.TINY))
    data[-1] ^= 1
    right = zlib.crc32(bytes(data[:544]) + bytes(data[548:]))
    with pytest.raises(EifError) as e:
        scan_bytes(bytes(data)).check()
    assert f"{right:08x}" in str(e.value) and "1d8f97aa" in str(e.value)


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crc_of_parts(a: bytes, b: bytes) -> None:
    assert crc32_combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


def test_crc_of_parts_beyond_4_gib() -> None:
    """zlib's own numbers: appending zeros twice is appending them at once."""
    zeros = zlib.crc32(bytes(1 << 20))
    crc, length = zeros, 1 << 20
    for _ in range(13):  # to 8 GiB
        crc, length = crc32_combine(crc, crc, length), 2 * length
    step = zeros
    for _ in range(2**13 - 1):
        step = crc32_combine(step, zeros, 1 << 20)
    assert crc == step


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    scan_bytes(model.pack(model.TINY))
    with pytest.raises(EifError):
        scan_bytes(model.pack(model.TINY)[:-1])
    assert threading.active_count() == before


# The peak is that of the program itself; getrusage would count what its parent was before exec.
PEAK = r"""
import re, sys
from pathlib import Path
from nitroctl.base import progress
from nitroctl.eif.measure import scan
with progress.quiet():
    print(scan(Path(sys.argv[1])).measurements.pcr0.hex())
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse file of 512 MiB, half of it a command line (full of NULs): under 64 MiB of memory."""
    size = 256 << 20
    path = tmp_path / "sparse.eif"
    small = model.pack([(1, b"k"), (2, b"c"), (3, b"r"), (5, b"{}")])
    header = bytearray(small[:548])
    plan = [(1, 1), (2, size), (3, size), (5, 2)]
    at = 548
    digest = hashlib.sha384(b"k")
    zeros = bytes(1 << 20)
    with open(path, "wb") as f:
        for i, (type, length) in enumerate(plan):
            header[28 + 8 * i : 36 + 8 * i] = at.to_bytes(8, "big")
            header[284 + 8 * i : 292 + 8 * i] = length.to_bytes(8, "big")
            f.seek(at)
            f.write(type.to_bytes(2, "big") + bytes(2) + length.to_bytes(8, "big"))
            f.write({1: b"k", 5: b"{}"}.get(type, b""))
            at += 12 + length
        f.seek(0)
        f.write(header)
        f.truncate(at)
    for _ in range(2 * size >> 20):
        digest.update(zeros)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, os.fspath(path)], capture_output=True, text=True, check=True
    )
    pcr0, peak = done.stdout.split()
    assert pcr0 == hashlib.sha384(bytes(48) + digest.digest()).hexdigest()
    assert int(peak) < 64 << 10, f"{peak} KiB"
