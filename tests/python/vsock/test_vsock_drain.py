# SPDX-License-Identifier: MIT
"""The last bytes of a stream that the guest has closed: the host program gets them all, however slow it is,
or an error. Behind a fake front end, as test_vsock_backend.py; what takes long is in tests/unit/test-vsock.c.
"""

from __future__ import annotations

import os
import socket
import time

import pytest

from vhost_backend import PATIENCE, fail_after, find_binary, running
from vhost_guest import Guest, Stream, guest, linked

PORT = 5000


def close(s: Stream) -> None:
    """Closed by the guest, which waits no longer than for the RST."""
    s.close()
    s.wait(lambda: s.state == "reset", "RST")


def fill(g: Guest, s: Stream) -> int:
    """Sends until nothing is taken any more: the host's socket is full, and the backend's buffer."""
    sent = quiet = 0
    patience = fail_after()
    while quiet < 20:
        n = s.send_some(bytes(65536))
        sent += n
        quiet = 0 if n else quiet + 1
        g.pump(0.01)
        patience("a full buffer")
    return sent


def test_a_slow_reader_gets_every_byte() -> None:
    with running(find_binary()) as b, linked(b) as (g, s, peer):
        data = os.urandom(400_000)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.send(data)
        close(s)
        assert b.statistics()["draining"] == 1
        got = bytearray()
        while more := peer.recv(4000):
            got += more
            time.sleep(0.001)
        assert got == data
        assert b.statistics()["evicted"] == b.statistics()["undelivered"] == 0


def test_who_makes_room_gets_an_error() -> None:
    """The table is full of streams that nobody reads: the oldest is reset, counted and logged."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        service.settimeout(PATIENCE)
        options = ("--max-connections=2", f"--proxy=8000=127.0.0.1:{service.getsockname()[1]}")
        with running(find_binary(), *options) as b, guest(b) as g, b.listen(PORT) as listener:
            first = g.connect(8000)
            oldest, _ = service.accept()
            fill(g, first)
            close(first)
            second = g.connect(PORT)
            spoke, _ = listener.accept()
            sent = fill(g, second)
            close(second)
            with oldest, spoke:
                # A unix socket tells it to those who have sent something.
                spoke.send(b"are you there?")
                oldest.settimeout(PATIENCE)
                third = g.connect(PORT)
                with pytest.raises(ConnectionResetError):
                    while oldest.recv(1 << 20):
                        pass
                assert b.statistics()["evicted"] == 1
                assert f"before it has the guest's last bytes (guest port {first.port}, " in b.stderr()
                g.connect(PORT)
                spoke.settimeout(PATIENCE)
                got = 0
                with pytest.raises(ConnectionResetError):
                    while n := len(spoke.recv(1 << 20)):
                        got += n
                assert 0 < got < sent
                assert b.statistics()["evicted"] == 2
                assert third.state == "open"
