# SPDX-License-Identifier: MIT
"""Faults on request, for tests: the failures of the real service that a client must be able to handle."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass

from nitroctl.base.errors import UsageError
from nitroctl.kms.errors import KmsError, internal

_ERRORS: dict[str, tuple[str, str, int]] = {
    "throttle": ("ThrottlingException", "Rate exceeded", 400),
    "unavailable": ("KeyUnavailableException", "The key is not available. The request can be retried.", 500),
    "timeout": ("DependencyTimeoutException", "The system timed out. The request can be retried.", 500),
    "expired": ("ExpiredTokenException", "The security token included in the request is expired", 400),
}
KINDS = (*_ERRORS, "internal", "slow")
FORM = "KIND[=SECONDS][@OPERATION][*COUNT]"
SLOWEST = 600.0
_WORD = re.compile(r"([a-z]+)(?:=([0-9.]+))?(?:@([A-Za-z]+))?(?:\*([0-9]{1,9}))?")


@dataclass
class Fault:
    kind: str
    seconds: float = 0.0
    operation: str | None = None
    count: int | None = None  # None: from now on


def parse(text: str) -> Fault:
    """`throttle`, `slow=2.5@Decrypt`, `internal*3`. Raises UsageError."""
    match = _WORD.fullmatch(text)
    if not match or match[1] not in KINDS:
        raise UsageError(f"the fault {text!r} is not of the form {FORM}", hint=f"kinds: {', '.join(KINDS)}")
    kind, seconds, operation, count = match.groups()
    if (seconds is not None) is not (kind == "slow"):
        raise UsageError(f"the fault {text!r}: slow needs seconds (slow=2.5), and no other kind takes them")
    try:
        wait = float(seconds or 0)
    except ValueError as e:
        raise UsageError(f"the fault {text!r}: {seconds} is not a number of seconds") from e
    if wait > SLOWEST:
        raise UsageError(f"the fault {text!r}: at most {SLOWEST:g} seconds")
    return Fault(kind, wait, operation, int(count) if count else None)


class Faults:
    """The faults that are still to happen. Thread-safe."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = list(faults)
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def before(self, operation: str) -> None:
        """Called before each request. Waits for as long as the faults say; raises KmsError if the request
        shall fail."""
        with self._lock:
            due = [f for f in self._faults if f.operation in (None, operation)]
            # All delays add up; at most one error is raised, after them.
            errors = [f for f in due if f.kind != "slow"][:1]
            taken = [f for f in due if f.kind == "slow"] + errors
            for fault in taken:
                if fault.count is not None:
                    fault.count -= 1
            self._faults = [f for f in self._faults if f.count is None or f.count > 0]
        for fault in taken:
            if fault.kind == "slow":
                time.sleep(fault.seconds)
        for fault in errors:
            if fault.kind == "internal":
                raise internal("asked for by --inject")
            kind, text, status = _ERRORS[fault.kind]
            raise KmsError(kind, text, status=status, why=f"{kind}, asked for by --inject")
