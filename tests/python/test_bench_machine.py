# SPDX-License-Identifier: MIT
"""What `make bench` says of the machine: whose processor time is whose, and which runs are taken again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"

# Leaves its parents, works for a while, tells that it has, and waits for the end of its input.
DETACHED = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
while time.process_time() < 0.3:
    pass
os.write(1, b"%d" % os.getpid())
os.close(1)
os.read(0, 1)
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(os.fspath(BENCH))
    monkeypatch.delitem(sys.modules, "machine", raising=False)
    import machine

    return machine


def test_detached_processes_are_ours_if_they_are_marked(machine: ModuleType) -> None:
    mark = f"/nowhere/{os.getpid()}"
    read, write = os.pipe()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", DETACHED], stdin=read, stdout=subprocess.PIPE, env={"BENCH_MARK": mark}
        ) as process:
            os.close(read)
            assert process.stdout
            pid = int(process.stdout.read())
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        assert int(parent) not in (os.getpid(), process.pid)
        machine.also("BENCH_MARK", f"{mark}/other")
        assert not machine._is_marked(str(pid))
        before = machine._used()
        machine.also("BENCH_MARK", mark)
        assert machine._is_marked(str(pid))
        assert machine._used() - before > 0.25
    finally:
        os.close(write)


def test_a_disturbed_run_is_taken_again_and_cleaned_up(
    machine: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = machine.Busy
    shares = iter([0.5, 0.2, 0.3, 0.05])
    monkeypatch.setattr(machine, "busy_between", lambda *_: busy(next(shares), 0.0, 0.0))
    log: list[str] = []

    def measure() -> int:
        log.append("run")
        return len(log)

    undisturbed = machine.undisturbed
    # Of three the one that was disturbed least; it is the second, the third entry.
    assert undisturbed(measure, "it", lambda: log.append("end")) == 3
    assert log == ["run", "end"] * 3
    assert undisturbed(measure) == 7
    assert log == ["run", "end"] * 3 + ["run"]
    rows = dict(machine.rows())
    assert rows["runs"] == "2 repeated, 1 of 2 that count were disturbed all the same"
    assert "at most 20.0%" in rows["taken by others"]
    assert capsys.readouterr().err.count("again it: others took") == 2
