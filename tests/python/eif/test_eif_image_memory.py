# SPDX-License-Identifier: MIT
"""What large images cost: memory that does not grow with files and holes, no disk for holes, and progress
that goes on within one file. NITROCTL_FUZZ_ROUNDS, which `make soak` sets, makes them larger.
"""

from __future__ import annotations

import gzip
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import imagemodel as im
from imagebuilt import bootstrap, child
from nitroctl.eif import compose
from nitroctl.eif.image import open_image
from nitroctl.eif.layers import read_tree


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    return bootstrap(tmp_path)


def sparse_layer(path: Path, size: int) -> None:
    """A tar of one GNU sparse file of `size` bytes: 5 at the begin and 5 at the end, holes between."""
    info, _ = im.entry("app", b"", mode=0o755)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 1024  # bytes stored: two runs, each filling a block
    header[156:157] = b"S"
    for i, (offset, count) in enumerate(((0, 512), (size - 512, 512))):
        header[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, count)
    header[482:483] = b"\0"
    header[483:495] = b"\x80" + (size).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    path.write_bytes(bytes(header) + b"begin".ljust(512, b"\0") + b"end".rjust(512, b"\0") + bytes(1024))


def test_many_files_are_cheap(tmp_path: Path, start: compose.Bootstrap) -> None:
    """A hundred thousand files, as an image of some gigabytes has them, in `make soak`; else some of them.
    One more costs less than a kibibyte."""
    count = 100_000 if "NITROCTL_FUZZ_ROUNDS" in os.environ else 20_000

    def memory(count: int) -> int:
        names = (f"usr/lib/python3/dist-packages/package{i // 100}/module_{i}.py" for i in range(count))
        image = im.oci(tmp_path / "app.tar", [im.layer(*(im.entry(name, b"pass\n") for name in names))])
        return child(tmp_path, image, tmp_path / "o.eif")

    assert memory(count) < memory(1) + count and memory(count) < 150 << 10


@pytest.mark.parametrize("packer", [bytes, lambda data: gzip.compress(data, 1)], ids=["plain", "gzip"])
def test_progress_within_one_file_of_a_layer(tmp_path: Path, packer: Callable[[bytes], bytes]) -> None:
    """32 MiB that are one file: bytes are told as they are read."""
    layer = im.layer(im.entry("app", random.Random(1).randbytes(32 << 20), mode=0o755))
    opened = open_image(im.oci(tmp_path / "app.tar", [layer], packer=packer))
    size = sum(blob.size for blob in opened.layers)
    steps: list[int] = []
    read_tree(opened, steps.append)
    assert sum(steps) <= size and sum(steps) > size - (1 << 20)
    if packer is not bytes:  # else the file is passed over in one step
        assert len(steps) > 20 and max(steps) < size // 20


def test_sparse_files_are_cheap(tmp_path: Path, start: compose.Bootstrap) -> None:
    """2 GB in a layer of 3 KB: little memory, and no disk for the holes."""
    size = 2 << 30
    sparse_layer(tmp_path / "layer", size)
    image = im.oci(tmp_path / "app.tar", [(tmp_path / "layer").read_bytes()])
    assert child(tmp_path, image, tmp_path / "o.eif") < 150 << 10
    status = (tmp_path / "o.eif").stat()
    assert status.st_size > size
    assert status.st_blocks * 512 < 64 << 20
    with open(tmp_path / "o.eif", "rb") as f:
        f.seek(-600, os.SEEK_END)
        assert b"end" in f.read()


def test_the_sparse_layer_is_one(tmp_path: Path) -> None:
    """The test's own tar is one: tarfile sees the sparse file."""
    sparse_layer(tmp_path / "layer", 1 << 20)
    with tarfile.open(tmp_path / "layer") as tar:
        (member,) = tar.getmembers()
        assert member.issparse() and member.size == 1 << 20
