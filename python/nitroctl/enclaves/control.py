# SPDX-License-Identifier: MIT
"""The one way into a running enclave: a unix socket in its folder, served by its supervisor.

    they   {"do": "vsock", ...}           one JSON object a line; descriptors may come along
    we     {"control": 1, "name": ...}    first of all, who this is, and the version of all this
           {"answer": ...}                or {"error": ..., "hint": ...}: a line for each of theirs, in order

What can be asked is a table of handlers, which the parts of an enclave fill in (`offer`). The supervisor has
the other ends of QEMU's QMP and of the backend's channel, so neither of them listens anywhere for this, and
no command line differs. The socket is its owner's alone, by the folder (0700), its own mode (0600) and the
kernel's word for who connects. How it is asked is `remote`.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nitroctl.base.errors import NitroError, UsageError
from nitroctl.enclaves.waiting import readable
from nitroctl.vsock import sockets

VERSION = 1
LINE_MAX = 1 << 16  # bytes of a request
CLIENTS_MAX = 16  # at a time; more wait
FDS_MAX = 4  # with a request
REST_SECONDS = 0.1  # where none can be accepted

# The request's other members, and the descriptors that came with it, which are closed afterwards.
Handler = Callable[[dict[str, Any], "list[int]"], Awaitable[Any]]


class Control:
    """Listens from the beginning; must be made and closed in the loop that serves it."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._hello = {"control": VERSION, **about}
        self._handlers: dict[str, Handler] = {}
        self._listener = sockets.serve(path)
        self._listener.socket.setblocking(False)
        self._clients: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def offer(self, name: str, handler: Handler) -> None:
        """Requests with "do": `name` are its. What it raises of NitroError is the answer."""
        self._handlers[name] = handler

    async def close(self) -> None:
        tasks = {self._accepting, *self._clients}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener.socket)
            except OSError:  # no descriptors: who waits goes on waiting
                await asyncio.sleep(REST_SECONDS)
                continue
            client.setblocking(False)
            _, uid, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (os.getuid(), 0):
                client.close()
                continue
            task = loop.create_task(self._serve(client))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)
            while len(self._clients) >= CLIENTS_MAX:
                await asyncio.wait(self._clients, return_when="FIRST_COMPLETED")

    async def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            await self._tell(client, self._hello)
            requests = _Requests(client)
            try:
                while line := await requests.line():
                    await self._tell(client, await self._answer(line, requests.fds))
                    requests.close_fds()
            except _TooLong:
                await self._tell(client, _error(f"a request of more than {LINE_MAX} bytes"))
            finally:
                requests.close_fds()

    @staticmethod
    async def _tell(client: socket.socket, value: dict[str, Any]) -> None:
        await asyncio.get_running_loop().sock_sendall(client, json.dumps(value).encode() + b"\n")

    async def _answer(self, line: bytes, fds: list[int]) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _error("the request is no line of JSON")
        if not isinstance(request, dict):
            return _error("the request is no JSON object")
        name = request.pop("do", None)
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "nothing yet"
            return _error(f"cannot do {str(name)[:80]!r}; known are: {known}")
        try:
            return {"answer": await handler(request, fds)}
        except NitroError as e:
            return _error(str(e), e.hint, usage=isinstance(e, UsageError))
        except RecursionError:
            return _error("the request nests too deeply")


def _error(text: str, hint: str | None = None, *, usage: bool = True) -> dict[str, Any]:
    return {"error": text, **({"hint": hint} if hint else {}), **({"usage": True} if usage else {})}


class _TooLong(Exception):
    pass


class _Requests:
    """Lines from a client, with the descriptors that came since the line before."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._rest = b""
        self.fds: list[int] = []

    async def line(self) -> bytes:
        """b"" at the end; what is cut off there is no line."""
        while b"\n" not in self._rest:
            if len(self._rest) > LINE_MAX:
                raise _TooLong
            await readable(self._client.fileno())
            size = array.array("i").itemsize
            try:
                data, control, _, _ = self._client.recvmsg(LINE_MAX, socket.CMSG_SPACE(FDS_MAX * size))
            except BlockingIOError:
                continue
            self._take(control)
            if not data:
                return b""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        if len(line) > LINE_MAX:
            raise _TooLong
        return line or b" "

    def _take(self, control: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self.fds += numbers
        for fd in self.fds[FDS_MAX:]:
            os.close(fd)
        del self.fds[FDS_MAX:]

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())
