# SPDX-License-Identifier: MIT
"""`nitroctl test`: the qtests of the built QEMU tree through meson, and the boot checks; a table of results.

What is checked stands in tests/qtest and in `nitroctl.testing.checks`. Here is only what runs them and shows
it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nitroctl.base import arch as arches
from nitroctl.base import output, shown
from nitroctl.base.arch import Arch
from nitroctl.base.errors import EXIT_FAILURE, NitroError, UsageError
from nitroctl.commands import PATH, PROGRAM, arch_option, json_option

PARTS = ("qtest", "boot")


@dataclass(frozen=True)
class Line:
    """One result. `detail` says what failed, for a failure."""

    part: str
    name: str
    claim: str
    passed: bool
    seconds: float
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part, "name": self.name, "claim": self.claim,
            "result": "pass" if self.passed else "fail", "seconds": round(self.seconds, 3),
            "detail": self.detail,
        }  # fmt: skip


@click.command()
@click.argument("part", type=click.Choice(PARTS), required=False)
@arch_option
@click.option("--qemu", type=PROGRAM, help="The QEMU to check (boot checks only).")
@click.option("--vsock-backend", type=PROGRAM, help="The vhost-user-vsock to check with.")
@click.option("--eif", type=PATH, help="Check this image instead of the test image; runs only "
              "the checks that hold for any image.")  # fmt: skip
@click.option("-k", "only", metavar="TEXT", help="Run only checks with TEXT in their name.")
@click.option("--sanitize", is_flag=True, help="Use the QEMU that was built with sanitizers.")
@click.option(
    "--series", metavar="X.Y", help="Use the QEMU tree of that series (qtests only). Default: the last built."
)
@json_option()
def test(
    part: str | None,
    arch: Arch | None,
    qemu: str | None,
    vsock_backend: str | None,
    eif: Path | None,
    only: str | None,
    sanitize: bool,
    series: str | None,
    as_json: bool,
) -> int:
    """Run the qtests of the QEMU that was built, and the checks that boot real guests.

    Without a part: both; with --qemu or --eif the boot checks. Exit status 1 if anything failed.
    """
    if part == "qtest" and (qemu or eif or vsock_backend):
        raise UsageError(
            "--qemu, --vsock-backend and --eif are for the boot checks; qtests run in the tree that was built"
        )
    if series and part != "qtest":
        raise UsageError("--series is for the qtests: nitroctl test qtest --series X.Y")
    if arch and qemu:
        raise UsageError("--arch chooses a QEMU, and so does --qemu")
    if qemu and sanitize:
        raise UsageError("--sanitize chooses a QEMU, and so does --qemu")
    parts = [part] if part else (["boot"] if qemu or eif else list(PARTS))
    lines: list[Line] = []
    show = _shower(as_json)
    results: Iterator[Line]
    for each in parts:
        if each == "qtest":
            results = _qtests(only, sanitize, series, arch or arches.default())
        else:
            results = _boot_checks(qemu, vsock_backend, eif, only, sanitize, arch or arches.default())
        for line in results:
            lines.append(line)
            show(line)
    if not lines:
        raise UsageError(f"no check has {only!r} in its name")
    failed = sum(not line.passed for line in lines)
    if as_json:
        output.items(line.to_json() for line in lines)
    else:
        took = sum(line.seconds for line in lines)
        shown.echo(f"{len(lines) - failed} passed, {failed} failed in {took:.0f} s")
    return EXIT_FAILURE if failed else 0


def _shower(as_json: bool) -> Any:
    """What shows one result as soon as it is there: a coloured line on a terminal, a plain one elsewhere."""
    if as_json:
        return lambda line: None
    if not sys.stdout.isatty():

        def plain(line: Line) -> None:
            mark = "ok  " if line.passed else "FAIL"
            note = f"  ({line.claim})" if line.part == "qtest" and line.claim else ""
            shown.echo(f"{mark}  {line.seconds:6.1f} s  {line.part:5}  {line.name}{note}")
            if line.detail:
                shown.echo(*line.detail.expandtabs().split("\n"))

        return plain
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def rich(line: Line) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=4)
        table.add_column(width=8, justify="right")
        table.add_column(width=5)
        table.add_column(width=30, no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True)
        table.add_row(
            Text("ok", "green") if line.passed else Text("FAIL", "bold red"),
            f"{line.seconds:.1f} s", Text(line.part), Text(line.name), Text(line.claim, "dim"),
        )  # fmt: skip
        console.print(table)
        if line.detail:
            shown.echo(*line.detail.expandtabs().split("\n"))

    return rich


def _boot_checks(
    qemu: str | None,
    backend: str | None,
    eif: Path | None,
    only: str | None,
    sanitize: bool,
    arch: Arch,
) -> Iterator[Line]:
    from nitroctl.testing import checks
    from nitroctl.testing.lab import Lab, arch_of
    from nitroctl.toolchain import choice, places

    if eif is not None:
        from nitroctl.eif.format import open_eif, read_layout

        with open_eif(eif) as (fd, size):  # a broken file is the user's error, not a failed check
            read_layout(fd, size, eif)
        eif = eif.resolve()
    if qemu:
        program = _program(qemu)
    else:
        program = places.locate("qemu", sanitize=True, arch=arch) if sanitize else choice.choose(arch=arch)
    named = checks.selected(user_eif=eif is not None, arch=arch_of(program))
    chosen = [c for c in named if not only or only in c.name]
    if not chosen:
        return
    with Lab(program, _program(backend) if backend else places.locate("vsock"), eif) as lab:
        for check in chosen:
            outcome = checks.perform(check, lab)
            detail = "" if outcome.error is None else f"{outcome.error}\n{outcome.evidence}".rstrip()
            yield Line("boot", check.name, check.claim, outcome.error is None, outcome.seconds, detail)


def _program(path: str) -> Path:
    """As a shell would find it, absolute: checks run in folders of their own."""
    found = shutil.which(path)
    if found is None:
        raise NitroError(f"{path} is not a program")
    return Path(found).absolute()


def _qtests(
    only: str | None, sanitize: bool, series: str | None = None, arch: Arch = "x86_64"
) -> Iterator[Line]:
    """Each qtest program through `meson test`, and of its report the single tests."""
    from nitroctl.base import progress
    from nitroctl.toolchain import tree
    from nitroctl.toolchain.steps import tool

    manifest = tree.manifest(sanitize=sanitize, series=series, arch=arch)
    hint = f"nitroctl build{' --sanitize' if sanitize else ''}{f' --series {series}' if series else ''}"
    hint += f" --arch {arch}" if arch != "x86_64" else ""
    if manifest is None or not Path(manifest.build_dir).is_dir():
        raise NitroError("no QEMU tree has been built whose qtests could run", hint=hint)
    if not manifest.qtests:
        raise NitroError(f"the QEMU tree in {manifest.build_dir} has no qtests of ours", hint=hint)
    build_dir = Path(manifest.build_dir)
    for program in manifest.qtests:
        name = Path(program).name
        if only and only not in name:
            continue
        with progress.task(f"Running {name}"):
            yield from _one_qtest(tool("meson"), build_dir, name)


def _one_qtest(meson: str, build_dir: Path, name: str) -> Iterator[Line]:
    from nitroctl.base import proc

    started = time.monotonic()
    # Its own, so that two runs of one build do not write into each other's.
    log = build_dir / "meson-logs" / f"nitroctl-{name}-{os.getpid()}"
    done = proc.run(
        [meson, "test", "-C", build_dir, "--no-rebuild", "--logbase", log.name, name], check=False
    )
    report = Path(f"{log}.json")
    seconds = time.monotonic() - started
    output = (done.stdout + done.stderr).decode(errors="replace")
    try:
        results = [json.loads(line) for line in report.read_text().splitlines()]
    except OSError:
        results = []
    if done.returncode == 0:
        for file in log.parent.glob(f"{log.name}.*"):
            file.unlink()
    if not results:
        yield Line("qtest", name, "", False, seconds, f"meson ran no test of this name:\n{output}")
        return
    for result in results:
        passed = done.returncode == 0 and result["result"] in ("OK", "EXPECTEDFAIL")
        detail = "" if passed else f"{result.get('stdout', '')}\n{result.get('stderr', '')}".strip()
        if not passed:
            how = _how(result["returncode"])
            detail = f"{result['result']}, {how}\n{detail[-4000:]}\nthe whole log is in {log}.txt"
        yield Line("qtest", name, _counted(result), passed, float(result["duration"]), detail)


def _how(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"


def _counted(result: dict[str, Any]) -> str:
    """How many single tests were in a program's TAP output."""
    points = [line for line in result.get("stdout", "").splitlines() if line.startswith(("ok ", "not ok "))]
    return f"{len(points)} tests" if points else ""
