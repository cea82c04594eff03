# SPDX-License-Identifier: MIT
"""Other ways in and out than the enclave's own unix sockets: TCP services, paths, ports for every enclave,
published ports, listeners that are handed in. Not the host's AF_VSOCK: test_vsock_af_vsock.py. Behind a fake
front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, fail_after, read_line, running
from vhost_front import Front
from vhost_guest import OFF_SEND, Guest, Refused, guest, read_ok
from vsock_talk import GOOD, PORT, Folder, heartbeat, pattern, read_all, run

pytestmark = pytest.mark.usefixtures("no_child_is_left")


def tcp_listener(address: str = "127.0.0.1") -> socket.socket:
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(PATIENCE)
    s.bind((address, 0))
    s.listen()
    return s


def test_proxy_to_tcp(binary: Path) -> None:
    with tcp_listener() as service, tcp_listener() as gone:
        there, dead = service.getsockname()[1], gone.getsockname()[1]
        gone.close()
        options = [f"--proxy=8000=127.0.0.1:{there}", f"--proxy=8001=127.0.0.1:{dead}"]
        with running(binary, *options) as b, guest(b) as g:
            data = pattern(300_000)
            s = g.connect(8000)
            peer, _ = service.accept()
            with peer:
                sent, got = 0, bytearray()
                patience = fail_after()
                while len(got) < len(data):
                    sent += s.send_some(data[sent : sent + 65536])
                    g.pump()
                    if select.select([peer], [], [], 0.02)[0]:
                        got += peer.recv(1 << 20)
                    patience("all bytes")
                assert bytes(got) == data
                peer.sendall(b"answer")
                assert s.recv_exactly(6) == b"answer"
                s.shutdown(OFF_SEND)
                assert read_all(peer, g) == b""
                peer.sendall(b"more")
                peer.close()
                assert s.recv_all() == b"more"
                s.close()
            # Nobody there, and nothing that is not listed.
            for port in (8001, there, dead):
                with pytest.raises(Refused):
                    g.connect(port)
            assert b.statistics()["connections"] == 0


def test_proxy_to_ipv6(binary: Path) -> None:
    try:
        service = tcp_listener("::1")
    except OSError:
        # A host without it: a refusal, and no more.
        with running(binary, "--proxy=8000=[::1]:1") as b, guest(b) as g, pytest.raises(Refused):
            g.connect(8000)
        return
    with service, running(binary, f"--proxy=8000=[::1]:{service.getsockname()[1]}") as b, guest(b) as g:
        s = g.connect(8000)
        peer, _ = service.accept()
        with peer:
            s.send(b"six")
            assert peer.recv(10) == b"six"


def test_listen_port_is_a_path(binary: Path) -> None:
    with Folder() as folder:
        with socket.socket(socket.AF_UNIX) as service:
            service.bind(os.fspath(folder / "svc"))
            service.listen()
            service.settimeout(PATIENCE)
            options = [f"--listen-port=5000={folder}/svc", f"--listen-port=9000={folder}/none"]
            with running(binary, *options) as b, guest(b) as g, b.listen(PORT) as usual:
                s = g.connect(PORT)
                peer, _ = service.accept()
                with peer:
                    s.send(b"here")
                    assert peer.recv(10) == b"here"
                assert not select.select([usual], [], [], 0)[0]
                # A heartbeat that was given a place is not answered by the backend.
                with pytest.raises(Refused):
                    g.connect(9000)


def test_a_fallback_for_ports_that_nobody_serves(binary: Path) -> None:
    with Folder() as folder:
        options = [f"--fallback-path={folder}/port"]
        with running(binary, *options) as b, guest(b) as g, socket.socket(socket.AF_UNIX) as service:
            service.bind(os.fspath(folder / f"port_{PORT}"))
            with pytest.raises(Refused):
                g.connect(PORT)
            service.listen()
            service.settimeout(PATIENCE)
            s = g.connect(PORT, source=4000)
            peer, name = service.accept()
            with peer:
                # Who connects can be told from the name: CID and port, of the guest and of the parent.
                assert name.startswith(b"\0nitro-vsock/4:4000/3:%d/" % PORT)
                s.send(b"here")
                assert peer.recv(10) == b"here"
            with b.listen(PORT) as own:
                g.connect(PORT)
                peer, name = own.accept()
                peer.close()
                assert name.startswith(b"\0nitro-vsock/4:1025/3:%d/" % PORT)
                assert not select.select([service], [], [], 0)[0], "the enclave's own comes first"
            with pytest.raises(Refused):
                g.connect(PORT + 1)


def test_the_heartbeat_falls_back_too(binary: Path) -> None:
    with Folder() as folder:
        options = [f"--fallback-path={folder}/port"]
        with running(binary, *options) as b, guest(b) as g, socket.socket(socket.AF_UNIX) as service:
            service.bind(os.fspath(folder / "port_9000"))
            service.listen()
            service.settimeout(PATIENCE)
            g.connect(9000)
            service.accept()[0].close()
            service.close()
            s = g.connect(9000)
            s.send(b"\xb7")
            assert s.recv(1) == b"\xb7"
            assert read_line(b.booted) == b"booted\n"


def test_published_ports(binary: Path) -> None:
    with tcp_listener() as free:
        number = free.getsockname()[1]
    with Folder() as folder:
        options = [
            f"--publish=127.0.0.1:{number}=7000", f"--publish={folder}/a=7001",
            f"--connect-port=7002={folder}/b",
        ]  # fmt: skip
        with running(binary, *options) as b:
            assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
            with guest(b) as g:
                for port in (7000, 7001, 7002):
                    g.listen(port)
                    if port == 7000:
                        client = socket.create_connection(("127.0.0.1", number))
                    else:
                        client = socket.socket(socket.AF_UNIX)
                        client.connect(os.fspath(folder / ("a" if port == 7001 else "b")))
                    client.settimeout(PATIENCE)
                    with client:
                        client.sendall(b"CONNECT 7000\n")
                        s = g.accept(port)
                        assert s.recv_exactly(13) == b"CONNECT 7000\n", "no line is parsed here"
                        s.send(b"raw")
                        assert client.recv(10) == b"raw"
        assert list(folder.iterdir()) == []


def test_handed_in_listeners(binary: Path) -> None:
    with Folder() as folder, contextlib.ExitStack() as stack:
        listeners = []
        for name in ("s", "u"):
            s = stack.enter_context(socket.socket(socket.AF_UNIX))
            s.bind(os.fspath(folder / name))
            s.listen()
            listeners.append(s)
        # The front end connects before there is a backend: nobody has to wait for it.
        early = stack.enter_context(socket.socket(socket.AF_UNIX))
        early.connect(os.fspath(folder / "s"))
        early.close()
        fds = [s.fileno() for s in listeners]
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-fd={fds[0]}", f"--uds-fd={fds[1]}",
             f"--uds-path={folder}/u"],
            pass_fds=fds, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.closing(Front(folder / "s")) as front:
            g = Guest(front)
            front.start()
            heartbeat(g)
            g.listen(7000)
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(os.fspath(folder / "u"))
            client.sendall(b"CONNECT 7000\n")
            stream = g.accept(7000)
            assert read_ok(client) == stream.peer_port
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert (folder / "s").exists() and (folder / "u").exists(), "not its own to remove"


def test_a_handed_in_file_is_no_listener(binary: Path) -> None:
    result = run(binary, *GOOD[1:], "--socket-fd=1")
    assert result.returncode == 1 and "not a listening socket" in result.stderr
