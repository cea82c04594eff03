# SPDX-License-Identifier: MIT
"""The processes of a guest with their share of CPU and memory, from lines that its agent sends
(guest/tools-top.c). What a guest says is a guest's word: numbers are checked, text is somebody else's.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves.records import Record
from nitroctl.inside import agent

PAGE = 4096  # of x86-64, and of AWS's arm64 kernels
PROCESSES_MAX = 10_000
_NUMBER_MAX = 1 << 63
_SPAN_MIN = 0.1  # s, for what has just started: the kernel counts in hundredths

# proc_pid_stat(5): pid, (comm), state, ppid, and by their numbers utime, stime, num_threads, starttime, rss.
_STAT = re.compile(r"(\d{1,10}) \((.*)\) (\S) ([-\d ]+)", re.DOTALL)
_UTIME, _STIME, _THREADS, _START, _RSS = 14 - 4, 15 - 4, 20 - 4, 22 - 4, 24 - 4


@dataclass(frozen=True)
class Process:
    """`cpu_percent`: of one CPU, since the sample before, or since its start where there is none."""

    pid: int
    ppid: int
    name: str
    command: str
    state: str
    threads: int
    cpu_seconds: float
    cpu_percent: float
    memory: int  # bytes that are in memory


@dataclass(frozen=True)
class Sample:
    uptime: float
    memory_total: int  # bytes
    memory_available: int
    processes: tuple[Process, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "processes": [asdict(process) for process in self.processes]}


def sample(record: Record, before: Sample | None = None) -> Sample:
    """The guest's processes now, those that use most CPU first."""
    return parse(record, agent.answer(record, b"T"), before)


def parse(record: Record, text: str, before: Sample | None = None) -> Sample:
    def bad(line: str) -> EnclaveError:
        message = f"enclave {record.name}: its agent sent {line[:80]!r} in a list of processes"
        return EnclaveError(message, record=record)

    hz, uptime, memory = 100, 0.0, (0, 0)
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        try:
            if key == "hz":
                hz = _number(value, 1)
            elif key == "uptime":
                uptime = float(value.split()[0])
            elif key == "memory":
                total, available = value.split()
                memory = (_number(total) * 1024, _number(available) * 1024)
            elif key == "process" and len(found) < PROCESSES_MAX:
                found.append((value, ""))
            elif key == "command" and found:
                found[-1] = (found[-1][0], value.rstrip())
        except (ValueError, IndexError):
            raise bad(line) from None
    earlier = {process.pid: process for process in before.processes} if before else {}
    since = before.uptime if before else 0.0
    processes = []
    for stat, command in found:
        try:
            process, started = _process(stat, command, hz)
        except (ValueError, IndexError):
            raise bad(stat) from None
        old = earlier.get(process.pid)
        used = process.cpu_seconds - (old.cpu_seconds if old else 0.0)
        span = max(uptime - max(since, started), _SPAN_MIN)
        processes.append(replace(process, cpu_percent=round(max(0.0, 100 * used / span), 1)))
    processes.sort(key=lambda p: (-p.cpu_percent, -p.cpu_seconds, p.pid))
    return Sample(uptime, *memory, tuple(processes))


def _number(text: str, least: int = 0) -> int:
    number = int(text)
    if not least <= number < _NUMBER_MAX:
        raise ValueError
    return number


def _process(stat: str, command: str, hz: int) -> tuple[Process, float]:
    match = _STAT.fullmatch(stat.strip())
    if not match:
        raise ValueError
    numbers = match[4].split()
    name = match[2]
    return (
        Process(
            pid=int(match[1]),
            ppid=_number(numbers[0]),
            name=name,
            command=command or f"[{name}]",
            state=match[3],
            threads=_number(numbers[_THREADS]),
            cpu_seconds=(_number(numbers[_UTIME]) + _number(numbers[_STIME])) / hz,
            cpu_percent=0.0,
            memory=_number(numbers[_RSS]) * PAGE,
        ),
        _number(numbers[_START]) / hz,
    )
