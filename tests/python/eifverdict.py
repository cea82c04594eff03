# SPDX-License-Identifier: MIT
"""The C core's verdict on EIFs, through the program eif-verdict (tests/unit/eif-verdict.c).

A program is the one that its variable names, such as EIF_VERDICT, or is built by the top-level meson.build
into the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from nitroctl.base.config import cache_dir, source_root


def program(name: str = "eif-verdict") -> Path:
    """The program's path; fails the test with what provides it."""
    variable = name.upper().replace("-", "_")
    command = f"meson setup b && meson compile -C b {name}; export {variable}=$PWD/b/tests/unit/{name}"
    named = os.environ.get(variable)
    if named:
        if not os.access(named, os.X_OK):
            pytest.fail(f"{variable}={named} is no program; make one: {command}")
        return Path(named)
    root = source_root()
    build = cache_dir() / "unit" / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    build.parent.mkdir(parents=True, exist_ok=True)
    with open(build.parent / f"{build.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes
        # meson and ninja are dependencies of the package's: they are beside the interpreter, in PATH or not.
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
        steps = [["setup", str(build), str(root)], ["compile", "-C", str(build), name]]
        for step in steps[(build / "build.ninja").exists() :]:
            done = subprocess.run(
                [sys.executable, "-m", "mesonbuild.mesonmain", *step],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PATH": path},
            )
            if done.returncode:
                tail = "\n".join(done.stdout.splitlines()[-15:])
                pytest.fail(f"cannot build {name} ({command}):\n{tail}")
    return build / "tests" / "unit" / name


class Core:
    """One running eif-verdict. `rule` is "ok" or a rule's name; use as a context manager."""

    def __init__(self, *options: str) -> None:
        self._child = subprocess.Popen(
            [program(), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._child.stdout
        self._lines = os.fdopen(os.dup(self._child.stdout.fileno()), "r", encoding="ascii")

    def __enter__(self) -> Core:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin and self._child.stdout
        self._child.stdin.close()
        self._lines.close()
        self._child.stdout.close()
        assert self._child.wait(60) == 0 or kind is not None, "eif-verdict itself failed"

    def ask(self, data: bytes) -> list[str]:
        """The words of the answer: "ok", PCR0, PCR1, PCR2, PCR8 or "-"; or the rule and a sentence."""
        assert self._child.stdin
        frame = memoryview(struct.pack("<I", len(data)) + data)
        while frame:
            frame = frame[self._child.stdin.write(frame) or 0 :]
        line = self._lines.readline()
        assert line.endswith("\n"), f"eif-verdict died of {len(data)} bytes, status {self._child.wait(60)}"
        return line.split()

    def ask_all(self, files: Sequence[bytes]) -> list[str]:
        """The rules of many."""
        return [self.ask(data)[0] for data in files]
