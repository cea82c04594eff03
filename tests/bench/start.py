# SPDX-License-Identifier: MIT
"""What nitroctl itself costs: beside the same QEMU by hand, for help and completion, and with eight enclaves.

    python tests/bench/start.py [--runs 7]

`nitroctl run` and the two command lines that its --dry-run prints take turns, with the demo's image, from
start to end. What it adds is the difference of the medians; its processor time is its own process's, without
QEMU's and the backend's. The first run of an hour mints certificates, the others do not: both are rows. Each
start is that of an installed package, whose modules are compiled.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import dataclasses
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import machine
from common import table

import nitroctl
from nitroctl.base import accelerator, progress
from nitroctl.eif import testimage

PROGRAM = [sys.executable, "-m", "nitroctl"]
ENCLAVES = 8
MEMORY = "128M"  # of each of the eight


@dataclasses.dataclass
class Cost:
    """Seconds: from start to end, and of the processor by the process alone."""

    wall: float
    own: float


def cost(argv: Sequence[str], env: dict[str, str]) -> Cost:
    begin = time.monotonic()
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall = time.monotonic() - begin
    # A process that has ended and is not reaped still tells what it alone has used.
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    if process.wait():
        sys.exit(f"{shlex.join(argv)}: status {process.returncode}")
    return Cost(wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def by_hand(eif: Path, env: dict[str, str]) -> float:
    """Seconds of backend and QEMU as --dry-run has them, in two terminals."""
    argv = [*PROGRAM, "run", "--dry-run", os.fspath(eif)]
    said = subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    backend, qemu = map(shlex.split, said[:2])
    begin = time.monotonic()
    serving = subprocess.Popen(backend, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert serving.stdout and serving.stdout.readline().strip() == b"ready"
        subprocess.run(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        took = time.monotonic() - begin
        serving.wait(timeout=30)
    finally:
        serving.kill()
        serving.wait()
        assert serving.stdout
        serving.stdout.close()
    return took


def heartbeats(eif: Path, env: dict[str, str], count: int) -> float:
    """Seconds until so many enclaves that are started at once have all had their heartbeat; they run on."""
    begin = time.monotonic()
    argv = [*PROGRAM, "run", "--detach", "--memory", MEMORY, "--no-memory-check", os.fspath(eif)]
    started = [
        subprocess.Popen([*argv, "--name", f"bench-{i}"], env=env, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE)
        for i in range(count)
    ]  # fmt: skip
    said = [process.communicate()[1].decode(errors="replace") for process in started]
    took = time.monotonic() - begin
    if any(process.returncode for process in started):
        sys.exit("".join(said))
    return took


def remove(env: dict[str, str]) -> None:
    subprocess.run([*PROGRAM, "stop", "--all"], env=env, check=True, capture_output=True)
    subprocess.run([*PROGRAM, "rm", "--all"], env=env, check=False, capture_output=True)


def boots(eif: Path, env: dict[str, str], count: int) -> float:
    """The same of a run that nobody disturbed; nothing is left of it."""
    name = f"{count} enclaves"
    return machine.undisturbed(lambda: heartbeats(eif, env, count), name, lambda: remove(env))


def row(name: str, value: float, unit: str, most: float) -> tuple[str, str]:
    verdict = "" if value <= most else "  MISSED"
    return name, f"{value:.3f} {unit}  (at most {most:.3g}){verdict}"


def medians(measures: dict[str, Callable[[], Cost]], runs: int) -> dict[str, Cost]:
    """Of runs in turns."""
    found: dict[str, list[Cost]] = {name: [] for name in measures}
    for _ in range(runs):
        for name, measure in measures.items():
            found[name].append(machine.undisturbed(measure, name))
    return {
        name: Cost(statistics.median(c.wall for c in costs), statistics.median(c.own for c in costs))
        for name, costs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", default=7, type=int)
    runs = parser.parse_args().runs
    folder = Path(tempfile.mkdtemp(prefix="nb-"))
    # As an installed package has it: compiled, and with the user's own folders, but none of this user's.
    compileall.compile_dir(os.path.dirname(nitroctl.__file__), quiet=1)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {f"XDG_{kind}": f"{folder}/{kind[0]}" for kind in ("DATA_HOME", "STATE_HOME")}
    env["XDG_RUNTIME_DIR"] = f"{folder}/r"
    (folder / "r").mkdir(mode=0o700)
    completion = {**env, "_NITROCTL_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "nitroctl r"}
    option = {**completion, "COMP_CWORD": "2", "COMP_WORDS": "nitroctl run --me"}
    try:
        eif = folder / "hello.eif"
        testimage.make("hello", eif)
        run = [*PROGRAM, "run", os.fspath(eif)]

        def first() -> Cost:
            shutil.rmtree(folder / "D" / "nitroctl/ca/instances", ignore_errors=True)
            return cost(run, env)

        cost(run, env)  # makes the CA, and warms all caches
        found = medians(
            {
                "python": lambda: cost([sys.executable, "-c", "pass"], env),
                "help": lambda: cost([*PROGRAM, "--help"], env),
                "completion": lambda: cost(PROGRAM, completion),
                "option": lambda: cost(PROGRAM, option),
                "dry run": lambda: cost([*run, "--dry-run"], env),
                "by hand": lambda: Cost(by_hand(eif, env), 0.0),
                "run": lambda: cost(run, env),
                "first run": first,
            },
            runs,
        )
        machine.also("XDG_RUNTIME_DIR", env["XDG_RUNTIME_DIR"])  # they are no processes below us
        several = [(boots(eif, env, 1), boots(eif, env, ENCLAVES)) for _ in range(max(1, runs // 2))]
        one, all_of_them = (statistics.median(values) for values in zip(*several, strict=True))
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    cpus = len(os.sched_getaffinity(0))
    limit = max(1.0, ENCLAVES / cpus) * one * 1.2
    table(
        f"Starting ({accelerator.choose().name}), medians of {runs} runs in turns",
        [
            ("Python itself", f"{found['python'].wall:.3f} s, {found['python'].own:.3f} s of CPU"),
            row("nitroctl --help", found["help"].wall, "s", 0.06),
            row("completing a command", found["completion"].wall, "s", 0.06),
            row("completing an option of run", found["option"].wall, "s", 0.06),
            ("nitroctl run --dry-run", f"{found['dry run'].wall:.3f} s, {found['dry run'].own:.3f} s of CPU"),
            row("nitroctl run beyond QEMU by hand", found["run"].wall - found["by hand"].wall, "s", 0.2),
            row("  its own processor time", found["run"].own, "s", 0.15),
            ("  the same, minting certificates", f"{found['first run'].own:.3f} s"),
            row(f"{ENCLAVES} heartbeats, of one in {one:.2f} s", all_of_them, "s", limit),
        ],
    )
    table("The machine meanwhile", machine.rows())


if __name__ == "__main__":
    with progress.quiet():
        main()
