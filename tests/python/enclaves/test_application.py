# SPDX-License-Identifier: MIT
"""How an application ended, from lines of the backend and of the console. Whole enclaves: test_run.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitroctl.enclaves.application import Watch, told

ERROR = b"child exited with error"
KERNEL = b"[    3.141592] reboot: Restarting system"


def failed(data: bytes) -> bool:
    watch = Watch()
    watch.feed(data)
    return watch.failed


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"exited 0", 0), (b"exited 255", 255), (b"killed 9", 137), (b"killed 64", 192)],
)
def test_told(line: bytes, status: int) -> None:
    outcome = told(line)
    assert outcome and outcome.status == status and outcome.failed is bool(status)


@pytest.mark.parametrize("line", [b"", b"booted", b"exited", b"exited x", b"exited 7 8", b"exited -1"])
def test_no_such_line(line: bytes) -> None:
    assert told(line) is None


@pytest.mark.parametrize(
    "console",
    [
        ERROR, ERROR + b"\n", ERROR + b"\r\n", b"child exited by signal\r\n", ERROR + b"\r\n\r\n",
        b"init: child exited with error: status 7\r\n", b"init: child exited by signal: 9 (Killed)\n",
        ERROR + b"\r\n" + KERNEL, ERROR + b"\r\nreboot: Restarting system\r\nreboot: machine restart\r\n",
        b"an unfinished line" + ERROR, b"x" * 5000 + ERROR + b"\n",
    ],
)  # fmt: skip
def test_the_last_word_is_inits(console: bytes) -> None:
    assert failed(console)
    assert failed(b"hello\n" + console)


@pytest.mark.parametrize(
    "console",
    [
        b"", b"hello\n", KERNEL, ERROR + b"\nhello\n", ERROR + b"\nhello", ERROR + b" or not\n",
        ERROR + b"\n" + b"x" * 5000, b"the child exited\n", KERNEL + b" " + ERROR,
    ],
)  # fmt: skip
def test_it_is_not(console: bytes) -> None:
    assert not failed(console)


@given(st.lists(st.sampled_from([ERROR, b"\n", b"\r\n", b"hello", KERNEL, b"y" * 300])), st.data())
def test_pieces_are_no_matter(parts: list[bytes], data: st.DataObject) -> None:
    console = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(console)), max_size=8)))
    watch = Watch()
    for start, end in zip([0, *cuts], [*cuts, len(console)], strict=True):
        watch.feed(console[start:end])
    assert watch.failed == failed(console)
