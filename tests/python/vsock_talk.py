# SPDX-License-Identifier: MIT
"""What several test files of the vsock backend do with it and with the fake guest: short exchanges, what they
read to the end, and the folder for its sockets. No tests, and nothing of the protocol: that is
vhost_guest.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
from pathlib import Path

from vhost_backend import PATIENCE, Backend, fail_after
from vhost_guest import Guest, Stream

PORT = 5000


def pattern(n: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n)


def read_exactly(s: socket.socket, n: int) -> bytes:
    out = bytearray()
    while len(out) < n:
        more = s.recv(n - len(out))
        if not more:
            raise EOFError(f"end after {len(out)} of {n} bytes")
        out += more
    return bytes(out)


def read_all(s: socket.socket, g: Guest | None = None) -> bytes:
    """To the end, while the guest goes on."""
    out = bytearray()
    patience = fail_after()
    while True:
        if g is not None:
            g.pump()
            if not select.select([s], [], [], 0.01)[0]:
                patience("end of stream")
                continue
        more = s.recv(1 << 20)
        if not more:
            return bytes(out)
        out += more


def wakeups_while_idle(backend: Backend) -> int:
    """Loop turns in a while with nothing to do; the question itself is one."""
    before = backend.statistics()["wakeups"]
    select.select([], [], [], 0.25)
    return backend.statistics()["wakeups"] - before


def run(binary: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary, *args], capture_output=True, text=True, timeout=PATIENCE, check=False)


GOOD = ("--socket-path=/tmp/vuv-no", "--guest-cid=4", "--uds-path=/tmp/vuv-nothing")


class Folder:
    """A short-named folder, removed at the end with what is in it."""

    def __enter__(self) -> Path:
        import tempfile

        self.temporary = tempfile.TemporaryDirectory(prefix="vuv-")
        return Path(self.temporary.name)

    def __exit__(self, *exc: object) -> None:
        self.temporary.cleanup()


def heartbeat(g: Guest, byte: bytes = b"\xb7") -> bytes:
    s = g.connect(9000)
    s.send(byte)
    answer = s.recv_exactly(1)
    s.close()
    return answer


def booted(backend: Backend) -> int:
    """How often it said so by now."""
    text = b""
    while select.select([backend.booted], [], [], 0)[0]:
        more = os.read(backend.booted, 4096)
        if not more:
            break
        text += more
    assert text == b"booted\n" * (len(text) // 7)
    return len(text) // 7


def dial_skipping(backend: Backend, g: Guest, port: int) -> tuple[socket.socket, Stream]:
    """As `dial`, past connections of clients that have left."""
    client = backend.client(b"CONNECT %d\n" % port)
    patience = fail_after()
    client.setblocking(False)
    line = b""
    while not line.endswith(b"\n"):
        g.pump(0.02)
        with contextlib.suppress(BlockingIOError):
            line += client.recv(1)
        patience("OK")
    client.settimeout(PATIENCE)
    number = int(line.split()[1])
    while True:
        s = g.accept(port)
        if s.peer_port == number:
            return client, s
