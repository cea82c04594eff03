# SPDX-License-Identifier: MIT
"""How busy the machine was while something was measured, by others than the measured programs; and runs that
were disturbed, taken again. Measures nothing itself.

    others      the share of all processors' time that went to programs that are not ours (/proc/stat)
    steal       that which the host under this machine gave to somebody else
    pressure    the share of time in which some program waited for a processor, ours too (/proc/pressure/cpu)

A run counts as disturbed above `OTHERS` or `STEAL`; it is done again, at most `AGAIN` times, and of all tries
that counts which was disturbed least. What was left of it is told with the figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

OTHERS, STEAL = 0.10, 0.03
AGAIN = 2

_TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/stat's first line, proc(5).
_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 0, 1, 2, 5, 6, 7


@dataclasses.dataclass(frozen=True)
class Busy:
    """Shares of the time of a run, of all processors."""

    others: float
    steal: float
    pressure: float

    @property
    def disturbed(self) -> bool:
        return self.others > OTHERS or self.steal > STEAL


@dataclasses.dataclass(frozen=True)
class _Reading:
    at: float
    busy: float  # seconds of all processors
    steal: float
    ours: float  # seconds of this process and all below it, ended or not
    waiting: float  # seconds in which somebody waited

    @staticmethod
    def now() -> _Reading:
        with open("/proc/stat", encoding="ascii") as f:
            fields = [int(word) / _TICKS for word in f.readline().split()[1:]]
        return _Reading(
            time.monotonic(),
            sum(fields[i] for i in (_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ)),
            fields[_STEAL],
            _used(),
            _waiting(),
        )


_marks: list[bytes] = []


def also(variable: str, value: str) -> None:
    """Processes that have this in their environment are ours, with all below them: those that detach
    themselves from what we start."""
    _marks.append(os.fsencode(f"{variable}={value}"))


def _is_marked(pid: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as f:
        return not {*_marks}.isdisjoint(f.read().split(b"\0"))
    return False


def _used() -> float:
    below: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    pending = [os.getpid()]
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
            ticks[int(name)] = sum(map(int, fields[11:15]))  # its own, and those of children that were reaped
            below.setdefault(int(fields[1]), []).append(int(name))
            if _marks and _is_marked(name):
                pending.append(int(name))
    ours: set[int] = set()
    while pending:
        pid = pending.pop()
        if pid not in ours:
            ours.add(pid)
            pending += below.get(pid, [])
    return sum(ticks.get(pid, 0) for pid in ours) / _TICKS


def _waiting() -> float:
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as f:
            return int(f.readline().rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):  # an older kernel, or one that is not asked to count
        return 0.0


def busy_between(before: _Reading, after: _Reading, cpus: int | None = None) -> Busy:
    wall = max(after.at - before.at, 1 / _TICKS)
    whole = wall * (cpus or os.cpu_count() or 1)
    ours = after.ours - before.ours
    return Busy(
        others=max(0.0, after.busy - before.busy - ours) / whole,
        steal=(after.steal - before.steal) / whole,
        pressure=(after.waiting - before.waiting) / wall,
    )


_kept: list[Busy] = []
_repeated = 0


def undisturbed(measure: Callable[[], T], name: str = "", after: Callable[[], object] = lambda: None) -> T:
    """The result of a run in which the machine was ours, or of the best of some tries. `after` each try, what
    it has left is removed; until then it counts as ours."""
    global _repeated
    tries: list[tuple[Busy, T]] = []
    for attempt in range(1 + AGAIN):
        before = _Reading.now()
        result = measure()
        busy = busy_between(before, _Reading.now())
        after()
        tries.append((busy, result))
        if not busy.disturbed:
            break
        if attempt < AGAIN:
            _repeated += 1
            print(f"  again {name}: others took {busy.others:.0%}, steal {busy.steal:.0%}", file=sys.stderr)
    busy, result = min(tries, key=lambda one: max(one[0].others / OTHERS, one[0].steal / STEAL))
    _kept.append(busy)
    return result


def rows() -> list[tuple[str, str]]:
    """What was going on, for a table."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    found = [("processors, load", f"{os.cpu_count()}, {load}")]
    for name, values in (
        ("taken by others", [one.others for one in _kept]),
        ("steal", [one.steal for one in _kept]),
        ("pressure, ours too", [one.pressure for one in _kept]),
    ):
        if values:
            found.append((name, f"median {statistics.median(values):.1%}, at most {max(values):.1%}"))
    disturbed = sum(one.disturbed for one in _kept)
    text = f"{_repeated} repeated, {disturbed} of {len(_kept)} that count were disturbed all the same"
    found.append(("runs", text))
    return found
