# SPDX-License-Identifier: MIT
"""Parent programs that somebody wrote for AF_VSOCK, in C and in Python, with a real enclave: unchanged, run
by `nitroctl parent`, they connect to it and are connected to by it. That this is right is seen from bytes and
peers that both sides tell.

The C program is tests/unit/vsock-parent.c.
"""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nitroctl
from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import LIMIT, Lab
from nitroctl.vsock import sockets

pytestmark = pytest.mark.boot

SOURCES = [
    Path(__file__).resolve().parents[1] / "unit" / name for name in ("vsock-parent.c", "vsock-states.c")
]
NOISE = random.Random(5).randbytes(1 << 20)

# As in AWS's examples for parent instances.
CLIENT = """\
import hashlib, socket, sys, threading
cid, port = map(int, sys.argv[1:])
sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
sock.settimeout(60)
sock.connect((cid, port))
peer = sock.getpeername()  # after shutdown() the kernel does not tell it
data = sys.stdin.buffer.read()
sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
sender.start()
back = b"".join(iter(lambda: sock.recv(65536), b""))
sender.join()
print(peer, hashlib.sha256(back).hexdigest())
"""
SERVER = """\
import asyncio, socket, sys
async def handle(reader, writer):
    print(writer.get_extra_info("peername")[0], flush=True)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listening.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
    listening.listen()
    async with await asyncio.start_server(handle, sock=listening) as server:
        print("listening", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def world(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    yield lab
    sockets.sweep_shared()  # of servers that were killed
    lab.check_nothing_left()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "vsock-parent"
    subprocess.run(["cc", "-D_GNU_SOURCE", "-pthread", "-o", path, *SOURCES], check=True)
    return path


def parent(*argv: object) -> list[str]:
    return [sys.executable, "-m", "nitroctl", "parent", "--", *map(str, argv)]


def answer(*argv: object, stdin: bytes = b"") -> str:
    done = subprocess.run(parent(*argv), input=stdin, stdout=subprocess.PIPE, timeout=LIMIT, check=True)
    return done.stdout.decode()


def check_both(agent: Agent, port: int) -> None:
    """The enclave connects to the parent's port, whose server sends back what comes."""
    report = agent.facts("dial", 3, port, "both", 1_000_000, 7)
    assert {key: report[key] for key in ("sent", "received", "mismatch", "errno")} == {
        "sent": "1000000", "received": "1000000", "mismatch": "-1", "errno": "0",
    }  # fmt: skip


def test_programs_in_c_and_python(world: Lab, program: Path) -> None:
    enclave = nitroctl.Enclave(world.image("agent"), qemu=world.qemu, vsock_backend=world.backend)
    servers = []
    try:
        # They are there before their enclave, as services of a parent instance are.
        for argv in ((program, "fork", 5000), (sys.executable, "-c", SERVER, 5001)):
            server = subprocess.Popen(parent(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            servers.append(server)
            assert server.stdout and server.stdout.readline() == b"listening\n"
        with enclave:
            enclave.console.wait_for("agent: listening on vsock port ([0-9]+)")
            cid = enclave.cid
            with Agent(enclave.uds) as agent:
                assert agent.facts("echo-listen", 8000) == {"port": "8000"}
                names = f"peer {cid}:8000, family 40, length 16\nown CID -1\n"
                for way in ("connect", "poll", "epoll"):
                    assert answer(program, way, cid, 8000, "hello") == f"{names}hello\n"
                assert answer(program, "threads", cid, 8000, 30) == "30 right\n"
                told = answer(sys.executable, "-c", CLIENT, cid, 8000, stdin=NOISE)
                assert told == f"({cid}, 8000) {hashlib.sha256(NOISE).hexdigest()}\n"
                nobody = subprocess.run(parent(program, "poll", cid, 8001, ""), stdout=subprocess.PIPE,
                                        timeout=LIMIT, check=False)  # fmt: skip
                assert nobody.stdout == b"connect: Connection reset by peer\n"
                for port in (5000, 5001):
                    check_both(agent, port)
                refused = agent.facts("connect", 3, 5002)
                assert refused["errno"] == "104"
        c, python = servers
        assert c.stdout and python.stdout
        assert c.stdout.readline().startswith(b"peer %d:" % cid) and c.stdout.readline() == b"own CID 3\n"
        assert python.stdout.readline() == b"%d\n" % cid
    finally:
        for server in servers:
            server.kill()
            server.communicate()
    gone = subprocess.run(parent(program, "connect", cid, 8000, ""), stdout=subprocess.PIPE, timeout=LIMIT,
                          check=False)  # fmt: skip
    assert gone.returncode == 1 and gone.stdout.startswith(b"connect: ")


OWN_ENCLAVE = """\
import socket, struct, sys
import nitroctl
image, qemu, backend = sys.argv[1:]
with nitroctl.Enclave(image, qemu=qemu, vsock_backend=backend) as enclave:
    enclave.console.wait_for("agent: listening")
    with socket.socket(socket.AF_VSOCK) as sock:
        sock.settimeout(60)
        sock.connect((enclave.cid, 7000))
        question = b"Pcat\\n/proc/sys/kernel/ostype"
        sock.sendall(struct.pack("<I", len(question)) + question)
        print(sock.makefile("rb").read(4 + 7))
"""


def test_a_program_that_starts_its_enclave(world: Lab) -> None:
    """As a test does that is run by `nitroctl parent -- pytest`; QEMU and backend are started without the
    library."""
    told = answer(sys.executable, "-c", OWN_ENCLAVE, world.image("agent"), world.qemu, world.backend)
    assert told == repr(struct.pack("<I", 7) + b"PLinux\n") + "\n"
