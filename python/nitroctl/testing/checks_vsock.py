# SPDX-License-Identifier: MIT
"""What must hold of vsock between a real guest and the parent; more of `checks`."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from nitroctl.testing import agent
from nitroctl.testing.claims import (
    boot_check,
)
from nitroctl.testing.lab import (
    LIMIT,
    CheckFailed,
    Lab,
    check,
    check_equal,
)
from nitroctl.vsock import sockets


def _numbers(report: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split(" ", 1) for line in report.splitlines())}


@boot_check
def vsock_both_ways(lab: Lab) -> None:
    """A megabyte from the enclave to the parent's port 5000, and one echoed by the enclave on its port 8000,
    arrive as they were sent; half-closes pass in both directions."""
    size = 1 << 20
    with lab.agent() as (guest, client):
        with sockets.listen(guest.uds, 5000) as listener:
            listener.socket.settimeout(LIMIT)
            client.start("dial", sockets.PARENT_CID, 5000, "source", size, 3)
            with listener.accept() as stream:
                stream.settimeout(LIMIT)
                check(agent.receive_all(stream) == agent.pattern(3, size), "the enclave's bytes are damaged")
            report = _numbers(client.finish())
            check_equal((report["sent"], report["errno"]), (size, 0), "what the enclave sent")
        client.probe("echo-listen", 8000)
        sent = agent.pattern(4, size)
        with sockets.connect(guest.uds, 8000, timeout=LIMIT) as stream:
            stream.settimeout(LIMIT)
            writer = threading.Thread(target=_send_all, args=(stream, sent))
            writer.start()
            got = agent.receive_all(stream)
            writer.join()
        check(got == sent, f"the echo is damaged ({len(got)} bytes)")


def _send_all(stream: Any, data: bytes) -> None:
    import socket

    with contextlib.suppress(OSError):  # the reader sees that something is missing
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)


@boot_check
def vsock_refusals(lab: Lab) -> None:
    """Nobody on the parent's port, or another CID than the parent's: ECONNRESET at once, not a timeout.
    Nobody on the enclave's port: the parent's connect is refused."""
    from errno import ECONNRESET

    with lab.agent() as (guest, client):
        for cid in (sockets.PARENT_CID, 5):
            report = client.facts("connect", cid, 4321)
            check_equal(int(report["errno"]), ECONNRESET, f"connecting to CID {cid}")
        with contextlib.suppress(sockets.PortRefused):
            sockets.connect(guest.uds, 4321, timeout=LIMIT).close()
            raise CheckFailed("a connection to a port of the enclave that nobody serves was made")
