# SPDX-License-Identifier: MIT
"""`Enclave.faults` with what needs the agent of `--tools`: the guest's own clock."""

from __future__ import annotations

from nitroctl.enclaves import fault_handles
from nitroctl.inside import clock


class Faults(fault_handles.Faults):
    """What a test wants to go wrong with a running enclave. What was asked for stands in its record."""

    def guest_clock(self, *, jump: float | None = None, drift: int | None = None) -> None:
        """The guest's clock jumps by `jump` seconds, and runs `drift` millionths faster from now on. Its
        NSM's is another one. Needs `tools=True`."""
        clock.fault(self._asked, jump=jump, drift=drift)

    def clear(self, number: int | None = None) -> None:
        """No fault is left, or not the one of its vsock that has this number."""
        if number is None:
            clock.clear(self._enclave._now)
        super().clear(number)
