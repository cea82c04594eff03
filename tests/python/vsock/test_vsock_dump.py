# SPDX-License-Identifier: MIT
"""Packets in capture files, as tshark and a reader of our own see them. Behind a fake front end, as
test_vsock_backend.py; the bytes of a record alone: tests/unit/test-vsock-pcap.c.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from vhost_backend import Backend, Owner, fail_after
from vhost_guest import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    Packet,
    Refused,
    guest,
    linked,
)

PORT = 5000

# linux/vsockmon.h, and what each operation of virtio is there (virtio_transport_deliver_tap_pkt).
VSOCKMON = struct.Struct("<QQIIHHHH")
OPS = {REQUEST: 1, RESPONSE: 1, RST: 2, SHUTDOWN: 2, CREDIT_UPDATE: 3, CREDIT_REQUEST: 3, RW: 4}


@pytest.fixture
def owned() -> bool:
    return True


def read(data: bytes, snaplen: int = 65536) -> list[tuple[float, Packet, int]]:
    """All records: time, packet as far as it is there, and length of the whole one."""
    assert struct.unpack("<IHHIIII", data[:24]) == (0xA1B2C3D4, 2, 4, 0, 0, 76 + snaplen, 271)
    found, at = [], 24
    while at < len(data):
        seconds, micros, kept, whole = struct.unpack_from("<IIII", data, at)
        raw = data[at + 16 : at + 16 + kept]
        assert len(raw) == kept and micros < 1_000_000, "half a record"
        mon, header, payload = VSOCKMON.unpack(raw[:32]), HEADER.unpack(raw[32:76]), raw[76:]
        src, dst, src_port, dst_port, _, kind, op, flags, buf_alloc, fwd_cnt = header
        assert mon == (src, dst, src_port, dst_port, OPS.get(op, 0), 2, 44, 0)
        assert len(payload) == min(whole - 76, snaplen)
        packet = Packet(src, dst, src_port, dst_port, op, payload, flags, buf_alloc, fwd_cnt, kind, header[4])
        found.append((seconds + micros / 1e6, packet, whole - 76))
        at += 16 + kept
    return found


def tshark(path: Path, *fields: str) -> list[tuple[str, ...]]:
    argv = ["tshark", "-n", "-r", os.fspath(path), "-T", "fields", *(w for f in fields for w in ("-e", f))]
    out = subprocess.run(
        argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
    return [tuple(line.split("\t")) for line in out.splitlines()]


def conversation(backend: Backend, size: int = 100_000) -> None:
    """Connected, refused, data each way, closed."""
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.send(bytes(range(256)) * (size // 256))
            peer.sendall(b"and back")
            assert s.recv_exactly(8) == b"and back"
            while (size := size - len(peer.recv(65536))) > 255:
                pass
            with pytest.raises(Refused):
                g.connect(PORT + 1)
            s.close()


def test_every_packet_is_there_and_tshark_reads_it(backend: Backend, owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    with open(path, "wb") as file:
        started = time.time()
        dump = owner.ask("dump", file.fileno())
        assert dump == {"dump": 1}
    conversation(backend)
    stats, counted = owner.ask("stats"), owner.ask("dump-stop", dump=1)
    found = read(path.read_bytes())
    assert len(found) == stats["packets_from_guest"] + stats["packets_to_guest"] == counted["packets"]
    assert counted == {"packets": len(found), "dropped": 0, "bytes": path.stat().st_size}
    (ended,) = [e for e in (owner.event() for _ in range(3)) if e["event"] == "dump-ended"]
    assert ended == {"event": "dump-ended", "dump": 1, "why": "stopped", **counted}
    times = [when for when, _, _ in found]
    assert started - 1 <= times[0] and times == sorted(times) and times[-1] <= time.time()
    sent = b"".join(p.payload for _, p, _ in found if p.op == RW and p.src_cid == 4)
    assert sent == bytes(range(256)) * (100_000 // 256)
    assert [p.payload for _, p, _ in found if p.op == RW and p.src_cid == 3] == [b"and back"]
    names = ("src_cid", "dst_cid", "src_port", "dst_port", "op", "trans", "trans_len")
    virtio = ("src_cid", "src_prot", "len", "type", "op", "flags", "buf_alloc", "fwd_cnt")
    rows = tshark(path, *(f"vsock.{n}" for n in names), *(f"vsock.virtio.{n}" for n in virtio), "frame.len")
    numbers = [tuple(int(cell, 0) for cell in row) for row in rows]
    assert numbers == [
        (
            p.src_cid, p.dst_cid, p.src_port, p.dst_port, OPS[p.op], 2, 44,
            p.src_cid, p.src_port, size, 1, p.op, p.flags, p.buf_alloc, p.fwd_cnt, 76 + size,
        )
        for _, p, size in found
    ]  # fmt: skip
    payloads = [cell for (cell,) in tshark(path, "vsock.payload") if cell]
    assert payloads == [p.payload.hex() for _, p, _ in found if p.op == RW]
    # It is over: nothing more is written.
    with guest(backend) as g, pytest.raises(Refused):
        g.connect(PORT + 1)
    assert path.stat().st_size == counted["bytes"]


@pytest.mark.parametrize("snaplen", [0, 10])
def test_data_up_to_snaplen_and_a_limit_that_ends_it_whole(
    backend: Backend, owner: Owner, tmp_path: Path, snaplen: int
) -> None:
    path = tmp_path / "x.pcap"
    with open(path, "wb") as file:
        owner.ask("dump", file.fileno(), snaplen=snaplen, limit=24 + 6 * (92 + snaplen) + 91)
    conversation(backend)
    while (ended := owner.event())["event"] != "dump-ended":
        pass
    found = read(path.read_bytes(), snaplen)
    assert ended["why"] == "its limit is reached" and ended["packets"] == len(found) >= 6
    data = [(p, whole) for _, p, whole in found if p.op == RW and p.src_cid == 4]
    assert data and all(whole > 1000 and p.payload == bytes(range(snaplen)) for p, whole in data[:1])
    assert owner.ask("dump-stop", dump=1) == {"error": "there is no dump 1"}


def test_hostile_packets_are_shown_as_they_came(backend: Backend, owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    with open(path, "wb") as file:
        owner.ask("dump", file.fileno())
    sent = [
        Packet(4, 3, 1, 2, RW, b"abc", length=0xFFFFFFFF),
        Packet(4, 3, 1, 2, 99, b"abc", length=3),
        Packet(9, 9, 1, 2, REQUEST),
    ]
    with guest(backend) as g:
        for packet in sent:
            g.put(packet)
        g.flush()
    owner.ask("dump-stop", dump=1)
    found = [p for _, p, _ in read(path.read_bytes()) if p.dst_cid != 4]
    assert [(p.op, p.length, p.payload) for p in found] == [
        (RW, 0xFFFFFFFF, b"abc"), (99, 3, b""), (REQUEST, 0, b""),
    ]  # fmt: skip
    assert len(tshark(path, "vsock.virtio.op")) == len(read(path.read_bytes()))


def test_a_pipe_whose_reader_is_slow_loses_packets_and_says_so(backend: Backend, owner: Owner) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    owner.ask("dump", writer)
    os.close(writer)
    with linked(backend) as (g, s, peer):
        for _ in range(100):  # more than its buffer has room for
            s.send(bytes(65536))
            got = 0
            while got < 65536:
                got += len(peer.recv(1 << 20))
        g.flush()
    stats = owner.ask("stats")
    data = b""
    os.set_blocking(reader, False)
    counted = owner.ask("dump-stop", dump=1)
    patience = fail_after()
    while True:
        try:
            more = os.read(reader, 1 << 20)
        except BlockingIOError:
            patience("the pipe's end")
            continue
        if not more:
            break
        data += more
    os.close(reader)
    found = read(data)
    assert counted["packets"] == len(found) and counted["dropped"] > 0
    assert len(found) + counted["dropped"] == stats["packets_from_guest"] + stats["packets_to_guest"]
    assert counted["bytes"] == len(data)


def test_a_reader_that_has_gone_ends_it_and_nothing_else(backend: Backend, owner: Owner) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = backend.fds()
    owner.ask("dump", theirs.fileno())
    theirs.close()
    ours.close()
    with linked(backend) as (g, s, _):
        while (ended := owner.event())["event"] != "dump-ended":
            pass
        assert (ended["dump"], ended["why"], ended["dropped"]) == (1, "its reader has gone", 0)
        s.send(b"goes on")
        g.flush()
    patience = fail_after()
    while backend.fds() > before:
        patience("what it had open")


def test_what_is_refused(backend: Backend, owner: Owner, tmp_path: Path) -> None:
    assert owner.ask("dump") == {"error": "no descriptor has come with it"}
    reader, writer = os.pipe()
    assert "must have O_NONBLOCK" in owner.ask("dump", writer)["error"]
    assert "cannot be written to" in owner.ask("dump", reader)["error"]
    with open("/dev/full", "wb") as full:
        assert "neither a file nor a pipe" in owner.ask("dump", full.fileno())["error"]
    assert "snaplen is no number" in owner.ask("dump", writer, snaplen=65537)["error"]
    assert "limit is no number" in owner.ask("dump", writer, limit=23)["error"]
    os.set_blocking(writer, False)
    assert [owner.ask("dump", writer).get("dump") for _ in range(4)] == [1, 2, 3, 4]
    assert owner.ask("dump", writer) == {"error": "there are as many dumps as can be"}
    os.close(writer)
    os.close(reader)
