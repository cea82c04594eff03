# SPDX-License-Identifier: MIT
"""Detached enclaves with real guests: the main path, by the commands. All that can go wrong beside it is in
tests/python/enclaves/test_life.py, with fakes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from nitroctl.testing.lab import LIMIT, Lab

pytestmark = pytest.mark.boot


def nitroctl(lab: Lab, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nitroctl", *arguments],
        env=lab.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


def start(lab: Lab, image: str, *options: str) -> str:
    programs = ("--qemu", str(lab.qemu), "--vsock-backend", str(lab.backend))
    return nitroctl(lab, "run", "--detach", str(lab.image(image)), *programs, *options).strip()


def record(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nitroctl(lab, "inspect", name))
    return found


def test_from_start_to_removal(lab: Lab) -> None:
    ident = start(lab, "agent", "--name", "app")
    (running,) = json.loads(nitroctl(lab, "ps", "--json"))["items"]
    assert (running["id"], running["name"], running["state"]) == (ident, "app", "running")
    described = json.loads(nitroctl(lab, "eif", "describe", "--json", str(lab.image("agent"))))
    assert record(lab, "app")["pcrs"]["0"] == described["Measurements"]["PCR0"]
    nitroctl(lab, "attest", "get", "app", "-o", str(lab.folder / "document"))
    nitroctl(lab, "attest", "verify", str(lab.folder / "document"), "--eif", str(lab.image("agent")))
    nitroctl(lab, "stop", "app")
    assert "agent: listening on vsock port 7000" in nitroctl(lab, "console", "app")
    ended = record(lab, ident)
    assert (ended["state"], ended["ending"], ended["ended_by"]) == ("ended", "stopped", "request")
    nitroctl(lab, "rm", "app")
    left = json.loads(nitroctl(lab, "ps", "--all", "--json"))["items"]
    assert ident not in [other["id"] for other in left]
    lab.check_nothing_left()


def test_the_console_of_one_that_ends(lab: Lab) -> None:
    start(lab, "hello", "--name", "hello")
    console = nitroctl(lab, "console", "hello", "--follow")
    assert "Hello from the enclave!" in console
    nitroctl(lab, "wait", "hello")
    ended = record(lab, "hello")
    assert (ended["ending"], ended["ended_by"]) == ("orderly", "guest")
    assert ended["app_status"] in ((0, None) if lab.blobs else (0,))  # AWS's init tells none
    nitroctl(lab, "rm", "hello")
    lab.check_nothing_left()
