# SPDX-License-Identifier: MIT
"""What the guest sent before it closed, once QEMU has ended: slow readers get it all, and nobody else is
waited for. The vsock backend is the real one; the test plays the guest."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave_fakes import HANG, RESET, Bench, Running, steps
from enclave_world import world
from nitroctl.enclaves import drain
from nitroctl.enclaves.drain import drained
from vhost_backend import fail_after
from vhost_front import Front
from vhost_guest import Guest

CID = 16
PORT = 5000
DATA = os.urandom(400_000)


@contextmanager
def ended(bench: Bench) -> Iterator[tuple[Running, socket.socket]]:
    """`nitroctl run` whose QEMU has ended, and the host's end of a stream that holds DATA."""
    fifo = bench.tmp / "fifo"
    os.mkfifo(fifo)
    folder = bench.runtime / "nitroctl" / str(CID)
    script = steps(["print", "QEMU is there\n"], ["await", str(fifo)], RESET)
    with bench.start("--cid", str(CID), FAKE_QEMU_NO_VSOCK="1", **script) as running:
        running.until("QEMU is there")
        qemu = bench.pid_of(bench.qemu)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(folder / f"vsock_{PORT}"))
            listener.listen()
            front = Front(folder / "device")
            try:
                front.start()
                stream = Guest(front).connect(PORT)
                peer = listener.accept()[0]
                stream.send(DATA)
                stream.close()
                stream.wait(lambda: stream.state == "reset", "RST")
            finally:
                front.close()
        with peer:
            peer.settimeout(HANG)
            fifo.write_bytes(b"")
            patience = fail_after()
            while qemu in bench.processes():
                patience("QEMU's end")
                time.sleep(0.005)
            yield running, peer


def test_a_slow_reader_gets_every_byte(tmp_path: Path) -> None:
    with world(tmp_path) as bench, ended(bench) as (running, peer):
        got = bytearray()
        while more := peer.recv(4000):
            got += more
            time.sleep(0.002)
        assert got == DATA
        running.wait()
        assert bench.processes() == {} and bench.left() == []


def test_a_stop_does_not_wait_for_a_reader_that_takes_nothing(tmp_path: Path) -> None:
    with world(tmp_path) as bench, ended(bench) as (running, _):
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.wait()
        assert time.monotonic() - begun < drain.STALLED_SECONDS / 2
        assert bench.processes() == {} and bench.left() == []


class Backend:
    """What it says when it is asked, one after the other, and the last for ever."""

    def __init__(self, *said: dict[str, int] | None) -> None:
        self.said = list(said)
        self.asked = 0
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def statistics(self) -> dict[str, int] | None:
        self.asked += 1
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def left(count: int, taken: int) -> dict[str, int]:
    return {"draining": count, "bytes_from_guest": taken}


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ((left(0, 7),), 1),
        ((None,), 1),
        (({},), 1),
        ((left(2, 7), left(2, 8), left(1, 8), left(0, 9)), 4),
        ((left(1, 7), None), 2),
    ],
)
def test_who_is_waited_for(
    said: tuple[dict[str, int] | None, ...], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "ASK_SECONDS", 0.001)

    async def main() -> int:
        backend = Backend(*said)
        await asyncio.wait_for(drained(backend), HANG)  # type: ignore[arg-type]
        return backend.asked

    assert asyncio.run(main()) == asked


def test_progress_renews_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time, each within the limit, then none: the limit counts from the last."""
    monkeypatch.setattr(drain, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(drain, "STALLED_SECONDS", 0.5)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        backend = Backend(*(left(1, taken) for taken in range(50)))  # a second of it, at least
        begun = loop.time()
        await asyncio.wait_for(drained(backend), HANG)  # type: ignore[arg-type]
        assert backend.asked > 50
        return loop.time() - begun

    assert asyncio.run(main()) >= 1.4
