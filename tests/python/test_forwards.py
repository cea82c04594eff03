# SPDX-License-Identifier: MIT
"""--publish, --proxy, --listen-port and --connect-port: what is taken is what the backend takes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitroctl import forwards
from nitroctl.errors import NitroError, UsageError
from vhost_front import find_binary, running


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
    ("texts", "words"),
    [
        (["proxy=1=a:1", "listen-port=1=/a"], "parent's port 1 "),
        (["publish=/a=1", "connect-port=2=/a"], "/a is used"),
        ([f"proxy={n}=a:1" for n in range(65)], "65 times"),
        ([f"publish=/{n}=1" for n in range(65)], "65 times"),
    ],
)
def test_contradictions(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        forwards.check(texts)
    forwards.check(texts[:1])
