# SPDX-License-Identifier: MIT
"""The clock of a guest, set from outside: an application's handling of a wrong clock becomes testable.

The NSM's clock is another one, which its documents are dated by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import records, remote
from nitroctl.enclaves.faults import ClockFault
from nitroctl.enclaves.records import Record
from nitroctl.inside import agent

PPM_MAX = 100_000
_SECONDS_MAX = 1 << 33
_NS = 10**9


@dataclass(frozen=True)
class Reading:
    """The guest's clock in seconds since 1970, before and after it was set."""

    before: float
    after: float


def set_clock(
    record: Record, *, at: float | None = None, shift: float | None = None, ppm: int | None = None
) -> Reading:
    """Set the guest's clock to `at` (seconds since 1970), move it by `shift` seconds, or have it run `ppm`
    millionths faster from now on (slower: negative; 0: as it was), or with none of these only read it. Raises
    UsageError for what no clock can be, EnclaveError where the guest cannot."""
    if sum(value is not None for value in (at, shift, ppm)) > 1:
        raise UsageError("a clock is set, moved, or made to run faster: one of these at a time")
    words = ["read"]
    if at is not None:
        words = ["set", str(_ns("time", at, 0))]
    elif shift is not None:
        words = ["shift", str(_ns("shift", shift, -_SECONDS_MAX))]
    elif ppm is not None:
        if not -PPM_MAX <= ppm <= PPM_MAX:
            raise UsageError(f"a rate of {ppm} ppm cannot be had; {-PPM_MAX} to {PPM_MAX} are possible")
        words = ["rate", str(ppm)]
    text = agent.answer(record, b"C", words)
    try:
        before, after = map(int, text.split())
    except ValueError:
        message = f"enclave {record.name}: its agent answered {text[:80]!r} about the clock"
        raise EnclaveError(message, record=record) from None
    return Reading(before / _NS, after / _NS)


def _ns(what: str, seconds: float, least: int) -> int:
    if not least <= seconds <= _SECONDS_MAX:
        raise UsageError(f"a {what} of {seconds:g} s cannot be had; {least} to {_SECONDS_MAX} are possible")
    return round(seconds * _NS)


# --- as a fault, which the enclave's record tells --------------------------------------------------------


def fault(record: Record, *, jump: float | None = None, drift: int | None = None) -> str:
    """The guest's clock jumps by `jump` seconds, and runs `drift` millionths faster from now on; returns the
    words that the record has for it. Raises as `set_clock`."""
    words = ClockFault.of(jump=jump, drift=drift).words()
    if drift is not None:
        set_clock(record, ppm=drift)
    if jump is not None:
        set_clock(record, shift=jump)
    remote.ask(record, "fault", fault="guest-clock", options={"jump": jump, "drift": drift})
    return f"guest-{words}"


def clear(record: Record) -> None:
    """A clock that a fault has set is set to this host's, and runs as it should."""
    now = records.again(record)
    if now and now.tools and any(text.startswith("guest-clock") for text in now.faults):
        set_clock(record, ppm=0)
        set_clock(record, at=time.time())
