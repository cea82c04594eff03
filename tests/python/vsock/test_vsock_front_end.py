# SPDX-License-Identifier: MIT
"""What a front end does to the vsock backend: hostile rings; reboots, pauses and ends; messages that make no
sense. The front end is the fake one, as in test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct

import pytest

from vhost_backend import PATIENCE, Backend, fail_after
from vhost_front import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Front, drain
from vhost_guest import RW, Guest, Packet, dial, guest, linked
from vsock_talk import PORT, heartbeat, pattern, read_all, read_exactly, wakeups_while_idle

pytestmark = pytest.mark.usefixtures("no_child_is_left")


# --- hostile rings ----------------------------------------------------------------------------------------


def still_serving(g: Guest) -> None:
    assert heartbeat(g) == b"\xb7"


def chains(g: Guest, ring_index: int) -> dict[str, tuple[list[tuple[int, int, int, int]], int]]:
    """name: descriptors (address, length, flags, next), head"""
    good = g.tx_memory[0] if ring_index else g.rx_memory[0]
    write = DESC_WRITE if ring_index == 0 else 0
    return {
        "zero length": ([(good, 0, write, 0)], 0),
        "zero length in the middle": ([(good, 44, write | DESC_NEXT, 1), (good, 0, write, 0)], 0),
        "indirect": ([(good, 64, write | DESC_INDIRECT, 0)], 0),
        "wrong direction": ([(good, 3776, write ^ DESC_WRITE, 0)], 0),
        "mixed direction": ([(good, 44, write | DESC_NEXT, 1), (good, 4096, write ^ DESC_WRITE, 0)], 0),
        "loop of one": ([(good, 44, write | DESC_NEXT, 0)], 0),
        "loop of two": ([(good, 44, write | DESC_NEXT, 1), (good, 44, write | DESC_NEXT, 0)], 0),
        "next out of range": ([(good, 44, write | DESC_NEXT, 0xFFFF)], 0),
        "no memory": ([(1 << 40, 100, write, 0)], 0),
        "in the hole": ([(0xF0000, 100, write, 0)], 0),
        "across the hole": ([(0xEFFFF, 2, write, 0)], 0),
        "behind the end": ([(g.front.memory.size - 10, 100, write, 0)], 0),
        "wraps": ([(0xFFFFFFFFFFFFFFF0, 0x20, write, 0)], 0),
        "wraps far": ([(good, 0xFFFFFFFF, write, 0)], 0),
        "too short": ([(good, 43 if ring_index else 44, write, 0)], 0),
        "too many pieces": ([(good + i, 1, write | DESC_NEXT, i + 1) for i in range(70)], 0),
    }


CHAINS = [
    "zero length", "zero length in the middle", "indirect", "wrong direction", "mixed direction",
    "loop of one", "loop of two", "next out of range", "no memory", "in the hole", "across the hole",
    "behind the end", "wraps", "wraps far", "too short", "too many pieces",
]  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("ring_index", [0, 1], ids=["rx", "tx"])
def test_bad_chains_are_given_back(backend: Backend, ring_index: int, name: str) -> None:
    with guest(backend, queue=128, buffers=8) as g:
        still_serving(g)
        g.flush()
        ring = g.front.rings[ring_index]
        descriptors, head = chains(g, ring_index)[name]
        # Free descriptors, so that the good chains stay as they are.
        ids = [ring.free.pop() for _ in descriptors]
        for i, (addr, length, flags, follow) in zip(ids, descriptors, strict=True):
            in_range = flags & DESC_NEXT and follow < len(ids)
            ring.set_desc(i, addr, length, flags, ids[follow] if in_range else follow)
        before = backend.statistics()["bad_chains"]
        if ring_index == 0:
            # All good ones are used up first, then it meets the bad one.
            g.muted = True
        ring.offer(ids[head])
        ring.show()
        ring.kick(event_idx=True, force=True)
        patience = fail_after()
        while True:
            got = ring.take() if ring_index == 1 else None
            if got:
                assert got == (ids[head], 0)
                break
            if ring_index == 0:
                # Something to send, so that buffers are wanted; the bad one comes back with length 0.
                g.put(Packet(g.cid, 3, 999, 9, RW))
                found = None
                while taken := ring.take():
                    if taken[0] == ids[head]:
                        found = taken
                if found:
                    assert found == (ids[head], 0)
                    break
            patience("the bad chain")
            g.front.wait(0.01)
        assert backend.statistics()["bad_chains"] == before + 1
        assert backend.process.poll() is None
    with guest(backend) as g:
        still_serving(g)


@pytest.mark.parametrize("ring_index", [0, 1], ids=["rx", "tx"])
def test_heads_out_of_range_are_skipped(backend: Backend, ring_index: int) -> None:
    with guest(backend, queue=64, buffers=16) as g:
        ring = g.front.rings[ring_index]
        for head in (64, 0xFFFF):
            ring.offer(head)
        ring.show()
        ring.kick(event_idx=True, force=True)
        for _ in range(20):
            still_serving(g)
        assert backend.statistics()["bad_chains"] == 2


@pytest.mark.parametrize("ring_index", [0, 1], ids=["rx", "tx"])
def test_an_index_that_runs_away_stops_the_ring(backend: Backend, ring_index: int) -> None:
    with guest(backend, queue=64, buffers=16) as g:
        still_serving(g)
        g.flush()
        ring = g.front.rings[ring_index]
        ring.memory.u16[ring.avail // 2 + 1] = (ring.avail_idx + 1000) & 0xFFFF
        os.eventfd_write(ring.kick_fd, 1)
        if ring_index == 0:
            # Looked at when something is to be sent.
            for i in range(30):
                g.put(Packet(g.cid, 3, 2000 + i, 9, RW))
        patience = fail_after()
        while backend.statistics()["bad_chains"] == 0:
            patience("it was seen")
        # The front end is told of this ring, once.
        assert [drain(r.err_fd) for r in g.front.rings] == [ring_index == 0, ring_index == 1]
        assert wakeups_while_idle(backend) <= 2
        assert not drain(ring.err_fd)
        # Until the next reset of the guest.
        g.reboot()
        still_serving(g)


def test_rings_that_change_under_our_hands(backend: Backend) -> None:
    """Random bytes over descriptors and indexes while traffic goes on: it lives, whatever it answers."""
    rng = random.Random(7)
    for _ in range(8):
        front = Front(backend.socket_path, queue=64)
        with contextlib.closing(front):
            front.start()
            for ring in front.rings:
                for _ in range(200):
                    at = rng.choice([ring.desc + rng.randrange(1024), ring.avail + rng.randrange(134)])
                    front.memory.map[at] = rng.randrange(256)
                    struct.pack_into("<Q", front.memory.map, ring.desc + 16 * rng.randrange(64),
                                     0x100000 + rng.randrange(1 << 22))  # fmt: skip
                    os.eventfd_write(ring.kick_fd, 1)
    with guest(backend) as g:
        still_serving(g)


def test_tiny_rings(backend: Backend) -> None:
    with linked(backend, queue=4, buffers=4) as (g, s, peer):
        g.layout = "single"
        for i in range(50):
            s.send(pattern(1000, i))
            assert read_exactly(peer, 1000) == pattern(1000, i)
            peer.sendall(pattern(10_000, i))
            assert s.recv_exactly(10_000) == pattern(10_000, i)


# --- the front end ----------------------------------------------------------------------------------------


def test_guest_reboot_ends_its_connections(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        g.listen(7000)
        fds = backend.fds()
        for _ in range(5):
            s = g.connect(PORT)
            peer, _ = listener.accept()
            client, served = dial(backend, g, 7000)
            with peer, client:
                s.send(b"x")
                served.send(b"y")
                assert (peer.recv(1), client.recv(1)) == (b"x", b"y")
                g.reboot()
                g.listen(7000)
                assert peer.recv(10) == b"" and client.recv(10) == b""
        assert backend.statistics()["connections"] == 0
        assert backend.fds() == fds


def test_pause_keeps_connections(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for i in range(5):
            s.send(b"before %d" % i)
            g.flush()
            assert peer.recv(20) == b"before %d" % i
            g.front.stop()
            assert g.front.base[1] == g.front.tx.avail_idx
            peer.sendall(b"while paused %d" % i)
            g.front.start()
            assert s.recv_exactly(14) == b"while paused %d" % i
        s.close()
        assert peer.recv(1) == b""


def test_pause_under_load_loses_nothing(backend: Backend) -> None:
    data = pattern(1 << 20)
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        sent, got, turn = 0, bytearray(), 0
        patience = fail_after()
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                if sent < len(data):
                    sent += peer.send(data[sent : sent + 50_000])
            turn += 1
            if turn % 5 == 0:
                g.front.stop()
                g.front.start()
            g.pump(0.01)
            got += s.read_some(100_000)
            patience("the rest")
        assert bytes(got) == data


def test_last_packets_before_a_stop_are_taken(backend: Backend) -> None:
    """What stands in the ring when the guest resets was sent, even if the kick was not seen."""
    with linked(backend) as (g, s, peer):
        g.flush()
        g.front.tx.kick = lambda **kw: None  # type: ignore[method-assign]
        s.send_some(b"last words")
        g.reboot()
        assert read_all(peer) == b"last words"


def test_memory_table_may_change_while_running(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for i in range(10):
            g.front.set_memory()
            s.send(pattern(5000, i))
            assert read_exactly(peer, 5000) == pattern(5000, i)
            peer.sendall(pattern(5000, i))
            assert s.recv_exactly(5000) == pattern(5000, i)


def test_150_front_ends(backend: Backend) -> None:
    with guest(backend) as g:
        still_serving(g)
    fds = backend.fds()
    for i in range(150):
        if i % 3 == 0:
            Front(backend.socket_path).close()
        elif i % 3 == 1:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(os.fspath(backend.socket_path))
                s.send(os.urandom(i))
        else:
            with guest(backend, buffers=16) as g:
                still_serving(g)
    with guest(backend) as g:
        still_serving(g)
    patience = fail_after()
    while backend.fds() > fds:
        patience("descriptors closed")


def test_a_second_front_end_is_refused(backend: Backend) -> None:
    with guest(backend) as g:
        with pytest.raises((EOFError, ConnectionError)):
            Front(backend.socket_path)
        still_serving(g)


def test_front_end_killed_in_the_middle(backend: Backend) -> None:
    with backend.listen(PORT) as listener:
        for _ in range(5):
            with guest(backend) as g:
                s = g.connect(PORT)
                peer, _ = listener.accept()
                s.send_some(b"under way")
            with peer:
                assert read_all(peer) == b"under way"
    assert backend.process.poll() is None


def test_messages_that_make_no_sense(backend: Backend) -> None:
    front = Front(backend.socket_path)
    with contextlib.closing(front):
        pairs = [
            (8, struct.pack("=II", 2, 64)), (8, struct.pack("=II", 0, 63)), (8, struct.pack("=II", 0, 0)),
            (8, struct.pack("=II", 0, 65536)), (8, b""), (8, bytes(9)), (10, struct.pack("=II", 9, 0)),
            (10, struct.pack("=II", 0, 65536)), (9, struct.pack("=IIQQQQ", 0, 0, 1, 2, 3, 4)),
            (9, struct.pack("=IIQQQQ", 7, 0, 1, 2, 3, 4)), (12, struct.pack("=Q", 0)),
            (12, struct.pack("=Q", 5)), (12, struct.pack("=Q", 0x100)), (13, struct.pack("=Q", 3)),
            (18, struct.pack("=II", 2, 1)), (5, b""), (5, struct.pack("=II", 9, 0) + bytes(288)),
            (5, struct.pack("=II", 1, 0) + bytes(32)), (2, struct.pack("=Q", 1 << 28)),
            (16, struct.pack("=Q", 1 << 60)), (25, bytes(20)), (99, b""), (0, b""), (99, bytes(4000)),
        ]  # fmt: skip
        for request, payload in pairs:
            assert front.do(request, payload) != 0, f"request {request} with {len(payload)} bytes accepted"
        for offset, size in ((0, 9), (8, 1), (9, 0), (4, 0xFFFFFFFF)):
            assert front.ask(24, struct.pack("=III", offset, size, 0) + bytes(8)) == b""
        assert front.ask(24, struct.pack("=III", 0, 4, 0) + bytes(4))[12:] == struct.pack("<I", 4)
        assert front.ask_u64(1) & (1 << 30)
        g = Guest(front, buffers=16)
        front.start()
        still_serving(g)


def test_bad_memory_tables(backend: Backend) -> None:
    front = Front(backend.socket_path)
    fd = front.memory.fd
    with contextlib.closing(front):
        for region in (
            (0, 33 << 20, 0, 0),  # longer than the file
            (0, 4096, 0, 32 << 20),
            (0, 1 << 63, 0, 1 << 63),
            (0, 0, 0, 0),
            ((1 << 64) - 1, 4096, 0, 0),
            (0, 4096, (1 << 64) - 1, 0),
        ):
            assert front.do(5, struct.pack("=IIQQQQ", 1, 0, *region), (fd,)) != 0
        read, write = os.pipe()
        assert front.do(5, struct.pack("=IIQQQQ", 1, 0, 0, 4096, 0, 0), (read,)) != 0
        os.close(read)
        os.close(write)
        # Too many files, and files where none belong.
        assert front.do(5, struct.pack("=IIQQQQ", 1, 0, 0, 4096, 0, 0), (fd, fd)) != 0
        assert front.do(3, b"", (fd, fd, fd)) == 0
        g = Guest(front, buffers=16)
        front.start()
        still_serving(g)


def test_messages_in_pieces(backend: Backend) -> None:
    front = Front(backend.socket_path)
    with contextlib.closing(front):
        message = struct.pack("=III", 24, 1, 20) + struct.pack("=III", 0, 8, 0) + bytes(8)
        for byte in message:
            front.socket.send(bytes([byte]))
        assert front.reply(24)[12:] == struct.pack("<Q", 4)


@pytest.mark.parametrize("junk", [b"\0" * 12, b"GET / HTTP/1.0\r\n\r\n", struct.pack("=III", 1, 1, 1 << 31)])
def test_a_broken_stream_is_closed(backend: Backend, junk: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(PATIENCE)
        s.connect(os.fspath(backend.socket_path))
        s.sendall(junk)
        with contextlib.suppress(ConnectionResetError):
            assert s.recv(1) == b""
    with guest(backend) as g:
        still_serving(g)
