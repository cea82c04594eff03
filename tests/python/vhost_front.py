# SPDX-License-Identifier: MIT
"""A fake VMM for the vsock backend: a memfd as guest RAM, two split rings in it, the vhost-user messages that
QEMU sends. No QEMU; and no guest, which is vhost_guest.py.
"""

from __future__ import annotations

import array
import itertools
import mmap
import os
import select
import socket
import struct
import threading
from pathlib import Path

from vhost_backend import PATIENCE

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
F_EVENT_IDX, F_PROTOCOL, F_VERSION_1 = 1 << 29, 1 << 30, 1 << 32
PF_MQ, PF_REPLY_ACK, PF_CONFIG = 1 << 0, 1 << 3, 1 << 9


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
