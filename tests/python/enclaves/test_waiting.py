# SPDX-License-Identifier: MIT
"""A pipe that is read in a loop: what comes, the end, and a time in which nobody reads."""

from __future__ import annotations

import asyncio
import os

import pytest

from nitroctl.enclaves.waiting import Pipe


def test_a_pipe_gives_what_comes_and_its_end() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        pipe = Pipe(reader)
        os.write(writer, b"one")
        assert await pipe.read() == b"one"
        waiting = asyncio.ensure_future(pipe.read())
        await asyncio.sleep(0)
        assert not waiting.done()
        os.write(writer, b"two")
        assert await waiting == b"two"
        # Nobody reads: the loop is not woken for it again and again, and nothing is lost.
        os.write(writer, b"three")
        loop = asyncio.get_running_loop()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not loop.remove_reader(reader)
        assert await pipe.read() == b"three"
        cancelled = asyncio.ensure_future(pipe.read())
        await asyncio.sleep(0)
        cancelled.cancel()
        os.write(writer, b"four")
        os.close(writer)
        assert [await pipe.read(), await pipe.read()] == [b"four", b""]
        pipe.close()
        with pytest.raises(OSError):
            os.fstat(reader)

    asyncio.run(main())


def test_what_cannot_be_read_is_told_to_who_waits() -> None:
    """As of a terminal whose other end is closed: EIO, pty(7)."""

    async def main() -> None:
        ours, theirs = os.openpty()
        os.close(theirs)
        pipe = Pipe(ours)
        with pytest.raises(OSError, match="Input/output error"):
            await pipe.read()
        pipe.close()

    asyncio.run(main())
