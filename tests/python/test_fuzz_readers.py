# SPDX-License-Identifier: MIT
"""The fuzz targets of tests/fuzz/readers.py on their seeds and some damage, without atheris: that they work,
and what they found once."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ("unit/data", "fuzz/signature-seeds", "fuzz/overlay-seeds", "fuzz/cert-seeds", "fuzz/nsm-seeds",
         *(f"reader-seeds/{name}" for name in ("cbor", "document", "elf", "nsm", "oci")))  # fmt: skip
# What int() takes for a number and a kernel does not: a size of -1.
SIGNED_SIZE = b"070701" + b"00000000" * 6 + b"-0000001" + b"00000000" * 4 + b"00000002" + b"00000000" + b"a\0"


@pytest.fixture(scope="module")
def readers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readers", ROOT / "tests/fuzz/readers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
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


def test_what_was_found_to_matter(readers: ModuleType) -> None:
    """The corpora that `tools/fuzz --keep` wrote."""
    folders = [path for path in (ROOT / "tests/corpora").iterdir() if path.name.startswith("py-")]
    for folder in folders:
        for path in sorted(folder.iterdir()):
            readers.one(folder.name.removeprefix("py-"), path.read_bytes())
    assert {folder.name.removeprefix("py-") for folder in folders} <= set(readers.TARGETS)


def test_numbers_of_an_archive_are_hexadecimal_digits(readers: ModuleType) -> None:
    from io import BytesIO

    with pytest.raises(readers.newc.NotReadable, match="a number that is none"):
        list(readers.newc.read(BytesIO(SIGNED_SIZE)))
