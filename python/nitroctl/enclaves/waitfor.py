# SPDX-License-Identifier: MIT
"""What a start waits for after the heartbeat: that the application listens, or has said something. How one
waits for either is the caller's.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Union

from nitroctl.base.errors import UsageError
from nitroctl.vsock import sockets

Pattern = Union[str, "re.Pattern[str]"]


class WaitForLog(Protocol):
    def __call__(self, pattern: Pattern, *, timeout: float) -> Any: ...


class Connect(Protocol):
    def __call__(self, port: int, *, timeout: float) -> socket.socket: ...


@dataclass(frozen=True)
class WaitFor:
    """Ports and patterns, one or several of each. Raises UsageError for what is none."""

    port: int | Sequence[int] = ()
    log: Pattern | Sequence[Pattern] = ()
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for port in self._ports:
            if type(port) is not int or not 0 <= port <= sockets.PORT_MAX:
                raise UsageError(
                    f"wait_for_port: {port!r} is no vsock port; ports are 0 to {sockets.PORT_MAX}"
                )
        for pattern in self._patterns:
            if not isinstance(pattern, str | re.Pattern):
                raise UsageError(f"wait_for_log: {pattern!r} is neither a text nor a compiled pattern")
            try:
                re.compile(pattern)
            except re.error as e:
                raise UsageError(f"wait_for_log: {pattern!r} is no regular expression: {e}") from None
        if type(self.timeout) not in (int, float) or not self.timeout > 0:
            raise UsageError(f"wait_timeout={self.timeout!r}: wait_timeout takes a number of seconds")

    @property
    def _ports(self) -> Sequence[int]:
        return self.port if isinstance(self.port, list | tuple) else (self.port,)

    @property
    def _patterns(self) -> Sequence[Pattern]:
        return self.log if isinstance(self.log, list | tuple) else (self.log,)

    def all(self, wait_for_log: WaitForLog, connect: Connect) -> None:
        """Raises what those two raise."""
        deadline = time.monotonic() + self.timeout
        for pattern in self._patterns:
            wait_for_log(pattern, timeout=max(0.0, deadline - time.monotonic()))
        for port in self._ports:
            connect(port, timeout=max(0.0, deadline - time.monotonic())).close()
