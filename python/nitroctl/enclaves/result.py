# SPDX-License-Identifier: MIT
"""How an enclave ended, as `lifecycle` finds it; everybody else learns it from its record (`records`)."""

from __future__ import annotations

from typing import NamedTuple

from nitroctl.enclaves import records
from nitroctl.enclaves.records import Ending, Party


class Result(NamedTuple):
    """How it ended: `by` whom first, `message` a sentence, `cause` the name of a likely cause (`diagnosis`),
    `hint` what to do about it, `tail` the console's last lines, `signal` the signal that stopped it, if one
    did, `app_status` the application's own status, if it is known."""

    ending: Ending
    message: str
    by: Party
    tail: tuple[str, ...] = ()
    cause: str | None = None
    hint: str | None = None
    signal: int | None = None
    app_status: int | None = None

    @property
    def status(self) -> int:
        """The exit status of `nitroctl run`."""
        return records.exit_status(self.ending, self.signal)
