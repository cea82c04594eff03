# SPDX-License-Identifier: MIT
"""How long work shows itself: a live bar on a terminal, plain lines elsewhere, always on stderr.

    with progress.task("Building QEMU", unit="steps") as task:
        task.total = 1302
        task.advance(1)

A plain line is printed when a task begins, at most every ten seconds while it goes on, and when it ends with
its time. Nothing here knows what the work is.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Literal

from nitroctl.base import proc, shown

Unit = Literal["bytes", "steps", "none"]

PLAIN_INTERVAL = 10.0  # seconds between two plain lines of one task

_quiet = False


@contextlib.contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """No progress is shown while the body runs: whoever started us wants the answer alone."""
    global _quiet
    before, _quiet = _quiet, on or _quiet
    try:
        yield
    finally:
        _quiet = before


def say(text: str) -> None:
    """One plain line of progress."""
    if not _quiet:
        shown.say(text)


def amount(n: int, unit: Unit) -> str:
    """`n` as people read it: 12.3 MB, 740 steps."""
    if unit != "bytes":
        return f"{n}"
    size = float(n)
    for suffix in ("B", "kB", "MB"):
        if round(size, 1) < 1000:
            return f"{size:.0f} {suffix}" if suffix == "B" else f"{size:.1f} {suffix}"
        size /= 1000
    return f"{size:.2f} GB"


class Task:
    """One piece of work. `total` may be set late or stay None; `advance` and `set` report progress."""

    def __init__(self, title: str, unit: Unit, total: int | None) -> None:
        self.title = title
        self.unit = unit
        self.total = total
        self.done = 0
        self.note = ""

    def advance(self, n: int = 1) -> None:
        self.set(self.done + n)

    def set(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        self.done = done
        if total is not None:
            self.total = total
        if note is not None:
            self.note = note
        self.show()

    def show(self) -> None:
        pass


class _PlainTask(Task):
    def __init__(self, title: str, unit: Unit, total: int | None) -> None:
        super().__init__(title, unit, total)
        self.started = self.shown = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if now - self.shown < PLAIN_INTERVAL:
            return
        self.shown = now
        how_far = amount(self.done, self.unit)
        if self.total:
            how_far += f" of {amount(self.total, self.unit)} ({100 * self.done // self.total} %)"
        say(f"{self.title}: {how_far}, {now - self.started:.0f} s{' ' + self.note if self.note else ''}")


@contextlib.contextmanager
def _plain(title: str, unit: Unit, total: int | None) -> Iterator[Task]:
    task = _PlainTask(title, unit, total)
    say(f"{title} ...")
    yield task
    size = f" {amount(task.done, unit)}," if task.done and unit == "bytes" else ""
    say(f"{title}: done,{size} {time.monotonic() - task.started:.1f} s")


@contextlib.contextmanager
def _live(title: str, unit: Unit, total: int | None) -> Iterator[Task]:
    from rich import progress as rp
    from rich.console import Console

    columns: list[rp.ProgressColumn] = [rp.SpinnerColumn(finished_text="✓")]
    columns += [rp.TextColumn("{task.description}", markup=False)]
    if unit == "bytes":
        columns += [rp.BarColumn(), rp.DownloadColumn(), rp.TransferSpeedColumn()]
    elif unit == "steps":
        columns += [rp.BarColumn(), rp.MofNCompleteColumn()]
    columns += [rp.TimeElapsedColumn(), rp.TextColumn("{task.fields[note]}", style="dim", markup=False)]
    bar = rp.Progress(*columns, console=Console(stderr=True), refresh_per_second=8)
    with contextlib.ExitStack() as stack:
        stack.callback(bar.stop)
        with proc.signals_held():
            bar.start()
        handle = bar.add_task(shown.line(title), total=total, note="")

        class LiveTask(Task):
            def show(self) -> None:
                bar.update(handle, completed=self.done, total=self.total, note=shown.line(self.note))

        task = LiveTask(title, unit, total)
        yield task
        # A bar that knows no total ends full, not spinning.
        task.note = ""
        task.total = task.total or max(task.done, 1)
        task.done = task.total
        task.show()


@contextlib.contextmanager
def task(title: str, *, unit: Unit = "none", total: int | None = None) -> Iterator[Task]:
    """Show one piece of work while the body runs. An exception leaves no "done" behind."""
    if _quiet:
        yield Task(title, unit, total)
        return
    shown = _live if sys.stderr.isatty() else _plain
    with shown(title, unit, total) as t:
        yield t
