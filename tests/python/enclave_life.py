# SPDX-License-Identifier: MIT
"""Detached enclaves by the commands for them, in a bench's world of fake programs. No test is here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from enclave_fakes import HANG, Bench
from jsonpage import answer


class Life:
    """The commands, in a bench's world."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nitroctl", *arguments],
            env=self.bench.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG,
        )

    def ok(self, *arguments: str, **env: str) -> str:
        done = self(*arguments, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *options: str, **env: Any) -> dict[str, Any]:
        done = self.bench.run("--detach", "--json", *options, **env)
        assert done.returncode == 0, done.stderr
        record: dict[str, Any] = answer("nitroctl run --detach", done.stdout)
        return record

    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = answer("nitroctl ps", self.ok("ps", "--all", "--json"))["items"]
        return found

    def ended(self, name: str = "hello") -> dict[str, Any]:
        """Its record after its end, which is waited for."""
        self("wait", name)
        record: dict[str, Any] = answer("nitroctl inspect", self.ok("inspect", name))
        assert record["state"] == "ended"
        return record
