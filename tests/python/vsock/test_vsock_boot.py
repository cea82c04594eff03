# SPDX-License-Identifier: MIT
"""What the vsock backend is told by the guest's init, and tells on: the heartbeat and the application's
status. Behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from vhost_backend import Backend, read_line, running
from vhost_guest import Refused, guest
from vsock_talk import booted, heartbeat

pytestmark = pytest.mark.usefixtures("no_child_is_left")


# --- heartbeat --------------------------------------------------------------------------------------------


def test_heartbeat_is_answered_and_told_once_a_boot(backend: Backend) -> None:
    with guest(backend) as g:
        assert booted(backend) == 0
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
        assert heartbeat(g) == b"\xb7"
        assert booted(backend) == 0
        g.reboot()
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
    with guest(backend) as g:
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"


def test_a_wrong_heartbeat_is_reset(backend: Backend) -> None:
    with guest(backend) as g:
        s = g.connect(9000)
        s.send(b"\x00")
        s.wait(lambda: s.state == "reset", "RST")
        assert booted(backend) == 0
        assert heartbeat(g) == b"\xb7"


def test_a_listener_on_9000_comes_first(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(9000) as listener:
        s = g.connect(9000)
        peer, _ = listener.accept()
        with peer:
            s.send(b"\xb7")
            assert peer.recv(10) == b"\xb7"
            peer.sendall(b"\x17")
            assert s.recv_exactly(1) == b"\x17"
        assert booted(backend) == 0


def test_a_heartbeat_that_a_listener_answers_is_told(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(9000) as listener:
        s = g.connect(9000)
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"\xb7")  # not an answer yet: nothing was said
            assert s.recv_exactly(1) == b"\xb7"
            assert booted(backend) == 0
            s.send(b"\xb7")
            assert peer.recv(10) == b"\xb7"
            assert booted(backend) == 0
            peer.sendall(b"\xb7more")
            assert s.recv_exactly(5) == b"\xb7more"
        assert read_line(backend.booted) == b"booted\n"


def test_statistics_tell_what_became_of_a_heartbeat(backend: Backend) -> None:
    with guest(backend) as g:
        assert backend.statistics()["drivers"] == 1
        g.reboot()
        for cid, port in ((3, 9001), (5, 9000)):
            with pytest.raises(Refused):
                g.connect(port, cid)
            seen = backend.statistics()
            assert (seen["refused_cid"], seen["refused_port"]) == (cid, port)
        s = g.connect(9000)
        s.send(b"\x00")
        s.wait(lambda: s.state == "reset", "RST")
        with backend.listen(9000) as listener:
            s = g.connect(9000)
            peer, _ = listener.accept()
            with peer:
                s.send(b"\xb7")
                assert peer.recv(10) == b"\xb7"
        seen = backend.statistics()
        assert (seen["drivers"], seen["wrong_heartbeats"], seen["relayed_heartbeats"]) == (2, 1, 1)


def test_a_dead_listener_on_9000_is_none(backend: Backend) -> None:
    backend.listen(9000).close()
    with guest(backend) as g:
        assert heartbeat(g) == b"\xb7"


def test_heartbeat_channel_closed_is_no_harm(binary: Path) -> None:
    with running(binary) as b:
        os.close(b.booted)
        b.booted = os.open(os.devnull, os.O_RDONLY)
        with guest(b) as g:
            assert heartbeat(g) == b"\xb7"
            g.reboot()
            assert heartbeat(g) == b"\xb7"


# --- the application's status -----------------------------------------------------------------------------


APP_STATUS_PORT = 4294958295  # app-status.h: 9000 below the last one


SAID = {b"E\x00": b"exited 0\n", b"E\x07": b"exited 7\n", b"E\xff": b"exited 255\n", b"K\x0b": b"killed 11\n"}


@pytest.mark.parametrize(("said", "told"), SAID.items())
def test_an_init_tells_how_the_application_ended(backend: Backend, said: bytes, told: bytes) -> None:
    with guest(backend) as g:
        s = g.connect(APP_STATUS_PORT)
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
        s.send(said[:1])
        assert backend.statistics()["connections"] >= 1  # time to take the first byte alone
        s.send(said[1:])
        assert s.recv_exactly(1) == said[:1]
        # It was told before it was answered: an init may reset the machine at once.
        assert select.select([backend.booted], [], [], 0)[0]
        assert read_line(backend.booted) == told
        s.send(b"E\x00")
        s.close()
        assert booted(backend) == 0


def test_what_is_no_status_is_reset(backend: Backend) -> None:
    with guest(backend) as g:
        s = g.connect(APP_STATUS_PORT)
        s.send(b"X\x00")
        s.wait(lambda: s.state == "reset", "RST")
        assert booted(backend) == 0


def test_only_who_comes_before_the_heartbeat_tells_a_status(backend: Backend) -> None:
    """An application cannot: there is one before it, or it is too late. The port is one like every other."""
    with guest(backend) as g:
        g.connect(APP_STATUS_PORT)
        with pytest.raises(Refused):
            g.connect(APP_STATUS_PORT)
    with guest(backend) as g:
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
        with pytest.raises(Refused):
            g.connect(APP_STATUS_PORT)
        g.reboot()  # what rebinds the driver is no new boot
        with pytest.raises(Refused):
            g.connect(APP_STATUS_PORT)
        with backend.listen(APP_STATUS_PORT) as listener:
            s = g.connect(APP_STATUS_PORT)
            peer, _ = listener.accept()
            with peer:
                s.send(b"E\x00")
                assert peer.recv(10) == b"E\x00"
        assert booted(backend) == 0
