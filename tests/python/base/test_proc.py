# SPDX-License-Identifier: MIT
"""Starting programs: which signals they and we get meanwhile. What is done with them is tested elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nitroctl.base import proc
from nitroctl.base.errors import CommandFailed
from nitroctl.toolchain import steps

PATIENCE = 60

# A Ctrl-C comes while Python runs its hooks of a fork; the program that is started waits for our end.
INTERRUPTED_FORK = """
import os, signal
from nitroctl.base import proc, progress
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    with progress.task("a fork"):
        proc.start(["sleep", "1000"])
except KeyboardInterrupt:
    try:
        print("interrupted", os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        print("interrupted, no child")
"""


def test_ctrl_c_within_a_fork_is_heard() -> None:
    """And what was forked is stopped and reaped."""
    argv = [sys.executable, "-c", INTERRUPTED_FORK]
    done = subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=True)
    assert done.stdout == b"interrupted, no child\n" and done.stderr == b"a fork ...\n"


def test_ctrl_c_within_a_fork_is_heard_on_a_terminal() -> None:
    """Where a thread of its own keeps the progress moving."""
    ours, theirs = os.openpty()
    argv = [sys.executable, "-c", INTERRUPTED_FORK]
    with open(ours, "rb", buffering=0), open(theirs, "wb", buffering=0) as terminal:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=terminal, timeout=PATIENCE, check=True)
    assert done.stdout == b"interrupted, no child\n"


@pytest.mark.parametrize("death_signal", [signal.SIGKILL, 0])
def test_signals_are_blocked_in_a_child_as_in_us(death_signal: int) -> None:
    show = ["sed", "-n", "s/^Sig[B]lk:\t//p", "/proc/self/status"]

    def seen() -> int:
        process = proc.start(show, stdout=subprocess.PIPE, death_signal=death_signal)
        return int(process.communicate(timeout=PATIENCE)[0], 16)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert seen() == sum(1 << (number - 1) for number in before)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGHUP, signal.SIGUSR1})
    try:
        assert seen() == 1 << (signal.SIGHUP - 1) | 1 << (signal.SIGUSR1 - 1)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGHUP, signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_sigpipe_is_ignored_where_asked(tmp_path: Path) -> None:
    argv = ["sh", "-c", "kill -PIPE $$; echo lives"]
    lines: list[str] = []
    assert steps.logged(argv, tmp_path / "log", lines.append) == -signal.SIGPIPE and lines == []
    assert steps.logged(argv, tmp_path / "log", lines.append, ignore_sigpipe=True) == 0 and lines == ["lives"]


def test_one_that_ignores_sigterm_is_killed() -> None:
    deaf = proc.start(["sh", "-c", "trap '' TERM; echo; exec sleep 600"], stdout=subprocess.PIPE)
    assert deaf.stdout and deaf.stdout.readline() == b"\n"
    assert proc.stop(deaf, grace=0.01) == -signal.SIGKILL
    deaf.stdout.close()
    assert proc.stop(deaf) == -signal.SIGKILL  # once more, of one that is gone


def test_what_a_program_said_is_logged(tmp_path: Path) -> None:
    """All of it to the log, behind what is there; its last lines to the error."""
    log = tmp_path / "log"
    log.write_text("before\n")
    lines: list[str] = []
    argv = ["sh", "-c", "echo one; echo two >&2; exit 3"]
    with pytest.raises(CommandFailed) as caught:
        proc.run(argv, log=log, on_line=lines.append)
    assert log.read_text() == "before\none\ntwo\n" and lines == ["one", "two"]
    assert "failed with status 3" in str(caught.value) and "two" in str(caught.value)
    assert proc.run(argv, log=log, check=False).returncode == 3
