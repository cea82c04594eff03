# SPDX-License-Identifier: MIT
"""The two ends of an enclave's control socket, without an enclave between them: strange requests, strange
answers. That an enclave has such a socket, and whose it is, is test_control's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_fakes import HANG
from nitroctl.base.errors import EnclaveError, NitroError, UsageError
from nitroctl.enclaves import capture, control, records, remote
from nitroctl.enclaves.control import CLIENTS_MAX, FDS_MAX, LINE_MAX, Control
from nitroctl.enclaves.records import Record, State
from recorded import RECORD, record

Talk = Callable[[Path], Any]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """An enclave that runs, as its record has it; its folder is `tmp_path`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    home, found = records.create(record(folder=tmp_path), "1")
    yield found
    home.close()


def serve(folder: Path, talk: Talk, **handlers: control.Handler) -> Any:
    """What `talk`, which blocks, gets of a control socket with these handlers."""

    async def main() -> Any:
        served = Control(folder / "control", {"name": "hello", "id": RECORD.id})
        for name, handler in handlers.items():
            served.offer(name, handler)
        try:
            return await asyncio.to_thread(talk, folder / "control")
        finally:
            await served.close()

    return asyncio.run(main())


def said(path: Path, *requests: bytes, fds: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The answers to these lines, each with the descriptors."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as file:
        sock.settimeout(HANG)
        sock.connect(os.fspath(path))
        assert json.loads(file.readline()) == {"control": 1, "name": "hello", "id": RECORD.id}
        found = []
        for request in requests:
            socket.send_fds(sock, [request], fds)
            found.append(json.loads(file.readline()))
        return found


async def echo(request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    return {"request": request, "fds": [os.fstat(fd).st_ino for fd in fds]}


def test_no_more_descriptors_than_a_request_has(tmp_path: Path) -> None:
    """They belong to the request they came with, and are closed with its answer, those too many at once."""
    read, write = os.pipe()
    with open(tmp_path / "file", "wb") as file:
        inode, given = os.fstat(file.fileno()).st_ino, file.fileno()
        request = b'{"do": "echo", "x": 1}\n'
        answers = serve(tmp_path, lambda path: said(path, request, fds=(write, given)), echo=echo)
        assert answers == [{"answer": {"request": {"x": 1}, "fds": [os.fstat(write).st_ino, inode]}}]

        async def none(request: dict[str, Any], fds: list[int]) -> int:
            return len(fds)

        def talk(path: Path) -> list[dict[str, Any]]:
            return said(path, b'{"do": "none"}\n', b'{"do": "none"}\n', fds=(write,) * FDS_MAX)

        assert serve(tmp_path, talk, none=none) == [{"answer": FDS_MAX}] * 2
    os.close(write)
    assert os.read(read, 1) == b""  # nobody has kept the other end
    os.close(read)


def test_requests_at_the_limits(tmp_path: Path) -> None:
    """The longest line, one more, and the deepest nesting that can be read: each has its answer."""

    async def words(request: dict[str, Any], fds: list[int]) -> str:
        return repr(request) + json.dumps(request)

    begin = b'{"do": "echo", "x": "'
    whole = begin + b"x" * (LINE_MAX - len(begin) - 2) + b'"}'
    ((fits,), (long,)) = serve(
        tmp_path, lambda path: [said(path, whole + b"\n"), said(path, whole + b" \n")], echo=echo
    )
    assert "answer" in fits and long["error"] == f"a request of more than {LINE_MAX} bytes"

    def deep(path: Path) -> list[dict[str, Any]]:
        depths = (10, 400, 700, 800, 850, 900, *range(910, 1000, 5), 5000)
        return said(path, *(b'{"do": "words", "x": %s%s}\n' % (b"[" * n, b"]" * n) for n in depths))

    answers = serve(tmp_path, deep, words=words)
    assert "answer" in answers[0] and answers[-1]["error"] == "the request is no line of JSON"
    errors = {answer["error"] for answer in answers if "error" in answer}
    assert errors <= {"the request is no line of JSON", "the request nests too deeply"}


def test_a_crowd_waits_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More clients than are served at a time, and none is lost where no descriptor was left for a moment."""
    monkeypatch.setattr(control, "REST_SECONDS", 0.001)

    def crowd(path: Path) -> list[bytes]:
        waiting = []
        for _ in range(CLIENTS_MAX + 4):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(HANG)
            sock.connect(os.fspath(path))
            waiting.append(sock)
        found = []
        for sock in waiting:
            with sock:
                found.append(sock.recv(100))
        return found

    async def main() -> list[bytes]:
        loop, failures = asyncio.get_running_loop(), [errno.EMFILE, errno.ENFILE]
        real = loop.sock_accept

        async def accept(sock: socket.socket) -> Any:
            if failures:
                raise OSError(failures.pop(), "no descriptors")
            return await real(sock)

        monkeypatch.setattr(loop, "sock_accept", accept)
        served = Control(tmp_path / "control", {})
        try:
            return await asyncio.to_thread(crowd, tmp_path / "control")
        finally:
            await served.close()

    assert set(asyncio.run(main())) == {b'{"control": 1}\n'}


# ---- what asks ----


def answering(path: Path, *lines: bytes, hear: bool = True) -> threading.Thread:
    """A server for one client, which gets these lines: the hello, and one for its request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()
    listener.settimeout(HANG)

    def serve() -> None:
        with listener, listener.accept()[0] as client, contextlib.suppress(OSError):  # who asks gives up
            client.sendall(lines[0])
            if len(lines) > 1:
                client.recv(65536)
                client.sendall(lines[1])
            elif hear:
                client.recv(65536)
                while client.recv(65536):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


HELLO = b'{"control": 1, "id": "%s"}\n' % RECORD.id.encode()


def test_an_enclave_of_another_version(made: Record, tmp_path: Path) -> None:
    thread = answering(tmp_path / "control", b'{"control": 2}\n')
    with pytest.raises(EnclaveError) as caught:
        remote.ask(made, "vsock")
    thread.join()
    assert str(caught.value) == (
        "enclave hello has version 2 of its control socket, and this nitroctl version 1"
    )
    assert caught.value.hint == "use the nitroctl that started it, or start it anew"


def test_no_answer(made: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In time, or a half one; nobody listens; and a path that no socket can have."""
    monkeypatch.setattr(remote, "SECONDS", 0.05)
    path = tmp_path / "control"
    thread = answering(path, HELLO)
    with pytest.raises(EnclaveError, match=r"enclave hello has not answered within 0.05 s"):
        remote.ask(made, "vsock")
    thread.join()
    monkeypatch.setattr(remote, "SECONDS", HANG)
    cannot = "enclave hello cannot be asked: it is starting or ending, or an older nitroctl started it"
    for lines in ((b'{"control"',), (HELLO, b'{"answer": 1')):
        path.unlink()
        thread = answering(path, *lines, hear=False)
        with pytest.raises(EnclaveError, match=cannot):
            remote.ask(made, "vsock")
        thread.join()
    path.unlink()
    with pytest.raises(EnclaveError, match=cannot):
        remote.ask(made, "vsock")
    with pytest.raises(NitroError, match="107"):  # unix(7)
        remote.ask(record(folder=tmp_path / ("x" * 108), home=made.home), "vsock")
    ended = record(state=State.ENDED, message="stopped")
    with pytest.raises(EnclaveError, match="the enclave 'hello' has ended: stopped"):
        remote.ask(ended, "vsock")


def test_errors_come_over_as_they_were(made: Record, tmp_path: Path) -> None:
    async def usage(request: dict[str, Any], fds: list[int]) -> None:
        raise UsageError("wrong", hint="say it otherwise")

    async def fails(request: dict[str, Any], fds: list[int]) -> None:
        raise EnclaveError("it is gone")

    def talk(path: Path) -> list[Exception]:
        found: list[Exception] = []
        for name in ("usage", "fails"):
            with pytest.raises(NitroError) as caught:
                remote.ask(made, name)
            found.append(caught.value)
        return found

    first, second = serve(tmp_path, talk, usage=usage, fails=fails)
    assert isinstance(first, UsageError) and (str(first), first.hint) == ("wrong", "say it otherwise")
    assert type(second) is EnclaveError and str(second) == "it is gone"


# ---- captures: what is asked for, and what is left of one that is refused ----


def test_captures(made: Record, tmp_path: Path) -> None:
    """They are given the file, and their counts are those of the enclave; who has ended has none."""
    path, asked = tmp_path / "x.pcap", []

    async def vsock(request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        asked.append(request["request"])
        if request["request"]["do"] == "dump":
            if request["request"]["snaplen"] == 7:
                raise UsageError("a capture takes no 7 bytes of a packet")
            os.write(fds[0], b"pcap")
            return {"dump": 3}
        if len(asked) > 2:
            raise EnclaveError("there is no capture 3")
        return {"packets": 2, "dropped": 0, "bytes": 4}

    def talk(control: Path) -> list[Any]:
        found: list[Any] = []
        for _ in range(2):
            with capture.into_file(made, path, snaplen=96, limit_mib=2) as counts:
                assert counts == {}
            found.append(counts)
        pipe = capture.Pipe(made)
        found += [pipe.stop(), os.read(pipe.fd, 100), os.read(pipe.fd, 100)]
        pipe.close()
        for refused in (
            lambda: capture.into_file(made, path, snaplen=7).__enter__(),
            lambda: capture.Pipe(made, snaplen=7),
        ):
            with pytest.raises(UsageError, match="takes no 7 bytes"):
                refused()
        return found

    assert serve(tmp_path, talk, vsock=vsock) == [
        {"packets": 2, "dropped": 0, "bytes": 4}, {}, {}, b"pcap", b"",
    ]  # fmt: skip
    assert asked[:2] == [
        {"do": "dump", "snaplen": 96, "limit": 2 << 20}, {"do": "dump-stop", "dump": 3},
    ]  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_no_capture_can_be_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(NitroError, match="fifo is no file") as caught:
            capture.open_file(fifo)
    finally:
        os.close(read)
    assert caught.value.hint == "`nitroctl vsock dump NAME -w -` writes a capture into a pipe"
    for path, words in ((tmp_path, "is no file"), (tmp_path / "no" / "x", "there is no folder")):
        with pytest.raises(NitroError, match=words):
            capture.check(path)
    event = {"event": "dump-ended", "packets": 9, "why": "its limit is reached"}
    assert capture.ended(event) == "a capture of packets has ended with 9 of them: its limit is reached"
    assert capture.ended(event | {"why": "stopped"}) is None is capture.ended({"event": "refused"})
