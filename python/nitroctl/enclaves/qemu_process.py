# SPDX-License-Identifier: MIT
"""QEMU as its supervisor has it: started with its sockets, and with no more of this host than it needs.

A QEMU that is confined can make no socket, so those it has are made here: the connection to the backend, and
where a debugger comes in. Watching it is `lifecycle`'s business.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves import containment
from nitroctl.enclaves import qemu as qemu_options
from nitroctl.enclaves.child import Child
from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.plan import Plan


def start(plan: Plan, folder: Folder, overlay: Path | None, qmp: socket.socket, console: int) -> Child:
    """`qmp` and `console` are its ends. The backend listens. Raises NitroError."""
    options: dict[str, Any] = {"qmp": qmp.fileno(), "overlay": overlay}
    if plan.request.ca_days is not None:
        options |= {"cert_chain": folder.cert_chain, "cert_key": folder.cert_key}
    with contextlib.ExitStack() as stack:
        given = [qmp]
        confinement = None
        if plan.confined:
            given.append(vsock := stack.enter_context(_connected(folder.device)))
            options["vsock"] = vsock.fileno()
            if plan.request.gdb:
                given.append(gdb := stack.enter_context(_listening(folder.gdb)))
                options["gdb"] = gdb.fileno()
            qemu, eif = plan.request.qemu, plan.request.eif
            assert qemu
            files = (eif, overlay, options.get("cert_chain"), options.get("cert_key"))
            confinement = stack.enter_context(containment.confinement(qemu, files))
        return Child(
            "QEMU",
            qemu_options.argv(plan.qemu_config(folder, **options)),
            pass_fds=[one.fileno() for one in given],
            stdout=console,
            death_signal=signal.SIGKILL,
            confinement=confinement,
        )


def said_why(lines: Iterable[str]) -> str | None:
    """The QAPI ShutdownCause by which QEMU ended, as far as its standard error tells: a signal is named there
    also when QMP was not spoken yet, or its event got lost with the connection."""
    return "host-signal" if any("terminating on signal " in line for line in lines) else None


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(str(path))
    except OSError as e:
        made.close()
        raise EnclaveError(f"the vsock backend does not answer at {path}: {e.strerror}") from e
    return made


def _listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(str(path))
        made.listen(1)
    except OSError as e:
        made.close()
        raise EnclaveError(f"cannot listen for a debugger at {path}: {e.strerror}") from e
    return made
