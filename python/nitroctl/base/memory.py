# SPDX-License-Identifier: MIT
"""Amounts of memory: how users write them, and how much an EIF needs."""

from __future__ import annotations

import re

from nitroctl.base.errors import UsageError

MIB = 1 << 20
MIN_MEMORY_MIB = 512
# AWS's rule: an enclave has at least four times its EIF as memory.
MEMORY_PER_EIF = 4

_SUFFIXES = {"": 1, "M": 1, "G": 1 << 10, "T": 1 << 20}


def parse_memory(text: str) -> int:
    """Memory in MiB from `512`, `512M`, `4G`, `1t`: bare numbers are MiB, suffixes in any case."""
    match = re.fullmatch(r"([0-9]{1,12})([MGT]?)", text.strip().upper(), re.ASCII)
    if not match or int(match[1]) == 0:
        raise UsageError(
            f"memory {text!r} is not an amount of memory",
            hint="give a whole number of MiB, or one with the suffix M, G or T, such as 512M or 4G",
        )
    return int(match[1]) * _SUFFIXES[match[2]]


def default_memory(eif_size: int) -> int:
    """MiB for an EIF of `eif_size` bytes: four times its size, rounded up, and at least 512."""
    eif_mib = -(-eif_size // MIB)
    return max(MIN_MEMORY_MIB, MEMORY_PER_EIF * eif_mib)
