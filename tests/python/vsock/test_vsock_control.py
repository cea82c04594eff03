# SPDX-License-Identifier: MIT
"""What the owner of a vsock backend can ask it on its lifeline, and what it is told. Behind a fake front end,
as test_vsock_backend.py. The reader of such lines alone: tests/unit/test-vsock-control.c.
"""

from __future__ import annotations

import socket

import pytest

from vhost_backend import Backend, Owner, fail_after
from vhost_guest import Refused, dial, guest

PORT = 5000
GUEST_PORT = 7000


@pytest.fixture
def owned() -> bool:
    return True


def test_hello_comes_first(backend: Backend) -> None:
    owner = backend.owner
    assert owner
    assert owner.ask("stats") == {"error": "say hello first"}
    assert owner.ask("hello") == {"error": "version is missing; this is version 1"}
    assert owner.ask("hello", version=2) == {"error": "version is no number from 1 to 1"}
    hello = owner.ask("hello", version=1)
    assert hello["control"] == 1 and hello["program"].startswith("vhost-user-vsock ")


def test_what_is_no_request_is_answered_and_survived(backend: Backend, owner: Owner) -> None:
    before = backend.fds()
    for message, words in (
        (b"{", "a name in quotes is missing"),
        (b"CONNECT 1\n", "it is no JSON object"),
        (b'{"do": "stats"} {}', "something is behind its end"),
        (b'{"do": "stats", "x": [1]}', "a value is neither"),
        (b'{"do": "stats", "x": 18446744073709551616}', "a value is neither"),
        (b'{"do": "stats"' + b" " * 2000 + b"}", "it is no JSON object"),
        (b'{"do": "st\x1bats"}', "a value is neither"),
        (b'{"do": 1}', '"do" is missing'),
        (b'{"do": "frobnicate"}', 'cannot do "frobnicate"'),
        (b'{"do": "stats", "loudly": 1}', "loudly is not known here"),
        (b'{"do": "stats", "id": 4294967296}', "id is no number from 0 to 4294967295"),
    ):
        owner.say(message, (0, 1, 2))  # nobody wants these descriptors
        answer = owner.answer()
        assert set(answer) == {"id", "error"} and words in answer["error"], message
    assert owner.ask("stats")["connections"] == 0  # and it is done with the last one
    assert backend.fds() == before


def test_counts_of_each_port(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        s.send(b"x" * 1000)
        peer.sendall(b"y" * 300)
        assert len(s.recv_exactly(300)) == 300 and len(peer.recv(1000, socket.MSG_WAITALL)) == 1000
        for _ in range(2):
            with pytest.raises(Refused):
                g.connect(PORT + 1)
        g.listen(GUEST_PORT)
        client, inner = dial(backend, g, GUEST_PORT)
        client.sendall(b"z" * 20)
        assert inner.recv_exactly(20) == b"z" * 20
        g.flush()
        stats = owner.ask("stats")
        assert stats["opened_by_guest"] == stats["opened_by_host"] == 1
        assert stats["ports"] == [
            {"side": "parent", "port": PORT, "connections": 1, "open": 1, "refused": 0,
             "bytes_from_guest": 1000, "bytes_to_guest": 300},
            {"side": "parent", "port": PORT + 1, "connections": 0, "open": 0, "refused": 2,
             "bytes_from_guest": 0, "bytes_to_guest": 0, "cause": "no-listener"},
            {"side": "enclave", "port": GUEST_PORT, "connections": 1, "open": 1, "refused": 0,
             "bytes_from_guest": 0, "bytes_to_guest": 20},
        ]  # fmt: skip
        s.close()
        client.close()
        inner.wait(lambda: not inner.queue, "nothing left")
        peer.close()
    # The guest has gone, and with it all that was open.
    patience = fail_after()
    while any(row["open"] for row in owner.ask("stats")["ports"]):
        patience("no connection")
    assert [row["connections"] for row in owner.ask("stats")["ports"]] == [1, 0, 1]


def test_a_guest_that_tries_every_port_fills_no_memory(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g:
        for port in range(10_000, 10_400):
            with pytest.raises(Refused):
                g.connect(port)
        stats = owner.ask("stats")
        assert len(stats["ports"]) == 256
        assert stats["other_ports"]["refused"] == 400 - 256
        assert {row["refused"] for row in stats["ports"]} == {1}


def test_events(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        beat = g.connect(9000)
        beat.send(b"\xb7")
        assert beat.recv() == b"\xb7"
        for _ in range(2):
            g.connect(PORT)
            listener.accept()[0].close()
            with pytest.raises(Refused):
                g.connect(PORT + 1)
        g.listen(GUEST_PORT)
        dial(backend, g, GUEST_PORT)[0].close()
        with backend.client(b"CONNECT 1\n") as refused:
            g.wait(lambda: g.counts.get(1) == 2, "the REQUEST, which the guest answers with RST")
            assert refused.recv(1) == b""
        # Each port once, and a refusal once for each cause.
        told = [owner.event() for _ in range(6)]
        assert told == [
            {"event": "connected", "side": "parent", "port": 9000},
            {"event": "heartbeat"},
            {"event": "connected", "side": "parent", "port": PORT},
            {"event": "refused", "side": "parent", "port": PORT + 1, "cause": "no-listener"},
            {"event": "connected", "side": "enclave", "port": GUEST_PORT},
            {"event": "refused", "side": "enclave", "port": 1, "cause": "guest-refused"},
        ]
        assert owner.ask("stats")["lost_events"] == 0 and not owner.events


def test_an_owner_who_does_not_read_holds_up_nobody(backend: Backend, owner: Owner) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        # More answers than its socket takes, each of a few hundred bytes.
        owner.channel.settimeout(0)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                owner.say(b'{"do": "stats"}')
                g.pump()
        for _ in range(3):
            s = g.connect(PORT)
            listener.accept()[0].close()
            s.send(b"x")
        assert g.connect(PORT).state == "open"


def test_its_end_is_the_owner_s(backend: Backend, owner: Owner) -> None:
    owner.say(b'{"do": "stats"}')  # and its answer is not read
    owner.close()
    assert backend.process.wait(20) == 0
    assert not backend.socket_path.exists()
