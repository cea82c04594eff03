# SPDX-License-Identifier: MIT
"""Descriptor chains of every shape that virtio allows arrive whole; one that cannot be read leaves no hole in
a stream. Behind a fake front end, as test_vsock_backend.py."""

from __future__ import annotations

import itertools

import pytest

from vhost_backend import PATIENCE, Backend
from vhost_front import DESC_INDIRECT, DESC_NEXT, Memory
from vhost_guest import PARENT, REQUEST, RW, Guest, Packet, Stream, guest, linked

PORT = 5000
BORDER = Memory.HIGH + (24 << 20)  # in memory that the fake guest does not use otherwise


def put_at(g: Guest, pieces: list[tuple[int, int]], data: bytes) -> None:
    """A packet in these pieces of guest memory, (address, length)."""
    rest = data
    for at, length in pieces:
        g.front.memory.map[at : at + length] = rest[:length]
        rest = rest[length:]
    assert not rest
    g.flush()
    tx = g.front.tx
    head = tx.add(pieces, writable=False)
    # What comes back of the guest's own buffers is not this one.
    g.tx_at[head] = g.tx_spare.pop()
    tx.show()
    tx.kick(event_idx=True)
    g.flush()


def raw(s: Stream, data: bytes) -> bytes:
    s.tx_cnt += len(data)
    return s.packet(RW, data).pack() + data


@pytest.mark.parametrize("before", [10, 44, 1000, 3043])
def test_a_buffer_from_the_guest_across_two_regions(backend: Backend, before: int) -> None:
    with linked(backend, border=BORDER) as (g, s, peer):
        data = bytes(range(256)) * 12
        packet = raw(s, data)
        put_at(g, [(BORDER - before, len(packet))], packet)
        s.send(b"end")
        got = b""
        while len(got) < len(data) + 3:
            got += peer.recv(10_000)
        assert got == data + b"end"
        assert backend.statistics()["bad_chains"] == 0


@pytest.mark.parametrize("before", [10, 44, 1000])
def test_a_buffer_for_the_guest_across_two_regions(backend: Backend, before: int) -> None:
    with linked(backend, border=BORDER, buffers=8) as (g, s, peer):
        g.muted = True
        # The last ones that the guest has posted are used up, then comes this one.
        at = BORDER - before
        g.buffer_at[g.front.rx.add([(at, 3776)], writable=True)] = at
        g.front.rx.show()
        data = bytes(range(251)) * 120
        peer.sendall(data)
        # Of the eight others one has brought the answer to the connect.
        most = 8 * 3732
        assert s.recv_exactly(most) == data[:most]
        assert backend.statistics()["bad_chains"] == 0


@pytest.mark.parametrize("count", [64, 65, 100, 1024])
def test_a_packet_in_as_many_pieces_as_the_queue_has(backend: Backend, count: int) -> None:
    with linked(backend, queue=1024) as (g, s, peer):
        data = bytes(i * 7 % 251 for i in range(6400))
        packet = raw(s, data)
        at = Memory.HIGH + (24 << 20)
        size = len(packet) // count
        cuts = [at + size * i for i in range(count)] + [at + len(packet)]
        put_at(g, [(a, b - a) for a, b in itertools.pairwise(cuts)], packet)
        s.send(b"end")
        got = b""
        while len(got) < len(data) + 3:
            got += peer.recv(10_000)
        assert got == data + b"end"
        assert backend.statistics()["bad_chains"] == 0


def test_a_buffer_for_the_guest_in_many_pieces(backend: Backend) -> None:
    """It may be left partly empty, so only its beginning is used."""
    with linked(backend, rx=(50,) * 100, queue=1024, buffers=10) as (_, s, peer):
        data = bytes(range(251)) * 100
        peer.sendall(data)
        assert s.recv_exactly(len(data)) == data
        assert backend.statistics()["bad_chains"] == 0


def bad_chain(g: Guest, packet: bytes, length: int, flags: int) -> None:
    """A packet, of which the device can read so much; then follows a descriptor that it cannot read."""
    tx, at = g.front.tx, g.tx_spare.pop()
    g.front.memory.map[at : at + len(packet)] = packet
    head = tx.add([(at, length), (at + length, len(packet) - length)], writable=False)
    tx.set_desc(tx.chains[head][1], at + length, len(packet) - length, flags, 0)
    g.tx_at[head] = at
    tx.show()
    tx.kick(event_idx=True)


def test_a_packet_that_cannot_be_read_to_its_end_resets_its_stream(backend: Backend) -> None:
    with linked(backend) as (g, s, peer), backend.listen(PORT + 1) as listener:
        other = g.connect(PORT + 1)
        other_peer, _ = listener.accept()
        with other_peer:
            s.send(b"before")
            bad_chain(g, raw(s, bytes(100)), 60, DESC_INDIRECT)
            g.wait(lambda: s.state == "reset", "RST: its stream would have a hole")
            assert peer.recv(1000) == b"before" and peer.recv(1000) == b""
            other.send(b"unharmed")
            assert other_peer.recv(100) == b"unharmed"
            assert backend.statistics()["bad_chains"] == 1


def test_a_packet_without_a_readable_header_resets_every_stream(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        streams = [g.connect(PORT) for _ in range(3)]
        peers = [listener.accept()[0] for _ in streams]
        bad_chain(g, raw(streams[1], bytes(100)), 43, DESC_INDIRECT | DESC_NEXT)
        g.wait(lambda: all(s.state == "reset" for s in streams), "RSTs: any of them may have a hole")
        for peer in peers:
            peer.settimeout(PATIENCE)
            with peer:
                assert peer.recv(1) == b""
        numbers = backend.statistics()
        assert numbers["bad_chains"] == 1 and numbers["lost"] == 1 and numbers["connections"] == 0
        g.connect(PORT)


def test_a_request_that_is_cut_off_is_refused(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT):
        packet = Packet(g.cid, PARENT, 1500, PORT, REQUEST, bytes(100)).pack() + bytes(100)
        bad_chain(g, packet, 50, DESC_INDIRECT)
        g.wait(lambda: len(g.strays) == 1, "RST")
