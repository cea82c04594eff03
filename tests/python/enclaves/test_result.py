# SPDX-License-Identifier: MIT
"""The exit status of `nitroctl run`, and the error that fits, for every kind of end."""

from __future__ import annotations

import pytest

from nitroctl.base.errors import (
    ApplicationFailed,
    BootTimeout,
    EnclaveError,
    GuestPanic,
)
from nitroctl.enclaves.records import Ending, Party
from nitroctl.enclaves.result import Result


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
    result = Result(ending, "why", True, Party.GUEST, signal=signum)
    assert result.status == status
    if error is None:
        result.check()
    else:
        with pytest.raises(error, match="why") as caught:
            result.check()
        assert caught.value.exit_status == status
