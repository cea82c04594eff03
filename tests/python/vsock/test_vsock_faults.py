# SPDX-License-Identifier: MIT
"""Faults of vsock that the backend's owner asks for, as programs in the guest and on the host meet them.
Behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import socket
import time

import pytest

from vhost_backend import PATIENCE, Backend, Owner, fail_after
from vhost_guest import RESPONSE, Guest, Refused, Reset, dial, guest, linked

PORT = 5000
GUEST_PORT = 7000
M = (1 << 64) - 1


@pytest.fixture
def owned() -> bool:
    return True


def chances(seed: int, count: int) -> list[int]:
    """SplitMix64, by its paper."""
    found = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & M
        z = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & M
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & M
        found.append(z ^ z >> 31)
    return found


def answered(g: Guest, listener: socket.socket, port: int = PORT) -> bool:
    """Whether the parent's port takes a connection, which is closed again."""
    try:
        s = g.connect(port)
    except Refused:
        return False
    with listener.accept()[0]:
        s.close()
    return True


def test_splitmix_is_the_paper_s() -> None:
    # The first numbers of seed 1234567, as Rosetta Code has them.
    assert chances(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_port_refuses_so_many_times(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener, backend.listen(PORT + 1) as other:
        assert owner.ask("fault", kind="refuse", port=PORT, times=3) == {"fault": 1}
        assert answered(g, other, PORT + 1)
        assert [answered(g, listener) for _ in range(5)] == [False, False, False, True, True]
        (row,) = owner.ask("faults")["faults"]
        assert (row["kind"], row["port"], row["connections"], row["struck"]) == ("refuse", PORT, 5, 3)
        rows = {row["port"]: row for row in owner.ask("stats")["ports"]}
        assert (rows[PORT]["refused"], rows[PORT]["cause"], rows[PORT]["open"]) == (3, "fault", 0)
        owner.ask("fault", kind="refuse", port=PORT)
        assert not answered(g, listener)
        assert owner.ask("fault-clear") == {"cleared": 2}
        assert answered(g, listener)


def test_a_port_of_the_guest_refuses_programs_of_the_host(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g:
        g.listen(GUEST_PORT)
        owner.ask("fault", kind="refuse", port=GUEST_PORT, nth=2)
        dial(backend, g, GUEST_PORT)[0].close()
        with backend.client(b"CONNECT %d\n" % GUEST_PORT) as client:
            assert client.recv(1) == b""
        dial(backend, g, GUEST_PORT)[0].close()
        assert g.counts[1] == 2, "the guest was not asked for the one that is refused"
        assert backend.statistics()["fault"] == 1


def test_chances_are_the_seed_s(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        for seed in (1, 18446744073709551615):
            owner.ask("fault", kind="refuse", port=PORT, chance=300_000, seed=seed)
            got = [answered(g, listener) for _ in range(30)]
            assert got == [one % 1_000_000 >= 300_000 for one in chances(seed, 30)]
            owner.ask("fault-clear")


@pytest.mark.parametrize("after", [0, 1, 70_000])
def test_reset_at_a_byte_from_the_guest(backend: Backend, owner: Owner, after: int) -> None:
    data = bytes(range(251)) * 600
    with guest(backend) as g, backend.listen(PORT) as listener:
        owner.ask("fault", kind="reset", port=PORT, after=after, nth=2)
        first = g.connect(PORT)
        kept, _ = listener.accept()
        s = g.connect_start(PORT)
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE)
        s.wait(lambda: g.counts.get(RESPONSE) == 2, "RESPONSE, before the reset")
        with pytest.raises(Reset):
            s.send(data)
            s.wait(lambda: s.state == "reset", "RST")
            raise Reset
        got = b""
        while more := peer.recv(1 << 20):
            got += more
        assert got == data[:after]
        assert first.state == "open" and backend.statistics()["fault"] == 1
        kept.close()


@pytest.mark.parametrize("after", [1, 70_000])
def test_reset_at_a_byte_from_the_host(backend: Backend, owner: Owner, after: int) -> None:
    data = bytes(range(251)) * 600
    with guest(backend) as g:
        g.listen(GUEST_PORT)
        owner.ask("fault", kind="reset", after=after)
        client, s = dial(backend, g, GUEST_PORT)
        got = b""
        with client:
            client.setblocking(False)
            patience, view = fail_after(), memoryview(data)
            while s.state != "reset" or s.queue:
                try:
                    view = view[client.send(view) :] if view else view
                except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                    pass
                g.pump(0.01)
                got += s.read_some(1 << 20)
                patience("RST")
        assert got == data[:after]


def test_connections_that_are_there_are_reset_too(backend: Backend, owner: Owner) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"x" * 10)
        assert peer.recv(10) == b"x" * 10
        owner.ask("fault", kind="reset", port=PORT, times=1)
        s.wait(lambda: s.state == "reset", "RST")
        assert peer.recv(1) == b""
        again = g.connect(PORT)
        assert again.state == "open"
        owner.ask("fault", kind="reset", port=PORT + 1)
        again.send(b"still there")
        g.flush()


def test_stop_reading(backend: Backend, owner: Owner) -> None:
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        s.send(b"first")
        g.flush()
        assert peer.recv(100) == b"first"
        fault = owner.ask("fault", kind="stop-reading", port=PORT)["fault"]
        # As with a program that does not read: the guest's credit runs out.
        sent = patience = 0
        while patience < 20:
            n = s.send_some(bytes(65536))
            sent, patience = sent + n, 0 if n else patience + 1
            g.pump(0.01)
        assert 0 < sent <= 262144 and s.credit() == 0
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        peer.sendall(b"the other direction goes on")
        assert s.recv_exactly(27) == b"the other direction goes on"
        owner.ask("fault-clear", fault=fault)
        peer.setblocking(True)
        peer.settimeout(PATIENCE)
        got = 0
        while got < sent:
            got += len(peer.recv(1 << 20))
            g.pump()
        s.send(b"last")
        g.flush()
        assert peer.recv(100) == b"last"


def test_what_is_held_back_is_not_held_beyond_the_guest(backend: Backend, owner: Owner) -> None:
    with backend.listen(PORT) as listener:
        with guest(backend) as g:
            owner.ask("fault", kind="stop-reading")
            s = g.connect(PORT)
            peer, _ = listener.accept()
            s.send(b"held back")
            g.flush()
            s.shutdown(3)
            g.flush()
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            peer.settimeout(PATIENCE)
        assert peer.recv(100) == b"held back" and peer.recv(1) == b""
        assert owner.ask("faults") == {"faults": []}


def test_latency(backend: Backend, owner: Owner) -> None:
    """It is never shorter than asked for; how much longer is the scheduler's to say."""
    ms = 100
    with linked(backend) as (g, s, peer):
        owner.ask("fault", kind="latency", port=PORT, ms=ms)

        def late(begun: float) -> bool:
            return time.monotonic() - begun >= ms / 1000

        begun = time.monotonic()
        s.send(b"to the host")
        g.flush()
        assert peer.recv(100) == b"to the host" and late(begun)
        begun = time.monotonic()
        peer.sendall(b"to the guest")
        assert s.recv_exactly(12) == b"to the guest" and late(begun)
        begun = time.monotonic()
        again = g.connect(PORT)
        assert late(begun)
        # No byte is lost or reordered, whatever else happens meanwhile.
        data = bytes(range(256)) * 2000
        peer.settimeout(PATIENCE)
        s.send(data[:100_000])
        owner.ask("fault-clear")
        s.send(data[100_000:200_000])
        owner.ask("fault", kind="latency", ms=0, jitter=30, seed=5)
        s.send(data[200_000:250_000])
        s.shutdown(2)
        got = b""
        while more := peer.recv(1 << 20):
            got += more
            g.pump()
        assert got == data[:250_000]
        again.close()


def test_what_is_refused(owner: Owner) -> None:
    for request, words in (
        ({}, "kind is none of latency, refuse, reset, stop-reading"),
        ({"kind": "dance"}, "kind is none of"),
        ({"kind": "refuse", "port": 4294967295}, "port is no number from 0 to 4294967294"),
        ({"kind": "refuse", "after": 1}, "after is not known here"),
        ({"kind": "reset", "ms": 1}, "ms is not known here"),
        ({"kind": "latency"}, "a latency needs ms or jitter"),
        ({"kind": "latency", "ms": 60001}, "ms is no number from 0 to 60000"),
        ({"kind": "reset", "chance": 1000001}, "chance is no number"),
        ({"kind": "reset", "nth": 0}, "nth is no number"),
    ):
        assert words in owner.ask("fault", **request)["error"]
    assert owner.ask("fault-clear", fault=3) == {"error": "there is no fault 3"}
    assert [owner.ask("fault", kind="refuse", port=n)["fault"] for n in range(16)] == list(range(1, 17))
    assert owner.ask("fault", kind="refuse") == {"error": "there are 16 faults, as many as can be"}
    assert owner.ask("fault-clear", fault=3) == {"cleared": 1}
    assert owner.ask("fault", kind="refuse", port=1) == {"fault": 17}
    assert owner.ask("fault-clear") == {"cleared": 16}
