# SPDX-License-Identifier: MIT
"""An enclave that `nitroctl run` manages, with the real vsock backend and a guest that the test plays.

QEMU is a fake that leaves the backend alone; the test's own front end (`vhost_front`) takes its place. So the
commands that find enclaves find a real one, and what they do to its vsock arrives at `Guest`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from enclave_fakes import Bench, make_bench, steps
from vhost_backend import fail_after, find_binary
from vhost_front import Front
from vhost_guest import Guest


@contextlib.contextmanager
def world(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose backend is the real one."""
    # By a name of its own, so that its processes can be told from others.
    backend = tmp_path / "vhost-user-vsock"
    backend.symlink_to(find_binary())
    with make_bench(tmp_path, backend) as bench:
        yield bench


@contextlib.contextmanager
def enclave(bench: Bench, *, name: str = "hello", cid: int = 16) -> Iterator[Guest]:
    """A running enclave; its guest does what the test makes it do."""
    script = steps(["print", "QEMU is there\n"])
    with bench.start("--name", name, "--cid", str(cid), FAKE_QEMU_NO_VSOCK="1", **script) as running:
        running.until("QEMU is there")
        front = Front(bench.runtime / "nitroctl" / str(cid) / "device")
        try:
            front.start()
            yield Guest(front)
        finally:
            front.close()
        running.process.terminate()
        running.wait()


def served(bench: Bench, port: int, cid: int = 16) -> None:
    """Wait until somebody listens on the parent's port."""
    listens(bench.runtime / "nitroctl" / str(cid) / f"vsock_{port}")


def listens(path: Path) -> None:
    """Wait until somebody listens on a unix socket. Its file does not tell, but the flag 00010000
    (__SO_ACCEPTCON) in /proc/net/unix."""
    patience = fail_after()
    while not any(
        fields[-1] == str(path) and fields[3] == "00010000"
        for fields in map(str.split, Path("/proc/net/unix").read_text().splitlines())
    ):
        patience(f"a listener on {path}")
        time.sleep(0.005)


def echo(guest: Guest, port: int) -> None:
    """Serve one connection to the guest's port: all that comes goes back, then both ends close."""
    stream = guest.accept(port)
    while data := stream.recv():
        stream.send(data)
    stream.close()
