# SPDX-License-Identifier: MIT
"""What the tests of the Python API share: enclaves in a bench's world of fake programs. No test is here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import nitroctl
from enclave_fakes import HEARTBEAT, Bench, steps
from nitroctl.enclaves import records

Make = Callable[..., nitroctl.Enclave]


def maker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes Enclave objects in the bench's world; `script` is what the guest does."""

    def make(*script: list[Any], ports: str = "", **options: Any) -> nitroctl.Enclave:
        env = bench.environment({**steps(*(script or [HEARTBEAT])), "FAKE_PORTS": ports})
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return nitroctl.Enclave(bench.eif, qemu=bench.qemu, vsock_backend=bench.backend, **options)

    return make


def records_left() -> list[str]:
    return [record.name for record in records.every()]
