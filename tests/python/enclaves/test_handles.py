# SPDX-License-Identifier: MIT
"""What an enclave hands out, without an enclave. With one: test_api.py."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves.handles import EnclaveListener
from nitroctl.vsock import sockets


class ClosedMeanwhile:
    """An enclave that is closed by another thread when a client seems to be there."""

    def __init__(self) -> None:
        self.listener: EnclaveListener
        self.asked = 0

    def _await(self, sock: socket.socket, deadline: float | None) -> bool:
        self.asked += 1
        if sock.fileno() < 0:
            raise EnclaveError("it has ended")
        self.listener.close()
        return True


def test_a_listener_that_is_closed_between_wait_and_accept(tmp_path: Path) -> None:
    owner: Any = ClosedMeanwhile()
    owner.listener = EnclaveListener(owner, sockets.serve(tmp_path / "s"), 9001)
    with pytest.raises(EnclaveError, match="it has ended"):
        owner.listener.accept()
    assert owner.asked == 2
