# SPDX-License-Identifier: MIT
"""The socket on which a running enclave is asked: real supervisor and backend, and a guest of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_fakes import HANG, Bench, steps
from enclave_world import enclave, world
from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import logs, records, remote
from nitroctl.enclaves.control import LINE_MAX
from vhost_guest import Refused


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with world(tmp_path) as made:
        for name, value in made.environment({}).items():
            if name.startswith("XDG_"):
                monkeypatch.setenv(name, value)
        yield made


def control_of(bench: Bench, cid: int = 16) -> Path:
    return bench.runtime / "nitroctl" / str(cid) / "control"


def talk(path: Path, *lines: bytes) -> list[dict[str, object]]:
    """The hello, and the answer to each line, as a program of another language would have them."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as file:
        sock.settimeout(HANG)
        sock.connect(os.fspath(path))
        found = [json.loads(file.readline())]
        for line in lines:
            sock.sendall(line)
            found.append(json.loads(file.readline()))
        return found


def test_it_is_its_owner_s_alone_and_says_who_it_is(bench: Bench) -> None:
    with enclave(bench):
        path = control_of(bench)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        record = records.find("hello")
        assert talk(path) == [{"control": 1, "name": "hello", "id": record.id, "pid": record.supervisor_pid}]
    assert not path.exists()


def test_what_is_no_request_is_answered(bench: Bench) -> None:
    with enclave(bench):
        _, *answers = talk(
            control_of(bench),
            b"\n", b"{\n", b"[" * 5000 + b"\n", b"[1]\n", b'{"do": 7}\n', b'{"do": "nonsense\\u001b"}\n',
            b'{"do": "vsock"}\n', b'{"do": "vsock", "request": {"do": "stats", "x": [1]}}\n',
            b'{"do": "vsock", "request": {"do": "' + b"x" * 2000 + b'"}}\n',
            b'{"do": "vsock", "request": {"do": "stats", "id": 99}}\n',
        )  # fmt: skip
        words = [str(answer.get("error")) for answer in answers]
        assert words[:3] == ["the request is no line of JSON"] * 3
        assert words[3] == "the request is no JSON object"
        assert words[4].startswith("cannot do '7'; known are: ")
        assert words[5].startswith(r"cannot do 'nonsense\x1b'; known are: ")
        assert words[6] == "the request for the vsock backend is no JSON object"
        assert words[7] == (
            "the request cannot be read: a value is neither a whole number of 64 bits nor a plain word"
        )
        assert words[8] == "a request to the vsock backend has at most 900 bytes"
        assert answers[9].keys() == {"answer"}
        with pytest.raises((ConnectionError, json.JSONDecodeError)):
            talk(control_of(bench), b"x" * (LINE_MAX + 70_000), b"\n")
        assert len(talk(control_of(bench))) == 1


def test_asked_by_a_client_of_ours(bench: Bench) -> None:
    with enclave(bench) as guest:
        record = records.find("hello")
        with pytest.raises(Refused):
            guest.connect(5000)
        stats = remote.ask(record, "vsock", request={"do": "stats"})
        assert [(row["port"], row["refused"]) for row in stats["ports"]] == [(5000, 1)]
        with pytest.raises(UsageError, match="cannot do 'dance'"):
            remote.ask(record, "dance")
        with pytest.raises(EnclaveError, match='cannot do "dance"'):
            remote.ask(record, "vsock", request={"do": "dance"})
        # What happened on the way is among the enclave's events.
        lines = b"".join(logs.read(record.home, logs.EVENTS)).splitlines()
        (event,) = [event for event in map(json.loads, lines) if event["event"] == "refused"]
        assert (event["side"], event["port"], event["cause"]) == ("parent", 5000, "no-listener")
        # One that had this context ID before is not asked in its place.
        old = dataclasses.replace(record, name="old", id="i-0-enc1", home=record.home.with_name("1"))
        with pytest.raises(EnclaveError, match="enclave old has ended meanwhile") as caught:
            remote.ask(old, "vsock", request={"do": "stats"})
        assert caught.value.record == old
    with pytest.raises(EnclaveError, match="hello has ended meanwhile"):
        remote.ask(record, "vsock", request={"do": "stats"})


def test_a_backend_that_cannot_be_asked(bench: Bench) -> None:
    """It is stopped: whoever asks learns that it has ended, and waits no longer than for that."""
    with bench.start("--name", "hello", FAKE_QEMU_NO_VSOCK="1", **steps(["print", "up"])) as run:
        run.until("up")
        backend = bench.pid_of(bench.backend)
        os.kill(backend, signal.SIGSTOP)
        path = control_of(bench)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(HANG)
            sock.connect(os.fspath(path))
            sock.sendall(b'{"do": "vsock", "request": {"do": "stats"}}\n')
            os.kill(backend, signal.SIGKILL)
            file = sock.makefile("rb")
            assert json.loads(file.readline())["control"] == 1
            rest = b""
            with contextlib.suppress(ConnectionResetError):  # with the enclave's end, unread
                rest = file.readline()
            assert not rest or json.loads(rest)["error"] == "the vsock backend has ended"
        assert run.wait() == 1


def test_a_run_without_options_starts_what_it_always_has(bench: Bench) -> None:
    """Nothing of all this is on a command line, and neither QEMU nor the backend listens for it."""
    with bench.start("--cid", "20", FAKE_QEMU_NO_VSOCK="1", **steps(["print", "up"])) as run:
        run.until("up")
        folder = bench.runtime / "nitroctl/20"
        ports = bench.runtime / "nitroctl/ports/all"

        def words(pid: int) -> list[str]:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")

        backend = [w.partition("-fd=")[0] for w in words(bench.pid_of(bench.backend))]
        assert backend[1:] == [
            f"--socket-path={folder}/device", "--guest-cid=20", f"--uds-path={folder}/vsock",
            f"--fallback-path={ports}", "--booted", "--ready", "--lifeline", f"--cleanup-dir={folder}",
        ]  # fmt: skip
        qemu = words(bench.pid_of(bench.qemu))
        assert [word for word in qemu if word.startswith("-") and not word.startswith("-S")] == [
            "-M", "-name", "-accel", "-cpu", "-smp", "-m", "-kernel", "-nodefaults", "-no-user-config",
            "-display", "-chardev", "-serial", "-chardev", "-mon",
        ]  # fmt: skip
        machine = qemu[qemu.index("-M") + 1].split(",")
        assert [word.partition("=")[0] for word in machine] == [
            "nitro-enclave", "vsock", "id", "parent-id", "cert-chain", "cert-key",
        ]  # fmt: skip
        listening = {
            fields[-1]
            for fields in map(str.split, Path("/proc/net/unix").read_text().splitlines())
            if fields[3] == "00010000" and fields[-1].startswith(f"{folder}/")
        }
        assert listening == {f"{folder}/device", f"{folder}/vsock", f"{folder}/control"}


def test_sixteen_clients_at_a_time(bench: Bench) -> None:
    with enclave(bench):
        path = os.fspath(control_of(bench))
        idle = []
        for _ in range(40):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(HANG)
            sock.connect(path)
            idle.append(sock)
        for sock in idle[:30]:
            sock.close()
        for sock in idle[30:]:
            assert sock.recv(4096).startswith(b'{"control": 1')
            sock.close()
