# SPDX-License-Identifier: MIT
"""What a supervisor takes from a vsock backend, which a guest may have taken over: the test has its ends of
the channel and the pipe. No program is started."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from enclave_fakes import HANG
from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import backend, usage
from nitroctl.enclaves.backend import Backend


class Bare(Backend):
    """Without its process. `peer` and `pipe` are the backend's ends."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[dict[str, Any]] = []
        self.lines: list[bytes] = []
        self._on_event, self._on_told = self.events.append, self.lines.append
        self._told_rest, self._asked, self._answers = b"", 0, {}
        self.exited = loop.create_future()
        self._channel, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._told, self.pipe = os.pipe()
        os.set_blocking(self._told, False)
        for sock in (self._channel, self.peer):
            sock.setblocking(False)
        loop.add_reader(self._channel, self._read_channel)

    def done(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        for sock in (self._channel, self.peer):
            sock.close()
        for fd in (self._told, self.pipe):
            os.close(fd)


def run(use: Callable[[Bare], Awaitable[None]]) -> None:
    async def main() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, about: failures.append(about))
        bare = Bare()
        try:
            await asyncio.wait_for(use(bare), HANG)
        finally:
            bare.done()
        assert failures == []

    asyncio.run(main())


async def taken(bare: Bare) -> dict[str, Any]:
    """The next request, as the backend has it."""
    found: dict[str, Any] = json.loads(await asyncio.get_running_loop().sock_recv(bare.peer, 1 << 16))
    return found


def test_answers_find_who_asked() -> None:
    """Whatever comes between them, in any order; nonsense is passed over, and only nonsense."""

    async def use(bare: Bare) -> None:
        first, second = (asyncio.ensure_future(bare.ask({"do": name})) for name in ("one", "two"))
        numbers = {request["do"]: request["id"] for request in [await taken(bare), await taken(bare)]}
        nonsense = [
            b"x", b"\xff", b"[" * 100_000, b"[]", b"7", b"{}", b'{"id": [1]}', b'{"id": {}}', b'{"id": "1"}',
            b'{"id": 99}', b'{"id": null}',
        ]  # fmt: skip
        for message in nonsense:
            await asyncio.get_running_loop().sock_sendall(bare.peer, message)
        for sense in (
            {"id": numbers["two"], "x": 2}, {"event": "refused", "port": 5}, {"id": numbers["one"], "x": 1},
            {"id": numbers["one"], "x": "once more"},
        ):  # fmt: skip
            await asyncio.get_running_loop().sock_sendall(bare.peer, json.dumps(sense).encode())
        assert (await first, await second) == ({"x": 1}, {"x": 2})
        assert bare.events == [{"event": "refused", "port": 5}]
        with pytest.raises(UsageError, match="at most 900 bytes"):
            await bare.ask({"do": "x" * 900})

    run(use)


def test_who_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ANSWER_SECONDS", 0.01)

    async def use(bare: Bare) -> None:
        with pytest.raises(EnclaveError, match="the vsock backend does not answer") as caught:
            await bare.ask({"do": "stats"})
        assert caught.value.hint == "one of an older version cannot be asked: nitroctl which vsock"
        monkeypatch.setattr(backend, "ANSWER_SECONDS", HANG)
        asking = asyncio.ensure_future(bare.ask({"do": "stats"}))
        late = (await taken(bare))["id"]
        await asyncio.get_running_loop().sock_sendall(bare.peer, b'{"id": %d}' % late)  # too late
        request = await taken(bare)
        await asyncio.get_running_loop().sock_sendall(
            bare.peer, json.dumps({"id": request["id"], "error": "cannot do that"}).encode()
        )
        with pytest.raises(EnclaveError, match="^cannot do that$"):
            await asking
        asking = asyncio.ensure_future(bare.ask({"do": "stats"}))
        await taken(bare)
        bare.exited.set_result(1)
        with pytest.raises(EnclaveError, match="^the vsock backend has ended$"):
            await asking

    run(use)


def test_what_is_told_of_the_guest_is_bounded() -> None:
    """Lines in pieces; of one without an end only the beginning is kept."""

    async def use(bare: Bare) -> None:
        for data in (b"boo", b"ted\nsec", b"ond\n"):
            os.write(bare.pipe, data)
            bare.read_told()
        assert bare.lines == [b"booted", b"second"]
        for _ in range(20):
            os.write(bare.pipe, b"x" * 60_000)
            bare.read_told()
            assert len(bare._told_rest) <= 8192
        os.write(bare.pipe, b"\nthird\n")
        bare.read_told()
        assert bare.lines[3:] == [b"third"] and set(bare.lines[2]) == {ord("x")}

    run(use)


def test_a_process_that_has_just_ended_uses_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # a zombie first, then nobody
        assert usage._process("QEMU", gone.pid) is None
    assert usage._process("QEMU", gone.pid) is None
