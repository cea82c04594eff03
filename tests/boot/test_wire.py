# SPDX-License-Identifier: MIT
"""Packets, counts and faults of vsock, as an application in a real guest meets them. One guest: each fault is
cleared before the next.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

import nitroctl
from nitroctl.testing import agent
from nitroctl.testing.lab import LIMIT, Lab
from nitroctl.vsock import sockets

pytestmark = pytest.mark.boot

PORT = 5000


@pytest.fixture
def world(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    return lab


def numbers(report: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split(" ", 1) for line in report.splitlines())}


def test_faults_packets_and_counts(world: Lab, tmp_path: Path) -> None:
    enclave = nitroctl.Enclave(world.image("agent"), qemu=world.qemu, vsock_backend=world.backend)
    with enclave:
        enclave.console.wait_for(agent.READY_LINE)
        with agent.Agent(enclave.uds, timeout=LIMIT) as client, enclave.listen(PORT) as listener:
            listener.socket.settimeout(LIMIT)

            def connect() -> dict[str, str]:
                return client.facts("connect", sockets.PARENT_CID, PORT)

            with enclave.capture(tmp_path / "x.pcap", snaplen=100) as counted:
                # Refused twice, then all is well: what an application's retries are for.
                enclave.faults.refuse(PORT, times=2)
                tries = [int(connect()["errno"]) for _ in range(3)]
                assert tries == [errno.ECONNRESET, errno.ECONNRESET, 0]
                listener.accept().close()
                enclave.faults.clear()

                # To the byte, and the application has the error.
                enclave.faults.reset(PORT, after=100_000)
                client.start("dial", sockets.PARENT_CID, PORT, "source", 1 << 20, 3)
                with listener.accept() as stream:
                    stream.settimeout(LIMIT)
                    assert agent.receive_all(stream) == agent.pattern(3, 100_000)
                assert numbers(client.finish())["errno"] in (errno.ECONNRESET, errno.EPIPE)
                enclave.faults.clear()

                # Nobody reads: the application is stopped by its credit, and goes on when that is over.
                number = enclave.faults.stop_reading(PORT)
                client.start("dial", sockets.PARENT_CID, PORT, "source", 1 << 20, 4)
                with listener.accept() as stream:
                    stream.settimeout(0.5)
                    with pytest.raises(TimeoutError):
                        stream.recv(1)
                    stream.settimeout(LIMIT)
                    enclave.faults.clear(number)
                    assert agent.receive_all(stream) == agent.pattern(4, 1 << 20)
                assert numbers(client.finish())["sent"] == 1 << 20

                # Never sooner than that; how much later is the host's business.
                enclave.faults.latency(300, port=PORT)
                begun = time.monotonic()
                assert int(connect()["errno"]) == 0 and time.monotonic() - begun >= 0.3
                enclave.faults.clear()
                client.probe("echo-listen", 8000)
                enclave.faults.latency(300, port=8000)
                with enclave.connect(8000) as stream:
                    stream.settimeout(LIMIT)
                    begun = time.monotonic()
                    stream.sendall(b"x")
                    assert stream.recv(1) == b"x" and time.monotonic() - begun >= 0.6
                assert [row["kind"] for row in enclave.faults.list()] == ["latency"]
            assert counted["packets"] > 50 and not counted["dropped"]
            assert (tmp_path / "x.pcap").stat().st_size == counted["bytes"]
            rows = {(row["side"], row["port"]): row for row in enclave.stats()["ports"]}
            # The third of the first try, two streams, the late one.
            assert rows["parent", PORT]["connections"] == 4 and rows["parent", PORT]["refused"] == 2
            assert rows["parent", PORT]["bytes_from_guest"] == 100_000 + (1 << 20)
            assert rows["enclave", 8000]["bytes_from_guest"] == 1
    world.check_nothing_left()
