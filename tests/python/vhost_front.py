# SPDX-License-Identifier: MIT
"""A fake VMM and guest for the vsock backend: own memory, own rings, vhost-user messages, no QEMU.

Three layers, each usable alone:

    Backend   the process under test, started with pipes for "ready" and "booted"
    Front     the VMM: a memfd as guest RAM, two split rings in it, the messages that QEMU sends
    Guest     the guest's kernel: connections with Linux's credit rules; `Stream` is one of them

Guest checks every packet that the backend sends: lengths, addresses, credit, number of packets, order. A
packet that a Linux guest would punish raises ProtocolError. It is single-threaded: nothing happens but in
`Guest.pump` and what calls it, and every wait has a limit after which it fails.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# How long anything may take before a test fails; no test measures time by it.
PATIENCE = 20.0

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
OFF_RECV, OFF_SEND, OFF_BOTH = 1, 2, 3
HEADER = struct.Struct("<QQIIIHHIII")
MAX_PAYLOAD = 65536
PARENT = 3
U32 = 0xFFFFFFFF

# What Linux accounts for each packet, whatever its size (SKB_TRUESIZE(0) on 64-bit machines).
SKB_COST = 576
LINUX_BUFFER = 262144

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
F_EVENT_IDX, F_PROTOCOL, F_VERSION_1 = 1 << 29, 1 << 30, 1 << 32
PF_MQ, PF_REPLY_ACK, PF_CONFIG = 1 << 0, 1 << 3, 1 << 9


class ProtocolError(AssertionError):
    """The backend sent what a guest would not accept."""


class Refused(Exception):
    """RST in answer to REQUEST."""


class Reset(Exception):
    """RST on an open connection."""


def fail_after() -> Callable[[str], None]:
    """A function that raises once PATIENCE has passed."""
    end = time.monotonic() + PATIENCE

    def check(what: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"nothing within {PATIENCE:g} s: {what}")

    return check


# --- the process ------------------------------------------------------------------------------------------


class Backend:
    """A running backend with its sockets in a folder of its own."""

    def __init__(
        self, binary: Path, *options: str, cid: int = 4, wait: bool = True, owned: bool = False
    ) -> None:
        # Not pytest's folder: its path is long, and a unix socket's is not.
        self.folder = Path(tempfile.mkdtemp(prefix="vuv-"))
        self.socket_path = self.folder / "v"
        self.uds_path = self.folder / "p"
        self.cid = cid
        ready, ready_theirs = os.pipe()
        self.booted, booted_theirs = os.pipe()
        self.stderr_path = self.folder / "stderr"
        self.argv = [
            os.fspath(binary), f"--socket-path={self.socket_path}", f"--guest-cid={cid}",
            f"--uds-path={self.uds_path}", f"--ready-fd={ready_theirs}",
            f"--booted-fd={booted_theirs}", *options,
        ]  # fmt: skip
        self.owner: Owner | None = None
        theirs = [ready_theirs, booted_theirs]
        if owned:  # what its owner holds of it, and may ask it on
            owner, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.owner = Owner(owner)
            theirs.append(lifeline.detach())
            self.argv.append(f"--lifeline-fd={theirs[-1]}")
        with open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
                pass_fds=theirs,
            )  # fmt: skip
        for fd in theirs:
            os.close(fd)
        try:
            if wait:
                line = read_line(ready)
                assert line == b"ready\n", f"not ready but {line!r}: {self.stderr()}"
        except BaseException:
            self.close(check=False)
            raise
        finally:
            os.close(ready)

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def port(self, port: int) -> Path:
        return Path(f"{self.uds_path}_{port}")

    def statistics(self) -> dict[str, int]:
        """What SIGUSR1 prints, with the refusals as further keys."""
        seen = self.stderr().count("\n{")
        seen += self.stderr().startswith("{")
        self.process.send_signal(signal.SIGUSR1)
        patience = fail_after()
        while True:
            lines = [line for line in self.stderr().splitlines(True) if line.startswith("{")]
            if len(lines) > seen and lines[-1].endswith("\n"):
                values = json.loads(lines[-1])
                # What never happened is not in the line, and counts as 0.
                return Counter(values | values.pop("refusals"))
            patience("statistics")
            assert self.process.poll() is None, f"the backend ended: {self.stderr()}"
            time.sleep(0.001)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self, *, check: bool = True) -> None:
        """Ends it by SIGTERM; with `check`, that must go as promised."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            os.close(self.booted)
            if self.owner:
                self.owner.close()
            text = self.stderr()
            left = sorted(p.name for p in self.folder.iterdir() if p.name != "stderr")
            shutil.rmtree(self.folder)
        if check:
            assert status == 0, f"exit status {status}: {text}"
            assert "ERROR: " not in text and "runtime error" not in text, text
            assert "v" not in left and "p" not in left, f"sockets left behind: {left}"

    # Host applications.

    def listen(self, port: int, backlog: int = 128) -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.bind(os.fspath(self.port(port)))
        s.listen(backlog)
        s.settimeout(PATIENCE)
        return s

    def client(self, text: bytes = b"") -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(PATIENCE)
        s.connect(os.fspath(self.uds_path))
        if text:
            s.sendall(text)
        return s


def find_binary() -> Path:
    """The backend to test, or a failure that says where it comes from."""
    path = os.environ.get("VHOST_USER_VSOCK")
    if not path:
        pytest.fail(
            "no vsock backend to test: VHOST_USER_VSOCK=$(nitroctl which vsock), after `nitroctl build`; or "
            "`meson setup b && ninja -C b` and VHOST_USER_VSOCK=b/contrib/vhost-user-vsock/vhost-user-vsock"
        )
    if not os.access(path, os.X_OK):
        pytest.fail(f"VHOST_USER_VSOCK={path} is no program")
    return Path(path)


class Owner:
    """The other end of a backend's lifeline: messages, each of them a line of JSON."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.channel.settimeout(PATIENCE)
        self.events: deque[dict[str, Any]] = deque()

    def say(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.channel.sendmsg([message], control)

    def hear(self) -> dict[str, Any]:
        message = self.channel.recv(1 << 18)
        assert message.endswith(b"\n") and message.count(b"\n") == 1, message
        value = json.loads(message)
        assert isinstance(value, dict)
        return value

    def answer(self) -> dict[str, Any]:
        while "event" in (value := self.hear()):
            self.events.append(value)
        return value

    def ask(self, do: str, *fds: int, **members: Any) -> dict[str, Any]:
        self.say(json.dumps({"id": 7, "do": do, **members}).encode(), fds)
        value = self.answer()
        assert value.pop("id") == 7
        return value

    def hello(self) -> Owner:
        assert self.ask("hello", version=1)["control"] == 1
        return self

    def event(self) -> dict[str, Any]:
        """The next one."""
        if not self.events:
            self.events.append(self.hear())
        value = self.events.popleft()
        assert "event" in value
        return value

    def close(self) -> None:
        self.channel.close()


@contextlib.contextmanager
def running(binary: Path, *options: str, cid: int = 4, owned: bool = False) -> Iterator[Backend]:
    """A backend that must end as promised, unless the test has failed already."""
    b = Backend(binary, *options, cid=cid, owned=owned)
    try:
        yield b
    except BaseException:
        b.close(check=False)
        raise
    b.close()


def read_line(fd: int) -> bytes:
    """A line from a pipe, or what there was before its end."""
    patience = fail_after()
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([fd], [], [], 0.5)[0]:
            patience("a line")
            continue
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return line


# --- the VMM ----------------------------------------------------------------------------------------------


def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def drain(fd: int) -> bool:
    try:
        os.eventfd_read(fd)
        return True
    except BlockingIOError:
        return False


class Memory:
    """Guest RAM in a memfd, with the hole below 1 MiB that QEMU's x86 machines have."""

    HOLE, HIGH = 0xF0000, 0x100000
    USER = 0x7F1200000000

    def __init__(self, size: int = 32 << 20, border: int = 0) -> None:
        self.size = size
        self.border = border  # a guest address where one region ends and the next begins
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        # For what the device reads while we write: struct.pack_into clears the bytes before it writes
        # them, so an index would be 0 for a moment. This stores them at once.
        self.u16 = memoryview(self.map).cast("H")
        self.next = self.HIGH

    def alloc(self, size: int, align: int = 4096) -> int:
        at = (self.next + align - 1) // align * align
        assert at + size <= self.size, "fake guest out of memory"
        self.next = at + size
        return at

    def regions(self) -> list[tuple[int, int, int, int]]:
        """(guest address, size, front end's address, offset in the file)"""
        cuts = [self.HIGH, *([self.border] if self.border else []), self.size]
        high = [(a, b - a, self.USER + a, a) for a, b in itertools.pairwise(cuts)]
        return [(0, self.HOLE, self.USER, 0), *high]

    def close(self) -> None:
        self.u16.release()
        self.map.close()
        os.close(self.fd)


class Ring:
    """The driver's side of a split ring."""

    def __init__(self, memory: Memory, num: int) -> None:
        self.memory = memory
        self.num = num
        self.desc = memory.alloc(16 * num)
        self.avail = memory.alloc(6 + 2 * num)
        self.used = memory.alloc(6 + 8 * num)
        self.kick_fd = eventfd()
        self.call_fd = eventfd()
        self.err_fd = eventfd()
        self.kicks = 0
        self.fence = threading.Lock()  # locked instructions order memory
        self.reset()

    def reset(self) -> None:
        m = self.memory.map
        m[self.desc : self.desc + 16 * self.num] = bytes(16 * self.num)
        m[self.avail : self.avail + 6 + 2 * self.num] = bytes(6 + 2 * self.num)
        m[self.used : self.used + 6 + 8 * self.num] = bytes(6 + 8 * self.num)
        self.free = list(range(self.num))
        self.chains: dict[int, list[int]] = {}
        self.avail_idx = 0
        self.kicked_idx = 0
        self.last_used = 0
        drain(self.kick_fd)
        drain(self.call_fd)

    def user(self, address: int) -> int:
        return Memory.USER + address

    def set_desc(self, i: int, addr: int, length: int, flags: int, follow: int) -> None:
        struct.pack_into("<QIHH", self.memory.map, self.desc + 16 * i, addr, length, flags, follow)

    def add(self, pieces: list[tuple[int, int]], *, writable: bool) -> int:
        """A chain of (address, length); returns its head. The device sees it after `show`."""
        ids = [self.free.pop() for _ in pieces]
        for n, (addr, length) in enumerate(pieces):
            last = n == len(pieces) - 1
            flags = (DESC_WRITE if writable else 0) | (0 if last else DESC_NEXT)
            self.set_desc(ids[n], addr, length, flags, 0 if last else ids[n + 1])
        self.chains[ids[0]] = ids
        self.offer(ids[0])
        return ids[0]

    def offer(self, head: int) -> None:
        self.memory.u16[self.avail // 2 + 2 + self.avail_idx % self.num] = head
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def show(self) -> None:
        self.memory.u16[self.avail // 2 + 1] = self.avail_idx

    def kick(self, *, event_idx: bool, force: bool = False) -> None:
        """Tells the device, if it wants to know."""
        with self.fence:  # the index must be seen before we look whether it is waited for
            pass
        m = self.memory.map
        if event_idx:
            (event,) = struct.unpack_from("<H", m, self.used + 4 + 8 * self.num)
            new, old = self.avail_idx, self.kicked_idx
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not struct.unpack_from("<H", m, self.used)[0] & 1
        self.kicked_idx = self.avail_idx
        if wanted or force:
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)

    def take(self) -> tuple[int, int] | None:
        """(head, length written) of the next chain given back."""
        m = self.memory.map
        (idx,) = struct.unpack_from("<H", m, self.used + 2)
        if idx == self.last_used:
            return None
        at = self.used + 4 + 8 * (self.last_used % self.num)
        head, length = struct.unpack_from("<II", m, at)
        self.last_used = (self.last_used + 1) & 0xFFFF
        self.free += self.chains.pop(head, [])
        return head, length

    def want_interrupt(self) -> bool:
        """Asks for an interrupt at the next chain; False: there is one already."""
        m = self.memory.map
        self.memory.u16[self.avail // 2 + 2 + self.num] = self.last_used
        # The store must be out before the load below; a system call is a fence on every machine.
        drain(self.call_fd)
        (idx,) = struct.unpack_from("<H", m, self.used + 2)
        return bool(idx == self.last_used)

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)
        os.close(self.err_fd)


class Front:
    """A vhost-user front end, in the order and form of QEMU's messages."""

    def __init__(
        self,
        path: Path,
        *,
        queue: int = 1024,
        event_idx: bool = True,
        memory: int = 32 << 20,
        border: int = 0,
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.memory = Memory(memory, border)
        self.event_idx = event_idx
        self.rx = Ring(self.memory, queue)
        self.tx = Ring(self.memory, queue)
        self.rings = (self.rx, self.tx)
        self.base = [0, 0]
        self.cid = 0
        self.running = False
        try:
            self.socket.connect(os.fspath(path))
            self.realize()
        except BaseException:
            self.close()
            raise

    # Messages.

    def send(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 1) -> None:
        message = struct.pack("=III", request, flags, len(payload)) + payload
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([message], control)
        assert sent == len(message)

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            more = self.socket.recv(n - len(data))
            if not more:
                raise EOFError("the backend closed the connection")
            data += more
        return data

    def reply(self, request: int) -> bytes:
        got, flags, size = struct.unpack("=III", self._exactly(12))
        assert (got, flags) == (request, 5), f"answer to {got} with flags {flags}, not to {request} with 5"
        return self._exactly(size)

    def ask(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        self.send(request, payload, fds)
        return self.reply(request)

    def ask_u64(self, request: int) -> int:
        return int(struct.unpack("=Q", self.ask(request))[0])

    def do(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> int:
        """With the reply-wanted bit: 0 is success."""
        self.send(request, payload, fds, flags=9)
        return int(struct.unpack("=Q", self.reply(request))[0])

    def must(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        assert self.do(request, payload, fds) == 0, f"request {request} failed"

    # Phases.

    def realize(self) -> None:
        features = self.ask_u64(1)
        assert features & F_PROTOCOL and features & F_EVENT_IDX and features & F_VERSION_1
        assert not features & (1 << 28 | 1 << 34 | 1 << 1), "indirect, packed or seqpacket offered"
        self.protocol = self.ask_u64(15)
        assert self.protocol & PF_CONFIG and self.protocol & PF_REPLY_ACK
        self.send(16, struct.pack("=Q", PF_MQ | PF_REPLY_ACK | PF_CONFIG))
        assert self.ask_u64(17) >= 2
        self.send(3)
        self.ask_u64(1)
        for i, ring in enumerate(self.rings):
            dummy = eventfd()
            self.send(13, struct.pack("=Q", i), (dummy,))
            os.close(dummy)
            self.send(14, struct.pack("=Q", i), (ring.err_fd,))
        config = self.ask(24, struct.pack("=III", 0, 8, 0) + bytes(8))
        assert len(config) == 20
        (self.cid,) = struct.unpack("<Q", config[12:])

    def start(self, *, version_1: bool = False) -> None:
        """Driver ready. With the rings' bases as they are: 0 for a fresh driver."""
        features = F_PROTOCOL | (F_EVENT_IDX if self.event_idx else 0) | (F_VERSION_1 if version_1 else 0)
        self.must(2, struct.pack("=Q", features))
        self.set_memory()
        for i, ring in enumerate(self.rings):
            self.must(8, struct.pack("=II", i, ring.num))
            self.must(10, struct.pack("=II", i, self.base[i]))
            addresses = (ring.user(ring.desc), ring.user(ring.used), ring.user(ring.avail), 0)
            self.must(9, struct.pack("=IIQQQQ", i, 0, *addresses))
            self.must(12, struct.pack("=Q", i), (ring.kick_fd,))
        for i in range(2):
            self.must(18, struct.pack("=II", i, 1))
        for i, ring in enumerate(self.rings):
            self.must(13, struct.pack("=Q", i), (ring.call_fd,))
        self.running = True

    def set_memory(self) -> None:
        regions = self.memory.regions()
        table = struct.pack("=II", len(regions), 0)
        for guest, size, user, offset in regions:
            table += struct.pack("=QQQQ", guest, size, user, offset)
        self.must(5, table, (self.memory.fd,) * len(regions))

    def stop(self) -> None:
        """What QEMU does at pause, reset and end; keeps the bases."""
        for i in range(2):
            self.must(18, struct.pack("=II", i, 0))
        for i in range(2):
            index, self.base[i] = struct.unpack("=II", self.ask(11, struct.pack("=II", i, 0)))
            assert index == i
        for i in range(2):
            dummy = eventfd()
            self.send(13, struct.pack("=Q", i), (dummy,))
            os.close(dummy)
        self.running = False

    def fresh(self) -> None:
        """The guest's driver has been reset."""
        self.base = [0, 0]
        for ring in self.rings:
            ring.reset()

    def wait(self, seconds: float) -> bool:
        """For an interrupt of either ring."""
        return bool(select.select([self.rx.call_fd, self.tx.call_fd], [], [], seconds)[0])

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            self.socket.close()
            for ring in self.rings:
                ring.close()
            self.memory.close()


# --- the guest --------------------------------------------------------------------------------------------


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
