# SPDX-License-Identifier: MIT
"""The vsock backend of one enclave as its supervisor has it: a child with three ways of telling.

    ready      a pipe, one word once it listens
    told       a pipe, a line for the heartbeat and for how the application ended
    channel    its lifeline, a socket that keeps messages apart: we ask, it answers, and it tells events

The channel is the backend's only way in for control, and whoever holds the other end is its owner: no option
and no listening socket is there for it (docs/vsock.md). A backend that never answers on it serves as well;
only what is asked of it fails then. What the answers mean is not known here.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves.child import Child
from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.plan import Plan
from nitroctl.enclaves.waiting import resolve
from nitroctl.vsock import sockets

READY_SECONDS = 20.0  # for the backend to listen; it does nothing else first
ANSWER_SECONDS = 10.0  # for an answer; it gives each at once
VERSION = 1  # of what is said on the channel
REQUEST_MAX = 900  # bytes; with the number that is added, the backend takes 1024
_MESSAGE_MAX = 1 << 18
_TOLD_MAX = 4096  # bytes kept of a line; ours have some dozens


class Backend(Child):
    """Started at once. `on_told` gets each line of the pipe, `on_event` each event of the channel. What it
    has open here is closed with `resources`."""

    def __init__(
        self,
        plan: Plan,
        folder: Folder,
        resources: contextlib.ExitStack,
        *,
        on_told: Callable[[bytes], None],
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._on_told, self._on_event = on_told, on_event
        self._told_rest = b""
        self._asked = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            self._ready, ready = self._pipe(ours, theirs)
            self._told, told = self._pipe(ours, theirs)
            channel, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.enter_context(channel)
            theirs.enter_context(lifeline)
            config = plan.backend_config(
                folder,
                ready_fd=ready,
                booted_fd=told,
                lifeline_fd=lifeline.fileno(),
                cleanup_dir=folder.path,
            )
            # No death signal: on our death it has to clean up. It shares the folder's lock until then.
            super().__init__(
                "the vsock backend",
                sockets.argv(config),
                pass_fds=(ready, told, lifeline.fileno(), folder.lock),
                stdout=subprocess.DEVNULL,
                death_signal=0,
            )
            ours.pop_all()
        channel.setblocking(False)
        os.set_blocking(self._told, False)
        self._channel = channel
        resources.callback(channel.close)
        resources.callback(os.close, self._told)
        loop = asyncio.get_running_loop()
        for fd, read in ((self._told, self.read_told), (channel.fileno(), self._read_channel)):
            loop.add_reader(fd, read)
            resources.callback(loop.remove_reader, fd)
        self._send({"do": "hello", "version": VERSION})

    @staticmethod
    def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, reader)
        theirs.callback(os.close, writer)
        return reader, writer

    async def ready(self, end: asyncio.Future[Any]) -> bytes | None:
        """Its word once it listens, b"" if it closed the pipe without one, None if it did neither in time.
        `end`, the enclave's, ends the wait. To be called once."""
        loop = asyncio.get_running_loop()
        speaks: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._ready, resolve, speaks)
        try:
            await asyncio.wait((speaks, end), timeout=READY_SECONDS, return_when="FIRST_COMPLETED")
            if not speaks.done():
                return None
            word = os.read(self._ready, 16)
        finally:
            loop.remove_reader(self._ready)
            os.close(self._ready)
        if not word:
            # It is ending, and its end says why.
            await asyncio.wait((end, self.exited), timeout=READY_SECONDS)
        return word

    def read_told(self) -> None:
        """What it tells of the guest, line by line. EOF means that it is gone: others notice."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._told, 4096):
                *lines, self._told_rest = (self._told_rest + data).split(b"\n")
                self._told_rest = self._told_rest[:_TOLD_MAX]
                for line in lines:
                    self._on_told(line)
            asyncio.get_running_loop().remove_reader(self._told)

    # -- the channel

    async def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Its answer, without the number that joins them. Raises EnclaveError if there is none, and where it
        says that it cannot do that."""
        if len(json.dumps(request)) > REQUEST_MAX:
            raise UsageError(f"a request to the vsock backend has at most {REQUEST_MAX} bytes")
        answer = self._send(request, fds)
        try:
            either = (answer, self.exited)
            await asyncio.wait(either, timeout=ANSWER_SECONDS, return_when="FIRST_COMPLETED")
        finally:
            self._answers = {number: one for number, one in self._answers.items() if one is not answer}
        if not answer.done():
            if self.exited.done():
                raise EnclaveError("the vsock backend has ended")
            raise EnclaveError(
                "the vsock backend does not answer",
                hint="one of an older version cannot be asked: nitroctl which vsock",
            )
        found = answer.result()
        if "error" in found:
            raise EnclaveError(str(found["error"]))
        return found

    def _send(self, request: dict[str, Any], fds: Sequence[int] = ()) -> asyncio.Future[dict[str, Any]]:
        self._asked += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._asked] = answer
        line = json.dumps({"id": 0, **request} | {"id": self._asked}).encode() + b"\n"
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):  # who is gone, or does not read, does not answer
            self._channel.sendmsg([line], control)
        return answer

    def _read_channel(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while message := self._channel.recv(_MESSAGE_MAX):
                self._take(message)
        if self.exited.done() or not self._open():
            asyncio.get_running_loop().remove_reader(self._channel.fileno())

    def _open(self) -> bool:
        try:
            return bool(self._channel.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _take(self, message: bytes) -> None:
        try:
            value = json.loads(message)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict):
            return
        if "event" in value:
            self._on_event(value)
            return
        number = value.pop("id", 0)
        answer = self._answers.pop(number, None) if isinstance(number, int) else None
        if answer and not answer.done():
            answer.set_result(value)
