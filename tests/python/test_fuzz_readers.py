# SPDX-License-Identifier: MIT
"""The fuzz targets of tests/fuzz/readers.py on their seeds and some damage, without atheris: that they work,
and what they found once."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from loaded import program

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ("unit/data", "fuzz/signature-seeds", "fuzz/overlay-seeds", "fuzz/cert-seeds", "fuzz/nsm-seeds",
         *(f"reader-seeds/{name}" for name in ("cbor", "cpio", "document", "elf", "nsm", "oci")))  # fmt: skip
# What int() takes for a number and a kernel does not: a size of -1.
SIGNED_SIZE = b"070701" + b"00000000" * 6 + b"-0000001" + b"00000000" * 4 + b"00000002" + b"00000000" + b"a\0"


@pytest.fixture(scope="module")
def readers() -> ModuleType:
    module: ModuleType = program("tests/fuzz/readers.py")
    return module


def test_every_target_takes_anything(readers: ModuleType) -> None:
    files = [
        path for folder in SEEDS for path in sorted((ROOT / "tests" / folder).iterdir()) if path.is_file()
    ]
    chance = random.Random(1)
    assert len(readers.TARGETS) >= 10
    for path in files:
        data = path.read_bytes()[:65536]
        damaged = bytearray(data)
        for _ in range(3):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        for name in readers.TARGETS:
            for one in (data, bytes(damaged), data[: len(data) // 2]):
                readers.one(name, one)


def test_every_target_begins_with_something_that_is_right(
    readers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is found by inputs that are all refused at their first byte."""
    refusing = SimpleNamespace(suppress=lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(readers, "contextlib", refusing)
    folders = {name: paths for name, paths in program("tools/fuzz").SEEDS.items() if name.startswith("py-")}
    for name, paths in folders.items():
        refused = []
        seeds = [path for folder in paths for path in sorted((ROOT / folder).iterdir())]
        for path in seeds:
            try:
                readers.TARGETS[name.removeprefix("py-")](path.read_bytes())
            except Exception as e:
                refused.append(f"{path.name}: {e}")
        assert len(refused) < len(seeds), (name, refused)
    assert {name.removeprefix("py-") for name in folders} == set(readers.TARGETS)


def test_what_was_found_to_matter(readers: ModuleType) -> None:
    """The corpora that `tools/fuzz --keep` wrote."""
    folders = [path for path in (ROOT / "tests/corpora").iterdir() if path.name.startswith("py-")]
    for folder in folders:
        for path in sorted(folder.iterdir()):
            readers.one(folder.name.removeprefix("py-"), path.read_bytes())
    assert {folder.name.removeprefix("py-") for folder in folders} <= set(readers.TARGETS)


def test_numbers_of_an_archive_are_hexadecimal_digits(readers: ModuleType) -> None:
    from io import BytesIO

    with pytest.raises(readers.newc.NotReadable, match="a field that is not a hexadecimal number"):
        list(readers.newc.read(BytesIO(SIGNED_SIZE)))
