# SPDX-License-Identifier: MIT
"""The test agent's client against a server of bytes: frames, errors, pattern. tests/boot has the agent."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nitroctl.base.errors import EnclaveError
from nitroctl.testing import agent
from nitroctl.testing.agent import Agent, AgentError, AgentGone
from nitroctl.vsock import sockets

Handler = Callable[[socket.socket], None]


def frame(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def read_frame(client: socket.socket) -> bytes:
    (size,) = struct.unpack("<I", client.recv(4, socket.MSG_WAITALL))
    return client.recv(size, socket.MSG_WAITALL)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[Handler], Agent]]:
    """An Agent whose other end is a function, behind the hybrid vsock handshake."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []
    agents: list[Agent] = []

    def start(handler: Handler) -> Agent:
        path = os.fspath(tmp_path / "vsock")
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()

        def work() -> None:
            try:
                with server, server.accept()[0] as client:
                    while client.recv(1) != b"\n":
                        pass
                    client.sendall(b"OK 1073741824\n")
                    handler(client)
            except BaseException as e:
                errors.append(e)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        agents.append(Agent(path, timeout=30))
        return agents[-1]

    yield start
    for each in agents:
        each.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors


Connect = Callable[[Handler], Agent]


def test_who_is_not_there_yet_is_waited_for_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "vsock"
    refusals: list[str] = []

    def refused(e: sockets.PortRefused) -> None:
        refusals.append(str(e))
        if len(refusals) == 2:
            raise EnclaveError("it has ended")

    with pytest.raises(sockets.PortRefused):
        Agent(path)
    with pytest.raises(EnclaveError, match="it has ended"):
        Agent(path, refused=refused)
    assert len(refusals) == 2


def test_requests_are_frames_and_answers_come_back(connect: Connect) -> None:
    seen = []

    def server(client: socket.socket) -> None:
        for answer in (b"Nanswer", b"nshort", b"Pa 1\nb two words\n"):
            seen.append(read_frame(client))
            for byte in frame(answer):  # in the smallest pieces
                client.sendall(bytes([byte]))

    client = connect(server)
    assert client.nsm(b"\xa1") == b"answer"
    assert client.nsm(b"", capacity=300) == b"short"
    assert client.facts("probe", 5, "text") == {"a": "1", "b": "two words"}
    assert seen == [b"N\xa1", b"n\x2c\x01\x00\x00", b"Pprobe\n5\ntext"]


def test_the_guests_errno(connect: Connect) -> None:
    def server(client: socket.socket) -> None:
        read_frame(client)
        client.sendall(frame(b"E" + struct.pack("<I", errno.ENOENT) + b"open /x"))

    with pytest.raises(AgentError, match=r"open /x \(ENOENT\)") as caught:
        connect(server).probe("cat", "/x")
    assert caught.value.errno == errno.ENOENT


def test_the_guest_goes_away(connect: Connect) -> None:
    def server(client: socket.socket) -> None:
        read_frame(client)
        client.sendall(frame(b"Pabc")[:-1])

    with pytest.raises(AgentGone):
        connect(server).probe("x")


@pytest.mark.parametrize("answer", [struct.pack("<I", 0), struct.pack("<I", (1 << 20) + 1), frame(b"Zx")])
def test_answers_out_of_the_protocol(connect: Connect, answer: bytes) -> None:
    def server(client: socket.socket) -> None:
        read_frame(client)
        client.sendall(answer)

    with pytest.raises(EnclaveError, match="the guest's agent"):
        connect(server).probe("x")


def reference(seed: int) -> Iterator[int]:
    """The pattern by its definition: 65521 upper bytes of a linear congruential generator, repeated."""
    block = []
    x = seed
    for _ in range(65521):
        x = (x * 1664525 + 1013904223) % 2**32
        block.append(x >> 24)
    return itertools.cycle(block)


@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 1, 65520, 65521, 65522, 200_000])
def test_pattern(seed: int, size: int) -> None:
    assert agent.pattern(seed, size) == bytes(itertools.islice(reference(seed), size))
