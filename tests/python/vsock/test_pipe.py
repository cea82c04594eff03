# SPDX-License-Identifier: MIT
"""Standard input and output joined to a connection: nothing lost, halves end by themselves, nothing hangs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from nitroctl.base.errors import EnclaveError, NitroError
from nitroctl.vsock import pipe

BIG = os.urandom(1 << 20) * 24
HANG = 60


class Joined:
    """`pipe.join` in a thread between two pipes and a socket, whose other ends are ours."""

    def __init__(self) -> None:
        self.source, self.stdin = os.pipe()
        self.stdout, self.sink = os.pipe()
        self.peer, self.connection = socket.socketpair()
        self.peer.settimeout(HANG)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self) -> None:
        try:
            pipe.join(self.connection, self.source, self.sink)
        except BaseException as e:
            self.error = e
        finally:
            self.connection.close()
            os.close(self.sink)

    def ended(self) -> BaseException | None:
        self.thread.join(HANG)
        assert not self.thread.is_alive(), "it does not end"
        return self.error

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


@pytest.fixture
def joined() -> Iterator[Joined]:
    made = Joined()
    made.thread.start()
    yield made
    made.peer.close()
    made.thread.join(HANG)
    made.close_stdin()
    os.close(made.source)
    os.close(made.stdout)


def read_all(fd: int) -> bytes:
    data = bytearray()
    while piece := os.read(fd, 1 << 20):
        data += piece
    return bytes(data)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def receive_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def test_both_directions_at_once(joined: Joined) -> None:
    def feed() -> None:
        write_all(joined.stdin, BIG)
        joined.close_stdin()

    def send() -> None:
        joined.peer.sendall(BIG[::-1])
        joined.peer.shutdown(socket.SHUT_WR)

    got: list[bytes] = []
    threads = [threading.Thread(target=work) for work in (feed, send)]
    threads.append(threading.Thread(target=lambda: got.append(receive_all(joined.peer))))
    for thread in threads:
        thread.start()
    assert read_all(joined.stdout) == BIG[::-1]
    for thread in threads:
        thread.join(HANG)
    assert got == [BIG]
    assert joined.ended() is None


def test_the_end_of_stdin_leaves_the_answer(joined: Joined) -> None:
    os.write(joined.stdin, b"question")
    joined.close_stdin()
    assert receive_all(joined.peer) == b"question"
    joined.peer.sendall(b"answer")
    joined.peer.close()
    assert read_all(joined.stdout) == b"answer"
    assert joined.ended() is None


def test_the_end_of_the_peers_half_leaves_stdin(joined: Joined) -> None:
    joined.peer.sendall(b"hello")
    joined.peer.shutdown(socket.SHUT_WR)
    assert os.read(joined.stdout, 10) == b"hello"
    os.write(joined.stdin, b"still there")
    assert joined.peer.recv(20) == b"still there"
    joined.close_stdin()
    assert joined.peer.recv(1) == b""
    assert joined.ended() is None


def test_a_closed_connection_ends_it_whatever_stdin_does(joined: Joined) -> None:
    joined.peer.sendall(b"bye")
    joined.peer.close()
    assert read_all(joined.stdout) == b"bye"
    assert joined.ended() is None
    # What nobody took is there for the next.
    os.write(joined.stdin, b"next")
    assert os.read(joined.source, 10) == b"next"


def test_a_reset_is_an_error(joined: Joined) -> None:
    os.write(joined.stdin, b"unread")
    assert joined.peer.recv(1, socket.MSG_PEEK) == b"u"
    joined.peer.close()
    error = joined.ended()
    assert isinstance(error, EnclaveError) and "reset" in str(error)


def test_a_reader_who_has_gone() -> None:
    made = Joined()
    os.close(made.stdout)
    made.thread.start()
    made.peer.sendall(b"x")
    assert isinstance(made.ended(), BrokenPipeError)
    made.peer.close()
    for fd in (made.source, made.stdin):
        os.close(fd)


@pytest.mark.parametrize("which", ["source", "sink"])
def test_descriptors_that_are_no_good(which: str) -> None:
    """A folder cannot be read, nor a reading end be written."""
    made = Joined()
    folder = os.open("/", os.O_RDONLY)
    os.dup2(folder, getattr(made, which))
    os.close(folder)
    made.thread.start()
    made.peer.sendall(b"x")
    made.peer.shutdown(socket.SHUT_WR)
    made.close_stdin()
    error = made.ended()
    assert isinstance(error, NitroError) and "cannot" in str(error)
    made.peer.close()
    for fd in (made.source, made.stdout):
        os.close(fd)
