# SPDX-License-Identifier: MIT
"""`vsock-proxy`: the real command between a TCP service and the socket where a backend connects.

Messages of the allowlist are AWS's. That an enclave's backend tries that socket is test_vsock_routes'; the
whole way from a real guest is tests/boot/test_first_steps.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_fakes import HANG, PYTHON, Running
from nitroctl.nitro_cli import vsock_proxy

PORT = 8000


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A short one: socket paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix=f"n{time.monotonic_ns()}") as name:
        yield Path(name)


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(HANG)
        yield server


def command(runtime: Path, *argv: object) -> subprocess.Popen[bytes]:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(PYTHON)}
    code = "from nitroctl.nitro_cli.vsock_proxy import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)], env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextlib.contextmanager
def proxy(runtime: Path, *argv: object) -> Iterator[Running]:
    """One that serves."""
    running = Running(command(runtime, *argv))
    try:
        running.until("the parent's port ")
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def refused(runtime: Path, *argv: object) -> tuple[int, str]:
    process = command(runtime, *argv)
    out, err = process.communicate(timeout=HANG)
    assert out == b"" and b"Traceback" not in err
    assert list(runtime.rglob("*_*")) == []
    return process.returncode, err.decode()


def path(runtime: Path, port: int = PORT) -> Path:
    """Where backends look for a port that is there for every enclave (docs/parent.md)."""
    return runtime / "nitroctl" / "ports" / f"all_{port}"


def connect(runtime: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(HANG)
    sock.connect(str(path(runtime)))
    return sock


def number(service: socket.socket) -> int:
    port: int = service.getsockname()[1]
    return port


def test_both_ways(runtime: Path, service: socket.socket) -> None:
    sent, answer = os.urandom(1 << 20), os.urandom(1 << 19)
    with proxy(runtime, PORT, "127.0.0.1", number(service)) as running, connect(runtime) as enclave:
        there, _ = service.accept()
        with there, there.makefile("rb") as file:
            there.settimeout(HANG)
            enclave.sendall(b"hello")
            assert file.read(5) == b"hello"
            enclave.sendall(sent[: 1 << 16])
            assert file.read(1 << 16) == sent[: 1 << 16]
            there.sendall(answer[: 1 << 16])
            there.shutdown(socket.SHUT_WR)
            with enclave.makefile("rb") as back:
                assert back.read() == answer[: 1 << 16]  # and then the end
            assert file.read() == b""  # of both directions, as with AWS
        assert f"is 127.0.0.1:{number(service)}" in running.err.decode()
        assert oct(path(runtime).stat().st_mode)[-3:] == "600"


def test_all_that_was_sent_before_the_end_arrives(runtime: Path, service: socket.socket) -> None:
    sent = os.urandom(1 << 21)
    with proxy(runtime, PORT, "127.0.0.1", number(service)):
        enclave = connect(runtime)
        there, _ = service.accept()
        there.settimeout(HANG)
        received = bytearray()
        enclave.setblocking(False)
        rest = memoryview(sent)
        while rest:  # what the enclave sends outgrows all buffers on the way: read between
            with contextlib.suppress(BlockingIOError):
                rest = rest[enclave.send(rest) :]
                continue
            received += there.recv(1 << 16)
        enclave.close()
        while data := there.recv(1 << 16):
            received += data
        there.close()
        assert received == sent


def test_a_silent_address_does_not_hold_up_the_next(
    service: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 takes no connection: its queue is full. Linux would go on asking it for two minutes."""
    port = number(service)

    async def both(*_: object, **__: object) -> list[object]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    async def joined() -> bytes:
        ours, theirs = socket.socketpair()
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
        serving = vsock_proxy.Proxy("a-name", port, socket.AF_UNSPEC, 1)
        await serving._slots.acquire()
        task = asyncio.create_task(serving._join(theirs))
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        there, _ = await asyncio.to_thread(service.accept)
        with there:
            await asyncio.to_thread(there.sendall, b"here")
            found = await reader.readexactly(4)
        writer.close()
        await task
        return found

    with socket.socket() as silent, contextlib.ExitStack() as stack:
        silent.bind(("127.0.0.2", port))
        silent.listen(0)
        for _ in range(3):
            full = stack.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(("127.0.0.2", port))
        assert asyncio.run(joined()) == b"here"


def test_one_more_than_there_are_workers_waits(runtime: Path, service: socket.socket) -> None:
    with proxy(runtime, "-w", 1, PORT, "127.0.0.1", number(service)):
        first, second = connect(runtime), connect(runtime)
        second.sendall(b"second")
        first.sendall(b"first")
        with first, second:
            there, _ = service.accept()
            assert there.recv(16) == b"first"
            there.close()
            first.close()
            there, _ = service.accept()
            assert there.recv(16) == b"second"
            there.close()


def test_nobody_there(runtime: Path) -> None:
    """The enclave's connection ends, the proxy goes on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = number(server)
    with proxy(runtime, PORT, "127.0.0.1", gone) as running:
        for _ in range(2):
            with connect(runtime) as enclave:
                assert enclave.recv(1) == b""
        running.until("cannot connect to 127.0.0.1")


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_on_a_signal_and_leaves_nothing(
    runtime: Path, service: socket.socket, with_signal: signal.Signals
) -> None:
    with proxy(runtime, PORT, "127.0.0.1", number(service)) as running, connect(runtime) as enclave:
        service.accept()[0].close()
        assert enclave.recv(1) == b""
        with connect(runtime):
            running.process.send_signal(with_signal)
            assert running.wait() == 0
        assert not path(runtime).parent.exists()
        assert b"Traceback" not in running.err and b"never retrieved" not in running.err


def test_a_port_in_use(runtime: Path, service: socket.socket) -> None:
    with proxy(runtime, PORT, "127.0.0.1", number(service)):
        process = command(runtime, PORT, "127.0.0.1", 1)
        err = process.communicate(timeout=HANG)[1].decode()
        assert process.returncode == 1 and "Address already in use" in err
        assert path(runtime).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "required: LOCAL_PORT"),
        (("-w", 0, PORT, "localhost", 1), "Number of workers must not be 0"),
        (("-4", "-6", PORT, "localhost", 1), "not allowed with"),
        ((PORT, "localhost", 65536), "65536 is not a TCP port"),
        ((PORT, "localhost", "https"), "invalid int value: 'https'"),
    ],
)
def test_usage(runtime: Path, argv: tuple[object, ...], message: str) -> None:
    status, err = refused(runtime, *argv)
    assert status == 2 and message in err


def test_ports_that_are_none(runtime: Path) -> None:
    status, err = refused(runtime, 0xFFFFFFFF, "localhost", 1)
    assert status == 1 and "4294967295 is no vsock port" in err


@pytest.mark.parametrize("host", ["19", "127.1", "0x7f000001", "0177.0.0.1", "127.0.0.010"])
def test_half_an_address(runtime: Path, tmp_path: Path, host: str) -> None:
    """The C library takes it for one, 19 for 0.0.0.19; AWS's proxy asks the DNS for it."""
    status, err = refused(runtime, PORT, host, 80)
    assert status == 1 and f"{host} is neither an address nor a name" in err
    with pytest.raises(vsock_proxy.NotAllowed, match="are not allowed"):
        allowed(tmp_path, f"allowlist: [{{address: '{host}', port: 80}}]", "127.0.0.1", 80)


# ---- the allowlist

KMS = "allowlist:\n- {address: kms.us-east-1.amazonaws.com, port: 443}\n- {address: 127.0.0.1, port: 8443}\n"


def allowed(folder: Path, text: str, host: str, port: int) -> None:
    (folder / "list.yaml").write_text(text)
    vsock_proxy.check_allowed(folder / "list.yaml", host, port, socket.AF_INET)


def test_what_is_allowed(tmp_path: Path) -> None:
    allowed(tmp_path, KMS, "kms.us-east-1.amazonaws.com", 443)  # by its name: nothing is looked up
    allowed(tmp_path, KMS, "localhost", 8443)  # by its address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KMS, "The given address and port are not allowed"),
        ("allowlist: [", "Bad yaml format"),
        ("allowlist: !!python/object/apply:os.system [id]", "Bad yaml format"),
        ("\0", "Bad yaml format"),
        ("[" * 100_000, "Bad yaml format"),
        ("", "No allowlist field"),
        ("whitelist: []", "No allowlist field"),
        ("allowlist: {}", "No allowlist field"),
        ("allowlist: [{port: 443}]", "No address field"),
        ("allowlist: [443]", "No address field"),
        ("allowlist: [{address: localhost}]", "No port field or invalid type"),
        ("allowlist: [{address: localhost, port: '443'}]", "No port field or invalid type"),
        ("allowlist: [{address: localhost, port: true}]", "No port field or invalid type"),
    ],
)
def test_what_is_not(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(vsock_proxy.NotAllowed) as e:
        allowed(tmp_path, text, "127.0.0.1", 443)
    assert str(e.value).startswith(f"Error at checking the allowlist: {message}")


def test_the_command_heeds_it(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(KMS)
    status, err = refused(runtime, "--config", tmp_path / "list.yaml", PORT, "127.0.0.1", 443)
    assert status == 1 and "The given address and port are not allowed" in err
    status, err = refused(runtime, "--config", tmp_path / "no.yaml", PORT, "127.0.0.1", 443)
    assert status == 1 and "Could not open the file" in err
    (tmp_path / "list.yaml").write_text("allowlist: []")
    status, err = refused(runtime, "--config", tmp_path / "list.yaml", PORT, "no.such.invalid", 443)
    assert status == 1 and "DNS lookup failed!" in err
