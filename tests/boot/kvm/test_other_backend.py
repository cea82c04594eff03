# SPDX-License-Identifier: MIT
"""Another vhost-user-vsock backend than ours behind our machine: rust-vmm's vhost-device-vsock, one process
for several virtual machines, which it calls siblings.

With --forward-cid, the command line of QEMU's own documentation, it carries whatever an enclave connects to,
whichever CID that is, to the same port of this host's CID 1, where somebody has to answer the heartbeat;
and CID 1's ports of --forward-listen to the enclave. So an enclave reaches another one by a port that is
forwarded to that one. At any other port nobody listens, and the refusal is not told: connect() times out.

With --uds-path it serves CID 2 and siblings, by their CIDs; a packet to any other CID it drops. An enclave's
parent, CID 3, then has to be a sibling too. This needs nothing of the host's.

Its own faults are respected: payloads in several pieces are lost, so small ones are sent; and bytes of the
host's that come before an enclave has accepted are its connection's end (VsockAgent).
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from microvm import argv as microvm_argv
from nitroctl.base import proc
from nitroctl.base.errors import EnclaveTimeout
from nitroctl.eif import testimage
from nitroctl.testing.agent import READY_LINE, Agent, AgentGone
from nitroctl.testing.lab import LIMIT, Console, Lab
from nitroctl.testing.peer import vhost_device_vsock

pytestmark = pytest.mark.boot

HEARTBEAT_PORT, HEARTBEAT = 9000, b"\xb7"
SERVED, SIBLING_PORT = 6001, 6002
ROUNDS = 20
MEMORY = "512M"


@dataclass(frozen=True)
class Machine:
    cid: int
    options: str  # of --vm, after the CID

    def socket(self, lab: Lab) -> Path:
        """For QEMU."""
        return lab.folder / f"vhost{self.cid}.socket"


FOUR = Machine(4, "forward-cid=1,forward-listen=9001+9002")
FIVE = Machine(5, "forward-cid=1,forward-listen=9003+9004")


class VsockAgent(Agent):
    """By this host's own AF_VSOCK. The backend accepts before it asks the enclave, and resets a connection on
    which bytes come before the enclave's answer. Nobody tells when that was, so the first bytes wait longer
    and longer, until there is an answer to them."""

    def __init__(self, cid: int, port: int) -> None:
        pause = 0.1
        while True:
            self._socket = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            self._socket.settimeout(LIMIT / 4)
            self._socket.connect((cid, port))
            time.sleep(pause)
            try:
                self.probe("cwd")
                return
            except (AgentGone, EnclaveTimeout):
                self.close()
                pause *= 2
                if pause > LIMIT:
                    raise


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


def enclave_argv(lab: Lab, eif: Path, vm: Machine) -> list[str]:
    kvm = ["--enable-kvm", "-cpu", "host"] if lab.accel.name == "kvm" else []
    return [
        str(lab.qemu), "-M", "nitro-enclave,vsock=c,id=hello-world", "-kernel", str(eif), "-nographic",
        "-m", MEMORY, *kvm, "-chardev", f"socket,id=c,path={vm.socket(lab)}",
    ]  # fmt: skip


@contextlib.contextmanager
def console(lab: Lab, argv: list[str]) -> Iterator[None]:
    """A guest whose agent listens, on whichever port."""
    with contextlib.closing(Console(lab, "QEMU", argv)) as guest:
        guest.expect(READY_LINE.split(" port ")[0].encode())
        yield


@contextlib.contextmanager
def forwarded(lab: Lab, folder: Path, vm: Machine, port: int) -> Iterator[Agent]:
    """An enclave on this host's AF_VSOCK, its agent on this port."""
    eif = image(lab, folder, port)
    with contextlib.ExitStack() as stack:
        with listen(HEARTBEAT_PORT) as listening:
            thread = Thread(target=answer_heartbeat, args=(listening,))
            thread.start()
            stack.enter_context(console(lab, enclave_argv(lab, eif, vm)))
            thread.join()
        yield stack.enter_context(VsockAgent(1, port))


@contextlib.contextmanager
def serving(lab: Lab, *machines: Machine) -> Iterator[None]:
    argv = list(vhost_device_vsock().argv)
    for vm in machines:
        argv += ["--vm", f"guest-cid={vm.cid},{vm.options},socket={vm.socket(lab)}"]
    sockets = [vm.socket(lab) for vm in machines]
    with open(lab.log(), "wb") as log:
        process = proc.start(argv, stdout=log, stderr=log)
    try:
        until = time.monotonic() + LIMIT
        while not all(path.is_socket() for path in sockets):
            assert process.poll() is None and time.monotonic() < until, "vhost-device-vsock does not serve"
            time.sleep(0.05)
        yield
    finally:
        proc.stop(process)


def check_dial(agent: Agent, cid: int, port: int) -> None:
    facts = agent.facts("dial", cid, port, "pingpong", ROUNDS)
    assert (facts["received"], facts["errno"]) == (str(ROUNDS), "0")


def test_forwarded(lab: Lab, tmp_path: Path) -> None:
    """Heartbeats; a program's connection to an enclave (the agent's); an enclave's to a program, and to the
    other enclave, by a port that is forwarded to that one."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(lab, FOUR, FIVE))
        four = stack.enter_context(forwarded(lab, tmp_path, FOUR, 9001))
        with listen(SERVED) as listening:
            thread = Thread(target=echo, args=(listening,))
            thread.start()
            check_dial(four, 3, SERVED)
            thread.join()
        five = stack.enter_context(forwarded(lab, tmp_path, FIVE, 9003))
        five.probe("echo-listen", 9004)
        check_dial(four, 5, 9004)


def test_siblings(lab: Lab, tmp_path: Path) -> None:
    """Two enclaves that reach each other by their CIDs, and a virtual machine that is their parent, CID 3,
    and answers their heartbeats."""
    parent, four, five = (Machine(cid, f"uds-path={lab.folder}/p{cid}") for cid in (3, 4, 5))
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(lab, parent, four, five))

        def start(vm: Machine, argv: list[str]) -> Agent:
            stack.enter_context(console(lab, argv))
            return stack.enter_context(Agent(lab.folder / f"p{vm.cid}", timeout=LIMIT))

        of_parent = start(parent, microvm_argv(lab, tmp_path, parent.socket(lab), MEMORY))
        of_parent.probe("echo-listen", HEARTBEAT_PORT)
        of_four, of_five = (start(vm, enclave_argv(lab, lab.image("agent"), vm)) for vm in (four, five))
        of_five.probe("echo-listen", SIBLING_PORT)
        check_dial(of_four, 5, SIBLING_PORT)
        check_dial(of_four, 3, HEARTBEAT_PORT)
        check_dial(of_parent, 5, SIBLING_PORT)
        assert of_four.facts("connect", 5, SIBLING_PORT + 1)["errno"] == str(errno.ECONNRESET)
