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

import cbor2
import pytest

from nitroctl.base.errors import EnclaveError, EnclaveTimeout
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


def test_a_guest_that_is_silent(connect: Connect) -> None:
    def silent(client: socket.socket) -> None:
        read_frame(client)
        assert client.recv(1) == b""

    client = connect(silent)
    client._socket.settimeout(0.01)
    with pytest.raises(EnclaveTimeout, match=r"^no answer from the guest's agent within 0.01 s$"):
        client.probe("x")
    client.close()


def test_a_guest_that_breaks_off(connect: Connect) -> None:
    """Before its answer, or before it has taken the request: its connection is reset, or full of nothing."""

    def leaves(client: socket.socket) -> None:
        client.recv(1)  # the rest is unread, which resets

    client = connect(leaves)
    with pytest.raises(AgentGone, match="the connection to the guest's agent broke: "):
        client.probe("x" * 1000)
    with pytest.raises(AgentGone, match="the connection to the guest's agent broke: Broken pipe"):
        client.reset()


def test_a_document_is_asked_for(connect: Connect) -> None:
    """In AWS's words (CBOR of the NSM's API); what comes instead is told."""
    answers: list[object] = [
        {"Attestation": {"document": b"doc"}}, {"Error": "InvalidArgument"}, {"Attestation": {"document": 7}},
        "Attestation", {"Attestation": {}}, [1],
    ]  # fmt: skip
    asked = []

    def server(client: socket.socket) -> None:
        for answer in (*map(cbor2.dumps, answers), b"\xff"):
            asked.append(read_frame(client))
            client.sendall(frame(b"N" + answer))

    with connect(server) as client:
        assert client.attestation(nonce=b"n", public_key=b"") == b"doc"
        for said in ("InvalidArgument", "a16b417474", "6b417474", "a16b417474", "8101", "ff"):
            with pytest.raises(EnclaveError, match=f"^the NSM gave no document: {said}"):
                client.attestation()
    fields = {"user_data": None, "nonce": b"n", "public_key": b""}
    assert asked[0][:1] == b"N" and cbor2.loads(asked[0][1:]) == {"Attestation": fields}


def test_all_that_comes(connect: Connect) -> None:
    """To the end, or a limit; and a probe whose answer is fetched later."""
    first, second = socket.socketpair()
    with first, second:
        first.sendall(b"abcdef")
        assert agent.receive_all(second, 4) == b"abcd"
        first.shutdown(socket.SHUT_WR)
        assert agent.receive_all(second) == b"ef"

    def server(client: socket.socket) -> None:
        assert read_frame(client) == b"Plisten\n5000"
        client.sendall(frame(b"Pdone\xff"))
        for operation in (b"X\x07", b"K\x09", b"Q", b"H", b"C"):
            assert read_frame(client) == operation

    client = connect(server)
    client.start("listen", 5000)
    assert client.finish() == "done\udcff"
    client.exit(7)
    client.kill(9)
    client.reset()
    client.halt()
    client.crash()


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
