# SPDX-License-Identifier: MIT
"""Faults of the host that are nobody's end by themselves: processes that are stopped, files that go away
under an enclave, limits that are reached, a clock that is set. docs/faults.md has all faults.

The programs under the supervisor are fakes.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, steps
from enclave_life import Life
from nitroctl.commands.run import _tell
from nitroctl.enclaves.records import Record

UP = (HEARTBEAT, ["print", "up\r\n"])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def hold(pid: int) -> None:
    """Stop it, and wait until it is."""
    os.kill(pid, signal.SIGSTOP)
    while state_of(pid) != "T":
        os.sched_yield()


def test_a_qemu_that_was_stopped_is_killed_by_the_second_ctrl_c(bench: Bench) -> None:
    with bench.start(**steps(*UP)) as run:
        run.until("up")
        hold(bench.pid_of(bench.qemu))
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() in (130, 143)  # whichever was seen first
    assert bench.left() == [] and bench.processes() == {}


def test_a_supervisor_that_was_stopped(bench: Bench, life: Life) -> None:
    """It takes up again where it was; and where nobody lets it, its enclave is ended without it."""
    record = life.start(**steps(*UP))
    hold(record["supervisor_pid"])
    os.kill(record["supervisor_pid"], signal.SIGCONT)
    life.ok("stop", "hello")
    assert life.ended()["ending"] == "stopped"
    record = life.start(**steps(*UP))
    hold(record["supervisor_pid"])
    life.ok("stop", "--kill", "hello")
    bench.wait_gone()
    assert bench.left() == []


def test_its_sockets_are_removed_while_it_runs(bench: Bench) -> None:
    """Whoever comes then does not find it; who is in stays, and it ends as ever."""
    for whole in (False, True):
        with bench.start(**steps(*UP)) as run:
            run.until("up")
            folder = bench.runtime / "nitroctl/16"
            shutil.rmtree(folder)
            if not whole:
                folder.mkdir(mode=0o700)
            done = subprocess.run(
                [*bench.command()[:3], "vsock", "connect", "hello", "5000"], env=bench.environment({}),
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG,
            )  # fmt: skip
            assert done.returncode == 1
            assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
            run.process.send_signal(signal.SIGTERM)
            assert run.wait() == 143
            assert b"Traceback" not in run.err
        assert bench.processes() == {}


@pytest.mark.parametrize("limit", [6, 12, 20, 26])
def test_too_few_descriptors(bench: Bench, limit: int) -> None:
    """Wherever they run out: one line, and nothing is left."""
    done = subprocess.run(
        bench.command(), env=bench.environment(steps(HEARTBEAT, RESET)), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=HANG,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )  # fmt: skip
    assert bench.processes() == {} and bench.left() == []
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert "Too many open files" in done.stderr


def test_the_hosts_clock_is_set(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    """No limit is measured by it; an age is never below zero."""
    record = Record.from_json({**life.start(**steps(*UP)), "started": time.time() + 1e6})
    (record.home / "record.json").write_text(json.dumps(record.to_json()))
    assert " 0 s " in life.ok("ps")
    _tell(record)
    assert "heartbeat after 0.0 s" in capsys.readouterr().err
    life.ok("stop", "hello")


def test_the_image_is_cut_or_replaced_before_qemu_reads_it(bench: Bench) -> None:
    """QEMU reads it once and judges that: what it says is what is said."""
    done = bench.run(**steps(["stderr", "qemu: hello.eif: [file-too-short] 4 bytes"], ["exit", 1]))
    assert done.returncode == 1
    assert "QEMU ended with status 1: qemu: hello.eif: [file-too-short] 4 bytes" in done.stderr
    assert bench.left() == []
