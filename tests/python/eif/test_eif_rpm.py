# SPDX-License-Identifier: MIT
"""AWS's blobs out of an RPM package, against packages that Debian's rpmbuild made (data/aws-rpm/make)."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from nitroctl.base.errors import NitroError
from nitroctl.commands.eif import eif
from nitroctl.eif import compose, package, rpm

DATA = Path(__file__).parents[1] / "data"
DUMMIES = DATA / "aws-builder" / "blobs"
KINDS = ("gzip", "xz", "zstd")  # what Amazon Linux 2 and 2023, and others, pack with
NAMES = sorted(path.name for path in DUMMIES.iterdir())
WANTED = {f"/usr/share/nitro_enclaves/blobs/{name}".encode(): 1 << 20 for name in NAMES}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_blobs_of_a_package_are_those_of_the_folder() -> None:
    for kind in KINDS:
        path = DATA / "aws-rpm" / f"{kind}.rpm"
        found = rpm.read(path)
        assert (found.name, found.version) == ("aws-nitro-enclaves-cli-devel", "1.4.2-0.test")
        folder = package.unpacked(path)
        assert sorted(p.name for p in folder.iterdir()) == NAMES  # and not the licence
        for name in NAMES:
            assert (folder / name).read_bytes() == (DUMMIES / name).read_bytes()
        assert package.unpacked(path) == folder


def test_a_package_measures_as_its_folder_does() -> None:
    image, outputs = DATA / "aws-builder" / "minimal.tar", set()
    for blobs in (DUMMIES, DATA / "aws-rpm" / "xz.rpm"):
        result = CliRunner().invoke(eif, ["predict", str(image), "--blobs", str(blobs), "--no-kernel-check"])
        assert result.exit_code == 0, result.output
        outputs.add(result.stdout)
    assert len(outputs) == 1
    assert compose.from_blobs(DATA / "aws-rpm" / "xz.rpm").aws


def header(*tags: tuple[int, int, int, bytes], count: int | None = None, size: int | None = None) -> bytes:
    """A header as rpm's documentation has it: magic, two numbers, (tag, type, offset, count), data."""
    index = store = b""
    for tag, kind, number, data in tags:
        index += struct.pack(">4I", tag, kind, len(store), number)
        store += data
    numbers = (len(tags) if count is None else count, len(store) if size is None else size)
    return b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">2I", *numbers) + index + store


LEAD = b"\xed\xab\xee\xdb" + bytes(92)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends within its headers"),
        (b"\x7fELF" + bytes(100), "does not begin like an RPM package"),
        (LEAD, "ends within its headers"),
        (LEAD + bytes(16), "a header does not begin with"),
        (LEAD + header(count=1 << 20), "a header has 1048576 entries"),
        (LEAD + header(size=0xFFFFFFF0), "and 4294967280 bytes"),
        (LEAD + header(size=1 << 25), "ends within its headers"),
        (LEAD + header() + header((1124, 6, 1, b"drpm\0")), "its payload is 'drpm', not cpio"),
        (LEAD + header((273, 6, 1, b"00\0")) + bytes(5) + header(), "the digest of its header"),
        (LEAD + header() + header() + b"no archive" * 20, "not a cpio archive"),
        (LEAD + header() + header((5092, 8, 1, b"00\0"), (5093, 4, 1, b"\0\0\0\x08")), "of its payload"),
    ],
)  # fmt: skip
def test_what_is_no_package(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "x.rpm"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(NitroError, match=why) as e:
        rpm.extract(path, WANTED, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert str(path) in str(e.value)


def test_a_package_that_is_only_asked_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.rpm"
    path.write_bytes(LEAD + header(count=1 << 20))
    with pytest.raises(
        NitroError, match=f"{path} is no RPM package, or damaged: a header has 1048576 entries"
    ):
        rpm.read(path)
    for gone in (tmp_path / "gone", path / "below"):
        assert not rpm.is_rpm(gone)
        with pytest.raises(NitroError, match=f"cannot read {gone}: "):
            rpm.read(gone)
    # A text without its end, and a number beyond the data, are as if they were not there.
    tags = ((1000, 6, 1, b"no end"), (1001, 4, 1, b""))
    path.write_bytes(LEAD + header() + header(*tags))
    assert rpm.read(path).name != "no end"


def test_other_packages(tmp_path: Path) -> None:
    """Of another machine, or without the blobs: named, and nothing stays in the cache."""
    for arch, why in (
        (b"riscv64", "for riscv64; the package for x86_64 or aarch64"),
        (b"x86_64", "has no kernel in"),
    ):
        path = tmp_path / "x.rpm"
        tags = (
            (1000, 6, 1, b"other\0"),
            (1001, 6, 1, b"2\0"),
            (1002, 6, 1, b"1\0"),
            (1022, 6, 1, arch + b"\0"),
        )
        trailer = b"070701" + b"%08x" * 13 % (*[0] * 11, 11, 0) + b"TRAILER!!!\0" + bytes(3)
        path.write_bytes(LEAD + header() + header(*tags) + trailer)
        with pytest.raises(NitroError, match=f"other 2-1.*{why}"):
            compose.from_blobs(path)
        assert not list((tmp_path / "cache").glob("aws-blobs/*"))


def test_what_holds_no_blobs_at_all(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no package")
    for name, why in (
        ("gone", "does not exist"),
        ("text", "neither a folder nor an RPM"),
        ("", "lacks bzImage"),
    ):
        with pytest.raises(NitroError, match=f"{tmp_path / name}.* {why}") as e:
            compose.from_blobs(tmp_path / name)
        assert e.value.hint and "RPM aws-nitro-enclaves-cli-devel" in e.value.hint


def test_a_file_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(NitroError, match="bzImage has 8192 bytes; at most 100 are accepted"):
        rpm.extract(
            DATA / "aws-rpm" / "gzip.rpm", {next(n for n in WANTED if n.endswith(b"bzImage")): 100}, tmp_path
        )
    assert not list(tmp_path.glob("bz*"))


def test_one_changed_byte_of_the_payload_is_found(tmp_path: Path) -> None:
    """By the digest of rpm 4.14 and later, or where that is gone by MD5, which older ones write."""
    for kind in KINDS:
        data = bytearray((DATA / "aws-rpm" / f"{kind}.rpm").read_bytes())
        data[-20] ^= 1
        path = tmp_path / "x.rpm"
        path.write_bytes(data)
        with pytest.raises(NitroError, match="the digest of its payload"):
            rpm.extract(path, WANTED, tmp_path)
    payload = b"old"
    main = header((1124, 6, 1, b"cpio\0"))
    digest = hashlib.md5(main + payload, usedforsecurity=False).digest()
    for last, why in (
        (b"old", "not a cpio archive|ends within an entry"),
        (b"bad", "the digest of its payload"),
    ):
        path.write_bytes(LEAD + header((1004, 7, 16, digest)) + main + last)
        with pytest.raises(NitroError, match=why):
            rpm.extract(path, WANTED, tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_end_in_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Mutated packages whose digests are made to fit nothing: whatever they say, one line about that file."""
    folder = tmp_path_factory.mktemp("rpm")
    whole = bytearray((DATA / "aws-rpm" / f"{data.draw(st.sampled_from(KINDS))}.rpm").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(96, len(whole) - 1))] = data.draw(st.integers(0, 255))
    # Tags of the digests, made others, so that what is behind them is reached.
    changed = bytes(whole)
    for tag in (273, 1004, 5092):
        changed = changed.replace(struct.pack(">I", tag), struct.pack(">I", 60_000))
    path = folder / "x.rpm"
    path.write_bytes(
        changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed
    )
    try:
        rpm.extract(path, WANTED, folder)
    except NitroError as e:
        assert str(e).startswith(f"{path} is no RPM package, or damaged: ") and "\n" not in str(e)
