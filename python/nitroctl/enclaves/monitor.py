# SPDX-License-Identifier: MIT
"""What QEMU says of itself over QMP while an enclave lives: it is up, why it ends, the guest stopped.

It only listens; what follows from it is decided where the life of an enclave is (`lifecycle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

# The run states (QAPI's RunState) in which a guest runs, waits, or is about to end by itself.
_ORDINARY = ("running", "paused", "shutdown", "prelaunch")


async def follow(
    sock: socket.socket,
    name: str,
    *,
    up: Callable[[], None],
    shutdown: Callable[[dict[str, Any]], None],
    stopped: Callable[[str], None],
) -> None:
    """Speak QMP on `sock`, which is closed at the end, until QEMU ends. `up`: it answered. `shutdown`: the
    data of its SHUTDOWN event. `stopped`: the run state in which it stopped the guest, an unusual one."""
    from qemu.qmp import EventListener, QMPClient, QMPError, Runstate

    client = QMPClient(name)
    listener = EventListener(("SHUTDOWN", "STOP"))
    client.register_listener(listener)
    try:
        await client.connect(sock)
    except (QMPError, OSError, EOFError):
        sock.close()
        return  # it died before it spoke, and its exit status tells
    except AssertionError:
        pass  # the library's way to say: it spoke and was gone at once. The events count.
    up()

    def take(event: Any) -> None:
        if event["event"] == "SHUTDOWN":
            shutdown(event["data"])

    async def listen() -> None:
        async for event in listener:
            take(event)
            if event["event"] == "STOP":
                status: Any = await client.execute("query-status")
                if status["status"] not in _ORDINARY:
                    stopped(status["status"])

    listening = asyncio.get_running_loop().create_task(listen())
    try:
        while client.runstate == Runstate.RUNNING:
            await client.runstate_changed()
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await listening
        for event in listener.clear():
            take(event)
        with contextlib.suppress(Exception):
            await client.disconnect()
