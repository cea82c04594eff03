# SPDX-License-Identifier: MIT
"""How the application of an enclave ended, told by its init.

Pure: lines in, an Outcome out. Our init tells the vsock backend, out of band, which tells us: `told`. AWS's
only print a line without a number when it failed, and nothing when it did not: `Watch` reads the console
along. An application can print the same words, so such a line counts only as the very last that came from
user space, and only where nobody was told better.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from nitroctl.enclaves.console import STAMP

# As a shell has it for a program that a signal killed.
SIGNAL_BASE = 128


class Outcome(NamedTuple):
    """`status`: its exit status, 128 and the signal if it was killed by one; None: it failed, and its init
    does not tell the number. `text`: a clause."""

    status: int | None
    text: str

    @property
    def failed(self) -> bool:
        return self.status != 0


UNTOLD = Outcome(None, "the application failed; with what status, this image's init does not tell")

_TOLD = rb"(exited|killed) ([0-9]{1,3})"
_FAILED = rb"child exited (?:with error|by signal)(?:: [^\r\n]*)?[\r\0 ]*$"
_KERNEL = rb"^(?:" + STAMP + rb"|reboot: )"
# Init's own line has less; what precedes it may be an unfinished line of the application's, of any length.
_END_MAX = 160


def told(line: bytes) -> Outcome | None:
    """Of a line from the vsock backend, None if it is another one."""
    match = re.fullmatch(_TOLD, line)
    if not match:
        return None
    number = int(match[2])
    if match[1] == b"exited":
        return Outcome(number, f"the application ended with status {number}")
    try:
        name = f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        name = f"signal {number}"
    return Outcome(SIGNAL_BASE + number, f"the application was killed by {name}")


def may_not_have_started(outcome: Outcome | None) -> bool:
    """Init ends with one of these in the application's place where it cannot start it (and if nobody was
    told, anything may be)."""
    return outcome is None or outcome.status in (None, 1, 127)


class Watch:
    """Reads the console along: `failed` when init's word about it is the last one."""

    def __init__(self) -> None:
        self._said = False
        self._start = b""  # of the line that comes
        self._end = b""

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._append(piece)
            self._said = self._judge()
            self._start = self._end = b""
        self._append(rest)

    @property
    def failed(self) -> bool:
        return self._judge()

    def _append(self, piece: bytes) -> None:
        self._start = (self._start + piece[:_END_MAX])[:_END_MAX]
        self._end = (self._end + piece[-_END_MAX:])[-_END_MAX:]

    def _judge(self) -> bool:
        """With this line, be it finished or not."""
        if not self._end.strip(b"\r\0 ") or re.match(_KERNEL, self._start):
            return self._said
        return b"child exited" in self._end and re.search(_FAILED, self._end) is not None
