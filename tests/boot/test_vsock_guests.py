# SPDX-License-Identifier: MIT
"""The vsock backend with real guests: the enclave, and a plain `-M microvm` as other VMMs' users have it.

Every byte is compared with a pattern, by hash on the host and by the agent in the guest. What needs no guest
is in tests/python/vsock; this is about Linux's own driver and QEMU's device.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from microvm import IMAGE as MICROVM_IMAGE
from microvm import argv as microvm_argv
from nitroctl.testing import agent
from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import LIMIT, Guest, GuestOptions, Lab
from nitroctl.vsock import sockets

pytestmark = pytest.mark.boot

MIB = 1 << 20
SIZE = int(os.environ.get("VSOCK_MIB", "64")) * MIB  # tools/soak: a GiB
CONNECTIONS = 50
ECHO, SINK = 8000, 8001
PARENT_PORT = 5000


class Microvm(Guest):
    def qemu_argv(self) -> list[str]:
        return microvm_argv(self.lab, self.folder, self.folder / "s", self.options.memory)


@contextlib.contextmanager
def enclave(lab: Lab) -> Iterator[tuple[Guest, Agent]]:
    with lab.agent(memory="512M") as both:
        yield both


@contextlib.contextmanager
def microvm(lab: Lab) -> Iterator[tuple[Guest, Agent]]:
    options = GuestOptions(memory="512M")
    with Microvm(lab, lab.image(MICROVM_IMAGE), options) as guest, guest.agent() as client:
        yield guest, client


MACHINES = [enclave, microvm]
Start = Callable[[Lab], contextlib.AbstractContextManager[tuple[Guest, Agent]]]


@pytest.fixture(params=MACHINES, ids=lambda start: start.__name__)
def machine(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Guest, Agent]]:
    start: Start = request.param
    with start(lab) as both:
        yield both


def numbers(report: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split(" ", 1) for line in report.splitlines())}


def pattern_pieces(seed: int, size: int) -> Iterator[bytes]:
    """The agent's pattern, a period at a time."""
    period = agent.pattern(seed, agent.PATTERN_PERIOD)
    while size:
        piece = period[: min(size, len(period))]
        size -= len(piece)
        yield piece


def digest(pieces: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def received(stream: socket.socket) -> Iterator[bytes]:
    while piece := stream.recv(MIB):
        yield piece


# ---- bytes -----------------------------------------------------------------------------------------------


def test_many_bytes_each_way(machine: tuple[Guest, Agent]) -> None:
    guest, client = machine
    with sockets.listen(guest.uds, PARENT_PORT) as listener:
        listener.socket.settimeout(LIMIT)
        client.start("dial", sockets.PARENT_CID, PARENT_PORT, "source", SIZE, 1)
        with listener.accept() as stream:
            stream.settimeout(LIMIT)
            assert digest(received(stream)) == digest(pattern_pieces(1, SIZE))
        report = numbers(client.finish())
        assert (report["sent"], report["errno"]) == (SIZE, 0)

    client.probe("listen", SINK, "sink", 2)
    with sockets.connect(guest.uds, SINK, timeout=LIMIT) as stream:
        stream.settimeout(LIMIT)
        for piece in pattern_pieces(2, SIZE):
            stream.sendall(piece)
        stream.shutdown(socket.SHUT_WR)
        report = numbers(b"".join(received(stream)).decode())
    assert (report["received"], report["mismatch"], report["errno"]) == (SIZE, -1, 0)


def test_both_ways_at_once(machine: tuple[Guest, Agent]) -> None:
    guest, client = machine
    with sockets.listen(guest.uds, PARENT_PORT) as listener:
        listener.socket.settimeout(LIMIT)
        client.start("dial", sockets.PARENT_CID, PARENT_PORT, "both", SIZE, 3)
        with listener.accept() as stream:
            stream.settimeout(LIMIT)

            def send() -> None:
                with contextlib.suppress(OSError):  # the guest's report says what is missing
                    for piece in pattern_pieces(3, SIZE):
                        stream.sendall(piece)
                    stream.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            got = digest(received(stream))
            sender.join()
        report = numbers(client.finish())
    assert got == digest(pattern_pieces(3, SIZE))
    assert (report["sent"], report["received"], report["mismatch"], report["errno"]) == (SIZE, SIZE, -1, 0)


# ---- rude clients ----------------------------------------------------------------------------------------


def descriptors(guest: Guest) -> int:
    return len(os.listdir(f"/proc/{guest.backend.process.pid}/fd"))


def settled(guest: Guest, wanted: int) -> None:
    """Wait until the backend has so many descriptors: none is kept for what has ended."""
    end = time.monotonic() + LIMIT
    while (now := descriptors(guest)) != wanted:
        assert time.monotonic() < end, f"{now} descriptors, {wanted} expected"
        time.sleep(0.01)


def rude(sock: socket.socket, how: int, data: bytes) -> None:
    """One of the ways in which a client ends a connection whose other end echoes."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(data)
        if how == 1:
            sock.recv(len(data) // 2 + 1)
        elif how == 2:
            sock.shutdown(socket.SHUT_WR)
        elif how == 3:
            sock.shutdown(socket.SHUT_WR)
            assert agent.receive_all(sock) == data
        elif how == 4:
            sock.shutdown(socket.SHUT_RD)


def test_connections_closed_at_random(machine: tuple[Guest, Agent]) -> None:
    guest, client = machine
    choose = random.Random(4)
    client.probe("echo-listen", ECHO)
    before = descriptors(guest)
    with contextlib.ExitStack() as stack:
        open_ones = []
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(sockets.connect(guest.uds, ECHO, timeout=LIMIT))
            sock.settimeout(LIMIT)
            open_ones.append(sock)
        choose.shuffle(open_ones)
        for sock in open_ones:
            rude(sock, choose.randrange(5), agent.pattern(5, choose.randrange(1, 100_000)))
            sock.close()
    # The same from the guest, whose ends the parent closes: with bytes unread, at once, or in good order.
    with sockets.listen(guest.uds, PARENT_PORT) as listener:
        listener.socket.settimeout(LIMIT)
        for _ in range(CONNECTIONS):
            client.start("dial", sockets.PARENT_CID, PARENT_PORT, "source", choose.randrange(1, 300_000), 6)
            with listener.accept() as sock:
                sock.settimeout(LIMIT)
                if choose.randrange(2):
                    sock.recv(choose.randrange(1, 100_000))
                if choose.randrange(2):
                    agent.receive_all(sock)
            client.finish()
    settled(guest, before)
    with sockets.connect(guest.uds, ECHO, timeout=LIMIT) as sock:
        sock.settimeout(LIMIT)
        rude(sock, 3, agent.pattern(7, 100_000))


CLIENT = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"CONNECT %s\\n" % sys.argv[2].encode())
s.recv(100)
print("connected", flush=True)
while True:
    s.send(bytes(65536))
"""


def test_a_client_killed_while_it_sends(machine: tuple[Guest, Agent]) -> None:
    guest, client = machine
    client.probe("listen", SINK, "count")
    client.probe("echo-listen", ECHO)
    before = descriptors(guest)
    for _ in range(5):
        argv = [sys.executable, "-c", CLIENT, os.fspath(guest.uds), str(SINK)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline() == b"connected\n"
            process.kill()
    settled(guest, before)
    with sockets.connect(guest.uds, ECHO, timeout=LIMIT) as sock:
        sock.settimeout(LIMIT)
        rude(sock, 3, b"still there")


# ---- ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["qemu", "backend"])
def test_the_hosts_programs_see_the_end(machine: tuple[Guest, Agent], victim: str) -> None:
    """kill -9: whoever was connected, either way, is told at once."""
    guest, client = machine
    client.probe("listen", SINK, "hold")
    with sockets.listen(guest.uds, PARENT_PORT) as listener:
        listener.socket.settimeout(LIMIT)
        client.start("dial", sockets.PARENT_CID, PARENT_PORT, "hold")
        with listener.accept() as accepted, sockets.connect(guest.uds, SINK, timeout=LIMIT) as connected:
            pid = guest.console.child.pid if victim == "qemu" else guest.backend.process.pid
            os.kill(pid, signal.SIGKILL)
            for sock in (accepted, connected):
                sock.settimeout(LIMIT)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""


def test_a_reboot_ends_what_was_connected(lab: Lab) -> None:
    """The guest resets, the VMM stays: connections end, and the new driver starts afresh."""
    options = GuestOptions(memory="512M")
    image = lab.image("no-heartbeat")
    with Rebooting(lab, image, options) as guest:
        with guest.agent() as client:
            before = descriptors(guest)  # with that of the client
            client.probe("listen", SINK, "hold")
            with sockets.connect(guest.uds, SINK, timeout=LIMIT) as connected:
                connected.settimeout(LIMIT)
                client.reset()
                with contextlib.suppress(ConnectionResetError):
                    assert connected.recv(1) == b""
        with guest.agent() as client:
            settled(guest, before)
            assert client.facts("id")["pid"] == "1"


class Rebooting(Microvm):
    def qemu_argv(self) -> list[str]:
        return [argument for argument in super().qemu_argv() if argument != "-no-reboot"]
