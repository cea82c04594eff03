# SPDX-License-Identifier: MIT
"""The local KMS beside one enclave: a process of ours that serves the parent's port 8000 for it.

What it does is in another room, `nitroctl.kms`; here it is a command line. Any number of them share the
user's keys, so that each enclave may have its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from nitroctl.base import proc
from nitroctl.enclaves.child import Child
from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.request import RunRequest
from nitroctl.vsock import sockets

BACKLOG = 1024


_PROGRAM = [sys.executable, "-m", "nitroctl", "kms"]


def command(request: RunRequest) -> list[str]:
    more = ["--allow-unmeasured"] if request.kms_allow_unmeasured else []
    return [*_PROGRAM, "serve", "--tls", "--eif", os.path.abspath(request.eif), *more]


def ca() -> bytes:
    """The CA that signed its TLS certificate, in PEM. Raises NitroError."""
    return proc.run([*_PROGRAM, "ca"]).stdout


def start(folder: Folder, request: RunRequest) -> Child:
    """The socket is there from now on: clients that come before the KMS is ready wait in its queue."""
    with sockets.serve(folder.kms, backlog=BACKLOG).socket as listener:
        child = Child(
            "the local KMS",
            [*command(request), "--listen-fd", str(listener.fileno())],
            pass_fds=(listener.fileno(),),
            stdout=subprocess.DEVNULL,
            death_signal=signal.SIGKILL,  # its store bears that, and it shall not outlive us
        )
    child.forward()
    return child
