# SPDX-License-Identifier: MIT
"""What an `Enclave` hands out for its vsock to go wrong. What each fault does is the backend's business, how
it is asked for `vsock_faults`'.
"""

from __future__ import annotations

import contextlib
from typing import Any

from nitroctl.base.errors import NitroError
from nitroctl.enclaves import vsock_faults
from nitroctl.enclaves.handles import Owner
from nitroctl.enclaves.records import Record
from nitroctl.enclaves.vsock_faults import Which


class VsockFaults:
    """What a test wants to go wrong with the vsock of a running enclave.

    All are about connections to `port`, of the parent's or the enclave's (None: to any): the `nth` that
    begins from now, at most `times`, each with the chance `rate`, which `seed` decides. Each returns its
    number, for `clear`.
    """

    def __init__(self, enclave: Owner) -> None:
        self._enclave = enclave
        self._were_set = False

    def latency(
        self,
        ms: int = 0,
        *,
        jitter: int = 0,
        port: int | None = None,
        nth: int | None = None,
        times: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> int:
        """Bytes come `ms` milliseconds late, either way, and at most `jitter` more by the seed; so do the
        enclave's connects."""
        which = Which(port, nth, times, rate, seed)
        return vsock_faults.latency(self._asked, which, ms=ms, jitter=jitter)

    def refuse(
        self,
        port: int | None = None,
        *,
        nth: int | None = None,
        times: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> int:
        """As if nobody listened."""
        return vsock_faults.refuse(self._asked, Which(port, nth, times, rate, seed))

    def reset(
        self,
        port: int | None = None,
        *,
        after: int = 0,
        nth: int | None = None,
        times: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> int:
        """Connections, those that are there as well, end by a reset once `after` bytes have passed, both
        directions together."""
        return vsock_faults.reset(self._asked, Which(port, nth, times, rate, seed), after=after)

    def stop_reading(
        self,
        port: int | None = None,
        *,
        after: int = 0,
        nth: int | None = None,
        times: int | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> int:
        """The host's end takes nothing more once `after` bytes have passed: the enclave can send no more than
        a buffer full."""
        return vsock_faults.stop_reading(self._asked, Which(port, nth, times, rate, seed), after=after)

    def clear(self, number: int | None = None) -> None:
        """No fault is left, or not this one; what they held back goes on."""
        vsock_faults.clear(self._enclave._now, number)

    def list(self) -> list[dict[str, Any]]:
        """Those that are set, as `nitroctl fault list --json` has them."""
        return vsock_faults.state(self._enclave._now)

    @property
    def _asked(self) -> Record:
        self._enclave._asked_for("faults")
        self._were_set = True
        return self._enclave._now

    def _end_of_test(self) -> None:
        """What one test has asked for is not for the next that uses the same enclave."""
        if self._were_set:
            self._were_set = False
            with contextlib.suppress(NitroError):  # it has ended
                self.clear()
