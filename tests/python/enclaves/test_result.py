# SPDX-License-Identifier: MIT
"""The exit status of `nitroctl run`, and the error that fits, for every kind of end."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from pathlib import Path

import pytest

from nitroctl.base.errors import (
    ApplicationFailed,
    BootTimeout,
    EnclaveError,
    GuestPanic,
)
from nitroctl.enclaves.records import Ending, Party, Record, State
from nitroctl.enclaves.result import Result

RECORD = Record(
    id="i-0-enc1", name="n", state=State.ENDED, cid=16, eif=Path("/x.eif"), memory_mib=64, cpus=1,
    accel="tcg", accel_reason="asked for", debug=False, detached=True, folder=Path("/f"), uds=Path("/f/v"),
    home=Path("/h"), supervisor_pid=1, qemu_pid=None, backend_pid=None, started=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "signum", "status", "error"),
    [
        (Ending.ORDERLY, None, 0, None),
        (Ending.FAILED, None, 1, EnclaveError),
        (Ending.APPLICATION, None, 5, ApplicationFailed),
        (Ending.NO_HEARTBEAT, None, 3, BootTimeout),
        (Ending.PANIC, None, 4, GuestPanic),
        (Ending.STOPPED, 2, 130, None),
        (Ending.STOPPED, 15, 143, None),
        (Ending.STOPPED, 1, 129, None),
    ],
)
def test_exit_statuses(
    ending: Ending, signum: int | None, status: int, error: type[EnclaveError] | None
) -> None:
    assert Result(ending, "why", Party.GUEST, signal=signum).status == status
    record = dataclasses.replace(
        RECORD, ending=ending, message="why\n  cited", hint="do", cause="no-init", tail=("last",)
    )
    if error is None:
        record.check()
        return
    with pytest.raises(error, match="why") as caught:
        record.check()
    assert type(caught.value) is error and caught.value.exit_status == status
    for e in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert (type(e), str(e), e.message, e.lines, e.hint) == (
            error,
            "why\n  cited",
            "why",
            ("cited",),
            "do",
        )
        assert (e.record, e.cause, e.tail) == (record, "no-init", ("last",))
        assert sys.version_info < (3, 11) or e.__notes__ == ["hint: do"]
