# SPDX-License-Identifier: MIT
"""`Enclave.faults`: what an `Enclave` hands out for things to go wrong. Those of its vsock are in
`vsock_handles`, how the others are asked for is `faults`' business.
"""

from __future__ import annotations

from typing import Any

from nitroctl.enclaves import faults
from nitroctl.enclaves.vsock_handles import VsockFaults


class Faults(VsockFaults):
    """What a test wants to go wrong with a running enclave. What was asked for stands in its record."""

    def nsm(
        self,
        *,
        error: bool = False,
        delay: float = 0.0,
        expired: bool = False,
        kind: str | None = None,
        count: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Requests to the NSM get InternalError, or an answer `delay` seconds late, or both: of one kind or
        all, the next `count` or all, each with the chance `rate`, which `seed` decides. With `expired`
        documents come with a certificate that has expired. Takes the place of the fault of this kind that
        there was."""
        options = {"error": error, "delay": delay, "expired": expired}
        faults.nsm(self._asked, **options, kind=kind, count=count, rate=rate, seed=seed)

    def clock(self, *, jump: float | None = None, drift: int | None = None) -> None:
        """The NSM's clock jumps by `jump` seconds, and runs `drift` millionths faster from now on."""
        faults.clock(self._asked, jump=jump, drift=drift)

    def die(self, moment: str = "now") -> None:
        """The enclave dies now, or at "heartbeat", "connection:PORT" or "nsm:N"."""
        faults.die(self._asked, moment)

    def clear(self, number: int | None = None) -> None:
        """No fault is left, or not the one of its vsock that has this number."""
        faults.clear(self._enclave._now, number)

    def state(self) -> dict[str, Any]:
        """What is set and what was felt of it, as `nitroctl fault list --json` has it."""
        return faults.state(self._enclave._now)
