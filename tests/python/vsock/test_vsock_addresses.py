# SPDX-License-Identifier: MIT
"""`--proxy` and `--publish` with a name that has several addresses. Behind a fake front end, as
test_vsock_backend.py; the backend is the one whose getaddrinfo() we answer ourselves."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, running
from vhost_guest import Refused, guest

# Of the block for documentation: no host has it.
NOBODYS = "192.0.2.77"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = os.environ.get("VSOCK_ON_UNIX")
    if not path:
        pytest.fail(
            "VSOCK_ON_UNIX is not set; `meson test` builds tests/unit/vsock-on-unix, `make check` names it"
        )
    monkeypatch.setenv("VSOCK_FOLDER", os.fspath(tmp_path))
    return Path(path)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def services(stack: ExitStack, *addresses: str, backlog: int = 5) -> tuple[int, list[socket.socket]]:
    """Listeners on one port of several addresses."""
    found: list[socket.socket] = []
    for address in addresses:
        s = stack.enter_context(socket.socket())
        s.settimeout(PATIENCE)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, found[0].getsockname()[1] if found else 0))
        s.listen(backlog)
        found.append(s)
    return found[0].getsockname()[1], found


def test_a_proxy_tries_all_addresses(
    program: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, (service,) = services(stack, "127.0.0.3")
    monkeypatch.setenv("MANY_TEST", "127.0.0.1,::1,127.0.0.2,127.0.0.3")
    with running(program, f"--proxy=8000=many.test:{port}") as b, guest(b) as g:
        for _ in range(2):
            s = g.connect(8000)
            peer, _ = service.accept()
            with peer:
                s.send(b"here")
                assert peer.recv(10) == b"here"
        service.close()
        with pytest.raises(Refused):
            g.connect(8000)
        assert b.statistics()["no-listener"] == 1


def test_an_address_that_does_not_answer(
    program: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is tried, and from then on it is the first."""
    port, (silent, service) = services(stack, "127.0.0.1", "127.0.0.2", backlog=0)
    # A full backlog: the kernel drops what asks for more.
    fillers = [stack.enter_context(socket.socket()) for _ in range(4)]
    for f in fillers:
        f.setblocking(False)
        f.connect_ex(("127.0.0.1", port))
    monkeypatch.setenv("MANY_TEST", "127.0.0.1,127.0.0.2")
    with running(program, f"--proxy=8000=many.test:{port}") as b, guest(b) as g:
        for _ in range(2):
            s = g.connect(8000)
            peer, _ = service.accept()
            with peer:
                s.send(b"here")
                assert peer.recv(10) == b"here"
            silent.listen(5)  # would answer now


def test_a_name_is_published_on_all_its_addresses(
    program: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MANY_TEST", f"127.0.0.1,127.0.0.1,{NOBODYS},127.0.0.2")
    with running(program, f"--publish=many.test:{port}=7000") as b, guest(b) as g:
        g.listen(7000)
        for address in ("127.0.0.1", "127.0.0.2"):
            with socket.create_connection((address, port), PATIENCE) as client:
                s = g.accept(7000)
                s.send(b"raw")
                assert client.recv(10) == b"raw"


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ("127.0.0.1,127.0.0.2", "Address already in use"),  # somebody else would get half of the clients
        (NOBODYS, "Cannot assign requested address"),
        (f"{NOBODYS},192.0.2.78", "Cannot assign requested address"),
    ],
)
def test_a_name_that_cannot_be_published(
    program: Path, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: str, why: str
) -> None:
    port, _ = services(stack, "127.0.0.2")
    monkeypatch.setenv("MANY_TEST", addresses)
    done = subprocess.run(
        [program, f"--socket-path={tmp_path}/s", f"--uds-path={tmp_path}/u", "--guest-cid=4",
         f"--publish=many.test:{port}=1"],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"vhost-user-vsock: error: cannot listen on many.test:{port}: {why}\n"
