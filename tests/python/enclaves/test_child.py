# SPDX-License-Identifier: MIT
"""Programs that are started for an enclave, with shells in their place, and the sockets that they get."""

from __future__ import annotations

import asyncio
import select
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from enclave_fakes import HANG
from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves import child, qemu_process
from nitroctl.enclaves.child import Child


def with_child(script: str, use: Callable[[Child], Coroutine[Any, Any, None]]) -> Child:
    """A shell with this script, which ends with `use`."""

    async def main() -> Child:
        argv = ["sh", "-c", script]
        one = Child("QEMU", argv, pass_fds=[], stdout=subprocess.DEVNULL, death_signal=signal.SIGKILL)
        try:
            await use(one)
        finally:
            await one.stop()
        return one

    return asyncio.run(main())


async def its_end(one: Child) -> None:
    await asyncio.wait_for(asyncio.shield(one.exited), HANG)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 7", "QEMU ended with status 7"),
        ("kill -SEGV $$", "QEMU was killed by SIGSEGV"),
        ("kill -40 $$", "QEMU was killed by signal 40"),  # one of signal(7)'s real-time signals
    ],
)
def test_how_one_ended(script: str, words: str) -> None:
    assert with_child(script, its_end).ended_how() == words


def test_one_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STOP_SECONDS", 0.01)

    async def deaf(one: Child) -> None:
        while "ready" not in one.tail:
            await asyncio.sleep(0.001)

    one = with_child("trap '' TERM; echo ready >&2; while :; do sleep 600; done", deaf)
    assert one.exited.result() == -signal.SIGKILL


def test_a_line_without_an_end_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it says takes a bounded part of our memory, and its last words need no newline."""

    async def said(one: Child) -> None:
        await its_end(one)
        while one._stderr >= 0:
            await asyncio.sleep(0.001)

    one = with_child("head -c 100000 /dev/zero | tr '\\0' x >&2; printf last >&2", said)
    assert "".join(one.tail).endswith("xlast") and len(one.tail) <= 20
    assert all(len(line) < 4096 + (1 << 16) + 1 for line in one.tail)
    assert capsys.readouterr().err == ""  # nobody has asked to see it


def test_sockets_that_a_confined_qemu_is_given(tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    with qemu_process._listening(path) as listener, qemu_process._connected(path) as debugger:
        assert select.select([listener], [], [], HANG)[0]
        with listener.accept()[0] as accepted:
            debugger.sendall(b"+")
            assert accepted.recv(9) == b"+"
        with pytest.raises(EnclaveError) as caught:
            qemu_process._listening(path)
        assert str(caught.value) == f"cannot listen for a debugger at {path}: Address already in use"
    with pytest.raises(
        EnclaveError, match=f"the vsock backend does not answer at {path}: Connection refused"
    ):
        qemu_process._connected(path)
