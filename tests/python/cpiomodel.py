# SPDX-License-Identifier: MIT
"""A reader of newc archives for tests, written from the kernel's buffer-format.rst: strict, in memory."""

from __future__ import annotations

from typing import NamedTuple


class Item(NamedTuple):
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    rdev: tuple[int, int]
    data: bytes


def read(archive: bytes, device: tuple[int, int] = (0, 0)) -> list[Item]:
    """All entries up to the trailer; asserts everything that the kernel relies on, zeros to the end too.
    `device` is that of the archive itself: 0:0 in ours, 3:1 in those of AWS's builder."""
    found: list[Item] = []
    at = 0
    while True:
        assert at % 4 == 0
        header = archive[at : at + 110]
        assert header[:6] == b"070701" and len(header) == 110
        numbers = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        ino, mode, uid, gid, nlink, mtime, size, major, minor, rmajor, rminor, name_size, check = numbers
        assert (major, minor, check) == (*device, 0)
        name = archive[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0" and b"\0" not in name[:-1]
        at += 110 + name_size
        pad = -at % 4
        assert archive[at : at + pad] == bytes(pad)
        at += pad
        data = archive[at : at + size]
        assert len(data) == size
        at += size
        pad = -at % 4
        assert archive[at : at + pad] == bytes(pad)
        at += pad
        if name == b"TRAILER!!!\0":
            assert size == 0 and archive[at:].strip(b"\0") == b""
            return found
        found.append(Item(name[:-1], ino, mode, uid, gid, nlink, mtime, (rmajor, rminor), data))
