# SPDX-License-Identifier: MIT
"""Many connections and streams at once, at full speed: the workloads of `make bench`, made short.

The guest's side is tests/bench/vsock-rates.c, named by VSOCK_RATES, or the fake front end where turns are
counted. What is claimed is that everything arrives, that nothing stalls and that nobody is preferred; how
fast, only the benchmark says.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, fail_after, running
from vhost_guest import Packet, Stream, guest

PARENT = 3


def rates(backend: Backend, *workload: str | float) -> dict[str, float]:
    program = os.environ.get("VSOCK_RATES")
    if not program:
        pytest.fail("VSOCK_RATES must name the build's tests/bench/vsock-rates")
    argv = [program, backend.socket_path, backend.uds_path, backend.cid, PARENT, *workload]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=3 * PATIENCE)
    for path in backend.folder.glob(f"{backend.uds_path.name}_*"):
        path.unlink()  # its listener
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.parametrize("size", [1000, 32404, 32405, 65536])
@pytest.mark.parametrize("form", ["linux", "whole"])
def test_all_that_is_sent_arrives(binary: Path, size: int, form: str) -> None:
    with running(binary) as b:
        facts = rates(b, "send", size, 0, form, 200 * size)
        assert facts["lost"] == 0 and not facts["stalled"] and facts["bytes"] >= 200 * size
        assert b.statistics()["bytes_from_guest"] == facts["bytes"]


def test_all_that_is_received_has_been_sent(binary: Path) -> None:
    with running(binary) as b:
        facts = rates(b, "receive", 0, 4 << 20)
        assert facts["lost"] == 0 and not facts["stalled"] and facts["bytes"] >= 4 << 20
        assert b.statistics()["bytes_to_guest"] == facts["bytes"]


def test_a_thousand_connections(binary: Path) -> None:
    with running(binary) as b:
        facts = rates(b, "open", 1000)
        assert (facts["opened"], facts["refused"], facts["echoed"]) == (1000, 0, 1000)
        # One driver after the other, as when a guest is started anew: nothing is left of the first.
        facts = rates(b, "open", 1000)
        assert facts["echoed"] == 1000


@pytest.mark.parametrize("direction", ["streams", "pull"])
def test_a_hundred_streams_at_once(binary: Path, direction: str) -> None:
    with running(binary) as b:
        # So many bytes of each, however long that takes: how they share a second is the scheduler's doing.
        facts = rates(b, direction, 100, 0, 1 << 20)
        assert facts["streams"] == 100 and not facts["stalled"]
        assert facts["least"] >= 1 << 20


QUANTUM = 65536  # VSOCK_QUANTUM: for one connection, then the next
STREAMS = 8


def test_streams_whose_bytes_wait_take_turns(binary: Path) -> None:
    """Of those that all have something to say, none is ever further than two turns ahead of another."""
    with running(binary) as b, guest(b, buffers=32) as g, b.listen(5000) as listener:
        streams = [g.connect(5000) for _ in range(STREAMS)]
        peers = [listener.accept()[0] for _ in range(STREAMS)]
        waiting = dict.fromkeys((s.port for s in streams), 0)

        def fill() -> None:
            for s, peer in zip(streams, peers, strict=True):
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        waiting[s.port] += peer.send(bytes(QUANTUM))

        # The guest has no room any more; then all of them wait.
        g.muted = True
        fill()
        g.wait(lambda: not g.buffer_at, "all RX buffers in use")
        fill()
        got = dict.fromkeys(waiting, 0)
        for s in streams:
            waiting[s.port] -= s.received
            assert waiting[s.port] > 2 * QUANTUM
        take, turns = g.on_5, 0

        def count(s: Stream, p: Packet) -> None:
            nonlocal turns
            take(s, p)
            got[s.port] += len(p.payload)
            if all(got[port] < waiting[port] for port in got):
                turns += 1
                assert max(got.values()) - min(got.values()) <= 2 * QUANTUM, got

        g.on_5 = count  # type: ignore[method-assign]
        g.muted = False
        g.post()
        patience = fail_after()
        while got != waiting:
            g.pump(0.2)
            for s in streams:
                s.read_some(1 << 20)  # which gives credit again
            patience(f"{got} to become {waiting}")
        assert turns > STREAMS
        for peer in peers:
            peer.close()


def test_streams_of_the_guest_are_taken_as_they_come(binary: Path) -> None:
    with running(binary) as b, guest(b) as g, b.listen(5000) as listener:
        streams = [g.connect(5000) for _ in range(STREAMS)]
        peers = [listener.accept()[0] for _ in range(STREAMS)]
        for _ in range(10):
            sent = [s.send_some(bytes(32768)) for s in streams]
            assert sent == [32768] * STREAMS, "credit comes back to each"
            for peer in peers:
                left = 32768
                while left:
                    left -= len(peer.recv(left))
            g.flush()
            g.pump()
        for peer in peers:
            peer.close()


def test_connections_one_after_the_other(binary: Path) -> None:
    with running(binary) as b:
        before = b.fds()
        rates(b, "connect", 2000)
        patience = fail_after()
        while b.fds() > before:  # it has yet to see that the front end is gone
            patience(f"{b.fds()} descriptors become {before}")
