# SPDX-License-Identifier: MIT
"""Into real guests with `--tools`: a terminal, pipes, files, processes, the clock, a core dump; with an init
that does what AWS's does, and on Debian's kernel. What goes over the connection is tested without guests, in
tests/python/inside."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nitroctl.base import proc
from nitroctl.eif import testimage
from nitroctl.eif.testimage import Programs
from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import LIMIT, Console, Lab, Run
from nitroctl.toolchain import guest

pytestmark = pytest.mark.boot

HERE = Path(__file__).parent


def image(lab: Lab, tmp_path: Path) -> Path:
    """The test agent under AWS's init, or under a stand-in for it."""
    if lab.blobs:
        return lab.image("agent")
    init = tmp_path / "stand-in"
    proc.run(["cc", *guest.PROGRAM_FLAGS, "-o", str(init), str(HERE / "stand-in.c")])
    programs = replace(Programs.in_folder(guest.build_init()), init=init)
    testimage.make("agent", tmp_path / "agent.eif", kernel=lab.kernels["own"], programs=programs)
    return tmp_path / "agent.eif"


def nitroctl(*words: str) -> list[str]:
    return [sys.executable, "-m", "nitroctl", *words]


def call(lab: Lab, *words: str, input: bytes = b"", **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        nitroctl(*words), input=input, capture_output=True, env=lab.environment(), timeout=LIMIT, **more
    )


def test_into_a_guest(lab: Lab, tmp_path: Path) -> None:
    with lab.run(image(lab, tmp_path), "--tools", "--name", "inside") as run:
        with run.agent(run.uds()) as agent:
            assert agent.probe("cat", "/proc/1/cmdline").startswith("/init\0")
            pipes(lab)
            terminal(lab)
            copies(lab, tmp_path)
            listed = json.loads(call(lab, "top", "inside", "--json").stdout)
            (found,) = [one for one in listed["processes"] if one["name"] == "agent"]
            assert found["ppid"] == 1 and found["command"] == "/agent" and found["memory"] > 0
            clocks(lab, agent)
            dies(lab, run, agent)


def test_on_debians_kernel(lab: Lab) -> None:
    with lab.run(lab.image("agent", kernel="prebuilt"), "--tools", "--name", "inside") as run:
        with run.agent(run.uds()) as agent:
            done = call(lab, "shell", "inside", "--", "ls", "/")
            assert (done.returncode, b"agent" in done.stdout.split()) == (0, True), done.stderr
            dies(lab, run, agent)


def pipes(lab: Lab) -> None:
    given = os.urandom(300_000)
    command = "cat; echo there >&2; test $(id -u):$(pwd) = 0:/ && exit 7"
    done = call(lab, "shell", "inside", "--", "sh", "-c", command, input=given)
    assert (done.returncode, done.stderr) == (7, b"there\n")
    assert done.stdout == given
    assert call(lab, "shell", "inside", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    missing = call(lab, "shell", "inside", "/no/such/program")
    assert (missing.returncode, missing.stderr) == (
        127, b"nitroctl: /no/such/program: No such file or directory\n"
    )  # fmt: skip
    with waiting(lab) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(LIMIT) == 128 + signal.SIGINT


def waiting(lab: Lab) -> subprocess.Popen[bytes]:
    """A command that has begun, and would go on."""
    child = subprocess.Popen(
        nitroctl("shell", "inside", "--", "sh", "-c", "echo ready; exec sleep 1000"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=lab.environment(),
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == b"ready\n"
    return child


def terminal(lab: Lab) -> None:
    shell = Console(lab, "nitroctl shell", nitroctl("shell", "inside"), lab.environment())
    shell.expect(b"# ")
    shell.child.sendline("stty size; tty")
    shell.expect(rb"24 400\r+\n/dev/pts/\d+\r+\n.*# ")
    shell.child.setwinsize(50, 132)
    shell.child.sendline('while test "$(stty size)" != "50 132"; do :; done; echo re""sized')
    shell.expect(rb"resized\r+\n.*# ")
    # Said by the process that gets the Ctrl-C: the shell itself would go on to the next command.
    shell.child.sendline("sh -c 'echo sleep\"\"ing; exec sleep 1000'")
    shell.expect(rb"\nsleeping\r+\n")
    shell.child.sendintr()
    shell.expect(rb"\^C.*# ")
    shell.child.sendline("exit 9")
    assert shell.status() == 9


def copies(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder/file").write_bytes(content := os.urandom(200_000))
    (source / "folder/link").symlink_to("file")
    done = call(lab, "cp", str(source), "inside:/var/copy")
    assert (done.returncode, done.stdout) == (0, b"inside:/var/copy\n"), done.stderr
    call(lab, "shell", "inside", "--", "ln", "-s", "/etc/passwd", "/var/copy/far")
    done = call(lab, "cp", "inside:/var/copy", "back", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"back\n"), done.stderr
    assert done.stderr == b"left out: copy/far: a link to /etc/passwd, which may lead out of the copy\n"
    assert (tmp_path / "back/folder/file").read_bytes() == content
    assert os.readlink(tmp_path / "back/folder/link") == "file"
    assert not os.path.lexists(tmp_path / "back/far")
    done = call(lab, "cp", "inside:/var/nothing", "new", cwd=tmp_path)
    assert done.returncode == 1 and b"nothing: No such file or directory" in done.stderr
    assert not os.path.lexists(tmp_path / "new")


def clocks(lab: Lab, agent: Agent) -> None:
    """What an application sees of a clock that is set from outside, and that the record tells."""

    def now() -> float:
        return int(agent.facts("clock")["us"]) / 1e6

    def fault(*words: str) -> bytes:
        done = call(lab, "fault", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = now()
    said = fault("guest-clock", "inside", "--jump", "864000", "--drift", "100000")
    assert said == b"guest-clock jump=864000 drift=100000\n"
    assert now() - before == pytest.approx(864000, abs=600)
    fault("clear", "inside")
    assert now() - before == pytest.approx(0, abs=600)
    faults = json.loads(call(lab, "inspect", "inside").stdout)["faults"]
    assert faults == ["guest-clock jump=864000 drift=100000", "clear"]


def dies(lab: Lab, run: Run, agent: Agent) -> None:
    """The application dumps core; whoever looks at the enclave meanwhile is told; gdb reads the core."""
    with waiting(lab) as child:
        agent.kill(signal.SIGABRT)
        assert child.wait(LIMIT) == 1
        assert child.stderr and b"error: enclave inside has ended meanwhile: " in child.stderr.read()
    match = run.expect(
        rb"core dump: /agent \(process (\d+)\) died of SIGABRT; build-id none\r\n  (gdb [^\r]*)\r\n"
    )
    run.check_ends(5)
    record = json.loads(call(lab, "inspect", "inside").stdout)
    (core,) = record["cores"]
    assert (core["pid"], core["signal"], core["complete"]) == (int(match[1]), signal.SIGABRT, True)
    assert core["gdb"] == match[2].decode()
    said = subprocess.run(
        [*shlex.split(core["gdb"]), "-batch"], capture_output=True, text=True, timeout=LIMIT
    )
    assert re.search(r"^Program terminated with signal SIGABRT", said.stdout, re.M), said.stdout + said.stderr
    assert call(lab, "rm", record["id"]).returncode == 0
    assert not Path(record["home"]).exists()
