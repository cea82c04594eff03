# SPDX-License-Identifier: MIT
"""Enclaves joined to the AF_VSOCK of a real kernel, by `nitroctl run --forward-cid 1 --forward-listen`, and
what that kernel answers beside what `nitroctl parent` does.

Needs a host whose kernel has vsock_loopback: `make check-kvm` makes one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import LIMIT, Lab

pytestmark = pytest.mark.boot

TESTS = Path(__file__).resolve().parents[2]
SOURCES = [TESTS / "unit" / name for name in ("vsock-parent.c", "vsock-states.c")]
FACTS = (TESTS / "python/data/vsock-facts.txt").read_text()
STATES = dict(
    re.findall(r"^== (\S+)\n((?:[^=].*\n)+)", (TESTS / "python/data/vsock-states.txt").read_text(), re.M)
)
NOISE = random.Random(7).randbytes(1 << 20)
TEXT = "0123456789" * 100
GUEST_PORT, STATIC_PORT, SERVED = 5005, 5006, 6000

CLIENT = """\
import hashlib, socket, sys, threading
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
    sock.connect((1, int(sys.argv[1])))
    peer = sock.getpeername()
    data = sys.stdin.buffer.read()
    sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    back = b"".join(iter(lambda: sock.recv(65536), b""))
    sender.join()
    print(peer, hashlib.sha256(back).hexdigest())
"""
SERVER = """\
import socket, sys
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listening:
    listening.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
    listening.listen()
    print("listening", flush=True)
    sock, peer = listening.accept()
    with sock:
        print("from CID", peer[0], flush=True)
        while data := sock.recv(65536):
            sock.sendall(data)
"""


def compile_parent(folder: Path, *flags: str) -> Path:
    path = folder / ("vsock-parent" + "".join(flags))
    subprocess.run(["cc", "-D_GNU_SOURCE", "-pthread", *flags, "-o", path, *SOURCES], check=True)
    return path


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return compile_parent(tmp_path)


@pytest.fixture
def served(lab: Lab) -> Iterator[Agent]:
    """The agent of an enclave whose ports are those of this host's CID 1, and the other way round."""
    ports = f"{GUEST_PORT}+{STATIC_PORT}"
    options = ("--forward-cid", "1", "--forward-listen", ports, "--boot-timeout", "300")
    with lab.run(lab.image("agent"), *options) as run:
        with run.agent(run.uds()) as agent:
            yield agent
    lab.wait_gone()


def said(argv: list[str | Path], data: bytes = b"") -> str:
    done = subprocess.run(argv, input=data, capture_output=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def check_document(lab: Lab, agent: Agent, path: Path) -> None:
    path.write_bytes(agent.attestation(nonce=b"\0\xff"))
    argv = [sys.executable, "-m", "nitroctl", "attest", "verify", os.fspath(path), "--nonce", "00ff"]
    argv += ["--eif", os.fspath(lab.image("agent"))]
    subprocess.run(argv, env=lab.environment(), check=True, timeout=LIMIT)


def test_programs_that_speak_it(lab: Lab, served: Agent, parent: Path, tmp_path: Path) -> None:
    """C, static and Python, to the enclave and from it; nobody there is a reset, either way. And a document
    of an enclave under KVM verifies."""
    check_document(lab, served, tmp_path / "document")
    static = compile_parent(tmp_path, "-static")
    for port in (GUEST_PORT, STATIC_PORT):
        served.probe("echo-listen", port)
    for program, port in ((parent, GUEST_PORT), (static, STATIC_PORT)):
        lines = said([program, "connect", "1", str(port), TEXT]).splitlines()
        assert lines[0] == f"peer 1:{port}, family 40, length 16"
        assert lines[-1] == TEXT
    text = said([sys.executable, "-c", CLIENT, str(GUEST_PORT)], NOISE)
    assert text == f"(1, {GUEST_PORT}) {hashlib.sha256(NOISE).hexdigest()}\n"
    served.probe("unlisten", STATIC_PORT)
    # The backend has accepted before it asks the enclave, so the connection ends instead.
    argv: list[str | Path] = [parent, "connect", "1", str(STATIC_PORT), TEXT]
    refused = subprocess.run(argv, stdout=subprocess.PIPE, timeout=LIMIT)
    word = refused.stdout.decode().splitlines()[-1].partition(": ")[2]
    assert refused.returncode == 1 and word in (os.strerror(errno.EPIPE), os.strerror(errno.ECONNRESET))

    size = len(NOISE)
    servers: list[list[str | Path]] = [
        [parent, "fork"], [static, "exec"], [sys.executable, "-c", SERVER],
    ]  # fmt: skip
    for port, server_argv in enumerate(servers, SERVED):
        with subprocess.Popen([*server_argv, str(port)], stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout and server.stdout.readline() == b"listening\n"
                facts = served.facts("dial", 3, port, "both", size, 9)
            finally:
                server.kill()
            assert facts["sent"] == facts["received"] == str(size)
            assert (facts["mismatch"], facts["errno"]) == ("-1", "0")
            # From the loopback's own CID, the backend's on this host.
            assert re.search(rb"peer 1:\d+|from CID 1\n", server.stdout.read())
    assert served.facts("connect", 3, SERVED + 99)["errno"] == str(errno.ECONNRESET)


def under_parent(lab: Lab, parent: Path) -> str:
    argv = [sys.executable, "-m", "nitroctl", "parent", "--", os.fspath(parent), "facts"]
    done = subprocess.run(argv, env=lab.environment(), capture_output=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_its_answers_are_those_of_nitroctl_parent(lab: Lab, parent: Path) -> None:
    """Line by line, as this kernel gives them and as the library does."""
    kernel = said([parent, "facts"])
    ours = under_parent(lab, parent)
    # What Linux 6.1 says of an ioctl() that a socket does not know; the library answers as 6.18 does.
    old, new = (f"ioctl of a socket: {os.strerror(e)}\n" for e in (errno.EOPNOTSUPP, errno.ENOTTY))
    kernel = kernel.replace(old, new)
    assert ours.splitlines() == kernel.splitlines()
    assert kernel == FACTS


def test_its_states_are_those_that_were_recorded(parent: Path) -> None:
    """By which the library is judged: before a connect, and connected to one who reads nothing. (After a
    refusal kernels differ among themselves.)"""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listening:
        listening.bind((1, socket.VMADDR_PORT_ANY))
        listening.listen()
        for state in ("new", "bound", "listening", "connected-full"):
            argv: list[str | Path] = [parent, "state", state.rpartition("-")[2], "1"]
            text = said([*argv, str(listening.getsockname()[1])])
            wrong = [
                (line, right)
                for line, right in zip(text.splitlines(), STATES[state].splitlines(), strict=True)
                # How much is still unsent Linux tells only since it has SIOCOUTQ for vsock.
                if line != right and (state, right.partition(":")[0]) != ("connected-full", "unsent")
            ]
            assert not wrong, state


def test_there_is_loopback() -> None:
    """What the others stand on, so that a host without it says so."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.bind((1, socket.VMADDR_PORT_ANY))
        sock.listen()
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as other:
            other.connect((1, sock.getsockname()[1]))
