# SPDX-License-Identifier: MIT
"""Console bytes on their way to a descriptor: slow readers, files, and readers that went away."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitroctl.enclaves.sink import FdSink


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    if request.param == "pipe":
        reader, writer = os.pipe()
    else:
        a, b = socket.socketpair()
        reader, writer = a.detach(), b.detach()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_slow_reader_does_not_block_the_loop(ends: tuple[int, int]) -> None:
    """A megabyte into a pipe that is read only after the loop has done something else."""
    reader, writer = ends
    data = bytes(range(256)) * 4096

    async def main() -> bytes:
        sink = FdSink(writer)
        task = asyncio.get_running_loop().create_task(sink.write(data))
        await asyncio.sleep(0.01)
        assert not task.done()
        os.set_blocking(reader, False)
        got = b""
        while len(got) < len(data):
            try:
                got += os.read(reader, 65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        await task
        sink.close()
        return got

    assert asyncio.run(main()) == data
    assert os.get_blocking(writer), "the descriptor is shared and must stay as it was"


def test_a_regular_file_keeps_its_position(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb", buffering=0) as f:
        f.write(b"before ")
        sink = FdSink(f.fileno())
        asyncio.run(sink.write(b"console "))
        sink.close()
        f.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before console after"


def test_a_reader_that_went_away(ends: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        asyncio.run(FdSink(writer).write(b"x"))
    os.close(writer)
