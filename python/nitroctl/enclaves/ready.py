# SPDX-License-Identifier: MIT
"""A request made ready to be started from here: what it leaves open about this host is chosen.

This is the one place where an enclave's QEMU and backend are chosen, a plugin built again if it has to be,
and where relative paths get their folder. It is done once, by whoever starts; nothing is started here.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nitroctl.eif.format import image_arch
from nitroctl.enclaves.qemu import signs_documents
from nitroctl.enclaves.request import RunRequest
from nitroctl.vsock.forwards import forwards


def ready(request: RunRequest, note: Callable[[str], None] = lambda text: None) -> RunRequest:
    """The request with programs and forwards; `note` hears what the user should know. Raises NitroError with
    the command that makes what is missing."""
    qemu = _found(request.qemu)
    ca_days = request.ca_days
    if qemu is not None and ca_days is not None and not signs_documents(qemu):
        ca_days = None
        note(f"{qemu} takes no certificates: it cannot sign attestation documents")
    return dataclasses.replace(
        request,
        qemu=qemu or _qemu(request),
        qemu_build=None,
        vsock_backend=_found(request.vsock_backend) or _backend(),
        ca_days=ca_days,
        overlay=tuple(path.absolute() for path in request.overlay),
        pcap=request.pcap and request.pcap.absolute(),
        forwards=forwards(
            request.publish,
            request.proxy,
            request.listen_port,
            request.connect_port,
            request.forward_cid,
            request.forward_listen,
        ),
    )


def _found(program: Path | None) -> Path | None:
    """A program as a shell finds it, or else the file of this folder; whoever starts it may be in another."""
    return program and Path(os.path.abspath(shutil.which(program) or program))


def _qemu(request: RunRequest) -> Path:
    from nitroctl.toolchain import choice

    return choice.choose(request.qemu_build, image_arch(request.eif))


def _backend() -> Path:
    from nitroctl.toolchain import places

    return places.locate("vsock")
