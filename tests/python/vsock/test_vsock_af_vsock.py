# SPDX-License-Identifier: MIT
"""The host's AF_VSOCK as a way in and out: the backend's program, linked with a host whose AF_VSOCK is made
of unix sockets, which shows all but what the kernel itself does; and the real thing, as far as this host has
it. Behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, read_line, running
from vhost_front import Front
from vhost_guest import OFF_SEND, REQUEST, Guest, Refused, dial, guest
from vsock_talk import PORT, Folder, booted, heartbeat, pattern, read_all, read_exactly, run

pytestmark = pytest.mark.usefixtures("no_child_is_left")


@pytest.fixture
def vsock(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """The program, and the folder where the socket CID:PORT is the unix socket CID_PORT."""
    program = os.environ.get("VSOCK_ON_UNIX")
    if not program:
        pytest.fail("VSOCK_ON_UNIX must name the build's tests/unit/vsock-on-unix")
    with Folder() as folder:
        monkeypatch.setenv("VSOCK_FOLDER", os.fspath(folder))
        yield Path(program), folder


def host_listens(folder: Path, cid: int, port: int) -> socket.socket:
    s = socket.socket(socket.AF_UNIX)
    s.bind(os.fspath(folder / f"{cid}_{port}"))
    s.listen()
    s.settimeout(PATIENCE)
    return s


def host_connects(folder: Path, cid: int, port: int, own: int | None = None) -> socket.socket:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(PATIENCE)
    if own is not None:
        s.bind(os.fspath(folder / f"client_{own}"))
    s.connect(os.fspath(folder / f"{cid}_{port}"))
    return s


def test_guest_to_the_hosts_vsock(vsock: tuple[Path, Path]) -> None:
    program, folder = vsock
    with running(program, "--forward-cid=1") as b, guest(b) as g, host_listens(folder, 1, PORT) as service:
        data = pattern(300_000)
        s = g.connect(PORT)
        peer, _ = service.accept()
        with peer:
            s.send(data[:100_000])
            assert read_exactly(peer, 100_000) == data[:100_000]
            peer.sendall(data[:100_000])
            assert s.recv_exactly(100_000) == data[:100_000]
            s.shutdown(OFF_SEND)
            assert read_all(peer, g) == b""
            peer.sendall(b"more")
            peer.close()
            assert s.recv_all() == b"more"
        # CID 2 is the parent too; and who listens on a unix socket comes first.
        g.connect(PORT, 2)
        service.accept()[0].close()
        with b.listen(PORT) as own:
            g.connect(PORT)
            own.accept()[0].close()
            assert not select.select([service], [], [], 0)[0]
        with pytest.raises(Refused):
            g.connect(PORT + 1)
        assert b.statistics()["no-listener"] == 1


def test_heartbeat_by_the_hosts_vsock(vsock: tuple[Path, Path]) -> None:
    program, folder = vsock
    with running(program, "--forward-cid=1") as b, guest(b) as g:
        # Nobody there, which shows only later: the backend's own answer.
        assert heartbeat(g) == b"\xb7"
        assert read_line(b.booted) == b"booted\n"
        g.reboot()
        with host_listens(folder, 1, 9000) as service:
            s = g.connect(9000)
            peer, _ = service.accept()
            with peer:
                s.send(b"\xb7")
                assert peer.recv(10) == b"\xb7"
                assert booted(b) == 0
                peer.sendall(b"\xb7")
                assert s.recv_exactly(1) == b"\xb7"
            assert read_line(b.booted) == b"booted\n"
    # The same where there is not even such a CID, and a refusal elsewhere.
    with running(program, "--forward-cid=77") as b, guest(b) as g:
        assert heartbeat(g) == b"\xb7"
        with pytest.raises(Refused):
            g.connect(PORT)


def test_the_hosts_vsock_to_the_guest(vsock: tuple[Path, Path]) -> None:
    program, folder = vsock
    with running(program, "--forward-cid=1", "--forward-listen=7001+7002") as b, guest(b) as g:
        for port in (7001, 7002):
            g.listen(port)
            with host_connects(folder, 1, port) as client:
                client.sendall(b"CONNECT 1\n")
                s = g.accept(port)
                assert s.recv_exactly(10) == b"CONNECT 1\n", "no line is parsed here"
                s.send(b"raw")
                assert client.recv(10) == b"raw"
        # The unix socket is still there.
        dial(b, g, 7001)[0].close()
        # Nobody listens in the guest any more.
        g.listening.clear()
        with host_connects(folder, 1, 7001) as client:
            g.wait(lambda: REQUEST in g.counts, "REQUEST")
            g.flush()
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(10) == b""


def test_other_machines_are_not_the_parent(vsock: tuple[Path, Path]) -> None:
    """With the parent at another CID we listen where everybody can reach us."""
    program, folder = vsock
    with running(program, "--forward-cid=7", "--forward-listen=7001", "-v") as b, guest(b) as g:
        g.listen(7001)
        with host_connects(folder, 0xFFFFFFFF, 7001, own=8) as stranger:
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(10) == b""
        assert "another CID" in b.stderr()
        with host_connects(folder, 0xFFFFFFFF, 7001, own=7) as parent:
            s = g.accept(7001)
            s.send(b"yours")
            assert parent.recv(10) == b"yours"


def test_the_hosts_vsock_instead_of_unix_sockets(vsock: tuple[Path, Path]) -> None:
    """As vhost-device-vsock spells it."""
    program, folder = vsock
    process = subprocess.Popen(
        [program, "--vm", f"guest-cid=4,socket={folder}/s,forward-cid=1,forward-listen=9001+9002"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with contextlib.closing(Front(folder / "s")) as front, host_listens(folder, 1, PORT) as service:
        g = Guest(front)
        front.start()
        assert heartbeat(g) == b"\xb7"
        s = g.connect(PORT)
        peer, _ = service.accept()
        with peer:
            s.send(b"out")
            assert peer.recv(10) == b"out"
        g.listen(9002)
        with host_connects(folder, 1, 9002) as client:
            g.accept(9002).send(b"in")
            assert client.recv(10) == b"in"
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not (folder / "s").exists()


def loopback_listener() -> socket.socket:
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        s.settimeout(PATIENCE)
        s.bind((1, socket.VMADDR_PORT_ANY))
        s.listen()
    except OSError:
        s.close()
        raise
    return s


def test_real_vsock_loopback(binary: Path) -> None:
    """Bytes where the kernel has it; elsewhere the word about it, before anything is served."""
    try:
        service = loopback_listener()
    except OSError:
        with Folder() as folder:
            result = run(binary, "--guest-cid=4", f"--socket-path={folder}/s", "--forward-cid=1")
            assert result.returncode == 1 and result.stderr.count("\n") == 1
            assert "vsock" in result.stderr.partition("--forward-cid=1: ")[2].lower()
            assert list(folder.iterdir()) == []
        return
    with loopback_listener() as free:
        port = free.getsockname()[1]
    with service, running(binary, "--forward-cid=1", f"--forward-listen={port}") as b, guest(b) as g:
        s = g.connect(service.getsockname()[1])
        peer, _ = service.accept()
        with peer:
            s.send(b"out")
            assert peer.recv(10) == b"out"
        g.listen(port)
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE)
            client.connect((1, port))
            g.accept(port).send(b"in")
            assert client.recv(10) == b"in"


def test_real_vsock_without_anybody(binary: Path) -> None:
    """The kernel's own AF_VSOCK, towards a CID that nobody has: refused in time, and the backend lives."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        with Folder() as folder:
            result = run(binary, "--guest-cid=4", f"--socket-path={folder}/s", "--forward-cid=4294967294")
            assert result.returncode == 1 and "no AF_VSOCK" in result.stderr
        return
    with running(binary, "--forward-cid=4294967294") as b, guest(b) as g:
        with pytest.raises(Refused):
            g.connect(PORT)
        assert b.statistics()["no-listener"] == 1
        assert b.statistics()["connections"] == 0
        # Whether the kernel says so or nothing at all, the heartbeat is answered.
        assert heartbeat(g) == b"\xb7"
