# SPDX-License-Identifier: MIT
"""--publish, --proxy and their kin: what is taken is what the backend takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitroctl.base.errors import NitroError, UsageError
from nitroctl.vsock import forwards
from vhost_backend import find_binary, running


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fw-"))
    monkeypatch.chdir(path)
    yield path
    shutil.rmtree(path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_backend_takes_what_is_taken_here(folder: Path) -> None:
    port = free_port()
    given = [
        ("publish", f"127.0.0.1:{port}=5000", f"publish=127.0.0.1:{port}=5000"),
        ("publish", "./a=b=0005", f"publish={folder}/a=b=5"),
        ("connect-port", "4294967294=c", f"connect-port=4294967294={folder}/c"),
        ("proxy", "0=localhost:443", "proxy=0=localhost:443"),
        ("proxy", "8001=[::1]:1", "proxy=8001=[::1]:1"),
        ("listen-port", f"8002={folder}/x=y", f"listen-port=8002={folder}/x=y"),
    ]
    texts = [forwards.forward(kind, text) for kind, text, _ in given]
    assert texts == [text for _, _, text in given]
    forwards.check(texts)
    with running(find_binary(), *(f"--{text}" for text in texts)):
        assert (folder / "a=b").is_socket() and (folder / "c").is_socket()
        socket.create_connection(("127.0.0.1", port)).close()


WRONG = [
    ("publish", "5000"), ("publish", "=5000"), ("publish", "127.0.0.1=5000"), ("publish", "127.0.0.1:80="),
    ("publish", "127.0.0.1:0=1"), ("publish", "127.0.0.1:65536=1"), ("publish", ":80=1"),
    ("publish", "127.0.0.1:80=4294967295"), ("publish", "127.0.0.1:80=-1"), ("publish", "/none/such/a=1"),
    ("publish", "no.such.name.invalid:80=1"), ("publish", "/tmp/" + "x" * 103 + "=1"),
    ("proxy", "8000"), ("proxy", "8000="), ("proxy", "x=127.0.0.1:1"), ("proxy", "8000=127.0.0.1:x"),
    ("proxy", "8000=127.0.0.1:+1"), ("proxy", "8000=no.such.name.invalid:1"),
    ("listen-port", "8000="), ("listen-port", "4294967295=a"), ("listen-port", "1=" + "/tmp/" + "x" * 103),
    ("connect-port", "7000"), ("connect-port", "٣=a"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), WRONG)
def test_what_is_wrong_is_named_and_wrong_for_the_backend_too(folder: Path, kind: str, text: str) -> None:
    with pytest.raises(NitroError) as error:
        forwards.forward(kind, text)
    assert text.split("=")[0][:60] in str(error.value)
    argv = [str(find_binary()), f"--socket-path={folder}/s", "--guest-cid=4", f"--uds-path={folder}/p"]
    done = subprocess.run([*argv, f"--{kind}={text}"], capture_output=True, timeout=30)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("8080:80", "127.0.0.1:8080=80"), ("0.0.0.0:8080:80", "0.0.0.0:8080=80"),
        ("[::1]:8080:80", "[::1]:8080=80"), ("8080=80", "127.0.0.1:8080=80"),
    ],
)  # fmt: skip
def test_dockers_form_is_told_in_ours(text: str, right: str) -> None:
    with pytest.raises(UsageError) as error:
        forwards.forward("publish", text)
    assert error.value.hint and error.value.hint.endswith(f"--publish {right}")


@pytest.mark.parametrize("kind", ["publish", "connect-port", "listen-port"])
def test_a_socket_is_no_folder(folder: Path, kind: str) -> None:
    (folder / "file").touch()
    for path, what in ((folder, "a folder"), (folder / "file", "a file")):
        with pytest.raises(UsageError, match=f"{path} is {what}, not a unix socket"):
            forwards.forward(kind, f"{path}=80" if kind == "publish" else f"80={path}")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["proxy=1=a:1", "listen-port=1=/a"], "parent's port 1 "),
        (["publish=/a=1", "connect-port=2=/a"], "/a is used"),
        ([f"proxy={n}=a:1" for n in range(65)], "65 times"),
        ([f"publish=/{n}=1" for n in range(65)], "65 times"),
        ([f"forward-listen={n}" for n in range(64)] + ["publish=/a=1"], "65 times"),
        (["forward-listen=5", "forward-listen=5"], "port 5 of this host's AF_VSOCK"),
    ],
)
def test_contradictions(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        forwards.check(texts)
    forwards.check(texts[:1])


class HostVsock:
    """In place of the socket module's sockets: a host with AF_VSOCK and its loopback, or without."""

    def __init__(self, *, family: bool, loopback: bool) -> None:
        self._family = family
        self._loopback = loopback

    def __call__(self, family: int, kind: int) -> HostVsock:
        assert (family, kind) == (socket.AF_VSOCK, socket.SOCK_STREAM)
        if not self._family:
            raise OSError(97, os.strerror(97))
        return self

    def bind(self, address: tuple[int, int]) -> None:
        if not self._loopback:
            raise OSError(99, os.strerror(99))
        assert address == (1, 0xFFFFFFFF)

    def __enter__(self) -> HostVsock:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_the_hosts_own_vsock(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def ask(cid: int | None, *listen: str) -> tuple[str, ...]:
        return forwards.forwards((), (), (), (), cid, listen)

    monkeypatch.setattr(socket, "socket", HostVsock(family=True, loopback=False))
    texts = ask(2, "09001+9002", "5")
    assert texts == ("forward-cid=2", "forward-listen=9001", "forward-listen=9002", "forward-listen=5")
    forwards.check(texts)
    with pytest.raises(UsageError, match="--forward-cid 1: .*loopback: Cannot assign") as error:
        ask(1)
    assert "modprobe vsock_loopback" in str(error.value.hint)
    for cid, listen, words in (
        (None, "9001", "needs --forward-cid"),
        (0, "9001", "'0' is not a number from 1 "),
        (2, "9001+", "9001\\+: '' is not a number"),
        (2, "4294967295", "not a number from 0 to 4294967294"),
    ):
        with pytest.raises(UsageError, match=words):
            ask(cid, listen)
    monkeypatch.setattr(socket, "socket", HostVsock(family=True, loopback=True))
    assert ask(1) == ("forward-cid=1",)
    monkeypatch.setattr(socket, "socket", HostVsock(family=False, loopback=False))
    with pytest.raises(UsageError, match="--forward-cid 3: this host has no AF_VSOCK: Address family"):
        ask(3)
    monkeypatch.undo()
    # The backend takes these texts: over a host whose AF_VSOCK is made of unix sockets.
    monkeypatch.setenv("VSOCK_FOLDER", os.fspath(folder))
    with running(Path(os.environ["VSOCK_ON_UNIX"]), *(f"--{text}" for text in texts)):
        assert (folder / "4294967295_9002").is_socket()
