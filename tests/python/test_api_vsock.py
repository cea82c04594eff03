# SPDX-License-Identifier: MIT
"""Connections of an Enclave object, to the enclave and from it, over fake programs. Its life is
test_api's."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import nitroctl
from api_world import Make, maker
from enclave_fakes import HANG, HEARTBEAT, RESET, Bench
from nitroctl.base import config
from nitroctl.vsock import sockets


@pytest.fixture
def make(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Make:
    return maker(bench, monkeypatch)


def test_connect(make: Make) -> None:
    with make(ports="5000:0") as enclave, enclave.connect(5000) as sock:
        sock.sendall(b"over and back")
        assert sock.recv(100) == b"over and back"
        assert sock.gettimeout() is None


def test_connect_waits_until_the_application_listens(make: Make) -> None:
    with make(ports="5000:5") as enclave:
        with pytest.raises(sockets.PortRefused, match="nobody listens on port 5000"):
            enclave.connect(5000, retry=False)
        enclave.connect(5000).close()
        with pytest.raises(sockets.PortRefused, match="nobody listens on port 6000"):
            enclave.connect(6000, timeout=0.1)
        with pytest.raises(nitroctl.NitroError, match="no vsock port"):
            enclave.connect(1 << 32)


def test_listen(make: Make) -> None:
    with make() as enclave:
        listener = enclave.listen(9001)
        # What the backend does for the guest.
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(f"{enclave.uds}_9001")
            guest.sendall(b"from inside")
            with listener.accept() as sock:
                assert sock.recv(100) == b"from inside"
        with pytest.raises(nitroctl.NitroError, match="cannot listen"):
            enclave.listen(9001)
    assert not listener.path.exists()


def test_listen_before_the_start(bench: Bench, make: Make) -> None:
    enclave = make(HEARTBEAT)
    listener = enclave.listen(9001)
    with enclave:
        command = Path(f"/proc/{enclave.record.backend_pid}/cmdline").read_bytes().split(b"\0")
        assert f"--listen-port=9001={listener.path}".encode() in command
        assert listener.path.is_socket()
    assert not listener.path.exists() and bench.left() == []


def test_listeners_of_a_killed_process_are_cleared_away(bench: Bench, make: Make) -> None:
    code = f"""
import os, nitroctl
e = nitroctl.Enclave({str(bench.eif)!r}, qemu={str(bench.qemu)!r}, vsock_backend={str(bench.backend)!r})
e.listen(1)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], env=bench.environment({}), timeout=HANG)
    assert done.returncode == -signal.SIGKILL
    assert len(list((bench.runtime / "nitroctl").glob("early-*"))) == 1
    first, second = make(), make()
    first.listen(1)
    second.listen(1)  # the living are left alone
    assert len(list(config.runtime_dir().glob("early-*"))) == 2
    first.close()
    second.close()
    assert bench.left() == []


def test_faults_of_its_vsock(make: Make) -> None:
    """What they do is seen in a guest (tests/boot/test_wire.py)."""
    enclave = make()
    with pytest.raises(nitroctl.UsageError, match="has not been started"):
        enclave.faults.refuse(1)
    with enclave:
        faults = enclave.faults
        assert (faults.latency(5, jitter=1), faults.refuse(8000, rate=0.25, seed=7)) == (1, 2)
        assert (faults.reset(nth=2, after=3), faults.stop_reading(1, times=4)) == (3, 4)
        keys = ("kind", "port", "ms", "jitter", "after", "nth", "times", "rate", "seed")
        assert [tuple(row[key] for key in keys) for row in faults.list()] == [
            ("latency", None, 5, 1, None, None, None, 1.0, 0),
            ("refuse", 8000, None, None, None, None, None, 0.25, 7),
            ("reset", None, None, None, 3, 2, None, 1.0, None),
            ("stop-reading", 1, None, None, 0, None, 4, 1.0, None),
        ]
        faults.clear()
        assert faults.list() == []
        for wrong in ({"port": -1}, {"port": "x"}, {"nth": 0}, {"times": True}, {"rate": 2}, {"seed": -1}):
            with pytest.raises(nitroctl.NitroError):
                faults.refuse(**wrong)
    with pytest.raises(nitroctl.EnclaveError, match="has ended"):
        faults.list()


def test_its_nsm_is_watched_and_disturbed(make: Make, tmp_path: Path) -> None:
    """What an application sees of that is tests/boot/test_faults.py's."""
    locked = (  # {"LockPCR": {"index": 3}}, and the answer "LockPCR"
        "1 1769860800000000 45 0 - 17 a1674c6f636b504352a165696e64657803 674c6f636b504352"
    )
    os.mkfifo(fifo := tmp_path / "fifo")
    script = [HEARTBEAT, ["await", str(fifo)], ["nsm", locked], ["print", "no newline"], RESET]
    with make(*script) as enclave:
        enclave.nsm.begin()
        assert enclave.nsm.entries() == []
        faults = enclave.faults
        faults.nsm(error=True, kind="Attestation", count=2)
        faults.clock(jump=-5.5, drift=100)
        faults.die("connection:7")
        state = faults.state()
        assert (state["nsm"]["fault_kind"], state["nsm"]["fault_errors"]) == ("Attestation", 2)
        assert (state["nsm"]["clock_offset_ms"], state["nsm"]["clock_drift_ppm"]) == (-5500, 100)
        noted = ["nsm error kind=Attestation count=2", "clock jump=-5.5 drift=100", "die connection:7"]
        assert state["faults"] == noted
        faults.clear()
        with open(fifo, "wb"):
            pass
        assert [(entry.kind, entry.index) for entry in enclave.nsm.follow()] == [("LockPCR", 3)]
        assert list(enclave.console.lines()) == ["no newline"]
    assert enclave.record.faults == (*noted, "clear")


def test_no_agent_to_ask(make: Make) -> None:
    with make() as enclave, pytest.raises(nitroctl.EnclaveError, match="no test agent"):
        enclave.attestation(timeout=0.05)


def test_an_agent_is_asked_on_the_connection_that_found_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one here is not there at once, and says what it hears: no document."""
    answered: list[int] = []
    real = sockets.connect

    def connect(uds: Path, port: int, *, timeout: float | None = None) -> socket.socket:
        connection = real(uds, port, timeout=timeout)
        answered.append(port)
        return connection

    monkeypatch.setattr(sockets, "connect", connect)
    with make(ports="7000:2") as enclave:
        with pytest.raises(nitroctl.EnclaveError, match="the NSM gave no document"):
            enclave.attestation(nonce=b"x")
        assert answered == [7000]


def test_an_enclave_that_has_ended_is_not_the_next_one_with_its_cid(make: Make, bench: Bench) -> None:
    """Its paths are the other's by now."""
    old = make(cid=77, name="old").start()
    old.stop()
    with make(cid=77, ports="5000:0,7000:0") as new:
        assert new.uds == old.uds
        for use in (old.connect, old.listen, lambda port: asyncio.run(old.open_connection(port))):
            with pytest.raises(nitroctl.EnclaveError, match="the enclave old has ended: stopped by a call"):
                use(5000)
        with pytest.raises(nitroctl.EnclaveError, match="no test agent .* the enclave old has ended"):
            old.attestation()
        new.connect(5000).close()
        new.listen(5000)
    # And the folder of one that ends is gone before its supervisor.
    with make(HEARTBEAT, RESET) as last:
        bench.wait_gone()
        while last.uds.parent.exists():
            time.sleep(0.01)
        with pytest.raises(nitroctl.EnclaveError, match="has ended: "):
            last.listen(5000)
    old.close()


def test_listeners_end_with_the_enclave(make: Make, tmp_path: Path) -> None:
    """By itself, by stop(), and one that never started: nobody waits for ever."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    waiting = ThreadPoolExecutor()

    def begin(listener: sockets.Listener) -> Future[socket.socket]:
        return waiting.submit(listener.accept)

    with make(HEARTBEAT, ["await", str(fifo)], RESET) as enclave, waiting:
        early = begin(enclave.listen(9001))
        with pytest.raises(TimeoutError):
            (late := enclave.listen(9002)).socket.settimeout(0.05)
            late.accept()
        os.close(os.open(fifo, os.O_WRONLY))
        with pytest.raises(nitroctl.EnclaveError, match="nobody will connect any more: .* has ended: "):
            early.result(HANG)
        waiting = ThreadPoolExecutor()
        other = make()
        with waiting:
            before = begin(other.listen(9001))
            other.start()
            other.stop()
            with pytest.raises(nitroctl.EnclaveError, match=r"stopped by a call of stop\(\)"):
                before.result(HANG)
            other.close()
            never = make()
            unstarted = begin(never.listen(9001))
            never.close()
            with pytest.raises(nitroctl.EnclaveError, match="was never started"):
                unstarted.result(HANG)


@pytest.mark.parametrize("end, said", [("stop", r"a call of stop\(\)"), ("close", r"or by close\(\)")])
def test_a_listener_tells_why_the_enclave_ended_while_it_waited(
    make: Make, monkeypatch: pytest.MonkeyPatch, end: str, said: str
) -> None:
    enclave = make()
    enclave.start()
    listener = enclave.listen(9001)

    def ends_meanwhile(*_: object) -> None:
        monkeypatch.undo()
        getattr(enclave, end)()
        raise ValueError("file descriptor cannot be a negative integer (-1)")  # as select does then

    monkeypatch.setattr(select, "select", ends_meanwhile)
    with pytest.raises(nitroctl.EnclaveError, match=f"has ended: stopped .*{said}"):
        listener.accept()
    enclave.close()
