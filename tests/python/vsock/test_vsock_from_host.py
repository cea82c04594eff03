# SPDX-License-Identifier: MIT
"""Connections from the host to the guest by the backend's unix socket: the line that asks for them, clients
that leave, guests that do not answer. Behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time

import pytest

from vhost_backend import PATIENCE, Backend, fail_after
from vhost_guest import LINUX_BUFFER, REQUEST, RESPONSE, RST, Guest, Packet, Stream, dial, guest, read_ok
from vsock_talk import PORT, dial_skipping, pattern, read_exactly, wakeups_while_idle

pytestmark = pytest.mark.usefixtures("no_child_is_left")


def test_host_connects_to_the_guest(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        client, s = dial(backend, g, 7000)
        with client:
            assert s.cid == 3 and s.peer_port >= 1 << 30
            client.sendall(b"hello")
            assert s.recv() == b"hello"
            s.send(b"world")
            assert client.recv(10) == b"world"
            s.close()
            assert client.recv(10) == b""


def test_nobody_listens_in_the_guest(backend: Backend) -> None:
    with guest(backend) as g:
        with backend.client(b"CONNECT 7001\n") as client:
            g.wait(lambda: REQUEST in g.counts, "REQUEST")
            g.flush()
            assert client.recv(10) == b""


@pytest.mark.parametrize(
    "pieces",
    [
        (b"CONNECT 7000\nhello",),
        (b"CONN", b"ECT 7", b"000", b"\n", b"hello"),
        (b"connect 7000\n", b"hel", b"lo"),
        (b"Connect  7000\r\nhello",),
        tuple(bytes([c]) for c in b"CONNECT 7000\nhello"),
    ],
)
def test_connect_line_in_pieces(backend: Backend, pieces: tuple[bytes, ...]) -> None:
    with guest(backend) as g, backend.client() as client:
        g.listen(7000)
        for piece in pieces:
            client.sendall(piece)
            g.pump(0.01)
        s = g.accept(7000)
        assert read_ok(client) == s.peer_port
        assert s.recv_exactly(5) == b"hello"


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n", b"CONNECT\n", b"CONNECT \n", b"CONNECT 7000 \n", b"CONNECT x\n",
        b"CONNECT -1\n", b"CONNECT 4294967295\n", b"CONNECT 4294967296\n", b"CONNECT 7000\r\r\n",
        b"CONNECT" + b" " * 50 + b"7000\n", b"\n", b"\0" * 8, b"CONNECT7000\n", b"CONNECTX 7000\n",
        b"CONNECT 18446744073709558616\n",
        b"OPEN 7000\n", b"OPEN 7000 1\n", b"OPEN 7000 1 \n", b"OPEN 7000 4294967295 9\n", b"OPEN 7000 x 9\n",
        b"OPEN 7000 1 4294967295\n", b"OPEN 7000 1 9 2\n", b"OPEN7000 1 9\n", b"OPEN\n", b"OPENER 7000 1 9\n",
        b"CONNECT 7000 1\n",
    ],
)  # fmt: skip
def test_wrong_lines_close_the_connection(backend: Backend, line: bytes) -> None:
    with guest(backend) as g:
        g.listen(7000)
        with backend.client(line) as client:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(10) == b""
        assert g.pump(0.02) == 0
        dial(backend, g, 7000)[0].close()


def opening(backend: Backend, line: bytes) -> socket.socket:
    """A client that cannot write any more before the outcome is there."""
    client = backend.client()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.setblocking(False)
    assert client.send(line.ljust(36000, b"\0")) == 36000
    return client


def outcome(client: socket.socket, g: Guest) -> int:
    """What a program does after EINPROGRESS."""
    g.wait(lambda: select.select([], [client], [], 0)[1], "the outcome")
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_open_is_told_by_the_kernel(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        with opening(backend, b"OPEN 7000 50000 20000\n") as client:
            # The guest has not looked yet, so there is no outcome.
            assert not select.select([], [client], [], 0.02)[1]
            # Who does not wait for that loses nothing either.
            client.send(b"early")
            s = g.accept(7000)
            assert (s.cid, s.peer_port) == (3, 50000)
            assert outcome(client, g) == 0
            data = pattern(50_000)
            client.send(data[:10])
            assert s.recv_exactly(15) == b"early" + data[:10], "what filled the socket was taken for data"
            s.send(data)
            g.flush()
            client.settimeout(PATIENCE)
            assert read_exactly(client, len(data)) == data
            client.shutdown(socket.SHUT_WR)
            assert s.recv() == b""
        with opening(backend, b"open  7001 50000 20000\r\n") as client:
            assert outcome(client, g) == errno.ECONNRESET


def test_open_from_a_port_that_is_taken(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        with opening(backend, b"OPEN 7000 50000 20000\n") as client:
            assert outcome(client, g) == 0
            with opening(backend, b"OPEN 7000 50000 20000\n") as second:
                assert outcome(second, g) == errno.ECONNRESET
            g.listen(7001)
            with opening(backend, b"OPEN 7001 50000 20000\n") as other:
                assert outcome(other, g) == 0


@pytest.mark.parametrize("start", [True, False])
def test_an_open_that_nobody_answers(backend: Backend, start: bool) -> None:
    """It ends when its client wants it to, whether the guest's driver is up or not."""
    with guest(backend, start=start), opening(backend, b"OPEN 7000 50000 300\n") as client:
        began = time.monotonic()
        assert select.select([], [client], [], PATIENCE)[1]
        assert time.monotonic() >= began + 0.25, "before its time"
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_an_open_that_is_given_up(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        opening(backend, b"OPEN 7000 50000 20000\n").close()
        patience = fail_after()
        while not backend.statistics()["client-gone"]:
            g.pump(0.01)
            patience("the client's end")
        with opening(backend, b"OPEN 7000 50001 20000\n") as client:
            assert outcome(client, g) == 0


def test_highest_port(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(4294967294)
        dial(backend, g, 4294967294)[0].close()


def test_clients_that_leave_without_a_word(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        dial(backend, g, 7000)[0].close()
        fds = backend.fds()
        for i in range(300):
            backend.client(b"CONN" if i % 3 == 0 else b"").close()
        patience = fail_after()
        while backend.statistics()["client-gone"] < 300:
            patience("300 clients gone")
        assert wakeups_while_idle(backend) <= 2
        assert backend.fds() <= fds
        dial(backend, g, 7000)[0].close()


def test_clients_that_leave_at_once_after_connect(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        for _ in range(50):
            backend.client(b"CONNECT 7000\n").close()
            g.pump()
        client, s = dial_skipping(backend, g, 7000)
        with client:
            client.sendall(b"alive")
            assert s.recv_exactly(5) == b"alive"
        patience = fail_after()
        while backend.statistics()["connections"] > 1:
            g.pump(0.05)
            patience("all forgotten")


def test_clients_before_the_guest(backend: Backend) -> None:
    """They wait for the guest's driver, through the start of the front end and of the driver."""
    with backend.client(b"CONNECT 7000\n") as early, guest(backend, start=False) as g:
        g.listen(7000)
        with backend.client(b"CONNECT 7000\n") as late:
            g.front.start()
            g.post()
            a, b = g.accept(7000), g.accept(7000)
            assert {read_ok(early), read_ok(late)} == {a.peer_port, b.peer_port}


def test_guest_that_never_answers(backend: Backend) -> None:
    with guest(backend) as g:
        g.streams[(3, 1 << 30, 7000)] = Stream(g, 3, 1 << 30, 7000, state="open")
        g.on_1 = lambda s, p: None  # type: ignore[method-assign]
        with backend.client(b"CONNECT 7000\n") as client:
            g.wait(lambda: RST in g.counts, "RST after the time-out")
            assert client.recv(10) == b""
            assert backend.statistics()["guest-silent"] == 1


def test_response_nobody_asked_for(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.put(RESPONSE)
            s.wait(lambda: s.state == "reset", "RST")
            assert peer.recv(1) == b""
        g.put(Packet(g.cid, 3, 7000, 1 << 30, RESPONSE, buf_alloc=LINUX_BUFFER))
        g.wait(lambda: g.strays, "RST for a stranger")


def test_unfinished_lines_are_bounded(backend: Backend) -> None:
    """128 clients that say nothing; the next ones wait, and get their turn when those leave."""
    with guest(backend) as g, contextlib.ExitStack() as stack:
        g.listen(7000)
        idle = [stack.enter_context(backend.client()) for _ in range(140)]
        patience = fail_after()
        while backend.statistics()["connections"] < 128:
            patience("128 clients")
        late = stack.enter_context(backend.client(b"CONNECT 7000\n"))
        assert backend.statistics()["connections"] == 128
        assert wakeups_while_idle(backend) <= 2
        for s in idle:
            s.close()
        stream = g.accept(7000)
        assert read_ok(late) == stream.peer_port
