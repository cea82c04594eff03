# SPDX-License-Identifier: MIT
"""What the demonstration makes of an enclave's console. The demonstration itself is `make demo`."""

from __future__ import annotations

from nitroctl.commands.demonstration import ZERO, compare, printed_pcrs

A, B, C = "aa" * 48, "bb" * 48, "cc" * 48

# A console ends its lines with CR LF.
CONSOLE = (
    f"[    0.1] Linux version\r\nHello from the enclave!\r\nPCR0: {A}\r\nPCR1: {B}\r\nPCR2: {C}\r\n"
    f"PCR3: {ZERO}\r\nPCR8: {ZERO}\r\n"
).encode()


def test_equal() -> None:
    found = compare(CONSOLE, {"PCR0": A, "PCR1": B, "PCR2": C})
    assert [(pcr.name, pcr.equal) for pcr in found] == [
        ("PCR0", True), ("PCR1", True), ("PCR2", True), ("PCR8", True)
    ]  # fmt: skip


def test_different() -> None:
    found = {pcr.name: pcr for pcr in compare(CONSOLE, {"PCR0": A, "PCR1": C, "PCR2": C, "PCR8": A})}
    assert {name for name, pcr in found.items() if not pcr.equal} == {"PCR1", "PCR8"}
    assert (found["PCR1"].enclave, found["PCR1"].file) == (B, C)


def test_not_printed_is_not_equal() -> None:
    assert not any(pcr.equal for pcr in compare(b"Kernel panic\r\n", {"PCR0": A, "PCR1": B, "PCR2": C}))


def test_only_whole_lines_count() -> None:
    assert printed_pcrs(f"x PCR0: {A}\nPCR1: {B}0\nPCR2: {C[:-2]}\n".encode()) == {}
