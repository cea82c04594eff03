# SPDX-License-Identifier: MIT
"""Faults of an enclave's vsock, for tests of what is at either end: how the backend is asked for them.

What each does is the backend's (contrib/vhost-user-vsock/fault.c); which connections it is about is told the
same way for all, by `Which`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nitroctl.base.errors import UsageError
from nitroctl.enclaves import remote
from nitroctl.enclaves.records import Record
from nitroctl.vsock import sockets

MS_MAX = 60_000
CHANCES = 1_000_000
SEED_MAX = (1 << 64) - 1
COUNT_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class Which:
    """Of the connections to `port`, the parent's or the enclave's (None: to any), those that a fault is
    about: only the `nth` that begins from now, at most `times`, each with the chance `rate`, which `seed`
    decides."""

    port: int | None = None
    nth: int | None = None
    times: int | None = None
    rate: float = 1.0
    seed: int = 0

    def request(self) -> dict[str, Any]:
        """For the backend. Raises UsageError."""
        if self.port is not None:
            sockets.check_port(self.port)
        for name, value in (("nth", self.nth), ("times", self.times)):
            if value is not None:
                _whole(name, value, 1, COUNT_MAX)
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0 <= self.rate <= 1:
            raise UsageError(f"rate={self.rate!r}: a rate is a number from 0 to 1")
        _whole("seed", self.seed, 0, SEED_MAX)
        found = {"port": self.port, "nth": self.nth, "times": self.times}
        if self.rate < 1:
            found |= {"chance": round(self.rate * CHANCES), "seed": self.seed}
        return {name: value for name, value in found.items() if value is not None}


def _whole(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name}={value!r}: {name} is a whole number from {least} to {most}")
    return value


def _ask(record: Record, do: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = remote.ask(record, "vsock", request={"do": do, **more})
    return found


def _set(record: Record, kind: str, which: Which, **more: int) -> int:
    return int(_ask(record, "fault", kind=kind, **more, **which.request())["fault"])


# Each returns the fault's number, for `clear`.


def latency(record: Record, which: Which, *, ms: int = 0, jitter: int = 0) -> int:
    """Bytes come `ms` milliseconds late, and up to `jitter` more by the seed; so does the guest's connect."""
    _whole("ms", ms, 0, MS_MAX)
    _whole("jitter", jitter, 0, MS_MAX)
    if not ms and not jitter:
        raise UsageError("a latency needs ms or jitter")
    more = {"seed": which.seed} if which.rate == 1 else {}
    return _set(record, "latency", which, ms=ms, jitter=jitter, **more)


def refuse(record: Record, which: Which) -> int:
    """As if nobody listened."""
    return _set(record, "refuse", which)


def reset(record: Record, which: Which, *, after: int = 0) -> int:
    """They end by a reset once `after` bytes have passed, both directions together."""
    return _set(record, "reset", which, after=_whole("after", after, 0, COUNT_MAX))


def stop_reading(record: Record, which: Which, *, after: int = 0) -> int:
    """The host's end takes nothing any more once `after` bytes have passed: the guest's credit runs out."""
    return _set(record, "stop-reading", which, after=_whole("after", after, 0, COUNT_MAX))


def clear(record: Record, number: int | None = None) -> int:
    """That fault, or all; how many there were. What they held back goes on."""
    more = {} if number is None else {"fault": _whole("fault", number, 1, (1 << 32) - 1)}
    return int(_ask(record, "fault-clear", **more)["cleared"])


def state(record: Record) -> list[dict[str, Any]]:
    """Those that are set, with what they have met (docs/json.md)."""
    keys = (
        "fault", "kind", "port", "ms", "jitter", "after", "nth", "times", "seed", "connections", "struck",
    )  # fmt: skip
    return [
        {**{key: row.get(key) for key in keys}, "rate": row["chance"] / CHANCES}
        for row in _ask(record, "faults")["faults"]
    ]


def words(row: dict[str, Any]) -> str:
    """One of `state` for people."""
    parts = [f"{row['fault']}: {row['kind']}"]
    parts.append("any port" if row["port"] is None else f"port {row['port']}")
    parts += [f"{name} {row[name]}" for name in ("ms", "jitter", "after", "nth", "times") if row[name]]
    if row["rate"] < 1 or row["jitter"]:
        parts.append(f"rate {row['rate']:g} seed {row['seed']}")
    return f"{', '.join(parts)}; {row['struck']} of {row['connections']} connections"
