# SPDX-License-Identifier: MIT
"""What the console tells of the guest's end: panics and halts, and what only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitroctl.enclaves.console import LINE_MAX, TAIL_LINES, ConsoleWatch


def watch(*pieces: bytes) -> ConsoleWatch:
    console = ConsoleWatch()
    for piece in pieces:
        console.feed(piece)
    return console


PANIC = b"[    1.500000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"


@pytest.mark.parametrize(
    "line",
    [
        PANIC,
        b"[    1.500000][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
        b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n",
    ],
)
def test_a_panic_is_recognised(line: bytes) -> None:
    console = watch(b"hello\r\n", line)
    assert console.panic == "Attempted to kill init! exitcode=0x00000100"
    assert console.last_word == "hello"
    assert not console.panic_over
    console.feed(b"[    1.600000] Rebooting in 30 seconds..")
    assert not console.panic_over
    console.feed(b"\r\n")
    assert console.panic_over


def test_the_end_of_a_panic_without_reboot() -> None:
    assert watch(PANIC, b"[    1.600000] ---[ end Kernel panic - not syncing: X ]---\n").panic_over


def test_an_unfinished_line_before_a_panic_does_not_hide_it() -> None:
    """The kernel does not know what the terminal shows: it goes on in the application's line."""
    console = watch(b"working ... ", PANIC)
    assert console.panic == "Attempted to kill init! exitcode=0x00000100"


@pytest.mark.parametrize("text", ["System halted", "Power down"])
def test_a_halt_is_recognised(text: str) -> None:
    assert watch(f"[   12.345678] reboot: {text}\r\n".encode()).halted == text


@pytest.mark.parametrize(
    "line",
    [
        b"the log says Kernel panic - not syncing: no\n",
        b"Kernel panic\n",
        b"[ x ] Kernel panic - not syncing: no\n",
        b"> [    1.0] reboot: System halted\n",
        b"[    1.000000] app: reboot: System halted\n",
        b"reboot: Restarting system\n",
    ],
)
def test_what_is_no_kernel_message_does_not_count(line: bytes) -> None:
    console = watch(line)
    assert console.panic is None
    assert console.halted is None


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(deadline=None)
def test_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """The same facts whatever the sizes in which the bytes arrive."""
    whole = data + b"\n" + PANIC + b"tail"
    edges = sorted({0, len(whole), *(min(c, len(whole)) for c in cuts)})
    pieces = [whole[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    one, many = watch(whole), watch(*pieces)
    assert one.panic == many.panic is not None
    assert one.tail() == many.tail()
    assert one.received == many.received == len(whole)


def test_a_hostile_console_costs_little() -> None:
    console = watch(b"x" * (1 << 20), b"\n" * 100_000, b"\x1b[2J\x00\xff" * 1000)
    lines = console.tail()
    assert len(lines) <= TAIL_LINES + 1
    assert all(len(line) <= LINE_MAX and line.isprintable() for line in lines)
