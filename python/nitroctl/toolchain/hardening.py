# SPDX-License-Identifier: MIT
"""What a program or library that we built has against being exploited, as binutils see it. It judges files
that we made; what others made is theirs."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from nitroctl.base import proc

_PIE, _NOW = 0x08000000, 1  # DF_1_* of DT_FLAGS_1, elf.h


def lacks(path: Path, exports: Collection[str] = (), *, program: bool = True) -> list[str]:
    """What it is not, each as a clause; `exports` are the symbols that others may find in it."""
    said, symbols = _objdump("-p", path), _objdump("-T", path)
    flags = int((re.search(r"FLAGS_1\s+0x([0-9a-f]+)", said) or ["", "0"])[1], 16)
    stack = re.search(r"STACK .*\n.* flags (\S+)", said)
    there = {
        "position-independent": not program or flags & _PIE,
        "bound at its start": flags & _NOW,
        "RELRO": re.search(r"^\s*RELRO", said, re.MULTILINE),
        "without an executable stack": stack and "x" not in stack[1],
        "without relocations of its code": "TEXTREL" not in said,
        "with a stack protector": "__stack_chk_fail" in symbols,
        "with FORTIFY": re.search(r"__\w+_chk\b(?<!__stack_chk)", symbols),
    }
    found = [what for what, good in there.items() if not good]
    # Copies of a library's variables are in a program's .bss and no doing of its own.
    defined = re.findall(r"^[0-9a-f]+ .{7}\s*\.text\s.*\s(\w+)$", symbols, re.MULTILINE)
    if extra := sorted(set(defined) - set(exports)):
        found.append(f"without exports: {', '.join(extra[:5])}")
    return found


def _objdump(option: str, path: Path) -> str:
    """Of any file: one that is no ELF file has nothing."""
    return proc.run(["objdump", option, os.fspath(path)], check=False).stdout.decode(errors="replace")
