# SPDX-License-Identifier: MIT
"""Faults that a test wants of a running enclave: what can be asked for, and asking for it.

Values here, with their limits, and the words that the enclave's record has for them; and one function for
each kind of fault, which asks the enclave's supervisor (`remote`). What then happens is done by who owns the
part: `nsm` for the Nitro Secure Module and its clock, `moments` for the enclave's death, the vsock backend
for its own. Who may ask is decided by `control`: the enclave's user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import remote, vsock_faults
from nitroctl.enclaves.records import Record

ALWAYS = 0xFFFFFFFF  # a count without an end, as the device has it
KINDS = (
    "DescribeNSM", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs", "Attestation", "GetRandom",
)  # fmt: skip
DELAY_MAX = 3600.0  # seconds
JUMP_MAX = 100 * 365 * 86400.0
DRIFT_MAX = 500000
SEED_MAX = (1 << 64) - 1
PORT_MAX = (1 << 32) - 2


@dataclass(frozen=True)
class NsmFault:
    """What requests to the NSM suffer: InternalError, or a late answer, or both; of one kind or all; the next
    `count` (None: all), or of all of them so many as `rate` says, by chances that `seed` decides. `expired`:
    documents come with a certificate that has expired, whichever the count."""

    error: bool = False
    delay_ms: int = 0
    expired: bool = False
    kind: str | None = None
    count: int | None = None
    rate: float = 1.0
    seed: int = 0

    @classmethod
    def of(
        cls,
        *,
        error: bool = False,
        delay: float = 0.0,
        expired: bool = False,
        kind: str | None = None,
        count: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> NsmFault:
        """As users say it, the delay in seconds. Raises UsageError."""
        if not (error or delay or expired):
            raise UsageError("an NSM fault is an error, a delay, or documents that have expired")
        if kind is not None and kind not in KINDS:
            raise UsageError(f"an NSM has no requests {kind!r}; there are {', '.join(KINDS)}")
        _within("a delay", delay, 0, DELAY_MAX, "s")
        if count is not None:
            _within("a count", count, 1, ALWAYS - 1)
        _within("a rate", rate, 0.001, 1)
        _within("a seed", seed, 0, SEED_MAX)
        return cls(error, round(delay * 1000), expired, kind, count, rate, seed)

    def words(self) -> str:
        parts = ["nsm"]
        parts += ["error"] if self.error else []
        parts += [f"delay={self.delay_ms / 1000:g}"] if self.delay_ms else []
        parts += ["expired"] if self.expired else []
        parts += [f"kind={self.kind}"] if self.kind else []
        parts += [f"count={self.count}"] if self.count is not None else []
        parts += [f"rate={self.rate:g} seed={self.seed}"] if self.rate < 1 else []
        return " ".join(parts)


@dataclass(frozen=True)
class ClockFault:
    """The NSM's clock jumps by so much, and from now on runs so many millionths faster; None: as it was."""

    jump_ms: int | None = None
    drift_ppm: int | None = None

    @classmethod
    def of(cls, *, jump: float | None = None, drift: int | None = None) -> ClockFault:
        """As users say it, in seconds and millionths. Raises UsageError."""
        if jump is None and drift is None:
            raise UsageError("a clock's fault is a jump, a drift, or both")
        if jump is not None:
            _within("a jump", jump, -JUMP_MAX, JUMP_MAX, "s")
        if drift is not None:
            _within("a drift", drift, -DRIFT_MAX, DRIFT_MAX, "ppm")
        return cls(None if jump is None else round(jump * 1000), drift)

    def words(self) -> str:
        parts = ["clock"]
        parts += [f"jump={self.jump_ms / 1000:g}"] if self.jump_ms is not None else []
        parts += [f"drift={self.drift_ppm}"] if self.drift_ppm is not None else []
        return " ".join(parts)


@dataclass(frozen=True)
class Death:
    """When the enclave shall die: `moment` is now, heartbeat, connection (the first on vsock port `number`,
    of either side) or nsm (with the answer to the `number`-th request from now)."""

    moment: str
    number: int = 0

    @classmethod
    def of(cls, text: str) -> Death:
        """ "now", "heartbeat", "connection:PORT" or "nsm:N". Raises UsageError."""
        match = re.fullmatch(r"(now|heartbeat)|(connection|nsm):([0-9]{1,10})", text)
        if not match:
            raise UsageError(
                f"{text!r} is no moment at which an enclave could die",
                hint="there are now, heartbeat, connection:PORT and nsm:N",
            )
        number = int(match[3] or 0)
        if match[2] == "connection":
            _within("a port", number, 0, PORT_MAX)
        elif match[2] == "nsm":
            _within("the number of a request", number, 1, ALWAYS - 1)
        return cls(match[1] or match[2], number)

    def words(self) -> str:
        return f"die {self.moment}" + (f":{self.number}" if self.moment in ("connection", "nsm") else "")


def _within(what: str, value: float, least: float, most: float, unit: str = "") -> None:
    if not least <= value <= most:
        unit = f" {unit}" if unit else ""
        raise UsageError(f"{what} of {value:g}{unit} cannot be had; {least:g} to {most:g}{unit} are possible")


# ---- asking for them: each returns the words that the record has for it ----


def nsm(record: Record, **options: Any) -> str:
    """`options` are NsmFault.of's."""
    fault = NsmFault.of(**options)
    remote.ask(record, "fault", fault="nsm", options=options)
    return fault.words()


def clock(record: Record, **options: Any) -> str:
    """`options` are ClockFault.of's."""
    fault = ClockFault.of(**options)
    remote.ask(record, "fault", fault="clock", options=options)
    return fault.words()


def die(record: Record, moment: str) -> str:
    """`moment` is Death.of's."""
    death = Death.of(moment)
    remote.ask(record, "fault", fault="die", options={"text": moment})
    return death.words()


def clear(record: Record, number: int | None = None) -> None:
    """No fault is left, or not the one of its vsock that has this number."""
    if number is not None:
        vsock_faults.clear(record, number)
        return
    remote.ask(record, "fault", fault="clear", options={})
    if _vsock(record):
        vsock_faults.clear(record)


def state(record: Record) -> dict[str, Any]:
    """What is set, what was felt of it, and what was asked for (docs/json.md)."""
    found: dict[str, Any] = remote.ask(record, "fault", fault="list", options={})
    return {"items": _vsock(record), **found}


def _vsock(record: Record) -> list[dict[str, Any]] | None:
    """Those of vsock, None from a backend that has none."""
    try:
        return vsock_faults.state(record)
    except (EnclaveError, KeyError):
        return None


def nsm_words(found: Mapping[str, Any] | None) -> list[str]:
    """The NSM's part of `state`, for people."""
    if found is None:
        return []
    rows = []
    kind = found["fault_kind"] or "any request"
    for name, text in (("fault_errors", "InternalError"), ("fault_delays", "late")):
        if left := found[name]:
            more = "all" if left == ALWAYS else f"{left} more"
            delay = f" by {found['fault_delay_ms']} ms" if text == "late" else ""
            rows.append(f"nsm: {kind}, {text}{delay}, {more}; {found['fault_hits']} so far")
    if found["fault_expired"]:
        rows.append("nsm: documents have expired")
    if found["fault_die_after"]:
        rows.append(f"nsm: dies with the answer to request {found['fault_die_after']} from now")
    offset, drift = found["clock_offset_ms"], found["clock_drift_ppm"]
    if offset or drift:  # a drift is no offset yet
        rows.append(f"clock: {offset / 1000:+g} s, {drift:+d} ppm")
    return rows
