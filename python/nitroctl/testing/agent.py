# SPDX-License-Identifier: MIT
"""Client of the test agent that runs inside test EIFs (guest/agent.c describes frames, probes and modes).

It asks and returns what the guest answers; it judges nothing. An 'E' frame becomes AgentError with the
guest's errno. Not for enclaves of users: only test EIFs carry the agent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType

from nitroctl.base import cbor
from nitroctl.base.errors import EnclaveError, EnclaveTimeout
from nitroctl.vsock import sockets

PORT = 7000
READY_LINE = "agent: listening on vsock port 7000"
FRAME_MAX = 1 << 20
PATTERN_PERIOD = 65521  # prime, so that no buffer size divides it


class AgentError(EnclaveError):
    """The guest could not do it: `errno` is the guest's, `text` the agent's."""

    def __init__(self, number: int, text: str) -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"the guest's agent: {text or os.strerror(number)} ({name})")
        self.errno = number
        self.text = text


class AgentGone(EnclaveError):
    """The connection ended before the answer: the guest reset, crashed, or the agent died."""


class Agent:
    """One connection. A context manager. Each request blocks until its answer is there.

    `timeout` bounds each wait for the guest, in seconds. Connect after the guest printed READY_LINE, or give
    `refused`: then an agent that is not there yet is waited for, up to `listen` seconds
    (vsock.sockets.connect_soon).
    """

    def __init__(
        self,
        uds: str | os.PathLike[str],
        *,
        port: int = PORT,
        timeout: float = 60.0,
        refused: Callable[[sockets.PortRefused], None] | None = None,
        listen: float = sockets.LISTEN_SECONDS,
    ) -> None:
        if refused:
            self._socket = sockets.connect_soon(uds, port, timeout=min(timeout, listen), refused=refused)
        else:
            self._socket = sockets.connect(uds, port, timeout=timeout)
        self._socket.settimeout(timeout)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- frames

    def send(self, operation: bytes, payload: bytes = b"") -> None:
        with self._told():
            self._socket.sendall(struct.pack("<I", len(operation) + len(payload)) + operation + payload)

    def receive(self, operation: bytes) -> bytes:
        """The payload of the answer to `operation`."""
        (size,) = struct.unpack("<I", self._exactly(4))
        if not 1 <= size <= FRAME_MAX:
            raise EnclaveError(f"the guest's agent sent a frame of {size} bytes")
        frame = self._exactly(size)
        kind, payload = frame[:1], frame[1:]
        if kind == b"E":
            (number,) = struct.unpack("<I", payload[:4])
            raise AgentError(number, payload[4:].decode(errors="replace"))
        if kind != operation:
            raise EnclaveError(f"the guest's agent answered {kind!r} to {operation!r}")
        return payload

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong with the connection, in words."""
        try:
            yield
        except TimeoutError as e:
            limit = self._socket.gettimeout()
            raise EnclaveTimeout(f"no answer from the guest's agent within {limit:g} s") from e
        except ConnectionError as e:
            raise AgentGone(f"the connection to the guest's agent broke: {e.strerror}") from e

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            with self._told():
                piece = self._socket.recv(min(size - len(data), 65536))
            if not piece:
                raise AgentGone("the guest's agent closed the connection")
            data += piece
        return bytes(data)

    # -- requests

    def nsm(self, request: bytes, *, capacity: int | None = None) -> bytes:
        """One ioctl on /dev/nsm with these bytes; the response's bytes. `capacity` is the size of the
        response buffer (default: the driver's 0x3000)."""
        if capacity is None:
            self.send(b"N", request)
            return self.receive(b"N")
        self.send(b"n", struct.pack("<I", capacity) + request)
        return self.receive(b"n")

    def attestation(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """An attestation document of the guest's NSM. Raises EnclaveError with the NSM's reason."""
        import cbor2

        fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        answer = self.nsm(cbor2.dumps({"Attestation": fields}))
        decoded: object = None
        try:
            decoded = cbor.loads(answer)
            document = decoded["Attestation"]["document"]  # type: ignore[index]
        except (cbor.CborError, TypeError, KeyError):
            reason = decoded.get("Error") if isinstance(decoded, dict) else None
            raise EnclaveError(f"the NSM gave no document: {reason or answer.hex()}") from None
        if not isinstance(document, bytes):
            raise EnclaveError(f"the NSM gave no document: {answer.hex()}")
        return document

    def probe(self, name: str, *arguments: str | int) -> str:
        self.send(b"P", "\n".join([name, *map(str, arguments)]).encode())
        return self.receive(b"P").decode(errors="surrogateescape")

    def facts(self, name: str, *arguments: str | int) -> dict[str, str]:
        """A probe whose answer is "key value" lines."""
        lines = self.probe(name, *arguments).splitlines()
        return {key: value for key, _, value in (line.partition(" ") for line in lines)}

    def start(self, name: str, *arguments: str | int) -> None:
        """A probe whose answer is fetched later, with `finish`: something has to happen outside first."""
        self.send(b"P", "\n".join([name, *map(str, arguments)]).encode())

    def finish(self) -> str:
        return self.receive(b"P").decode(errors="surrogateescape")

    # -- ends: the guest's, or the agent's

    def exit(self, status: int) -> None:
        self._last(b"X", bytes([status]))

    def kill(self, signal: int) -> None:
        self._last(b"K", bytes([signal]))

    def reset(self) -> None:
        self._last(b"Q")

    def halt(self) -> None:
        self._last(b"H")

    def crash(self) -> None:
        self._last(b"C")

    def _last(self, operation: bytes, payload: bytes = b"") -> None:
        self.send(operation, payload)


def pattern(seed: int, size: int) -> bytes:
    """The first bytes of the stream that the agent's modes send and compare."""
    block = bytearray()
    x = seed & 0xFFFFFFFF
    for _ in range(min(size, PATTERN_PERIOD)):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        block.append(x >> 24)
    whole, rest = divmod(size, PATTERN_PERIOD)
    return bytes(block) * whole + bytes(block[:rest]) if whole else bytes(block)


def receive_all(sock: socket.socket, limit: int = 1 << 30) -> bytes:
    """To EOF, or as many as `limit` bytes."""
    data = bytearray()
    while len(data) < limit:
        piece = sock.recv(min(1 << 20, limit - len(data)))
        if not piece:
            break
        data += piece
    return bytes(data)
