# SPDX-License-Identifier: MIT
"""A page of README or docs as what can be run of it: fenced blocks, what is typed in them, and what the page
shows of what it says. No test is here: tests/python/test_docs_run.py and tests/boot/test_docs.py have them.

A block is `sh` (a script, or with a mark a list of commands that stand for themselves), `console` ("$ "
before what is typed, then what it prints), `python`, or `text`: what the block before it printed. In what is
shown, `...` stands for anything within its line, alone on a line for any lines; how wide the gaps between
columns are is not compared; the rest is what one gets.

Marks are HTML comments, which no reader of the page sees, before a block; or below a heading for all blocks
of that section that have none of their own, then "blocks below" is said first:

    <!-- not run: REASON -->
    <!-- run by: tests/boot/test_kms.py -->      that test runs it, as it is written
    <!-- with images -->                         needs kernel and init, but no guest
    <!-- check-docs -->                          with guests, or for minutes: only by `make check-docs`
    <!-- given: app.eif, app.tar -->             what the page says that the reader has
    <!-- each alone -->                          of `sh`: a list of commands, none needs the one before
    <!-- status 1: nitroctl eif diff -->         how the next command that begins so ends, if not in 0
    <!-- left out: nitroctl kms serve: REASON --> a line of a list that is not run
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "console", "python", "text", "yaml", "javascript"}
LIMIT = 120.0  # seconds for a block

_TOKEN = re.compile(
    r"^```(?P<language>\w*)\n(?P<body>.*?)^```$|^<!--(?P<mark>.*?)-->$|^(?P<level>#+) [^\n]*$"
    r"|^(?P<line>[^\n]*\S[^\n]*)$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(
    r"(?P<below>blocks below: )?(?P<what>not run: .+|run by: \S+|with images|check-docs|given: .+|each alone"
    r"|status \d+: .+|left out: .+?: .+)"
)


@dataclasses.dataclass
class Block:
    page: Path
    line: int
    language: str
    body: str
    marks: list[str]
    shown: str | None = None  # the `text` block behind it

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def values(self, name: str) -> list[str]:
        return [mark.partition(":")[2].strip() for mark in self.marks if mark.split(":")[0] == name]

    def kind(self) -> str:
        """How it is run: "alone", "images", "check-docs", "elsewhere", "never"."""
        for mark, kind in (("not run", "never"), ("run by", "elsewhere"), ("with images", "images"),
                           ("check-docs", "check-docs")):  # fmt: skip
            if any(one.split(":")[0] == mark for one in self.marks):
                return kind
        return "alone"

    def given(self) -> list[str]:
        return [name.strip() for names in self.values("given") for name in names.split(",")]

    def statuses(self) -> list[tuple[str, int]]:
        found = [re.match(r"status (\d+): (.*)", mark) for mark in self.marks]
        return sorted([(match[2], int(match[1])) for match in found if match], key=lambda one: -len(one[0]))

    def steps(self) -> Iterator[tuple[str, str | None]]:
        """What is typed at once, and what is shown of its output; None where nothing is said of it."""
        if self.language == "console":
            for part in re.split(r"^\$ ", self.body, flags=re.MULTILINE)[1:]:
                lines = part.splitlines(keepends=True)
                count = 1 + next((n for n, line in enumerate(lines) if not line.endswith("\\\n")), 0)
                yield "".join(lines[:count]), "".join(lines[count:])
        elif "each alone" in self.marks:
            out = [value.rpartition(":")[0] for value in self.values("left out")]
            for line in self.body.replace("\\\n", " ").splitlines():
                if line.strip() and not any(line.startswith(begin) for begin in out):
                    yield line, None
        else:
            yield self.body, self.shown


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Raises ValueError for a mark or a language that is none."""
    text = page.read_text() if text is None else text
    found: list[Block] = []
    marks: list[str] = []
    below: list[tuple[int, str]] = []
    level, beside = 1, False
    for match in _TOKEN.finditer(text):
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        if match["mark"] is not None:
            mark = match["mark"].strip()
            if not _MARK.fullmatch(" ".join(mark.split())):
                if re.match(r"blocks below|not run|run by|with |check-docs|given|each|status|left out", mark):
                    raise ValueError(f"{where}: no such mark: {mark}")
                continue  # of tools/generate, or a licence
            if mark.startswith("blocks below: "):
                below.append((level, mark.removeprefix("blocks below: ")))
            else:
                marks.append(" ".join(mark.split()))
        elif match["level"]:
            level, marks, beside = len(match["level"]), [], False
            below = [(depth, mark) for depth, mark in below if depth < level]
        elif match["line"]:
            marks, beside = [], beside and not match["line"].startswith("#")
        else:
            language = match["language"]
            if language not in LANGUAGES:
                raise ValueError(f"{where}: what is in this block, {' or '.join(sorted(LANGUAGES))}?")
            block = Block(page, int(where.rpartition(":")[2]), language, match["body"], marks)
            if language == "text" and not marks and beside and found[-1].shown is None:
                found[-1].shown = block.body
            else:
                block.marks = marks or [mark for _, mark in below]
                found.append(block)
            marks, beside = [], language == "sh"
    return found


def pattern(shown: str) -> re.Pattern[str]:
    parts = []
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            text = re.escape(line.rstrip()).replace(r"\.\.\.", r"[^\n]*?")
            parts.append(re.sub(r"(?:\\ )+", "[ \\\\t]+", text) + r"[ \t]*\n")
    return re.compile("".join(parts))


def same(shown: str, said: str) -> bool:
    return bool(pattern(shown).fullmatch("".join(f"{line}\n" for line in said.rstrip().splitlines())))


def programs(folder: Path, prefix: str = "") -> Path:
    """A folder with the package's commands, for PATH; `prefix` is shell that may set "$@" anew."""
    folder.mkdir(exist_ok=True)
    for name, module in (("nitroctl", "nitroctl"), ("nitro-cli", "nitroctl.nitro_cli")):
        path = folder / name
        path.write_text(f'#!/bin/sh\n{prefix}exec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        path.chmod(0o755)
    return folder


def environment(home: Path, programs: Path) -> dict[str, str]:
    """A fresh home, and commands of the package from this checkout."""
    env = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("XDG_", "NITRO", "AWS_", "PYTEST_"))
    }  # fmt: skip
    path = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env | {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT / "python"), "LC_ALL": "C.UTF-8"}


def ended(argv: list[str], folder: Path, env: dict[str, str], limit: float = LIMIT) -> tuple[int, str]:
    """A program's status and all it said; with its children it is killed if not done in `limit` seconds."""
    with subprocess.Popen(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            said += f"\n(killed, since it was not done after {limit:g} s)"
    return process.returncode, said


def sh(script: str, folder: Path, env: dict[str, str], limit: float = LIMIT) -> str:
    """What a script says, and before it each command, after "+ "; AssertionError unless all end with 0."""
    status, said = ended(["sh", "-euxc", script], folder, env, limit)
    assert status == 0, f"status {status}:\n{said}"
    return said


def run(block: Block, folder: Path, env: dict[str, str], limit: float = LIMIT) -> list[str]:
    """What is wrong with it: nothing, if all ended as the page says and said what it shows."""
    wrong, statuses = [], block.statuses()
    for typed, shown in block.steps():
        argv = [sys.executable, "-c", typed] if block.language == "python" else ["sh", "-euc", typed]
        status, said = ended(argv, folder, env, limit)
        known = next((one for one in statuses if typed.startswith(one[0])), None)
        if known:
            statuses.remove(known)
        if status != (known[1] if known else 0) or "Traceback" in said:
            wrong.append(f"{block}: {typed.strip()}: status {status}:\n{said}")
        elif shown is not None and not same(shown, said):
            wrong.append(f"{block}: {typed.strip()}:\n--- shown\n{shown}--- said\n{said}")
    return wrong
