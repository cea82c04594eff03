# SPDX-License-Identifier: MIT
"""The vsock backend under random sequences of what guest and host may do: every byte and every credit.

Credit, packet limits and the form of packets are checked by the fake guest (vhost_guest.Guest) at each
packet; here are the bytes: what arrives is what was sent, in order, and all of it unless its reader has left.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from vhost_backend import Backend, fail_after, find_binary
from vhost_front import Front
from vhost_guest import OFF_BOTH, OFF_RECV, OFF_SEND, RST, Guest, Stream, dial

PORT = 5000

SETTINGS = settings(
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)

# Bytes that differ at every place, to be cut from.
NOISE = random.Random(11).randbytes(1 << 20)

SIZES = st.one_of(
    st.integers(1, 300),
    st.sampled_from([3732, 3733, 32404, 32405, 32768, 32769, 65536, 65537, 200_000]),
    st.integers(1, 300_000),
)


@dataclass
class Link:
    """A connection seen from both ends."""

    stream: Stream
    sock: socket.socket
    to_host: bytearray = field(default_factory=bytearray)  # sent by the guest
    at_host: int = 0  # bytes that the host has read
    to_guest: bytearray = field(default_factory=bytearray)
    at_guest: int = 0
    guest_left: bool = False  # reads no more
    guest_done: bool = False  # sends no more
    host_left: bool = False
    host_done: bool = False

    def summary(self) -> str:
        s = self.stream
        return (
            f"host has {self.at_host} of {len(self.to_host)}, guest {self.at_guest} of {len(self.to_guest)}; "
            f"guest left={self.guest_left} done={self.guest_done}, host left={self.host_left} "
            f"done={self.host_done}; {s.state}, peer_off={s.peer_off}, credit {s.credit()}, "
            f"queued {len(s.queue)}, received {s.received}, fwd {s.fwd_cnt}"
        )

    def host_reads(self, n: int) -> int:
        """Bytes read; 0 at the end; -1 if there is nothing now."""
        try:
            data = self.sock.recv(n)
        except BlockingIOError:
            return -1
        except ConnectionResetError:
            return 0
        assert data == self.to_host[self.at_host : self.at_host + len(data)], "other bytes at the host"
        self.at_host += len(data)
        return len(data)

    def guest_reads(self, n: int) -> int:
        data = self.stream.read_some(n)
        assert data == self.to_guest[self.at_guest : self.at_guest + len(data)], "other bytes in the guest"
        self.at_guest += len(data)
        return len(data)


def noise(at: int, n: int) -> bytes:
    at %= len(NOISE)
    piece = NOISE[at : at + n]
    return piece if len(piece) == n else piece + noise(at + len(piece), n - len(piece))


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # One each, so that what happened to one says nothing about the next.
        self.backend = Backend(find_binary())
        self.fds = self.backend.fds()
        self.front = Front(self.backend.socket_path, memory=64 << 20)
        self.guest = Guest(self.front)
        self.front.start()
        self.guest.listen(7000)
        self.listener = self.backend.listen(PORT)
        self.links: list[Link] = []

    def add(self, stream: Stream, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.links.append(Link(stream, sock))

    def pick(self, which: int) -> Link | None:
        return self.links[which % len(self.links)] if self.links else None

    @rule()
    def guest_opens(self) -> None:
        if len(self.links) < 6:
            stream = self.guest.connect(PORT)
            self.add(stream, self.listener.accept()[0])

    @rule()
    def host_opens(self) -> None:
        if len(self.links) < 6:
            sock, stream = dial(self.backend, self.guest, 7000)
            self.add(stream, sock)

    @rule(which=st.integers(0, 5), n=SIZES, most=st.sampled_from([1, 100, 4096, 32768, 65536]))
    def guest_sends(self, which: int, n: int, most: int) -> None:
        link = self.pick(which)
        if link is None or link.guest_done or link.stream.state != "open":
            return
        if link.stream.peer_off & OFF_RECV:
            return
        data = noise(len(link.to_host), n if most >= 4096 else min(n, 50 * most))
        while data and (sent := link.stream.send_some(data, most)):
            link.to_host += data[:sent]
            data = data[sent:]

    @rule(which=st.integers(0, 5), n=SIZES)
    def host_sends(self, which: int, n: int) -> None:
        link = self.pick(which)
        if link is None or link.host_done:
            return
        data = noise(len(link.to_guest), n)
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            sent = link.sock.send(data)
            link.to_guest += data[:sent]

    @rule(which=st.integers(0, 3), most=st.sampled_from([1000, 5001, 32769, 65536]))
    def guest_floods(self, which: int, most: int) -> None:
        """Until socket, backend and credit are full."""
        link = self.pick(which)
        if link is None or link.guest_done:
            return
        for _ in range(8):
            before = len(link.to_host)
            self.guest_sends(which, 1 << 20, most)
            self.guest.flush()
            self.guest.pump(0.005)
            if len(link.to_host) == before:
                break

    @rule(which=st.integers(0, 3), n=st.sampled_from([100, 3000, 200_000]))
    def host_floods(self, which: int, n: int) -> None:
        for _ in range(40):
            self.host_sends(which, n)
            self.guest.pump()

    @rule(which=st.integers(0, 3), n=st.sampled_from([1, 1000, 65536, 200_000]))
    def host_reads_on(self, which: int, n: int) -> None:
        """While the backend refills the socket, so that its buffer moves and wraps."""
        link = self.pick(which)
        if link is None or link.host_left:
            return
        for _ in range(5):
            link.host_reads(n)
            self.guest.pump()

    @rule(which=st.integers(0, 5), n=SIZES)
    def guest_reads(self, which: int, n: int) -> None:
        link = self.pick(which)
        if link is not None and not link.guest_left:
            link.guest_reads(n)

    @rule(which=st.integers(0, 5), n=SIZES)
    def host_reads(self, which: int, n: int) -> None:
        link = self.pick(which)
        if link is not None and not link.host_left:
            link.host_reads(n)

    @rule(which=st.integers(0, 5), flags=st.sampled_from([OFF_SEND, OFF_SEND, OFF_RECV, OFF_BOTH]))
    def guest_shuts(self, which: int, flags: int) -> None:
        link = self.pick(which)
        if link is None or link.stream.state != "open":
            return
        link.guest_left |= bool(flags & OFF_RECV)
        link.guest_done |= bool(flags & OFF_SEND)
        link.stream.shutdown(flags)

    @rule(which=st.integers(0, 5))
    def guest_resets(self, which: int) -> None:
        link = self.pick(which)
        if link is None or link.stream.state != "open":
            return
        link.guest_left = link.guest_done = True
        link.stream.put(RST)
        link.stream.gone()

    @rule(which=st.integers(0, 5))
    def host_shuts(self, which: int) -> None:
        link = self.pick(which)
        if link is not None and not link.host_done:
            link.host_done = True
            with contextlib.suppress(OSError):
                link.sock.shutdown(socket.SHUT_WR)

    @rule(which=st.integers(0, 5))
    def host_closes(self, which: int) -> None:
        link = self.pick(which)
        if link is not None and not link.host_left:
            link.host_left = link.host_done = True
            link.sock.close()

    @rule()
    def pause(self) -> None:
        self.front.stop()
        self.front.start()

    @rule(layout=st.sampled_from(["linux", "single", "pages", "odd"]))
    def other_layout(self, layout: str) -> None:
        self.guest.layout = layout

    @rule(muted=st.booleans())
    def guest_stops_posting(self, muted: bool) -> None:
        self.guest.muted = muted

    @invariant()
    def guest_goes_on(self) -> None:
        self.guest.pump(0.002)

    def teardown(self) -> None:
        good = False
        try:
            self.guest.muted = False
            self.guest.layout = "linux"
            self.settle()
            self.front.close()
            patience = fail_after()
            while self.backend.fds() > self.fds:
                patience("descriptors closed")
            good = True
        finally:
            for link in self.links:
                link.sock.close()
            self.front.close()
            self.listener.close()
            self.backend.close(check=good)

    def settle(self) -> None:
        """Everybody reads to the end; then nothing may be missing."""
        self.guest.post()
        patience = fail_after()
        for link in self.links:
            while True:
                moved = self.guest.pump()
                ended = link.host_left
                if not ended:
                    got = link.host_reads(1 << 20)
                    moved += max(0, got)
                    ended = got == 0
                if not link.guest_left:
                    moved += link.guest_reads(1 << 20)
                if link.at_host == len(link.to_host) or ended:
                    if link.guest_left or link.at_guest == len(link.to_guest):
                        break
                if not moved:
                    patience(f"the rest of {link.summary()}; {self.backend.statistics()}")
                    self.guest.pump(0.02)
                    if not link.host_left:
                        select.select([link.sock], [], [], 0.01)
            if not link.host_left:
                assert link.at_host == len(link.to_host), "the host did not get all"
        for link in self.links:
            if not link.host_left:
                link.sock.close()
            if link.stream.state == "open":
                link.stream.read_some(1 << 30)
        while self.backend.statistics()["connections"]:
            self.guest.pump(0.02)
            for link in self.links:
                link.stream.read_some(1 << 30)
            patience("all connections forgotten")
        numbers = self.backend.statistics()
        assert numbers["reserved_bytes"] == 0
        for violation in ("violation", "overrun", "bad-length", "bad-source", "bad-type", "no-memory"):
            assert numbers.get(violation, 0) == 0, violation


def test_random_lives() -> None:
    run_state_machine_as_test(Machine, settings=SETTINGS)
