# SPDX-License-Identifier: MIT
"""QMP with an enclave's QEMU: what it says of itself (it is up, why it ends, the guest stopped), and what it
is told and asked.

What follows from the former is decided where the life of an enclave is (`lifecycle`), what it is told by who
has a reason to (`nsm`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nitroctl.base.errors import EnclaveError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

MACHINE = "/machine"
NSM = "/machine/nsm"

# The run states (QAPI's RunState) in which a guest runs, waits (debug: for a debugger), or is about to end by
# itself.
_ORDINARY = ("running", "paused", "debug", "shutdown", "prelaunch")


class Qmp:
    """Commands to a QEMU that is up. All raise EnclaveError: it refused, or it is gone."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._one = asyncio.Lock()  # a descriptor and its name belong together

    async def execute(self, command: str, **arguments: Any) -> Any:
        from qemu.qmp import ExecuteError, QMPError

        try:
            return await self._client.execute(command, arguments or None)
        except ExecuteError as e:
            raise EnclaveError(f"QEMU refuses {command}: {e}") from e
        except (QMPError, OSError, EOFError) as e:
            raise EnclaveError(f"QEMU has ended and cannot be told {command}") from e

    async def get(self, path: str, name: str) -> Any:
        return await self.execute("qom-get", path=path, property=name)

    async def set(self, path: str, name: str, value: object) -> None:
        await self.execute("qom-set", path=path, property=name, value=value)

    async def add_socket(self, name: str, sock: socket.socket) -> None:
        """Make a chardev of a connected socket, which QEMU gets a descriptor of its own of."""
        from qemu.qmp import QMPError

        async with self._one:
            try:
                self._client.send_fd_scm(sock.fileno())
            except (QMPError, OSError) as e:
                raise EnclaveError("QEMU has ended and takes no descriptor") from e
            await self.execute("getfd", fdname=name)
            address = {"type": "fd", "data": {"str": name}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            await self.execute("chardev-add", id=name, backend=backend)


async def follow(
    sock: socket.socket,
    name: str,
    *,
    up: Callable[[Qmp], None],
    shutdown: Callable[[dict[str, Any]], None],
    stopped: Callable[[str], None],
) -> None:
    """Speak QMP on `sock`, which is closed at the end, until QEMU ends. `up`: it answered, and can be told
    things. `shutdown`: the data of its SHUTDOWN event. `stopped`: the run state in which it stopped the
    guest, an unusual one."""
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
    up(Qmp(client))

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
