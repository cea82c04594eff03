# SPDX-License-Identifier: MIT
"""Another vhost-user-vsock backend than ours behind our machine: rust-vmm's vhost-device-vsock, by the
command line of QEMU's own documentation. It carries the enclave's connections to this host's CID 1, where
somebody has to answer the heartbeat, and those to CID 1's ports 9001 and 9002 to the enclave.

Its own faults are respected: payloads in several pieces are lost, so small ones are sent; and with
--forward-cid an enclave did not reach another one of the same process, so none tries.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from nitroctl.base import proc
from nitroctl.eif import testimage
from nitroctl.testing.agent import READY_LINE, Agent
from nitroctl.testing.lab import LIMIT, Console, Lab
from nitroctl.testing.peer import vhost_device_vsock

pytestmark = pytest.mark.boot

HEARTBEAT_PORT, HEARTBEAT = 9000, b"\xb7"
AGENT_PORT, SERVED = 9001, 6001
ROUNDS = 20


class VsockAgent(Agent):
    """By this host's own AF_VSOCK."""

    def __init__(self, cid: int, port: int) -> None:
        self._socket = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        self._socket.connect((cid, port))


def listen(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.bind((socket.VMADDR_CID_ANY, port))
    sock.listen()
    sock.settimeout(LIMIT)
    return sock


def answer_heartbeat(listening: socket.socket) -> None:
    with listening.accept()[0] as sock:
        assert sock.recv(1) == HEARTBEAT
        sock.sendall(HEARTBEAT)


def echo(listening: socket.socket) -> None:
    with listening.accept()[0] as sock:
        while data := sock.recv(1):
            sock.sendall(data)


def image(lab: Lab, folder: Path, port: int) -> Path:
    """The agent, on a port that the documentation's line forwards."""
    root, eif = folder / f"root-{port}", folder / f"{port}.eif"
    root.mkdir()
    shutil.copyfile(testimage.locate_programs().agent, root / "agent")
    (root / "agent").chmod(0o755)
    subprocess.run(
        [sys.executable, "-m", "nitroctl", "eif", "build", "--directory", root, "--cmd", "/agent",
         "--cmd", str(port), "--cmdline", testimage.CMDLINE, "-o", eif],
        env=lab.environment(), stdout=subprocess.DEVNULL, check=True, timeout=LIMIT,
    )  # fmt: skip
    return eif


@contextlib.contextmanager
def enclave(lab: Lab, eif: Path, socket_path: Path, port: int) -> Iterator[Agent]:
    kvm = ["--enable-kvm", "-cpu", "host"] if lab.accel.name == "kvm" else []
    argv = [
        str(lab.qemu), "-M", "nitro-enclave,vsock=c,id=hello-world", "-kernel", str(eif), "-nographic",
        "-m", "512M", *kvm, "-chardev", f"socket,id=c,path={socket_path}",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        with listen(HEARTBEAT_PORT) as listening:
            thread = Thread(target=answer_heartbeat, args=(listening,))
            thread.start()
            console = Console(lab, "QEMU", argv)
            stack.callback(console.close)
            console.expect(READY_LINE.split(" port ")[0].encode())
            thread.join()
        yield stack.enter_context(VsockAgent(1, port))


@pytest.fixture
def backend(lab: Lab) -> Iterator[Path]:
    """Its socket for QEMU."""
    path = lab.folder / "vhost4.socket"
    vm = f"guest-cid=4,forward-cid=1,forward-listen=9001+9002,socket={path}"
    with open(lab.log(), "wb") as log:
        process = proc.start([*vhost_device_vsock().argv, "--vm", vm], stdout=log, stderr=log)
    try:
        until = time.monotonic() + LIMIT
        while not path.is_socket():
            assert process.poll() is None and time.monotonic() < until, "vhost-device-vsock does not serve"
            time.sleep(0.05)
        yield path
    finally:
        proc.stop(process)


def test_vhost_device_vsock(lab: Lab, backend: Path, tmp_path: Path) -> None:
    """Heartbeat, a program's connection to the enclave (the agent's), and the enclave's to a program."""
    with enclave(lab, image(lab, tmp_path, AGENT_PORT), backend, AGENT_PORT) as agent:
        with listen(SERVED) as listening:
            thread = Thread(target=echo, args=(listening,))
            thread.start()
            facts = agent.facts("dial", 3, SERVED, "pingpong", ROUNDS)
            thread.join()
        assert (facts["received"], facts["errno"]) == (str(ROUNDS), "0")
