# SPDX-License-Identifier: MIT
"""The vsock backend for a long time: what it has taken it gives back, round after round.

A round opens connections from both sides behind the fake front end, carries bytes that are compared, ends in
every way that there is, rude ones too, and reboots the guest. After each nothing may be left; over all rounds
memory and the turns of its loop stay what they were. SOAK_SECONDS says how long (`make soak`: ten minutes).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, fail_after, find_binary, running
from vhost_guest import RST, Guest, Refused, Reset, Stream, dial, guest

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
PORT, SERVED, NOBODY = 5000, 7000, 5999
FRONT_ENDS = 20  # rounds until the next VMM
MOST = 150_000  # bytes that one side sends before the other reads: less than socket and window hold

# Anonymous memory that may come and go: what the C library keeps of freed pieces.
SLACK_KIB = 256


@dataclass(frozen=True)
class Sample:
    memory: int  # KiB, anonymous: without the guest's memory and the program
    wakeups: int  # in this round
    cpu: float  # seconds in this round


def anonymous(backend: Backend) -> int:
    text = Path(f"/proc/{backend.process.pid}/status").read_text()
    match = re.search(r"^RssAnon:\s+(\d+) kB$", text, re.MULTILINE)
    assert match
    return int(match[1])


def exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"the end after {len(data)} of {size} bytes"
        data += more
    return bytes(data)


def exchange(choose: random.Random, s: Stream, peer: socket.socket) -> None:
    """Bytes one way, then the other."""
    out, back = (choose.randbytes(choose.randrange(1, MOST)) for _ in range(2))
    s.send(out, choose.choice([1000, 30_000, 65536]))
    s.guest.flush()
    assert exactly(peer, len(out)) == out
    peer.sendall(back)
    assert s.recv_exactly(len(back)) == back


def end(choose: random.Random, s: Stream, peer: socket.socket) -> None:
    """One of the ways; some leave it to the reboot."""
    match choose.randrange(6):
        case 0:
            s.close()
        case 1:
            peer.close()
            with contextlib.suppress(Reset):
                assert s.recv_all() == b""
        case 2:
            s.put(RST)
            s.gone()
        case 3:
            s.send(b"unread")
            s.guest.flush()
            peer.close()
        case 4:
            peer.shutdown(1)
            assert s.recv_all() == b""
        case 5:
            peer.sendall(bytes(choose.randrange(1, MOST)))


def rude_clients(choose: random.Random, backend: Backend, g: Guest) -> None:
    """They connect, and go without having been served."""
    for text in (b"", b"CONN", b"CONNECT 7000", b"CONNECT x\n", b"CONNECT 7000\n", b"CONNECT 7000\nabc"):
        backend.client(text).close()
    g.pump()
    with pytest.raises(Refused):
        g.connect(NOBODY)


def soak_round(choose: random.Random, backend: Backend, g: Guest, listener: socket.socket) -> None:
    g.listen(SERVED)
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(6):
            s = g.connect(PORT)
            pairs.append((s, stack.enter_context(listener.accept()[0])))
        for _ in range(4):
            peer, s = dial(backend, g, SERVED)
            pairs.append((s, stack.enter_context(peer)))
        choose.shuffle(pairs)
        for _, peer in pairs:
            peer.settimeout(PATIENCE)
        for s, peer in pairs:
            exchange(choose, s, peer)
        rude_clients(choose, backend, g)
        for s, peer in pairs:
            end(choose, s, peer)
        g.pump()
        g.reboot()


def settled(backend: Backend, g: Guest, fds: int) -> dict[str, int]:
    """The backend's statistics once nothing of the round is left."""
    patience = fail_after()
    while True:
        g.pump()
        now = backend.statistics()
        if not (now["connections"] or now["draining"] or now["reserved_bytes"]) and backend.fds() == fds:
            return now
        patience(f"{now}, {backend.fds()} descriptors become none and {fds}")


def test_soak() -> None:
    samples: list[Sample] = []
    until = time.monotonic() + SECONDS
    with running(find_binary()) as backend, backend.listen(PORT) as listener:
        while time.monotonic() < until or len(samples) < 2 * FRONT_ENDS:
            with guest(backend) as g:
                fds = backend.fds()
                wakeups, cpu = settled(backend, g, fds)["wakeups"], backend.cpu()
                for _ in range(FRONT_ENDS):
                    soak_round(random.Random(len(samples)), backend, g, listener)
                    seen = settled(backend, g, fds)["wakeups"]
                    samples.append(Sample(anonymous(backend), seen - wakeups, backend.cpu() - cpu))
                    wakeups, cpu = seen, backend.cpu()
        time.sleep(0.25)  # a while in which nothing happens
        idle = backend.statistics()["wakeups"]
        time.sleep(0.25)
        assert backend.statistics()["wakeups"] - idle <= 2
    assert len(samples) >= 2 * FRONT_ENDS
    quarter = len(samples) // 4
    first, last = samples[quarter : 2 * quarter], samples[-quarter:]
    told = [
        f"{len(samples)} rounds",
        f"anonymous memory {first[0].memory} to {last[-1].memory} KiB",
        f"turns of the loop, median {statistics.median(s.wakeups for s in first)}, "
        f"then {statistics.median(s.wakeups for s in last)}",
        f"processor {sum(s.cpu for s in first):.2f} s, then {sum(s.cpu for s in last):.2f} s",
    ]
    print("; ".join(told))
    assert last[-1].memory <= max(s.memory for s in first) + SLACK_KIB, told
    wakes = [statistics.median(s.wakeups for s in part) for part in (first, last)]
    assert wakes[1] <= 1.5 * wakes[0], told
