# SPDX-License-Identifier: MIT
"""How amounts of memory are written, and what an EIF gets."""

from __future__ import annotations

import pytest

from nitroctl.base import memory
from nitroctl.base.errors import UsageError


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("512m", 512), ("4G", 4096), ("4g", 4096), ("1T", 1 << 20), (" 7 ", 7)],
)
def test_memory(text: str, mib: int) -> None:
    assert memory.parse_memory(text) == mib


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "512K", "512MB", "G", "0x10", "٣", "9" * 13])
def test_memory_refused(text: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        memory.parse_memory(text)


@pytest.mark.parametrize(
    ("size", "mib"),
    [(1, 512), (128 << 20, 512), ((128 << 20) + 1, 516), (400 << 20, 1600), (1 << 30, 4096)],
)
def test_default_memory_is_four_times_the_eif_and_at_least_512_mib(size: int, mib: int) -> None:
    assert memory.default_memory(size) == mib
