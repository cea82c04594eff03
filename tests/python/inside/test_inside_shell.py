# SPDX-License-Identifier: MIT
"""shell, cp, top and the clock against an agent that the test plays: what goes over the connection, what
comes of it, and that every command ends when the enclave does. The agent itself is tested in real guests."""

from __future__ import annotations

import dataclasses
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nitroctl.base.errors import EnclaveError, EnclaveTimeout, NitroError, UsageError
from nitroctl.cli import nitroctl
from nitroctl.enclaves import records, remote
from nitroctl.inside import agent, clock
from tools_world import FakeEnclave, Peer, fake_enclave

LIMIT = 60.0


@pytest.fixture
def enclave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEnclave]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with fake_enclave(tmp_path) as made:
        yield made


def shell(*words: str) -> list[str]:
    return [sys.executable, "-m", "nitroctl", "shell", *words]


def test_a_command_with_pipes(enclave: FakeEnclave) -> None:
    """Output and errors stay apart, input arrives whole, one piece after the other has been taken, with its
    end, and the status is the command's."""
    given = os.urandom(100_000)
    taken = bytearray()

    def script(peer: Peer) -> None:
        assert peer.request == struct.pack("<HcBHH", 1, b"X", 0, 0, 0) + b"\0" + b"wc\0-c\0"
        peer.send(b"o", b"out\0\xff")
        while (frame := peer.read()) and frame[0] == b"i":
            assert len(frame[1]) <= 65535
            taken.extend(frame[1])
            peer.sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # it waits to hear that this was taken
                peer.sock.recv(1)
            peer.sock.setblocking(True)
            peer.send(b"a")
        assert frame == (b"e", b"")
        peer.send(b"r", b"err\n")
        peer.exit(7)

    enclave.script = script
    done = subprocess.run(shell("app", "--", "wc", "-c"), input=given, capture_output=True, timeout=LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\0\xff", b"err\n")
    assert taken == given


def test_signals_go_to_the_command(enclave: FakeEnclave) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"o", b"ready")
        assert peer.read() == (b"s", bytes([signal.SIGINT]))
        peer.send(b"o", b"again")
        assert peer.read() == (b"s", bytes([signal.SIGTERM]))
        peer.exit(signal.SIGTERM, how=1)

    enclave.script = script
    with subprocess.Popen(shell("app", "sleep", "9"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.read(5) == b"ready"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read(5) == b"again"
        child.send_signal(signal.SIGTERM)
        assert child.wait(LIMIT) == 128 + signal.SIGTERM


def test_a_terminal(enclave: FakeEnclave) -> None:
    """Its size and later ones, every key, and a way out."""
    import pexpect

    sizes: list[bytes] = []

    def script(peer: Peer) -> None:
        assert peer.request == struct.pack("<HcBHH", 1, b"X", 1, 30, 90) + b"TERM=vt220\0\0"
        peer.send(b"o", b"\x1b[1m# ")
        assert peer.read() == (b"i", b"\x03")
        peer.send(b"a")
        peer.send(b"o", b"interrupted")
        frame = peer.read()
        assert frame and frame[0] == b"w"
        sizes.append(frame[1])
        peer.send(b"o", b"resized")
        keys = b""
        while len(keys) < 2:
            frame = peer.read()
            assert frame and frame[0] == b"i"
            keys += frame[1]
            peer.send(b"a")
        assert keys == b"\x1d\x1d"
        peer.send(b"o", b"two")
        assert peer.read() is None  # the third was for nitroctl

    enclave.script = script
    child = pexpect.spawn(
        sys.executable, shell("app")[1:], dimensions=(30, 90), timeout=LIMIT,
        env={**os.environ, "TERM": "vt220"},
    )  # fmt: skip
    child.expect_exact(b"\x1b[1m# ")
    child.send(b"\x03")
    child.expect_exact("interrupted")
    child.setwinsize(50, 100)
    child.expect_exact("resized")
    assert sizes == [struct.pack("<HH", 50, 100)]
    child.send(b"\x1d\x1d")
    child.expect_exact("two")
    child.send(b"\x1d")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130


COMMANDS = {
    "shell": ["shell", "app", "--", "ls"],
    "cp out": ["cp", "app:/etc/passwd", "passwd"],
    "cp in": ["cp", __file__, "app:/tmp/"],
    "top": ["top", "app"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_enclave_that_ends_meanwhile(
    enclave: FakeEnclave, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    enclave.script = lambda peer: enclave.end("the guest's kernel panicked: Oops")
    run = [sys.executable, "-m", "nitroctl", *command]
    done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
    why = "error: enclave app has ended meanwhile: the guest's kernel panicked: Oops\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", why)
    assert sorted(os.listdir(tmp_path)) == ["state", "v"]
    shown = CliRunner().invoke(nitroctl, command)
    assert str(shown.exception) == "the enclave 'app' has ended: the guest's kernel panicked: Oops"


@pytest.mark.parametrize("kept", [True, False])
def test_an_enclave_that_ends_before_its_agent_listens(
    enclave: FakeEnclave, tmp_path: Path, kept: bool
) -> None:
    """The same error for whoever waits for it; of one in the foreground no record is left to say why."""
    waiting = dataclasses.replace(enclave.record, uds=tmp_path / "nobody")
    enclave.end("the guest halted")
    if not kept:
        records.remove(waiting)
    why, said = ("", waiting) if not kept else (": the guest halted", records.again(waiting))
    for wait in (lambda: agent.Call(waiting, b"X"), lambda: records.check_runs(waiting)):
        with pytest.raises(EnclaveError) as caught:
            wait()
        assert str(caught.value) == f"enclave app has ended meanwhile{why}"
        assert caught.value.record == said


def test_without_tools_each_command_says_what_to_do(enclave: FakeEnclave) -> None:
    value = {**enclave.record.to_json(), "tools": False}
    records._write(enclave.home, records.Record.from_json(value))
    for command in COMMANDS.values():
        caught = CliRunner().invoke(nitroctl, command).exception
        assert isinstance(caught, agent.NoTools)
        assert caught.hint == "start it with `nitroctl run --tools`"


def test_one_end_of_a_copy_is_in_an_enclave(enclave: FakeEnclave) -> None:
    for source, target in (("a", "b"), ("app:/a", "app:/b"), ("./app:/a", "b")):
        with pytest.raises(UsageError, match="one of .* has to be in an enclave"):
            CliRunner().invoke(nitroctl, ["cp", source, target], catch_exceptions=False)


def test_an_agent_that_keeps_to_nothing(enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "END_SECONDS", 0.01)

    def answered(*sends: bytes) -> NitroError:
        def script(peer: Peer) -> None:
            for data in sends:
                peer.sock.sendall(data)

        enclave.script = script
        with pytest.raises(EnclaveError) as caught:
            agent.answer(enclave.record, b"C", ["read"])
        return caught.value

    assert "its agent sent a frame of 0 bytes" in str(answered(bytes(4)))
    assert "its agent sent a frame of 4294967295 bytes" in str(answered(b"\xff" * 4 + b"x"))
    assert "its agent closed the connection" in str(answered())
    assert "its agent closed the connection" in str(answered(b"\x05\0\0\0o"))
    failed = answered(struct.pack("<IcI", 10, b"f", 93) + b"a\x1b[m\0")
    assert isinstance(failed, agent.ToolsFailed) and failed.errno == 93
    flood = struct.pack("<I", 65536) + b"o" + bytes(65535)
    monkeypatch.setattr(agent, "ANSWER_MAX", 100_000)
    assert "more than 100000 bytes" in str(answered(flood, flood))


def test_a_command_that_is_fed(enclave: FakeEnclave) -> None:
    """As `cp` has one: a piece of its input after the other has been taken, then the end; its output as it
    comes, its status, and the first line of what it complained of."""
    taken: list[bytes] = []

    def script(peer: Peer) -> None:
        assert peer.request == struct.pack("<HcBHH", 1, b"X", 2, 0, 0) + b"\0" + b"tar\0-xf\0-\0"
        while (frame := peer.read()) and frame[0] == b"i":
            taken.append(frame[1])
            peer.send(b"o", b"%d " % len(frame[1]))
            peer.send(b"a")
        assert frame == (b"e", b"")
        peer.send(b"r", b"\ntar: short read\nmore\n" + b"x" * 9000)
        peer.exit(signal.SIGKILL, how=1)

    enclave.script = script
    command = agent.Command(enclave.record, ["tar", "-xf", "-"], busybox=True)
    said: list[bytes] = []
    assert command.reason == "no reason given"
    assert command.run([b"ab", b"", b"c" * 70_000], said.append) == 128 + signal.SIGKILL
    assert b"".join(taken) == b"ab" + b"c" * 70_000 and max(map(len, taken)) <= 65535
    assert b"".join(said) == b"".join(b"%d " % len(piece) for piece in taken)
    assert command.reason == "tar: short read" and len(command.errors) == 4096


def test_what_an_agent_is_not_asked(enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that no frame holds; one that never answers; none that listens, while the enclave runs."""
    for word in ("x" * 70_000, "a\0b"):
        with pytest.raises(EnclaveError, match="the command is too long, or has a NUL in it"):
            agent.Command(enclave.record, [word])
    enclave.script = lambda peer: assert_gone(peer)
    with pytest.raises(EnclaveTimeout, match=r"^enclave app: no answer within 0.02 s$"):
        agent.answer(enclave.record, b"C", ["read"], timeout=0.02)
    monkeypatch.setattr(agent, "START_SECONDS", 0.01)
    nobody = dataclasses.replace(enclave.record, uds=enclave.record.uds.with_name("nobody"))
    with pytest.raises(EnclaveError, match="^enclave app: its agent does not answer") as caught:
        agent.answer(nobody, b"C", ["read"])
    assert caught.value.hint == "nitroctl console app"


def assert_gone(peer: Peer) -> None:
    """Whoever gives up closes the connection."""
    assert peer.read() is None


def test_an_input_that_cannot_be_read(enclave: FakeEnclave) -> None:
    enclave.script = lambda peer: assert_gone(peer)
    given = os.open(os.devnull, os.O_WRONLY)
    try:
        done = subprocess.run(shell("app", "cat"), stdin=given, capture_output=True, text=True, timeout=LIMIT)
    finally:
        os.close(given)
    assert (done.returncode, done.stderr) == (1, "error: cannot read standard input: Bad file descriptor\n")


def test_the_clock(enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def script(peer: Peer) -> None:
        asked.append(peer.request)
        peer.send(b"o", b"1500000000 2500000000\n")
        peer.exit(0)

    enclave.script = script
    head = struct.pack("<HcBHH", 1, b"C", 0, 0, 0) + b"\0"
    assert clock.set_clock(enclave.record) == clock.Reading(1.5, 2.5)
    clock.set_clock(enclave.record, at=1e9)
    clock.set_clock(enclave.record, shift=-3600.5)
    clock.set_clock(enclave.record, ppm=-100_000)
    assert asked == [
        head + words for words in (
            b"read\0", b"set\x001000000000000000000\0", b"shift\0-3600500000000\0", b"rate\0-100000\0"
        )
    ]  # fmt: skip
    wrong: dict[str, Any]
    for wrong in ({"at": -1.0}, {"shift": float("nan")}, {"ppm": 100_001}, {"at": 1.0, "ppm": 1}):
        with pytest.raises(UsageError):
            clock.set_clock(enclave.record, **wrong)

    noted = []
    monkeypatch.setattr(remote, "ask", lambda record, do, **request: noted.append((do, request)))
    asked.clear()
    said = CliRunner().invoke(
        nitroctl, ["fault", "guest-clock", "app", "--jump", "-60.5", "--drift", "200"], catch_exceptions=False
    )
    assert said.stdout == "guest-clock jump=-60.5 drift=200\n"
    assert asked == [head + b"rate\x00200\0", head + b"shift\0-60500000000\0"]
    assert noted == [("fault", {"fault": "guest-clock", "options": {"jump": -60.5, "drift": 200}})]
    asked.clear()
    clock.clear(enclave.record)
    assert asked == []  # nobody has set it, as far as the record knows
    value = {**enclave.record.to_json(), "faults": ["guest-clock drift=200"]}
    records._write(enclave.home, records.Record.from_json(value))
    clock.clear(enclave.record)
    assert asked[0] == head + b"rate\x000\0" and asked[1].startswith(head + b"set\0")

    def vague(peer: Peer) -> None:
        peer.send(b"o", b"soon\n")
        peer.exit(0)

    enclave.script = vague
    with pytest.raises(EnclaveError, match="about the clock"):
        clock.set_clock(enclave.record)
