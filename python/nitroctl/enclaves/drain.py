# SPDX-License-Identifier: MIT
"""Waiting, after QEMU's end, until the host's programs have what the guest sent before it closed.

The vsock backend holds those bytes for as long as their readers take. Which end of an enclave leaves time for
it is not decided here. The backend says how far it is when it is asked, so this is the one place that asks
again and again, and only while something is left.
"""

from __future__ import annotations

import asyncio

from nitroctl.enclaves.child import Child

STALLED_SECONDS = 30.0  # without a byte taken; the backend's own limit with --once
ASK_SECONDS = 0.1


async def drained(backend: Child) -> None:
    """Returns when all is delivered, when nobody has taken anything for a while, or when the backend is gone
    or does not say. May be cancelled."""
    loop = asyncio.get_running_loop()
    seen: tuple[object, object] | None = None
    until = 0.0
    while not backend.exited.done():
        found = await backend.statistics()
        if not found or not found.get("draining"):
            return
        now = found["draining"], found.get("bytes_from_guest")
        if now != seen:
            seen, until = now, loop.time() + STALLED_SECONDS
        elif loop.time() >= until:
            return
        await asyncio.wait((backend.exited,), timeout=ASK_SECONDS)
