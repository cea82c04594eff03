# SPDX-License-Identifier: MIT
"""The parent's side of vsock over unix sockets: handshake, listeners, the backend's options."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nitroctl.base.errors import EnclaveError, NitroError
from nitroctl.vsock import sockets
from nitroctl.vsock.sockets import BackendConfig, PortRefused

CONFIG = BackendConfig(Path("/opt/v"), Path("/run/16/device"), 16, Path("/run/16/vsock"))


def test_backend_options() -> None:
    assert sockets.argv(CONFIG) == [
        "/opt/v", "--socket-path=/run/16/device", "--guest-cid=16", "--uds-path=/run/16/vsock",
    ]  # fmt: skip
    every = BackendConfig(
        Path("v"), Path("s"), 20, Path("u"),
        booted_fd=3, ready_fd=4, lifeline_fd=5, cleanup_dir=Path("d"), once=True,
    )  # fmt: skip
    assert sockets.argv(every) == [
        "v", "--socket-path=s", "--guest-cid=20", "--uds-path=u", "--booted-fd=3", "--ready-fd=4",
        "--lifeline-fd=5", "--cleanup-dir=d", "--once",
    ]  # fmt: skip


Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve one connection on a unix socket with a function, in a thread; what it raises fails the test."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def start(handler: Callable[[socket.socket], None]) -> Path:
        path = tmp_path / "vsock"
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.fspath(path))
        server.listen()

        def work() -> None:
            try:
                with server, server.accept()[0] as client:
                    handler(client)
            except BaseException as e:
                errors.append(e)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors


def read_line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += client.recv(1)
    return line


def test_connect_keeps_what_follows_the_answer(serve: Serve) -> None:
    def backend(client: socket.socket) -> None:
        assert read_line(client) == b"CONNECT 5000\n"
        client.sendall(b"OK 1073741824\nhello")
        assert client.recv(16) == b"bye"

    with sockets.connect(serve(backend), 5000, timeout=30) as sock:
        assert sock.gettimeout() is None
        assert sock.recv(16) == b"hello"
        sock.sendall(b"bye")


def test_connect_takes_an_answer_in_pieces(serve: Serve) -> None:
    def backend(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for byte in b"OK 7\n":
            client.send(bytes([byte]))
        read_line(client)

    sockets.connect(serve(backend), 1).close()


def test_a_refused_port(serve: Serve) -> None:
    with pytest.raises(PortRefused, match="nobody listens on port 81"):
        sockets.connect(serve(lambda client: None), 81, timeout=30)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400\n", b"OK\n", b"OK x\n", b"OK 7" + b"7" * 60])
def test_another_kind_of_server_is_named(serve: Serve, answer: bytes) -> None:
    def backend(client: socket.socket) -> None:
        client.sendall(answer)
        with contextlib.suppress(ConnectionResetError):  # it has not read all
            while client.recv(100):
                pass

    with pytest.raises(EnclaveError, match="not a hybrid vsock"):
        sockets.connect(serve(backend), 1, timeout=30)
    with pytest.raises(EnclaveError, match="not a hybrid vsock"):
        asyncio.run(asyncio.wait_for(sockets.open_connection(serve(backend), 1), 30))


def test_the_same_by_asyncio(serve: Serve, tmp_path: Path) -> None:
    def backend(client: socket.socket) -> None:
        assert read_line(client) == b"CONNECT 5000\n"
        client.sendall(b"OK 1073741824\nhello")

    async def talk() -> bytes:
        reader, writer = await sockets.open_connection(serve(backend), 5000)
        writer.close()
        return await reader.read(16)

    assert asyncio.run(talk()) == b"hello"
    with pytest.raises(PortRefused, match="nobody listens on port 81"):
        asyncio.run(sockets.open_connection(serve(lambda client: None), 81))
    with pytest.raises(PortRefused, match="no enclave is behind .*: No such file"):
        asyncio.run(sockets.open_connection(tmp_path / "absent", 1))


def test_a_socket_of_another_kind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(tmp_path / "log"))
        with pytest.raises(NitroError, match="log: Protocol wrong type for socket"):
            sockets.connect(tmp_path / "log", 1, timeout=30)
        with pytest.raises(NitroError, match="log: Protocol wrong type for socket"):
            asyncio.run(sockets.open_connection(tmp_path / "log", 1))


def test_no_socket_stays_open_after_a_failure(serve: Serve, tmp_path: Path) -> None:
    closed = threading.Event()

    def backend(client: socket.socket) -> None:
        client.sendall(b"nonsense\n")
        read_line(client)
        # EOF or a reset: both mean that the other end is closed.
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        closed.set()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NitroError):
            sockets.connect(serve(backend), 1, timeout=30)
        gc.collect()
    assert closed.wait(30)


def test_the_handshake_has_a_time_limit(serve: Serve) -> None:
    over = threading.Event()

    def backend(client: socket.socket) -> None:
        assert over.wait(30)

    path = serve(backend)
    with pytest.raises(EnclaveError, match=r"port 9 within 0\.05 s"):
        sockets.connect(path, 9, timeout=0.05)
    over.set()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(PortRefused, match="No such file"):
        sockets.connect(tmp_path / "absent", 1)


@pytest.mark.parametrize("port", [-1, 0xFFFFFFFF, 1 << 40])
def test_ports_out_of_range(tmp_path: Path, port: int) -> None:
    with pytest.raises(NitroError, match="no vsock port"):
        sockets.connect(tmp_path / "x", port)
    with pytest.raises(NitroError, match="no vsock port"):
        sockets.listen(tmp_path / "x", port)


def test_listen_serves_the_parents_port(tmp_path: Path) -> None:
    with sockets.listen(tmp_path / "vsock", 5000) as listener:
        assert listener.path == tmp_path / "vsock_5000"
        assert listener.path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as enclave:
            enclave.connect(os.fspath(listener.path))
            with listener.accept() as accepted:
                enclave.sendall(b"x")
                assert accepted.recv(1) == b"x"
    assert list(tmp_path.iterdir()) == []


def test_a_dead_listener_is_replaced_a_live_one_is_not(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(os.fspath(tmp_path / "vsock_1"))
    dead.close()
    with sockets.listen(tmp_path / "vsock", 1):
        with pytest.raises(NitroError, match="vsock_1: Address already in use"):
            sockets.listen(tmp_path / "vsock", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "vsock_1").write_text("mine")
    with pytest.raises(NitroError, match="in use"):
        sockets.listen(tmp_path / "vsock", 1)
    assert (tmp_path / "vsock_1").read_text() == "mine"


def test_socket_paths_end_at_107_bytes() -> None:
    assert sockets.check_path("/" + "a" * 106)
    with pytest.raises(NitroError, match="has 108 bytes") as error:
        sockets.check_path("/" + "a" * 107)
    assert error.value.hint and "XDG_RUNTIME_DIR" in error.value.hint
    with pytest.raises(NitroError, match="has 108 bytes"):
        sockets.check_path("/" + "é" * 53 + "a")
