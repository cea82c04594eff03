# SPDX-License-Identifier: MIT
"""An enclave with `--tools` as far as the commands see one: its record, and an agent that the test plays.

The agent's frames are made here by guest/tools-protocol.h, and not by the client's code. No test is here.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nitroctl.base import locks
from nitroctl.enclaves import records
from nitroctl.enclaves.records import Ending, Record, State

TOOLS_PORT = 4294958296


class Peer:
    """The agent's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.request = b""

    def read(self) -> tuple[bytes, bytes] | None:
        """The next frame; None at the end."""
        head = self._exactly(4)
        if head is None:
            return None
        (size,) = struct.unpack("<I", head)
        assert 1 <= size <= 65536
        frame = self._exactly(size)
        return None if frame is None else (frame[:1], frame[1:])

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self.sock.sendall(struct.pack("<I", len(payload) + 1) + kind + payload)

    def exit(self, value: int, how: int = 0) -> None:
        self.send(b"x", bytes([how, value]))


Script = Callable[[Peer], None]


class FakeEnclave:
    def __init__(self, state: Path, uds: Path) -> None:
        self.home = state / "nitroctl/enclaves/0000000000000001"
        self.home.mkdir(parents=True)
        self._lock = locks.take(self.home / "lock")
        self.record = Record(
            id="i-0-enc1", name="app", state=State.RUNNING, cid=16, eif=Path("/app.eif"), memory_mib=64,
            cpus=1, accel="tcg", accel_reason="so", debug=False, detached=True, folder=uds.parent, uds=uds,
            home=self.home, supervisor_pid=os.getpid(), qemu_pid=None, backend_pid=None, started=1.0,
            tools=True, booted=2.0,
        )  # fmt: skip
        records._write(self.home, self.record)
        self.script: Script = lambda peer: None
        self.failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(uds))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def end(self, message: str) -> None:
        """The enclave ends: its record says so, and its supervisor lets go of it."""
        if self._lock >= 0:
            ended = dataclasses.replace(
                self.record, state=State.ENDED, ended=time.time(), ending=Ending.PANIC, message=message
            )
            records._write(self.home, ended)
            locks.end(self._lock)
            self._lock = -1

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                try:
                    line = b""
                    while not line.endswith(b"\n"):
                        line += sock.recv(1)
                    if line != b"CONNECT %d\n" % TOOLS_PORT:
                        return  # of `close`
                    sock.sendall(b"OK 1\n")
                    peer = Peer(sock)
                    frame = peer.read()
                    assert frame and frame[0] == b"R"
                    peer.request = frame[1]
                    self.script(peer)
                except (AssertionError, OSError) as e:
                    self.failures.append(e)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._listener.getsockname())
            last.sendall(b"\n")
            self._thread.join()
        self._listener.close()
        self.end("closed")


@contextmanager
def fake_enclave(tmp_path: Path) -> Iterator[FakeEnclave]:
    """With its record in `tmp_path`/state, which is to be XDG_STATE_HOME."""
    enclave = FakeEnclave(tmp_path / "state", tmp_path / "v")
    try:
        yield enclave
        assert not enclave.failures, enclave.failures
    finally:
        enclave.close()
