# SPDX-License-Identifier: MIT
"""What the benchmarks share: alternating runs, medians, one table, an image's parts. Measures nothing itself.

Every figure is a ratio of two things measured in the same run, in turns, because the machines that run this
are noisy. Absolute times are printed to be read, never to be asserted.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import machine

from nitroctl.eif import format as eif_format


@dataclasses.dataclass
class Series:
    """The samples of one contender, in seconds or in units per second."""

    name: str
    samples: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def __str__(self) -> str:
        low, high = min(self.samples), max(self.samples)
        return f"{self.median:.3f}  ({low:.3f} to {high:.3f}, {len(self.samples)} runs)"


def alternate(contenders: dict[str, Callable[[], float]], runs: int) -> dict[str, Series]:
    """Call each contender in turn, `runs` times over, and return their samples; a run that others disturbed
    is done again (`machine`)."""
    series = {name: Series(name) for name in contenders}
    for i in range(runs):
        for name, measure in contenders.items():
            series[name].samples.append(machine.undisturbed(measure, name))
            print(f"  run {i + 1}/{runs}  {name}: {series[name].samples[-1]:.3f}", file=sys.stderr)
    return series


def table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    print(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def seconds_of(argv: Sequence[str | os.PathLike[str]]) -> float:
    """Wall time of one command that must succeed."""
    begin = time.monotonic()
    subprocess.run([os.fspath(a) for a in argv], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def warm(path: Path) -> None:
    """Read a file once, so that the page cache is the same for every contender."""
    with open(path, "rb", buffering=0) as f:
        while f.read(1 << 22):
            pass


def parts(eif: Path, folder: Path) -> tuple[Path, str, int]:
    """The EIF's kernel as a file, its command line, and a memfd with its ramdisks joined."""
    initramfs = os.memfd_create("initramfs")
    kernel, cmdline = folder / "kernel", ""
    with open(eif, "rb") as f, open(initramfs, "wb", closefd=False) as out:
        for section in eif_format.read_layout(f.fileno(), eif.stat().st_size, eif).sections:
            f.seek(section.data_offset)
            if section.type == eif_format.SectionType.KERNEL:
                kernel.write_bytes(f.read(section.size))
            elif section.type == eif_format.SectionType.CMDLINE:
                cmdline = f.read(section.size).decode()
            elif section.type == eif_format.SectionType.RAMDISK:
                left = section.size
                while left:
                    left -= out.write(f.read(min(left, 1 << 22)))
    return kernel, cmdline, initramfs
