# SPDX-License-Identifier: MIT
"""Records of enclaves that no process stands behind: this one is their supervisor. No test is here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from nitroctl.enclaves.records import Record, State

RECORD = Record(
    id="i-0-enc1",
    name="hello",
    state=State.RUNNING,
    cid=16,
    eif=Path("/x.eif"),
    memory_mib=512,
    cpus=1,
    accel="tcg",
    accel_reason="",
    debug=False,
    detached=True,
    folder=Path("/x"),
    uds=Path("/x"),
    home=Path("/x"),
    supervisor_pid=os.getpid(),
    qemu_pid=None,
    backend_pid=None,
    started=100.0,
)


def record(**fields: Any) -> Record:
    return replace(RECORD, **{"supervisor_pid": os.getpid(), **fields})
