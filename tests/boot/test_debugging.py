# SPDX-License-Identifier: MIT
"""The commands of docs/debugging.md, as they are written there: a program that crashes in its enclave, its
core dump under gdb, a look into one that runs. What the page shows of their output is what they say. `run`
gets the lab's QEMU and backend."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import docpage
from nitroctl.testing.lab import LIMIT, Lab

pytestmark = pytest.mark.boot

PAGE = Path(__file__).parents[2] / "docs/debugging.md"
STORY = "A program that crashes on its second connection"


def blocks(section: str, kind: str) -> list[str]:
    """The page's blocks of one section: "sh" what is typed, "text" what is seen."""
    (text,) = re.findall(
        rf"^## {re.escape(section)}\n(.*?)(?=^## )", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return [body for what, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if what == kind]


def general(line: str) -> str:
    """A line without what differs between two runs: numbers, where enclaves' records lie, months, and whether
    gdb says the address that a line's code has."""
    line = re.sub(r"\S*/enclaves/\w+/", "HOME/", line.strip())
    line = re.sub(r"\b(0x)?[0-9a-f]{8,}\b|\d+(\.\d+)?", "N", line)
    line = re.sub(r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) |N in ", "", line)
    return re.sub(r"\s+", " ", line)


def test_the_page(lab: Lab, tmp_path: Path) -> None:
    script = "".join(blocks(STORY, "sh"))
    nitroctl = tmp_path / "bin/nitroctl"
    nitroctl.parent.mkdir()
    nitroctl.write_text(
        f"#!/bin/sh\ncommand=$1\nshift\ntest $command != run || set -- --qemu {lab.qemu} --vsock-backend "
        f'{lab.backend} "$@"\nexec {sys.executable} -m nitroctl $command "$@"\n'
    )
    nitroctl.chmod(0o755)
    environment = {
        **lab.environment(), "PATH": f"{nitroctl.parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_STATE_HOME": str(tmp_path / "state"),
    }  # fmt: skip
    said = docpage.sh(script, tmp_path, environment, 4 * LIMIT)
    lines = {general(line) for line in said.splitlines()}
    shown = [line for block in blocks(STORY, "text") for line in block.splitlines()]
    assert [line for line in shown if general(line) not in lines] == [], said
    lab.check_nothing_left()
