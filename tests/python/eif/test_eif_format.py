# SPDX-License-Identifier: MIT
"""The reader of EIF headers: one test per rule, truncation, and any damage against the model."""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eifmodel as model
from nitroctl.base.errors import EifError
from nitroctl.eif.format import open_eif, parse_layout, read_layout
from nitroctl.eif.measure import scan, scan_fd


def verdict(data: bytes) -> str:
    """The package's verdict on a file with these bytes."""
    fd = os.memfd_create("eif")
    try:
        os.write(fd, data)
        scan_fd(fd, len(data)).check()
    except EifError as e:
        return e.rule
    finally:
        os.close(fd)
    return "ok"


GOOD = model.pack(model.TINY)
K, C, M = (model.KERNEL, b"kernel"), (model.CMDLINE, b"c"), (model.METADATA, b"{}")
R, S = (model.RAMDISK, b"r"), (model.SIGNATURE, b"s")


def put(offset: int, format: str, value: int) -> Callable[[], bytes]:
    """The good file with one field changed and the checksum made right again."""

    def damage() -> bytes:
        data = bytearray(GOOD)
        struct.pack_into(format, data, offset, value)
        return model.with_crc(bytes(data))

    return damage


def sections(*items: tuple[int, bytes], version: int = 4) -> Callable[[], bytes]:
    return lambda: model.pack(items, version=version)


# rule -> files that break it first. Offsets of the good file: sections at 548, 576, 589, 827, 847.
def swapped_slots(data: bytes) -> bytes:
    """The last two sections with each other's offset and size in the header."""
    slots = [data[at : at + 8] for at in (52, 60, 308, 316)]
    data = data[:52] + slots[1] + slots[0] + data[68:308] + slots[3] + slots[2] + data[324:]
    return model.with_crc(data)


DAMAGES: list[tuple[str, str, Callable[[], bytes]]] = [
    ("file-too-short", "empty", lambda: b""),
    ("file-too-short", "547 bytes", lambda: GOOD[:547]),
    ("bad-magic", "other magic", put(0, ">I", 0x2E656967)),
    ("bad-magic", "zero file", lambda: bytes(1000)),
    ("bad-version", "0", put(4, ">H", 0)),
    ("bad-version", "1", put(4, ">H", 1)),
    ("bad-version", "5", put(4, ">H", 5)),
    ("bad-version", "little-endian 4", put(4, ">H", 0x400)),
    ("section-count", "0", put(26, ">H", 0)),
    ("section-count", "1", put(26, ">H", 1)),
    ("section-count", "33", put(26, ">H", 33)),
    ("section-count", "65535", put(26, ">H", 65535)),
    ("section-offset", "first too early", put(28, ">Q", 547)),
    ("section-offset", "first runs into the second", put(28, ">Q", 549)),
    ("section-offset", "overlap", put(36, ">Q", 575)),
    ("section-offset", "order of offsets", lambda: swapped_slots(GOOD)),
    ("section-beyond-file", "beyond 64 bits with its size", put(36, ">Q", 2**64 - 1)),
    ("section-beyond-file", "behind a gap that is larger than the file", put(60, ">Q", 872)),
    ("section-beyond-file", "last by one", put(284 + 32, ">Q", 13)),
    ("section-beyond-file", "first by far", put(284, ">Q", 2**40)),
    ("section-beyond-file", "wraps around 64 bits", put(284, ">Q", 2**64 - 560)),
    ("section-beyond-file", "largest number", put(284, ">Q", 2**64 - 1)),
    ("section-beyond-file", "no room for a section header", lambda: GOOD[:858]),
    ("trailing-bytes", "one", lambda: model.with_crc(GOOD + b"\0")),
    ("trailing-bytes", "last section not counted", put(26, ">H", 4)),
    ("section-size-mismatch", "section header's is larger", put(548 + 4, ">Q", 17)),
    ("section-size-mismatch", "section header's is zero", put(847 + 4, ">Q", 0)),
    ("section-type", "0", put(548, ">H", 0)),
    ("section-type", "6", put(847, ">H", 6)),
    ("section-type", "65535", put(827, ">H", 65535)),
    ("duplicate-kernel", "", sections(K, C, M, K)),
    ("no-kernel", "", sections(C, M)),
    ("duplicate-cmdline", "", sections(K, C, M, C)),
    ("no-cmdline", "", sections(K, M, R)),
    ("ramdisk-before-kernel", "", sections(C, M, R, K)),
    ("ramdisk-before-kernel", "and no kernel at all", sections(C, R, M)),
    ("duplicate-signature", "", sections(K, C, M, S, S)),
    ("signature-too-large", "", sections(K, C, M, (model.SIGNATURE, bytes(32769)))),
    ("duplicate-metadata", "", sections(K, C, M, M)),
    ("no-metadata", "version 4", sections(K, C, R)),
    ("crc-mismatch", "data", lambda: GOOD[:700] + bytes([GOOD[700] ^ 1]) + GOOD[701:]),
    ("crc-mismatch", "reserved field", lambda: GOOD[:25] + b"\1" + GOOD[26:]),
    ("crc-mismatch", "the checksum itself", lambda: GOOD[:547] + bytes([GOOD[547] ^ 1]) + GOOD[548:]),
    ("cmdline-nul", "only", sections(K, (model.CMDLINE, b"\0"), M)),
    ("cmdline-nul", "last", sections(K, (model.CMDLINE, b"console=ttyS0\0"), M)),
]


@pytest.mark.parametrize("rule, what, damage", DAMAGES, ids=[f"{r}-{w}" for r, w, _ in DAMAGES])
def test_each_rule(rule: str, what: str, damage: Callable[[], bytes]) -> None:
    """One thing wrong: exactly its rule, by the package and by the model."""
    data = damage()
    assert model.verdict(data) == rule
    assert verdict(data) == rule


def test_the_rules_are_all_there() -> None:
    """Every structure and data rule of the loader's has a file above that breaks it; bad-arch, which depends
    on the machine, is in test_eif_arch.py."""
    tested = {rule for rule, _, _ in DAMAGES}
    assert tested == {
        "file-too-short", "bad-magic", "bad-version", "section-count", "section-offset",
        "section-beyond-file", "trailing-bytes", "section-size-mismatch", "section-type", "duplicate-kernel",
        "no-kernel", "duplicate-cmdline", "no-cmdline", "ramdisk-before-kernel", "duplicate-signature",
        "signature-too-large", "duplicate-metadata", "no-metadata", "crc-mismatch", "cmdline-nul",
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GOOD, id="vector"),
        pytest.param(model.pack((K, C), version=2), id="version 2, two sections"),
        pytest.param(model.pack((C, K, R), version=3), id="version 3, cmdline first"),
        pytest.param(model.pack((M, C, K, R, R), flags=0xFFFE), id="reserved flags"),
        pytest.param(model.pack((K, C, M), mem=0, cpus=2**64 - 1), id="odd hints"),
        pytest.param(model.pack((K, (model.CMDLINE, b""), (5, b""), (3, b""))), id="empty sections"),
        pytest.param(model.pack((K, C, M, *[R] * 29)), id="32 sections"),
        pytest.param(model.pack((K, R, C, M, R)), id="cmdline between ramdisks"),
        pytest.param(model.pack(model.TINY, gaps={0: bytes(64)}), id="64 bytes behind the header"),
        pytest.param(model.pack(model.TINY, gaps={i: b"x" * (i + 1) for i in range(5)}), id="gaps"),
    ],
)
def test_good_files(data: bytes) -> None:
    assert model.verdict(data) == "ok"
    assert verdict(data) == "ok"


GAPPED = model.pack(model.TINY, gaps={0: bytes(64), 3: b"between" * 400_000})


def test_what_lies_between_sections_is_summed_and_not_measured(tmp_path: Path) -> None:
    """As Nitro does it: in the checksum, in no PCR; and told."""
    path = tmp_path / "gaps.eif"
    path.write_bytes(GAPPED)
    found = scan(path)
    found.check(path)
    assert tuple(value for _, value in found.measurements.items()) == model.TINY_PCRS
    assert found.layout.gap_size == 64 + 7 * 400_000
    for at in (548, 548 + 63, len(GAPPED) - 100):
        path.write_bytes(GAPPED[:at] + bytes([GAPPED[at] ^ 1]) + GAPPED[at + 1 :])
        assert not scan(path).crc_matches


def test_the_vector_is_the_published_file() -> None:
    """The model itself against AWS's numbers."""
    assert len(GOOD) == 871
    assert hashlib.sha256(GOOD).hexdigest() == model.TINY_SHA256
    assert GOOD[:28].hex() == "2e656966000400000000000040000000000000000000000200000005"
    assert GOOD[544:548].hex() == "1d8f97aa"
    assert model.measure(model.TINY) == model.TINY_PCRS


def test_layout_of_the_vector(tmp_path: Path) -> None:
    path = tmp_path / "tiny.eif"
    path.write_bytes(GOOD)
    with open(path, "rb") as f:
        layout = read_layout(f.fileno(), 871, path)
    assert [s.offset for s in layout.sections] == [548, 576, 589, 827, 847]
    assert [s.size for s in layout.sections] == [16, 1, 226, 8, 12]
    assert [int(s.type) for s in layout.sections] == [1, 2, 5, 3, 3]
    assert layout.header.version == 4 and layout.header.crc32 == 0x1D8F97AA


def test_an_error_says_where_and_what(tmp_path: Path) -> None:
    path = tmp_path / "broken.eif"
    path.write_bytes(put(36, ">Q", 575)())
    with pytest.raises(EifError) as e:
        scan(path)
    assert e.value.path == path and e.value.offset == 36
    for part in (str(path), "575", "576", "[section-offset]"):
        assert part in str(e.value)


@pytest.mark.parametrize("border", model.borders(model.TINY))
def test_truncation_at_each_border(border: int) -> None:
    for length in {max(0, border - 1), border, min(border + 1, len(GOOD))} - {len(GOOD)}:
        data = GOOD[:length]
        expected = "file-too-short" if length < 548 else "section-beyond-file"
        assert verdict(data) == model.verdict(data) == expected


def test_no_number_in_a_file_is_believed() -> None:
    """A header alone that claims 32 sections of 2^58 bytes: judged from its 548 bytes."""
    reads: list[tuple[int, int]] = []
    header = bytearray(548)
    struct.pack_into(">4sHHQQHH", header, 0, b".eif", 4, 0, 0, 0, 0, 32)
    for i in range(32):
        struct.pack_into(">Q", header, 28 + 8 * i, 548 + i * (12 + 2**58))
        struct.pack_into(">Q", header, 284 + 8 * i, 2**58)

    def read_at(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return bytes(header)[offset : offset + length]

    with pytest.raises(EifError) as e:
        parse_layout(read_at, 548)
    assert e.value.rule == "section-beyond-file"
    assert reads == [(0, 548)]


def test_sum_of_sizes_beyond_64_bits() -> None:
    """Sizes whose sum wraps to the file's true end must not pass for it, even in a file that large."""
    data = bytearray(GOOD)
    struct.pack_into(">Q", data, 284, 2**64 - 16)
    with pytest.raises(EifError) as e:
        parse_layout(lambda offset, length: bytes(data)[offset : offset + length], 2**64 - 1)
    assert e.value.rule == "section-beyond-file"


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "unreadable"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    """Neither a hang nor a traceback: the rule io, with the name."""
    path = tmp_path / "x.eif"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to(path)
    with pytest.raises(EifError) as e:
        scan(path)
    assert e.value.rule == "io" and str(path) in str(e.value)


def test_a_file_that_shrinks_meanwhile() -> None:
    with pytest.raises(EifError) as e:
        parse_layout(lambda offset, length: GOOD[:580][offset : offset + length], len(GOOD))
    assert e.value.rule == "io"


# ---- any damage, against the model ----

FIELDS = [(0, ">I"), (4, ">H"), (6, ">H"), (26, ">H"), (544, ">I")]
FIELDS += [(28 + 8 * i, ">Q") for i in range(6)] + [(284 + 8 * i, ">Q") for i in range(6)]
FIELDS += [(at + o, f) for at in (548, 576, 589, 827, 847) for o, f in ((0, ">H"), (2, ">H"), (4, ">Q"))]

NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 32, 33, 547, 548, 576, 871, 2**16 - 1, 2**32, 2**63, 2**64 - 1]),
    st.integers(500, 900),
)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), NUMBERS), min_size=1, max_size=4), st.booleans())
def test_damaged_fields(changes: list[tuple[tuple[int, str], int]], fix_crc: bool) -> None:
    """Several fields changed at once: the same first rule as the model's."""
    data = bytearray(GOOD)
    for (offset, format), value in changes:
        struct.pack_into(format, data, offset, value % (1 << 8 * struct.calcsize(format)))
    result = model.with_crc(bytes(data)) if fix_crc else bytes(data)
    assert verdict(result) == model.verdict(result)


SECTION = st.tuples(st.sampled_from([1, 2, 3, 3, 4, 5, 6, 0]), st.binary(max_size=40))


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(SECTION, max_size=7), st.integers(1, 5))
def test_any_sections(items: list[tuple[int, bytes]], version: int) -> None:
    data = model.pack(items, version=version)
    assert verdict(data) == model.verdict(data)


def test_what_people_take_for_an_eif(tmp_path: Path) -> None:
    """The hint has the command that makes an EIF of it."""
    with tarfile.open(tmp_path / "app.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("manifest.json"))
    (tmp_path / "app.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout/index.json").write_text("{}")
    for name, hint in (
        ("app.tar", f"nitroctl eif build --image {tmp_path}/app.tar -o app.eif"),
        ("app.tar.gz", "it is compressed"),
        ("layout", f"nitroctl eif build --image {tmp_path}/layout -o app.eif"),
    ):
        path = tmp_path / name
        with pytest.raises(EifError) as e, open_eif(path) as (fd, size):
            read_layout(fd, size, path)
        assert hint in str(e.value.hint)
