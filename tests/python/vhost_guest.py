# SPDX-License-Identifier: MIT
"""The kernel of a guest behind the fake VMM of vhost_front.py: connections with Linux's credit rules;
`Stream` is one of them. No Linux, no QEMU.

Guest checks every packet that the backend sends: lengths, addresses, credit, number of packets, order. A
packet that a Linux guest would punish raises ProtocolError. It is single-threaded: nothing happens but in
`Guest.pump` and what calls it, and every wait has a limit after which it fails.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vhost_backend import Backend, fail_after
from vhost_front import Front

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
OFF_RECV, OFF_SEND, OFF_BOTH = 1, 2, 3
HEADER = struct.Struct("<QQIIIHHIII")
MAX_PAYLOAD = 65536
PARENT = 3
U32 = 0xFFFFFFFF

# What Linux accounts for each packet, whatever its size (SKB_TRUESIZE(0) on 64-bit machines).
SKB_COST = 576
LINUX_BUFFER = 262144


class ProtocolError(AssertionError):
    """The backend sent what a guest would not accept."""


class Refused(Exception):
    """RST in answer to REQUEST."""


class Reset(Exception):
    """RST on an open connection."""


@dataclass(frozen=True)
class Packet:
    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: int
    payload: bytes = b""
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0
    kind: int = 1
    length: int | None = None  # what the header says, if not the truth

    def pack(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return HEADER.pack(
            self.src_cid, self.dst_cid, self.src_port, self.dst_port, length, self.kind, self.op,
            self.flags, self.buf_alloc, self.fwd_cnt,
        )  # fmt: skip

    @staticmethod
    def parse(data: bytes) -> Packet:
        src_cid, dst_cid, src_port, dst_port, length, kind, op, flags, buf_alloc, fwd_cnt = HEADER.unpack(
            data[:44]
        )
        if length != len(data) - 44:
            raise ProtocolError(f"header says {length} bytes, {len(data) - 44} are there")
        return Packet(src_cid, dst_cid, src_port, dst_port, op, data[44:], flags, buf_alloc, fwd_cnt, kind)


@dataclass
class Stream:
    """A connection in the guest, with the counters of a Linux socket."""

    guest: Guest
    cid: int
    peer_port: int
    port: int
    state: str = "connecting"  # connecting, open, reset
    buf_alloc: int = LINUX_BUFFER
    fwd_cnt: int = 0
    last_fwd: int = 0
    received: int = 0
    queue: deque[bytes] = field(default_factory=deque)
    head: int = 0  # bytes of the first packet that were read
    tx_cnt: int = 0
    peer_buf_alloc: int = 0
    peer_fwd: int = 0
    peer_off: int = 0
    off: int = 0
    requests: int = 0  # CREDIT_REQUESTs seen
    updates: int = 0
    honest: bool = True  # keeps to its credit, so the answers can be checked

    @property
    def key(self) -> tuple[int, int, int]:
        return self.cid, self.peer_port, self.port

    @property
    def queued(self) -> int:
        return sum(map(len, self.queue)) - self.head

    def credit(self) -> int:
        return self.peer_buf_alloc - ((self.tx_cnt - self.peer_fwd) & U32)

    def packet(self, op: int, payload: bytes = b"", flags: int = 0) -> Packet:
        self.last_fwd = self.fwd_cnt
        return Packet(
            self.guest.cid, self.cid, self.port, self.peer_port, op, payload, flags, self.buf_alloc,
            self.fwd_cnt & U32,
        )  # fmt: skip

    def put(self, op: int, payload: bytes = b"", flags: int = 0) -> None:
        self.guest.put(self.packet(op, payload, flags))

    def send_some(self, data: bytes, most: int = MAX_PAYLOAD) -> int:
        """One packet, as much as credit allows; returns the bytes sent, perhaps 0."""
        if self.state == "reset":
            raise Reset
        if self.peer_off & OFF_RECV:
            raise BrokenPipeError
        n = max(0, min(len(data), self.credit(), most))
        if n:
            self.tx_cnt = (self.tx_cnt + n) & U32
            self.put(RW, data[:n])
        return n

    def send(self, data: bytes, most: int = MAX_PAYLOAD) -> None:
        patience = fail_after()
        view = memoryview(data)
        while view:
            n = self.send_some(bytes(view[:most]), most)
            view = view[n:]
            if not n:
                self.guest.pump(0.5)
                patience(f"credit for {len(view)} more bytes")

    def read_some(self, n: int) -> bytes:
        """Bytes that are there; b"" if none are."""
        out = b""
        while self.queue and len(out) < n:
            first = self.queue[0]
            piece = first[self.head : self.head + n - len(out)]
            out += piece
            self.head += len(piece)
            if self.head == len(first):
                self.queue.popleft()
                self.head = 0
                self.fwd_cnt = (self.fwd_cnt + len(first)) & U32
        if out and self.state == "open":
            # Linux: when the peer may believe there is little room, or all was read.
            room = self.buf_alloc - ((self.fwd_cnt - self.last_fwd) & U32)
            if (room < 65536 or not self.queue) and self.fwd_cnt != self.last_fwd:
                self.put(CREDIT_UPDATE)
            self.maybe_closed()
        return out

    def maybe_closed(self) -> None:
        if self.peer_off == OFF_BOTH and not self.queue and self.state == "open":
            self.put(RST)
            self.gone()

    def gone(self) -> None:
        self.state = "reset"
        self.guest.streams.pop(self.key, None)

    def recv(self, n: int = MAX_PAYLOAD) -> bytes:
        """Waits for bytes; b"" at the end. Reset if there was none."""
        patience = fail_after()
        while not self.queue:
            if self.peer_off & OFF_SEND:
                return b""
            if self.state == "reset":
                raise Reset
            self.guest.pump(0.5)
            patience("bytes from the host")
        return self.read_some(n)

    def recv_exactly(self, n: int) -> bytes:
        out = bytearray()
        while len(out) < n:
            more = self.recv(n - len(out))
            if not more:
                raise EOFError(f"end after {len(out)} of {n} bytes")
            out += more
        return bytes(out)

    def recv_all(self) -> bytes:
        out = bytearray()
        while more := self.recv():
            out += more
        return bytes(out)

    def shutdown(self, flags: int) -> None:
        self.off |= flags
        self.put(SHUTDOWN, flags=flags)

    def close(self) -> None:
        """As close(): says so, and waits for the RST."""
        if self.state == "reset":
            return
        self.shutdown(OFF_BOTH)
        self.wait(lambda: self.state == "reset", "RST after close")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        self.guest.wait(condition, what)


class Guest:
    """A guest with Linux's behaviour: connect, listen, credit, resets."""

    # Layouts of RX buffers: Linux since 2025, and up to 6.2.
    MODERN: tuple[int, ...] = (3776,)
    OLD: tuple[int, ...] = (44, 4096)

    def __init__(
        self, front: Front, *, rx: tuple[int, ...] = MODERN, buffers: int = 256, post: bool = True
    ) -> None:
        self.front = front
        self.cid = front.cid
        self.streams: dict[tuple[int, int, int], Stream] = {}
        self.listening: dict[int, deque[Stream]] = {}
        self.strays: list[Packet] = []  # RSTs for tuples that we do not have
        self.seen: deque[Packet] = deque(maxlen=256)
        self.counts: dict[int, int] = {}
        self.next_port = 1024
        self.rx_layout = rx
        self.buffer_at: dict[int, int] = {}
        size = (sum(rx) + 63) // 64 * 64
        self.rx_memory = [front.memory.alloc(size, 64) for _ in range(buffers)]
        self.rx_spare = list(self.rx_memory)
        self.tx_size = (44 + MAX_PAYLOAD + 4096) // 4096 * 4096
        self.tx_memory = [front.memory.alloc(self.tx_size) for _ in range(64)]
        self.tx_spare = list(self.tx_memory)
        self.tx_at: dict[int, int] = {}
        self.layout = "linux"
        self.muted = False  # RX buffers are not posted again
        if post:
            self.post()

    # Rings.

    def post(self, count: int | None = None) -> None:
        """Posts RX buffers, all that are spare unless told how many."""
        spare = self.rx_spare
        for _ in range(len(spare) if count is None else count):
            at = addr = spare.pop()
            pieces = []
            for n in self.rx_layout:
                pieces.append((addr, n))
                addr += n
            self.buffer_at[self.front.rx.add(pieces, writable=True)] = at
        self.front.rx.show()
        self.front.rx.kick(event_idx=self.front.event_idx)

    def pieces(self, at: int, length: int) -> list[tuple[int, int]]:
        """How a packet of header and payload lies in descriptors."""
        if self.layout == "single":
            return [(at, length)]
        if self.layout == "pages":
            cuts = [0, 44, *range(44 + 4096, length, 4096), length]
        elif self.layout == "odd":
            cuts = sorted({0, min(7, length), min(50, length), min(4000, length), length})
        elif length - 44 > 32404:
            cuts = [0, 44, 44 + 32768, length]
        else:
            cuts = [0, 44, length]
        pairs = zip(cuts, cuts[1:], strict=False)
        return [(at + a, b - a) for a, b in pairs if b > a]

    def put(self, packet: Packet) -> None:
        self.put_raw(packet.pack() + packet.payload)

    def put_raw(self, data: bytes) -> None:
        patience = fail_after()
        tx = self.front.tx
        while not self.tx_spare:
            self.reclaim()
            if not self.tx_spare:
                if tx.want_interrupt():
                    self.front.wait(0.5)
                patience("TX space")
        at = self.tx_spare.pop()
        self.front.memory.map[at : at + len(data)] = data
        self.tx_at[tx.add(self.pieces(at, len(data)), writable=False)] = at
        tx.show()
        tx.kick(event_idx=self.front.event_idx)
        self.reclaim()

    def reclaim(self) -> int:
        """Takes back the TX buffers that are done with; returns how many."""
        count = 0
        while got := self.front.tx.take():
            count += 1
            head, length = got
            if length != 0:
                raise ProtocolError(f"{length} bytes written to a TX chain")
            at = self.tx_at.pop(head, None)
            if at is None:
                raise ProtocolError(f"TX chain {head} given back, which was not given")
            self.tx_spare.append(at)
        return count

    def flush(self) -> None:
        """Waits until the backend has taken all that was put."""
        self.wait(lambda: not self.tx_at, "TX ring empty")

    def take(self) -> Packet | None:
        got = self.front.rx.take()
        if got is None:
            return None
        head, length = got
        at = self.buffer_at.pop(head, None)
        if at is None:
            raise ProtocolError(f"RX chain {head} given back, which was not given")
        if not 44 <= length <= sum(self.rx_layout):
            raise ProtocolError(f"{length} bytes in an RX buffer of {sum(self.rx_layout)}")
        data = self.front.memory.map[at : at + length]
        self.rx_spare.append(at)
        return Packet.parse(data)

    def pump(self, seconds: float = 0.0) -> int:
        """Handles all packets that are there; waits so long for the first, or until the backend has taken one
        of ours. Returns how many."""
        count = 0
        while True:
            while packet := self.take():
                count += 1
                self.handle(packet)
            freed = self.reclaim()
            if not self.muted and len(self.rx_spare) * 2 > len(self.rx_memory):
                self.post()
            if count or freed or not seconds:
                return count
            if not (self.front.rx.want_interrupt() and self.front.tx.want_interrupt()):
                continue
            if not self.front.wait(seconds):
                return 0

    def wait(self, condition: Callable[[], object], what: str) -> None:
        patience = fail_after()
        while not condition():
            self.pump(0.2)
            patience(what)

    # The protocol.

    def handle(self, p: Packet) -> None:
        self.seen.append(p)
        self.counts[p.op] = self.counts.get(p.op, 0) + 1
        if p.dst_cid != self.cid or p.op not in range(1, 8):
            raise ProtocolError(f"not for us: {p}")
        if p.payload and p.op != RW:
            raise ProtocolError(f"payload where none belongs: {p}")
        stream = self.streams.get((p.src_cid, p.src_port, p.dst_port))
        if stream is None:
            if p.op == RST:
                self.strays.append(p)
            elif p.op == REQUEST and p.dst_port in self.listening:
                self.accept_request(p)
            else:
                self.put(Packet(p.dst_cid, p.src_cid, p.dst_port, p.src_port, RST))
            return
        if p.kind != 1:
            raise ProtocolError(f"type changed: {p}")
        if stream.honest and (p.op != RST or stream.state == "open"):
            self.check_counters(stream, p)
        getattr(self, f"on_{p.op}")(stream, p)

    def check_counters(self, s: Stream, p: Packet) -> None:
        if not 0 < p.buf_alloc <= LINUX_BUFFER:
            raise ProtocolError(f"buf_alloc {p.buf_alloc}")
        if (s.tx_cnt - p.fwd_cnt) & U32 > p.buf_alloc:
            raise ProtocolError(f"fwd_cnt {p.fwd_cnt} while we sent {s.tx_cnt}")
        if (p.fwd_cnt - s.peer_fwd) & U32 > p.buf_alloc:
            raise ProtocolError(f"fwd_cnt went back from {s.peer_fwd} to {p.fwd_cnt}")
        s.peer_fwd = p.fwd_cnt
        s.peer_buf_alloc = p.buf_alloc

    def accept_request(self, p: Packet) -> None:
        s = Stream(self, p.src_cid, p.src_port, p.dst_port, state="open")
        s.peer_buf_alloc, s.peer_fwd = p.buf_alloc, p.fwd_cnt
        self.streams[s.key] = s
        self.listening[p.dst_port].append(s)
        s.put(RESPONSE)

    def on_1(self, s: Stream, p: Packet) -> None:
        raise ProtocolError(f"REQUEST for an open connection: {p}")

    def on_2(self, s: Stream, p: Packet) -> None:
        if s.state != "connecting":
            raise ProtocolError(f"RESPONSE in state {s.state}")
        s.state = "open"

    def on_3(self, s: Stream, p: Packet) -> None:
        s.gone()

    def on_4(self, s: Stream, p: Packet) -> None:
        if not p.flags & OFF_BOTH or p.flags & ~OFF_BOTH:
            raise ProtocolError(f"SHUTDOWN with flags {p.flags}")
        s.peer_off |= p.flags
        s.maybe_closed()

    def on_5(self, s: Stream, p: Packet) -> None:
        if s.state != "open" or s.peer_off & OFF_SEND:
            raise ProtocolError(f"RW in state {s.state}, peer off {s.peer_off}")
        if s.off & OFF_RECV:
            return
        s.received = (s.received + len(p.payload)) & U32
        if not p.payload:
            raise ProtocolError("RW without payload")
        if (s.received - s.last_fwd) & U32 > s.buf_alloc:
            raise ProtocolError(f"{(s.received - s.last_fwd) & U32} bytes in flight, {s.buf_alloc} allowed")
        if (len(s.queue) + 1) * SKB_COST > s.buf_alloc:
            raise ProtocolError(f"{len(s.queue) + 1} packets queued: a recent Linux resets that")
        s.queue.append(p.payload)

    def on_6(self, s: Stream, p: Packet) -> None:
        s.updates += 1

    def on_7(self, s: Stream, p: Packet) -> None:
        s.requests += 1
        s.put(CREDIT_UPDATE)

    # What a program in the guest does.

    def connect_start(self, port: int, cid: int = PARENT, source: int | None = None,
                      buf_alloc: int = LINUX_BUFFER) -> Stream:  # fmt: skip
        if source is None:
            source = self.next_port
            self.next_port += 1
        s = Stream(self, cid, port, source, buf_alloc=buf_alloc)
        self.streams[s.key] = s
        s.put(REQUEST)
        return s

    def connect(self, port: int, cid: int = PARENT, source: int | None = None,
                buf_alloc: int = LINUX_BUFFER) -> Stream:  # fmt: skip
        s = self.connect_start(port, cid, source, buf_alloc)
        self.wait(lambda: s.state != "connecting", f"an answer of CID {cid}, port {port}")
        if s.state == "reset":
            raise Refused
        return s

    def listen(self, port: int) -> None:
        self.listening[port] = deque()

    def accept(self, port: int) -> Stream:
        self.wait(lambda: self.listening[port], f"a connection to port {port}")
        return self.listening[port].popleft()

    def reboot(self) -> None:
        """The VMM stops the device, and a fresh driver starts it."""
        self.front.stop()
        self.front.fresh()
        self.forget()
        self.post()
        self.front.start()

    def forget(self) -> None:
        """The guest's kernel starts anew."""
        self.streams.clear()
        self.listening.clear()
        self.buffer_at.clear()
        self.tx_at.clear()
        self.rx_spare = list(self.rx_memory)
        self.tx_spare = list(self.tx_memory)


@contextlib.contextmanager
def guest(backend: Backend, *, queue: int = 1024, event_idx: bool = True, start: bool = True, border: int = 0,
          rx: tuple[int, ...] = Guest.MODERN, buffers: int = 256) -> Iterator[Guest]:  # fmt: skip
    """A running guest on this backend."""
    front = Front(backend.socket_path, queue=queue, event_idx=event_idx, border=border)
    try:
        assert front.cid == backend.cid
        g = Guest(front, rx=rx, buffers=buffers, post=start)
        if start:
            front.start()
        yield g
    finally:
        front.close()


@contextlib.contextmanager
def linked(
    backend: Backend, port: int = 5000, **options: Any
) -> Iterator[tuple[Guest, Stream, socket.socket]]:
    """A guest (with guest()'s options) connected to a host program: its end of the stream, and the host's."""
    with guest(backend, **options) as g, backend.listen(port) as listener:
        s = g.connect(port)
        peer, _ = listener.accept()
        with peer:
            yield g, s, peer


def dial(backend: Backend, g: Guest, port: int, extra: bytes = b"") -> tuple[socket.socket, Stream]:
    """A host client connected to a listening port of the guest, and the guest's end of it."""
    s = backend.client(b"CONNECT %d\n" % port + extra)
    try:
        stream = g.accept(port)
        assert read_ok(s) == stream.peer_port
    except BaseException:
        s.close()
        raise
    return s, stream


def read_ok(s: socket.socket) -> int:
    line = b""
    while not line.endswith(b"\n"):
        byte = s.recv(1)
        if not byte:
            raise EOFError(f"closed after {line!r}")
        line += byte
    word, number = line.split()
    assert word == b"OK", line
    return int(number)
