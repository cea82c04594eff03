# SPDX-License-Identifier: MIT
"""Credit both ways, the limit of packets, full rings and listeners; and packets that a guest must not send.
Chains of descriptors are test_vsock_chains.py's. Behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest

from vhost_backend import Backend, fail_after
from vhost_guest import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    LINUX_BUFFER,
    OFF_BOTH,
    OFF_RECV,
    OFF_SEND,
    REQUEST,
    RST,
    RW,
    SHUTDOWN,
    Packet,
    guest,
    linked,
)
from vsock_talk import PORT, pattern, read_exactly, wakeups_while_idle

pytestmark = pytest.mark.usefixtures("no_child_is_left")


# --- credit and packets -----------------------------------------------------------------------------------


def test_small_messages_to_a_busy_guest(backend: Backend) -> None:
    """900 messages, each a packet of its own, while the guest's program sleeps. Guest checks the limit."""
    message = [pattern(200, i) for i in range(900)]
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        left = list(reversed(message))
        with contextlib.suppress(BlockingIOError):
            while left:
                peer.send(left[-1])
                left.pop()
                before = len(s.queue)
                if before < 256:
                    g.wait(lambda n=before: len(s.queue) > n, "the message")  # type: ignore[misc]
        g.pump(0.2)
        assert len(s.queue) == 256, "the packet limit was reached, and not passed"
        got = bytearray()
        patience = fail_after()
        while len(got) < 180_000:
            with contextlib.suppress(BlockingIOError, IndexError):
                peer.send(left[-1])
                left.pop()
            g.pump(0.0 if left else 0.1)
            got += s.read_some(2000)
            patience("all messages")
        assert bytes(got) == b"".join(message)
        # Asked at half the limit, and then at intervals that grow from 20 ms.
        assert s.requests < 20


def test_the_packet_limit_follows_a_small_buffer(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT, buf_alloc=8192)
        peer, _ = listener.accept()
        with peer:
            for i in range(50):
                peer.sendall(b"%03d" % i)
                g.pump(0.005)
            assert 2 <= len(s.queue) <= 8
            assert s.recv_exactly(150) == b"".join(b"%03d" % i for i in range(50))


def test_an_old_kernel_that_does_not_tell(backend: Backend) -> None:
    """Linux before 6.8 tells of consumed bytes only when little room is left; small packets go on."""
    with linked(backend) as (g, s, peer):
        got = 0
        for i in range(700):
            peer.sendall(bytes([i & 0xFF]) * 10)
            patience = fail_after()
            while got < 10 * (i + 1):
                g.pump(0.02)
                while s.queue:  # consumed, and nothing said
                    packet = s.queue.popleft()
                    got += len(packet)
                    s.fwd_cnt += len(packet)
                patience(f"message {i}")
        assert s.requests <= 700 // 128 + 3


def test_one_credit_request_then_silence(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        sent = 0
        patience = fail_after()
        while not s.requests:
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(bytes(65536))
            g.pump(0.02)
            patience("CREDIT_REQUEST")
        g.pump(0.1)
        assert s.requests == 1
        in_flight = s.received
        assert LINUX_BUFFER - 3732 < in_flight <= LINUX_BUFFER
        # Answers with nothing new in them are not answered by another question.
        for _ in range(20):
            s.put(CREDIT_UPDATE)
        g.flush()
        g.pump(0.1)
        assert s.requests == 1 and s.received == in_flight
        assert wakeups_while_idle(backend) <= 2


def test_no_crumbs(backend: Backend) -> None:
    """A guest that reads 600 bytes at a time gets full packets, and few questions."""
    total = 1 << 20
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        data = pattern(total)
        sent, got = 0, bytearray()
        before = backend.statistics()
        patience = fail_after()
        while len(got) < total:
            with contextlib.suppress(BlockingIOError):
                if sent < total:
                    sent += peer.send(data[sent:])
            if g.pump(0.0 if s.queue else 0.05) == 0:
                got += s.read_some(600)
                patience("the rest") if not s.queue else None
        assert bytes(got) == data
        after = backend.statistics()
        packets = after["packets_to_guest"] - before["packets_to_guest"]
        assert packets < 1.25 * total / 3732 + 20
        # One for each stretch of a quarter of the buffer, and of what a late host cuts in pieces.
        assert after["credit_requests"] - before["credit_requests"] <= 4 * total // 65536
        assert after["wakeups"] - before["wakeups"] < 3000


def test_guest_lowers_its_buffer(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        peer.sendall(bytes(100_000))
        g.wait(lambda: s.received == 100_000, "bytes")
        s.buf_alloc = 1000
        s.put(CREDIT_UPDATE)
        g.flush()
        peer.sendall(b"more")
        g.pump(0.1)
        assert s.received == 100_000
        s.buf_alloc = LINUX_BUFFER
        assert s.recv_exactly(100_004)[-4:] == b"more"


def test_credit_going_backwards(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for fwd in (0xFFFFFFFF, 0x80000000, 5, 0, 0x7FFFFFFF):
            g.put(Packet(g.cid, 3, s.port, PORT, CREDIT_UPDATE, buf_alloc=fwd, fwd_cnt=fwd))
            peer.sendall(b"x")
        g.flush()
        s.put(CREDIT_UPDATE)
        assert s.recv_exactly(5) == b"xxxxx"
    assert backend.process.poll() is None


def test_credit_request_is_answered(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"12345")
        assert peer.recv(10) == b"12345"
        for _ in range(100):
            s.put(CREDIT_REQUEST)
        g.flush()
        g.wait(lambda: s.updates >= 1, "CREDIT_UPDATE")
        g.pump(0.05)
        assert s.peer_fwd == 5 and s.updates <= 100


def test_tx_goes_on_without_rx_buffers(backend: Backend) -> None:
    with guest(backend, start=False) as g, backend.listen(PORT) as listener:
        g.muted = True
        g.front.start()
        s = g.connect_start(PORT)
        peer, _ = listener.accept()
        with peer:
            # RESPONSE cannot be sent, but what the guest sends is taken.
            s.peer_buf_alloc = LINUX_BUFFER
            s.send(bytes(50_000))
            g.flush()
            assert read_exactly(peer, 50_000) == bytes(50_000)
            # Any number of questions costs no memory, and RSTs for strangers stop at their bound.
            for i in range(3000):
                s.put(CREDIT_REQUEST)
                if i < 900:
                    g.put(Packet(g.cid, 3, 40000 + i, 9, RW))
            g.flush()
            assert backend.statistics()["reserved_bytes"] == LINUX_BUFFER
            g.muted = False
            g.post()
            g.wait(lambda: s.state == "open" and len(g.strays) == 900, "all answers")


def test_rsts_for_strangers_stop_the_ring_when_full(backend: Backend) -> None:
    with guest(backend, start=False, buffers=64) as g:
        g.muted = True
        g.front.start()
        sent = 0
        with contextlib.suppress(TimeoutError):
            # Until it takes no more: the bound, and what the ring itself holds.
            while sent < 1024 + 64:
                g.put(Packet(g.cid, 3, 10000 + sent, 9, RW))
                sent += 1
        g.pump(0.1)
        assert len(g.tx_at) == 64, "the rest waits in the ring"
        g.muted = False
        g.post()
        g.wait(lambda: len(g.strays) == 1088, "an RST for each")
        assert {p.dst_port for p in g.strays} == set(range(10000, 10000 + 1088))


def test_listener_that_does_not_accept(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT, backlog=0) as lazy, backend.listen(PORT + 1) as busy:
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with filler:
            filler.connect(os.fspath(backend.port(PORT)))
            waiting = [g.connect_start(PORT) for _ in range(10)]
            # Another port is not held up.
            s = g.connect(PORT + 1)
            peer, _ = busy.accept()
            with peer:
                s.send(b"through")
                assert peer.recv(10) == b"through"
            # One place becomes free: one of them gets through, by the retry.
            lazy.accept()[0].close()
            g.wait(lambda: any(w.state == "open" for w in waiting), "the first of those that wait")
            # The others are refused before a Linux guest gives up.
            g.wait(lambda: sum(w.state == "reset" for w in waiting) == 9, "nine refusals")
            assert backend.statistics()["backlog"] == 9


def test_thousands_that_wait_for_one_listener(backend: Backend) -> None:
    """It is asked for all of them together, at most every 20 ms: each would be a quarter of a processor."""
    with guest(backend, buffers=900) as g, backend.listen(PORT, backlog=0), backend.listen(PORT + 1) as busy:
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with filler:
            filler.connect(os.fspath(backend.port(PORT)))
            s = g.connect(PORT + 1)
            peer, _ = busy.accept()
            with peer:
                waiting = [g.connect_start(PORT) for _ in range(4000)]
                g.flush()
                began, before = time.monotonic(), backend.statistics()["dials"]
                patience = fail_after()
                while all(w.state == "connecting" for w in waiting[-10:]):
                    s.send(b"x")
                    assert peer.recv(1) == b"x"
                    g.pump(0.05)
                    patience("the refusals")
                asked = backend.statistics()["dials"] - before
                assert 0 < asked <= (time.monotonic() - began) / 0.019 + 1
            g.wait(lambda: all(w.state == "reset" for w in waiting), "4000 refusals")
            assert backend.statistics()["backlog"] == 4000


def test_guest_gives_up_while_waiting(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT, backlog=0):
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with filler:
            filler.connect(os.fspath(backend.port(PORT)))
            s = g.connect_start(PORT)
            g.flush()
            s.put(RST)
            s.gone()
            g.flush()
            assert backend.statistics()["connections"] == 0


# --- packets that a guest must not send -------------------------------------------------------------------


def test_hostile_headers(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        me, src = g.cid, s.port
        # Not the guest's CID: not answered.
        for cid in (0, 3, 5, me + (1 << 32), 0xFFFFFFFF):
            g.put(Packet(cid, 3, src, PORT, RW, b"evil"))
        g.flush()
        assert g.pump(0.1) == 0
        # Unknown type: an RST of that type, which is not the stream's.
        g.streams.pop(s.key)
        g.put(Packet(me, 3, src, PORT, RW, b"evil", kind=2))
        g.wait(lambda: g.strays and g.strays[-1].kind == 2, "RST with type 2")
        g.streams[s.key] = s
        s.send(b"good")
        assert peer.recv(100) == b"good"
        # Unknown operations of strangers.
        for op in (0, 4, 5, 6, 7, 8, 0xFFFF):
            n = len(g.strays)
            g.put(Packet(me, 3, 999, PORT, op))
            g.wait(lambda n=n: len(g.strays) == n + 1, f"RST for op {op}")  # type: ignore[misc]
        # A length that is not there.
        g.put(Packet(me, 3, src, PORT, RW, b"evil", length=5))
        s.wait(lambda: s.state == "reset", "RST")
        assert peer.recv(10) == b""


@pytest.mark.parametrize(
    "bad",
    [
        {"op": RW, "length": 65537},
        {"op": RW, "length": 0xFFFFFFFF},
        {"op": CREDIT_UPDATE, "payload": b"x"},
        {"op": SHUTDOWN, "length": 1},
        {"op": 0},
        {"op": 8},
        {"op": REQUEST},
    ],
)
def test_violations_reset_one_connection(backend: Backend, bad: dict[str, object]) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s, other = g.connect(PORT), g.connect(PORT)
        peer, other_peer = listener.accept()[0], listener.accept()[0]
        with peer, other_peer:
            g.put(Packet(g.cid, 3, s.port, PORT, **bad))  # type: ignore[arg-type]
            s.wait(lambda: s.state == "reset", "RST")
            assert peer.recv(10) == b""
            other.send(b"unharmed")
            assert other_peer.recv(10) == b"unharmed"


def test_zero_length_rw_is_ignored(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.put(RW)
        s.send(b"x")
        assert peer.recv(10) == b"x"


def test_shutdown_twice(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for flags in (0, OFF_SEND, OFF_SEND, 0xFFFFFFFC, OFF_RECV, OFF_BOTH):
            s.put(SHUTDOWN, flags=flags)
        s.wait(lambda: s.state == "reset", "RST")
        assert peer.recv(1) == b""
        g.flush()
        # The last one is a stranger's, unless it came before the RST was out.
        g.pump(0.05)
        assert len(g.strays) <= 1
        assert backend.statistics()["connections"] == 0
