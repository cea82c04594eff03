# SPDX-License-Identifier: MIT
"""Archives as the package's writer makes them, in memory. Their reader is cpiomodel.py, which knows nothing
of the writer.
"""

from __future__ import annotations

import os

from nitroctl.eif import cpio


class Memory:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def copy(self, fd: int, size: int | None, name: str) -> None:
        assert size is not None
        while size:
            piece = os.read(fd, size)
            assert piece, "the file is shorter than announced"
            self.data += piece
            size -= len(piece)


def archive(entries: list[cpio.Entry], mtime: int = 0) -> bytes:
    sink = Memory()
    cpio.write(sink, entries, mtime=mtime)
    return sink.data
