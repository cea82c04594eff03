# SPDX-License-Identifier: MIT
"""The commands of docs/debugging.md, as they are written there: a program that crashes in its enclave, its
core dump under gdb, a look into one that runs. What the page shows of their output is what they say. `run`
gets the lab's QEMU and backend."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import docpage
from nitroctl.testing.lab import LIMIT, Lab

pytestmark = pytest.mark.boot

PAGE = docpage.ROOT / "docs/debugging.md"


def general(line: str) -> str:
    """A line without what differs between two runs: numbers, where enclaves' records lie, months, and whether
    gdb says the address that a line's code has."""
    line = re.sub(r"\S*/enclaves/\w+/", "HOME/", line.strip())
    line = re.sub(r"\b(0x)?[0-9a-f]{8,}\b|\d+(\.\d+)?", "N", line)
    line = re.sub(r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) |N in ", "", line)
    return re.sub(r"\s+", " ", line)


def test_the_page(lab: Lab, tmp_path: Path) -> None:
    story = [one for one in docpage.blocks(PAGE) if one.values("run by") == ["tests/boot/test_debugging.py"]]
    script = "".join(block.body for block in story)
    given = f"--qemu {lab.qemu} --vsock-backend {lab.backend}"
    programs = docpage.programs(
        tmp_path / "bin", f'if test "$1" = run; then shift; set -- run {given} "$@"; fi\n'
    )
    environment = {
        **lab.environment(), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_STATE_HOME": str(tmp_path / "state"),
    }  # fmt: skip
    said = docpage.sh(script, tmp_path, environment, 4 * LIMIT)
    lines = {general(line) for line in said.splitlines()}
    shown = [line for block in story for line in (block.shown or "").splitlines()]
    assert script and shown
    assert [line for line in shown if general(line) not in lines] == [], said
    lab.check_nothing_left()
