# SPDX-License-Identifier: MIT
"""asyncio's loop, waiting: for a descriptor whose reads and writes are not a transport's, for what blocks,
and for a server to let go of its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")

_PIECE = 1 << 16  # bytes

# A loop has this long to let go of a server.
SERVER_SECONDS = 5.0


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class Pipe:
    """A pipe that is read again and again. The loop is told of its descriptor once, and again only after a
    time in which there was something to read and nobody who waited for it."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._data: asyncio.Future[bytes] | None = None

    async def read(self) -> bytes:
        """What comes next, nothing at the end. The loop's others have their turn before it."""
        self._data = self._loop.create_future()
        if not self._watched:
            self._loop.add_reader(self._fd, self._read)
            self._watched = True
        return await self._data

    def _read(self) -> None:
        if self._data is None or self._data.done():
            self._unwatch()
            return
        try:
            self._data.set_result(os.read(self._fd, _PIECE))
        except BlockingIOError:
            pass
        except OSError as e:
            self._data.set_exception(e)

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._fd)
            self._watched = False

    def close(self) -> None:
        self._unwatch()
        os.close(self._fd)


async def writable(fd: int | socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def aside(work: Callable[[], T]) -> T:
    """What blocks, in a thread of its own. asyncio's would have to come to an end before the loop does, also
    where nobody waits for it any more; this one ends with what it waits for, or with the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return  # cancelled
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as e:
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def close_server(loop: asyncio.AbstractEventLoop, server: asyncio.Server) -> None:
    """Close it in its own loop, before its socket is closed: the loop would go on to wait for the number of a
    descriptor that may be another's by then."""
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop.is_closed():
        return
    if here is loop or not loop.is_running():
        server.close()
        return
    closed = threading.Event()

    def close() -> None:
        server.close()
        closed.set()

    with contextlib.suppress(RuntimeError):  # the loop has just been closed, and with it all that it watched
        loop.call_soon_threadsafe(close)
        closed.wait(SERVER_SECONDS)
