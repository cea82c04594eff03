# SPDX-License-Identifier: MIT
"""Client of the agent that `--tools` brings into an enclave (guest/tools-protocol.h): one connection is one
request.

    answer(...)      a request whose answer is some text
    Call(...)        a connection, for those that go on: frames out and in
    Command(...)     a command with pipes, its standard input fed and its output handed on

The agent may be an application's that took its place: what comes is bounded and believed to be nothing but
bytes. Whatever happens to the enclave meanwhile, a wait ends, and the error says what happened.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from nitroctl.base.errors import EnclaveError, EnclaveTimeout
from nitroctl.enclaves import records, tools
from nitroctl.enclaves.records import Record
from nitroctl.vsock import sockets

FRAME_MAX = 65536
PIECE = 32768  # of standard input, in one frame
ANSWER_MAX = 4 << 20

TTY, BUSYBOX = 1, 2

START_SECONDS = 60.0  # for an agent that has to wait for a kernel's modules; it is there with the heartbeat
ANSWER_SECONDS = 60.0
END_SECONDS = 10.0  # from a broken connection to the record of the end


class NoTools(EnclaveError):
    """The enclave was started without --tools."""


class ToolsFailed(EnclaveError):
    """The agent could not do it."""

    def __init__(self, errno: int, message: str, *, record: Any = None) -> None:
        super().__init__(message, record=record)
        self.errno = errno


def check(record: Record) -> None:
    """Raises NoTools or EnclaveError where there can be no agent."""
    if not record.running:
        raise EnclaveError(f"the enclave {record.name!r} has ended: {record.message}", record=record)
    if not record.tools:
        raise NoTools(
            f"enclave {record.name} runs without an agent, which is there from the start or not at all",
            hint="start it with `nitroctl run --tools`",
            record=record,
        )


class Call:
    """A connection with its request sent. A context manager."""

    def __init__(
        self,
        record: Record,
        operation: bytes,
        words: Sequence[str | bytes] = (),
        *,
        flags: int = 0,
        rows: int = 0,
        columns: int = 0,
        environment: Sequence[bytes] = (),
        timeout: float | None = None,
    ) -> None:
        check(record)
        self.record = record
        head = struct.pack("<HcBHH", tools.VERSION, operation, flags, rows, columns)
        texts = [*environment, b"", *map(os.fsencode, words)]
        request = head + b"".join(text + b"\0" for text in texts)
        if len(request) >= FRAME_MAX or any(b"\0" in text for text in texts):
            raise EnclaveError("the command is too long, or has a NUL in it", record=record)
        self._buffer = bytearray()
        self.socket = _connect(record)
        self.socket.settimeout(timeout)
        try:
            self.send(b"R", request)
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        try:
            self.socket.sendall(struct.pack("<I", 1 + len(payload)) + kind + payload)
        except ConnectionError:
            raise self._gone() from None

    def pull(self) -> None:
        """Read what is there into the buffer, or wait for something. Raises EnclaveError at the end."""
        try:
            data = self.socket.recv(1 << 17)
        except TimeoutError as e:
            message = f"enclave {self.record.name}: no answer within {self.socket.gettimeout():g} s"
            raise EnclaveTimeout(message, record=self.record) from e
        except ConnectionError:
            data = b""
        if not data:
            raise self._gone()
        self._buffer += data

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """The whole frames in the buffer: kind and payload. Raises ToolsFailed for an 'f', and
        EnclaveError for a size that is none."""
        while len(self._buffer) >= 4:
            (size,) = struct.unpack_from("<I", self._buffer)
            if not 1 <= size <= FRAME_MAX:
                message = f"enclave {self.record.name}: its agent sent a frame of {size} bytes"
                raise EnclaveError(message, record=self.record)
            if len(self._buffer) < 4 + size:
                return
            kind, payload = bytes(self._buffer[4:5]), bytes(self._buffer[5 : 4 + size])
            del self._buffer[: 4 + size]
            if kind == b"f":
                number = int.from_bytes(payload[:4], "little")
                text = payload[4:].decode(errors="replace") or os.strerror(number)
                raise ToolsFailed(number, f"enclave {self.record.name}: {text}", record=self.record)
            yield kind, payload

    def _gone(self) -> EnclaveError:
        """Why the connection broke: mostly because the enclave has ended, and then that is what to say."""
        with contextlib.suppress(EnclaveTimeout):
            return records.ended_meanwhile(self.record, records.wait(self.record, END_SECONDS))
        return EnclaveError(
            f"enclave {self.record.name}: its agent closed the connection",
            hint=f"nitroctl console {self.record.name}",
            record=self.record,
        )


def status_of(payload: bytes) -> int:
    """A shell's status of an 'x' frame."""
    how, value = (payload + b"\0\0")[:2]
    return 128 + value if how else value


def _connect(record: Record) -> socket.socket:
    try:
        return sockets.connect_soon(
            record.uds, tools.PORT, timeout=START_SECONDS, refused=lambda _: records.check_runs(record)
        )
    except sockets.PortRefused as e:
        raise EnclaveError(
            f"enclave {record.name}: its agent does not answer",
            hint=f"nitroctl console {record.name}",
            record=record,
        ) from e


def answer(
    record: Record, operation: bytes, words: Sequence[str] = (), *, timeout: float = ANSWER_SECONDS
) -> str:
    """The text that the agent answers with."""
    said = bytearray()
    with Call(record, operation, words, timeout=timeout) as call:
        while True:
            for kind, payload in call.frames():
                if kind == b"x":
                    return said.decode(errors="replace")
                said += payload
                if len(said) > ANSWER_MAX:
                    text = f"enclave {record.name}: its agent's answer has more than {ANSWER_MAX} bytes"
                    raise EnclaveError(text, record=record)
            call.pull()


class Command:
    """A command with three pipes: `run` feeds its standard input from `source`, hands its output to `sink`,
    and returns its status; `errors` is the beginning of what it said on standard error."""

    def __init__(self, record: Record, words: Sequence[str | bytes], *, busybox: bool = False) -> None:
        self._call = Call(record, b"X", words, flags=BUSYBOX if busybox else 0)
        self.errors = b""

    def run(self, source: Iterable[bytes] = (), sink: Callable[[bytes], object] = lambda data: None) -> int:
        pieces = (part for data in source for part in _parts(data))
        with self._call as call:
            self._feed(pieces)
            while True:
                for kind, payload in call.frames():
                    if kind == b"o":
                        sink(payload)
                    elif kind == b"r":
                        self.errors = (self.errors + payload)[:4096]
                    elif kind == b"a":
                        self._feed(pieces)
                    elif kind == b"x":
                        return status_of(payload)
                call.pull()

    def _feed(self, pieces: Iterator[bytes]) -> None:
        piece = next(pieces, None)
        if piece is None:
            self._call.send(b"e")
        else:
            self._call.send(b"i", piece)

    @property
    def reason(self) -> str:
        """The first line of what it said on standard error: the others say that there was one."""
        lines = self.errors.decode(errors="replace").strip().splitlines()
        return lines[0] if lines else "no reason given"


def _parts(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), PIECE):
        yield data[at : at + PIECE]
