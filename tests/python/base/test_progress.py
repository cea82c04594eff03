# SPDX-License-Identifier: MIT
"""How long work shows itself: plain lines where there is no terminal, a bar on one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from nitroctl.base import progress

LIMIT = 60.0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345, "12.3 kB"), (12_300_000, "12.3 MB"),
        (999_960, "1.0 MB"), (999_999_999, "1.00 GB"), (1_500_000_000, "1.50 GB"), (10**13, "10000.00 GB"),
    ],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    """SI's prefixes, never a thousand of one of them but of the last."""
    assert progress.amount(size, "bytes") == text
    assert progress.amount(size, "steps") == str(size)


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with progress.task("Fetching", unit="bytes", total=4_000_000) as task:
        task.set(1_000_000, note="a\x1b[1mb")
        task.advance(500_000)
    with progress.task("Building", unit="steps") as task:
        task.advance(3)
        task.set(4, total=8)
    with pytest.raises(KeyError), progress.task("Failing"):
        raise KeyError
    lines = re.sub(r"[0-9.]+ s\b", "T s", capsys.readouterr().err).splitlines()
    assert lines == [
        "Fetching ...",
        "Fetching: 1.0 MB of 4.0 MB (25 %), T s a\\x1b[1mb",
        "Fetching: 1.5 MB of 4.0 MB (37 %), T s a\\x1b[1mb",
        "Fetching: done, 1.5 MB, T s",
        "Building ...",
        "Building: 3, T s",
        "Building: 4 of 8 (50 %), T s",
        "Building: done, T s",
        "Failing ...",
    ]


def test_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Not one for each step; none at all for whoever wants the answer alone."""
    with progress.task("Building", unit="steps") as task:
        for _ in range(1000):
            task.advance()
    assert len(capsys.readouterr().err.splitlines()) == 2
    with progress.quiet():
        with progress.quiet(False), progress.task("Building") as task:
            task.advance()
        progress.say("a word")
    assert capsys.readouterr().err == ""
    progress.say("a word")
    assert capsys.readouterr().err == "a word\n"


ON_A_TERMINAL = """
from nitroctl.base import progress
with progress.task("Fetching", unit="bytes", total=4000000) as task:
    task.set(1000000)
with progress.task("Building [b]", unit="steps") as task:
    task.set(3, note="cc [red]x")
try:
    with progress.task("Failing", unit="steps", total=2) as task:
        task.advance()
        raise KeyError
except KeyError:
    pass
"""


def test_a_bar_on_a_terminal() -> None:
    """It ends full, also where no total was known, with its title as it is; one that failed does not."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"}
    with open(theirs, "wb", buffering=0) as terminal:
        child = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL], stderr=terminal, env=environment, stdin=subprocess.DEVNULL
        )
    said = b""
    with open(ours, "rb", buffering=0) as master:
        while True:
            try:
                said += master.read(1 << 16)
            except OSError:  # EIO: the other end is closed (pty(7))
                break
    assert child.wait(LIMIT) == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", said).decode()
    assert re.search(r"✓ Fetching .*4\.0/4\.0 MB", text)
    assert re.search(r"✓ Building \[b\] .*3/3", text)
    assert re.search(r"Failing .*1/2", text) and not re.search(r"✓ Failing|2/2", text)
