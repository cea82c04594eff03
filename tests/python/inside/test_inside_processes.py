# SPDX-License-Identifier: MIT
"""A guest's list of processes: two samples as a Linux gives them, and whatever else a guest may say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from jsonpage import answer
from nitroctl.base.errors import EnclaveError
from nitroctl.cli import nitroctl
from nitroctl.enclaves import records
from nitroctl.inside import agent, processes

RECORD: Any = SimpleNamespace(name="app", memory_mib=64, hint=None, cause=None, tail=())


def sent(uptime: float, ticks: int) -> str:
    """Fields as in proc_pid_stat(5): user and system time are the 14th and 15th, then threads the 20th, the
    start the 22nd, and the pages in memory the 24th."""
    init = "1 (init) S 0 1 1 0 -1 4194560 10 0 0 0 3 7 0 0 20 0 1 0 100 1000000 150 18446744073709551615"
    app = f"32 (a) S) b\x1b[m) R 1 32 32 0 -1 0 10 0 0 0 {ticks} 50 0 0 20 0 4 0 200 2000000 256 1844"
    return (
        f"hz 100\nuptime {uptime} 3.00\ncpu 1 2 3\nmemory 1000 600\n"
        f"process {init}\ncommand /init foo \nprocess {app}\n"
    )


def test_two_samples() -> None:
    first = processes.parse(RECORD, sent(12.0, 450))
    assert (first.uptime, first.memory_total, first.memory_available) == (12.0, 1000 * 1024, 600 * 1024)
    app, init = first.processes
    assert (app.pid, app.ppid, app.name, app.state) == (32, 1, "a) S) b\x1b[m", "R")
    assert (app.threads, app.cpu_seconds, app.memory) == (4, 5.0, 1 << 20)
    assert app.command == "[a) S) b\x1b[m]"
    assert app.cpu_percent == 50.0  # 5 s of the 10 s that it is there
    assert (init.command, init.cpu_seconds, init.threads) == ("/init foo", 0.1, 1)
    second = processes.parse(RECORD, sent(14.0, 600), first)
    assert [process.cpu_percent for process in second.processes] == [75.0, 0.0]


@pytest.mark.parametrize(
    "line",
    ["hz 0", "hz x", "uptime", "memory 1", "memory 1 -2", "process 1 (x) S 0",
     "process -1 (x) S " + "1 " * 30, "process 1 (x) S " + "9" * 5000 + " 1" * 30, "uptime x",
     "memory 1 2 3"],
)  # fmt: skip
def test_a_line_that_says_nothing_is_refused(line: str) -> None:
    with pytest.raises(EnclaveError, match="in a list of processes"):
        processes.parse(RECORD, line + "\n")


@given(st.text(st.sampled_from("0123456789 ()-.\nSpruhzcesmoyx\x1b"), max_size=300))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    for prefix in ("", "process 1 (", "uptime ", "memory "):
        try:
            processes.parse(RECORD, prefix + text)
        except EnclaveError as e:
            assert "\n" not in str(e)


def test_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "find", lambda name, running: RECORD)
    monkeypatch.setattr("nitroctl.commands.inside.SAMPLE_SECONDS", 0)
    texts = iter([sent(12.0, 450), sent(14.0, 600)] * 2)
    monkeypatch.setattr(agent, "answer", lambda record, operation: next(texts))
    shown = CliRunner().invoke(nitroctl, ["top", "app"], catch_exceptions=False).stdout
    assert "75.0" in shown and "\x1b" not in shown and r"[a) S) b\x1b[m]" in shown
    found = CliRunner().invoke(nitroctl, ["top", "app", "--json"], catch_exceptions=False)
    assert [one["pid"] for one in answer("nitroctl top", found.stdout)["processes"]] == [32, 1]
