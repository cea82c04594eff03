# SPDX-License-Identifier: MIT
"""Connections from the guest to unix sockets of the host, their bytes and their ends, also of one half. Other
places that they can lead to: test_vsock_routes.py. Behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import select
import socket
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, fail_after, running
from vhost_guest import (
    CREDIT_REQUEST,
    OFF_BOTH,
    OFF_RECV,
    OFF_SEND,
    REQUEST,
    RST,
    RW,
    SHUTDOWN,
    Guest,
    Refused,
    Reset,
    guest,
    linked,
)
from vsock_talk import PORT, heartbeat, pattern, read_all, wakeups_while_idle

pytestmark = pytest.mark.usefixtures("no_child_is_left")


# --- connections from the guest ---------------------------------------------------------------------------


def test_guest_connects_to_the_parent(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"hello")
        assert peer.recv(100) == b"hello"
        peer.sendall(b"world")
        assert s.recv() == b"world"
        s.close()
        assert peer.recv(100) == b""


def test_refusals_come_as_rst(backend: Backend) -> None:
    with guest(backend) as g:
        for cid, port in ((3, PORT), (2, PORT), (5, PORT), (0, 10004), (1 << 33 | 3, PORT), (4, PORT)):
            with pytest.raises(Refused):
                g.connect(port, cid)
            assert g.seen[-1].op == RST
            assert (g.seen[-1].src_cid, g.seen[-1].src_port) == (cid, port)
        with pytest.raises(Refused):
            g.connect(0xFFFFFFFF)
        # Each was answered, and nothing more came.
        assert g.pump(0.1) == 0 and g.counts == {RST: 7}


def test_cid_2_is_the_parent_too_unless_switched_off(binary: Path) -> None:
    with running(binary) as b, guest(b) as g, b.listen(PORT) as listener:
        # The same ports to both CIDs are two connections.
        s2, s3 = g.connect(PORT, 2, source=2000), g.connect(PORT, 3, source=2000)
        p2, p3 = listener.accept()[0], listener.accept()[0]
        with p2, p3:
            s2.send(b"two")
            s3.send(b"three")
            assert (p2.recv(10), p3.recv(10)) == (b"two", b"three")
            p2.sendall(b"2")
            p3.sendall(b"3")
            assert (s2.recv(), s3.recv()) == (b"2", b"3")
    with running(binary, "--no-cid2") as b, guest(b) as g, b.listen(PORT) as listener:
        with pytest.raises(Refused):
            g.connect(PORT, 2)
        g.connect(PORT, 3)
        listener.accept()[0].close()


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("layout", ["linux", "single", "pages", "odd"])
def test_guest_writes_of_every_size(backend: Backend, layout: str, event_idx: bool) -> None:
    with guest(backend, event_idx=event_idx) as g, backend.listen(PORT) as listener:
        g.layout = layout
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            for size in (1, 3732, 16384, 32768, 32769, 65535, 65536, 1 << 20):
                data = pattern(size, size)
                got = bytearray()
                view = memoryview(data)
                patience = fail_after()
                while len(got) < size:
                    if view:
                        view = view[s.send_some(bytes(view[:65536])) :]
                    g.pump()
                    if select.select([peer], [], [], 0 if view else 0.1)[0]:
                        got += peer.recv(1 << 20)
                    patience(f"{size} bytes")
                assert bytes(got) == data
            assert not select.select([peer], [], [], 0.05)[0]


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("rx", [Guest.MODERN, Guest.OLD, (45,), (20, 30, 1000), (44, 65536)])
def test_host_writes_of_every_size(backend: Backend, rx: tuple[int, ...], event_idx: bool) -> None:
    with linked(backend, rx=rx, event_idx=event_idx) as (g, s, peer):
        peer.setblocking(False)
        for size in (1, 2, 1000) if rx == (45,) else (1, 3732, 3733, 65536, 1 << 20):
            data = pattern(size, size)
            got = bytearray()
            sent = 0
            patience = fail_after()
            while len(got) < size:
                if sent < size:
                    with contextlib.suppress(BlockingIOError):
                        sent += peer.send(data[sent:])
                g.pump(0.02)
                while more := s.read_some(65536):
                    got += more
                patience(f"{size} bytes")
            assert bytes(got) == data


def test_a_slow_reader_stops_the_guest_without_loss(backend: Backend) -> None:
    data = pattern(1 << 20)
    with linked(backend) as (g, s, peer):
        sent = 0
        # Until the host's socket and the backend's window are full.
        for _ in range(3):
            while n := s.send_some(data[sent : sent + 65536]):
                sent += n
            g.flush()
            g.pump(0.1)
        assert sent < len(data)
        assert 262144 <= sent - 0 <= 262144 + 2 * 425984, "buffered without bound"
        stalled = backend.statistics()
        assert wakeups_while_idle(backend) <= 2
        got = bytearray()
        patience = fail_after()
        while len(got) < len(data):
            if select.select([peer], [], [], 0.1)[0]:
                got += peer.recv(1 << 16)
            g.pump()
            if sent < len(data):
                sent += s.send_some(data[sent : sent + 65536])
            patience("the rest")
        assert bytes(got) == data
        assert stalled["connections"] == 1


def test_the_fwd_count_is_what_the_host_took(backend: Backend) -> None:
    """Exactly: bytes in the buffer are not consumed."""
    with linked(backend) as (g, s, peer):
        sent = 0
        while True:
            n = s.send_some(bytes(65536))
            sent += n
            g.flush()
            s.put(CREDIT_REQUEST)
            count = s.updates
            g.wait(lambda count=count: s.updates > count, "CREDIT_UPDATE")  # type: ignore[misc]
            if not n:
                break
        in_backend = (s.tx_cnt - s.peer_fwd) & 0xFFFFFFFF
        assert in_backend == s.peer_buf_alloc
        in_socket = sent - in_backend
        peer.setblocking(False)
        total = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                total += len(peer.recv(1 << 20))
        assert total >= in_socket
        patience = fail_after()
        while s.peer_fwd != sent:
            with contextlib.suppress(BlockingIOError):
                total += len(peer.recv(1 << 20))
            s.put(CREDIT_REQUEST)
            g.pump(0.05)
            patience("fwd_cnt of all bytes")
        assert total <= sent


def test_rst_from_the_guest_ends_it(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.send(b"last words")
            s.put(RST)
            s.gone()
            assert read_all(peer, g) == b"last words"
        g.flush()
        # An RST is never answered, not even for a stranger.
        s.put(RST)
        g.flush()
        assert g.pump(0.1) == 0 and not g.strays
        assert backend.statistics()["connections"] == 0


def test_guest_close_delivers_everything(backend: Backend) -> None:
    data = pattern(200_000)
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.send(data)
            s.close()
            # The tuple can be used again at once.
            again = g.connect(PORT, source=s.port)
            peer2, _ = listener.accept()
            with peer2:
                again.send(b"new")
                assert peer2.recv(10) == b"new"
                assert read_all(peer, g) == data


def test_data_after_shutdown_is_a_violation(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.shutdown(OFF_SEND)
        s.send(b"x")
        s.wait(lambda: s.state == "reset", "RST")
        assert backend.statistics()["violation"] == 1


def test_guest_beyond_its_credit_is_reset(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.honest = False
        for _ in range(30):
            if s.state == "open":
                s.tx_cnt += 65536
                s.put(RW, bytes(65536))
                g.flush()
                g.pump()
        s.wait(lambda: s.state == "reset", "RST")
        assert backend.statistics()["overrun"] == 1
        # The same guest may go on with others.
        assert heartbeat(g) == b"\xb7"


def test_reused_tuple_is_reset(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.put(REQUEST)
            s.wait(lambda: s.state == "reset", "RST")
            assert peer.recv(10) == b""
        again = g.connect(PORT, source=s.port)
        listener.accept()[0].close()
        again.wait(lambda: again.peer_off == OFF_BOTH, "end")


# --- half-close -------------------------------------------------------------------------------------------


def test_guest_ends_its_half_and_reads_the_answer(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"question")
        s.shutdown(OFF_SEND)
        assert read_all(peer, g) == b"question"
        assert s.state == "open" and not s.peer_off
        peer.sendall(b"answer")
        assert s.recv_exactly(6) == b"answer"
        peer.close()
        assert s.recv_all() == b""
        s.wait(lambda: s.state == "reset", "the end")


def test_host_ends_its_half_and_reads_the_answer(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        peer.sendall(b"question")
        peer.shutdown(socket.SHUT_WR)
        assert s.recv_all() == b"question"
        assert s.peer_off == OFF_SEND, "only this half"
        s.send(b"answer")
        s.shutdown(OFF_SEND)
        assert read_all(peer, g) == b"answer"
        # Both halves are done, so it is over without a word of the host's.
        s.wait(lambda: s.state == "reset", "the end")


def test_shutdown_send_waits_for_the_buffer(backend: Backend) -> None:
    data = pattern(600_000)
    with linked(backend) as (g, s, peer):
        sent = 0
        while n := s.send_some(data[sent : sent + 65536]):
            sent += n
            g.flush()
            g.pump()
        s.shutdown(OFF_SEND)
        g.flush()
        assert read_all(peer, g) == data[:sent]


def test_guest_reads_no_more(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.shutdown(OFF_RECV)
        g.flush()
        s.send(b"still writing")
        assert peer.recv(100) == b"still writing"
        patience = fail_after()
        with pytest.raises(BrokenPipeError):
            while True:
                peer.send(b"x")
                patience("EPIPE")
        s.close()


def test_host_close_is_both_halves(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        peer.sendall(b"bye")
        peer.close()
        assert s.recv_all() == b"bye"
        assert s.peer_off == OFF_BOTH
        s.wait(lambda: s.state == "reset", "our RST is out")
        g.flush()
        assert g.pump(0.1) == 0
        assert backend.statistics()["connections"] == 0


def test_host_closes_while_the_guest_writes(backend: Backend) -> None:
    """What the host wrote before still arrives, whatever the guest sends meanwhile."""
    data = pattern(300_000)
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        sender = peer.dup()
        peer.close()
        sender.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += sender.send(data[sent:])
        sender.close()
        with contextlib.suppress(BrokenPipeError, Reset):
            for _ in range(20):
                s.send(bytes(1000))
        got = bytearray()
        with contextlib.suppress(Reset):
            got += s.recv_all()
        assert bytes(got) == data[:sent]


def test_host_closes_with_unread_data(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        s.send(bytes(100_000))
        g.flush()
        assert select.select([peer], [], [], PATIENCE)[0]
        peer.close()
        s.wait(lambda: s.state == "reset", "the guest is told")
        assert backend.statistics()["connections"] == 0


def test_no_rst_from_the_guest_after_the_end(backend: Backend) -> None:
    """The backend waits for it without doing anything."""
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        g.streams[s.key].maybe_closed = lambda: None  # type: ignore[method-assign]
        listener.accept()[0].close()
        s.wait(lambda: s.peer_off == OFF_BOTH, "SHUTDOWN")
        assert wakeups_while_idle(backend) <= 2
        # Data that was under way is not answered; a close is.
        s.tx_cnt += 4
        s.put(RW, b"late")
        s.put(SHUTDOWN, flags=OFF_BOTH)
        s.wait(lambda: s.state == "reset", "RST")
