# SPDX-License-Identifier: MIT
"""The vsock backend against vhost-device-vsock, Debian forky's, unpacked into the cache.

    python tests/bench/vsock.py [--runs 5] [--seconds 2] [--only front|guest] [--json]

Both take turns, each run with a fresh process. Two parts:

    front   behind a fake front end that costs next to nothing (vsock-rates.c): the backends' own ceiling
    guest   with a Linux guest in `-M microvm`: what its users see, which under TCG is mostly the guest

The guest connects to CID 2 here: over unix sockets the peer knows no other parent. It is given what it can
take: it stops at a payload in two pieces, as recent kernels send one above 32404 bytes, and tells neither
side of a half-close. A row of its own shows the first. Processor seconds are the backend's, user and system.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import machine
from common import parts, table

from nitroctl.base import accelerator, proc, progress
from nitroctl.eif import testimage
from nitroctl.testing import agent
from nitroctl.testing.peer import vhost_device_vsock
from nitroctl.toolchain import cache, places
from nitroctl.toolchain.steps import tool
from nitroctl.vsock import sockets

ROOT = Path(__file__).resolve().parents[2]
CID, PARENT = 4, 2
RATES_PORT = 5000  # of vsock-rates
LIMIT = 120.0  # seconds that anything may take
MB = 10**6
CROWD, CROWD_MS = 4000, 10


# ---- the contenders --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contender:
    name: str
    program: tuple[str, ...]

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        folder = Path(tempfile.mkdtemp(prefix="vb-"))
        device, uds = folder / "d", folder / "u"
        argv = [*self.program, "--vm", f"guest-cid={CID},socket={device},uds-path={uds}"]
        with open(folder / "log", "wb") as log:
            process = proc.start(argv, stdout=log, stderr=log)
        try:
            patience = time.monotonic() + LIMIT
            while not (device.exists() and uds.exists()):  # the peer tells nobody when it is ready
                if process.poll() is not None or time.monotonic() > patience:
                    sys.exit(f"{self.name} did not start: {(folder / 'log').read_text(errors='replace')}")
                time.sleep(0.01)
            yield Running(process.pid, device, uds)
        finally:
            proc.stop(process)
            shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Running:
    pid: int
    device: Path
    uds: Path

    def cpu(self) -> float:
        """Seconds of processor time until now, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peer() -> Contender:
    found = vhost_device_vsock()
    return Contender(f"vhost-device-vsock {found.version}", found.argv)


def ours() -> Contender:
    return Contender("vhost-user-vsock", (os.fspath(places.locate("vsock")),))


# ---- behind a fake front end -----------------------------------------------------------------------------


def driver() -> Path:
    """vsock-rates, compiled."""
    name = f"bench-{cache.digest_text(str(ROOT))[:12]}"
    cache.set_current(name, "check", name)
    folder = cache.entry("check", name)
    if not (folder / "build.ninja").is_file():
        subprocess.run([tool("meson"), "setup", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    program = "tests/bench/vsock-rates"
    subprocess.run([tool("ninja"), "-C", folder, program], check=True, stdout=subprocess.DEVNULL)
    return folder / program


Facts = dict[str, float]


def front(program: Path, contender: Contender, *workload: str | float) -> Facts:
    """The figures of one workload in a fresh process; "cpu": the backend's seconds."""
    with contender.running() as backend:
        before = backend.cpu()
        argv = [program, backend.device, backend.uds, CID, PARENT, *workload]
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            sys.exit(f"{contender.name}: {done.stderr}")
        facts = {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}
        return {**facts, "cpu": backend.cpu() - before}


# ---- with a guest ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def linux(contender: Contender, kernel: Path, initramfs: int) -> Iterator[tuple[Running, agent.Agent]]:
    """A guest behind a fresh backend, and a connection to its agent, which is PID 1: it sends no heartbeat,
    whose parent the peer does not know."""
    with contender.running() as backend:
        argv = [
            os.fspath(places.locate("qemu")), "-M", "microvm,acpi=off,memory-backend=m",
            "-object", "memory-backend-memfd,id=m,size=512M,share=on", "-m", "512M",
            "-accel", accelerator.choose().name, "-cpu", "max", "-kernel", os.fspath(kernel),
            "-initrd", f"/proc/self/fd/{initramfs}", "-append", "console=ttyS0 panic=1 reboot=k quiet",
            "-chardev", f"socket,id=c,path={backend.device}", "-device", "vhost-user-vsock-device,chardev=c",
            "-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
        ]  # fmt: skip
        process = proc.start(argv, stdout=subprocess.PIPE, pass_fds=[initramfs])
        assert process.stdout
        try:
            for line in process.stdout:
                if agent.READY_LINE.encode() in line:
                    break
            else:
                sys.exit(f"no guest behind {contender.name}")
            with agent.Agent(backend.uds, timeout=LIMIT) as client:
                yield backend, client
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def guest_sends(uds: Path, client: agent.Agent, size: int) -> float:
    """Bytes per second that arrive of what the guest writes 16 KiB at a time: in one piece, on any kernel."""
    port = 5001
    with sockets.listen(uds, port) as listener:
        listener.socket.settimeout(LIMIT)
        client.start("dial", PARENT, port, "source", size, 1, 16384)
        with listener.accept() as sock:
            sock.settimeout(LIMIT)
            begin = time.monotonic()
            got = 0
            while got < size and (piece := sock.recv(1 << 20)):  # the peer never tells of the end
                got += len(piece)
            took = time.monotonic() - begin
        client.finish()
    if got != size:
        sys.exit(f"{got} of {size} bytes arrived")
    return got / took


def guest_receives(uds: Path, client: agent.Agent, size: int) -> float:
    """Bytes per second until the guest has told that it has them all."""
    port = 5002
    with sockets.listen(uds, port) as listener:
        listener.socket.settimeout(LIMIT)
        client.start("dial", PARENT, port, "count")
        with listener.accept() as sock:
            sock.settimeout(LIMIT)
            block = bytes(1 << 16)
            begin = time.monotonic()
            for _ in range(size // len(block)):
                sock.sendall(block)
        report = client.finish()
        took = time.monotonic() - begin
    if f"received {size}\n" not in report:
        sys.exit(f"not all of {size} bytes arrived: {report}")
    return size / took


def round_trip(program: Path, backend: Running, client: agent.Agent, count: int) -> float:
    """Seconds of one, the mean as the guest sees it."""
    argv = [program, backend.device, backend.uds, CID, PARENT, "host", 1]
    host = proc.start(list(map(str, argv)), stdout=subprocess.PIPE)
    try:
        assert host.stdout and host.stdout.readline() == b"ready\n"
        facts = client.facts("dial", PARENT, RATES_PORT, "pingpong", count)
    finally:
        proc.stop(host)
    return int(facts["us"]) / count / 1e6


def connect_time(uds: Path, client: agent.Agent, count: int) -> float:
    """Seconds of a connect in the guest, the mean: its clock may have no more than ticks of 4 ms."""
    port = 5004
    with sockets.listen(uds, port) as listener:
        times = []
        for _ in range(count):
            facts = client.facts("connect", PARENT, port)
            listener.accept().close()
            if facts["errno"] != "0":
                sys.exit(f"connect: errno {facts['errno']}")
            times.append(int(facts["us"]) / 1e6)
    return statistics.fmean(times)


def guest_facts(contender: Contender, kernel: Path, initramfs: int) -> Facts:
    """All figures of one boot."""
    facts = {}
    with linux(contender, kernel, initramfs) as (backend, client):
        measures: tuple[tuple[str, int, Callable[[int], float]], ...] = (
            ("send", 192 << 20, lambda n: guest_sends(backend.uds, client, n)),
            ("receive", 128 << 20, lambda n: guest_receives(backend.uds, client, n)),
        )
        for name, size, measure in measures:
            before = backend.cpu()
            facts[name] = measure(size)
            facts[f"{name} cpu"] = (backend.cpu() - before) / size * 1e9
        facts["echo"] = round_trip(driver(), backend, client, 5000)
        facts["connect"] = connect_time(backend.uds, client, 3000)
    return facts


# ---- rows ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure of both. `goal`: the least ratio of ours to the peer's, or with `less` the most."""

    name: str
    unit: str
    mine: list[float]
    theirs: list[float]
    goal: float
    less: bool = False

    @property
    def ratio(self) -> float:
        theirs = statistics.median(self.theirs)
        return statistics.median(self.mine) / theirs if theirs else float("inf")

    @property
    def met(self) -> bool:
        return self.ratio <= self.goal if self.less else self.ratio >= self.goal

    def text(self) -> str:
        mine, theirs = (f"{statistics.median(v):9.3g}" for v in (self.mine, self.theirs))
        goal = f"{'at most' if self.less else 'at least'} {self.goal:g}"
        return f"{mine} {theirs}  {self.ratio:6.2f}  {goal:<13} {'' if self.met else 'MISSED'}"


def take_turns(
    contenders: Sequence[Contender], runs: int, what: str, measure: Callable[[Contender], Facts]
) -> tuple[list[Facts], list[Facts]]:
    """`measure` of both, in turns."""
    found: tuple[list[Facts], list[Facts]] = ([], [])
    for i in range(runs):
        for which, contender in enumerate(contenders):
            facts = machine.undisturbed(functools.partial(measure, contender), what)
            found[which].append(facts)
            said = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
            print(f"  run {i + 1}/{runs}  {what}, {contender.name}: {said}", file=sys.stderr, flush=True)
    return found


def front_rows(contenders: Sequence[Contender], runs: int, seconds: float) -> tuple[list[Row], list[str]]:
    program = driver()

    def both(*workload: str | float) -> tuple[list[Facts], list[Facts]]:
        what = " ".join(map(str, workload))
        return take_turns(contenders, runs, what, lambda c: front(program, c, *workload))

    rows, notes = [], []

    def row(name: str, unit: str, found: tuple[list[Facts], list[Facts]], key: str, goal: float, *,
            scale: float = 1, less: bool = False) -> None:  # fmt: skip
        mine, theirs = ([facts[key] * scale for facts in side] for side in found)
        rows.append(Row(name, unit, mine, theirs, goal, less))

    def transfer(name: str, goal: float, *workload: str | float, cpu: bool = False) -> None:
        found = both(*workload)
        row(name, "GB/s", found, "rate", goal, scale=1e-9)
        if cpu:
            for side in found:
                for facts in side:
                    facts["per GB"] = facts["cpu"] / facts["bytes"] * 1e9
            row(f"{name}, processor", "s/GB", found, "per GB", 0.5, less=True)

    transfer("guest to host, 64 KiB", 3, "send", 65536, seconds, "whole", cpu=True)
    transfer("guest to host, 16 KiB", 1, "send", 16384, seconds)
    transfer("host to guest", 6, "receive", seconds, cpu=True)
    row("round trip, 1 byte", "us", both("echo", 20000), "median", 0.9, scale=1e6, less=True)
    row("connect and close", "1000/s", both("connect", 5000), "rate", 1.5, scale=1e-3)
    found = both("open", 1000)
    row("1000 connections, echoed", "ms", found, "seconds", 1, scale=1e3, less=True)
    for contender, side in zip(contenders, found, strict=True):
        notes.append(f"1000 connections, {contender.name}: {min(f['echoed'] for f in side):g} echoed")
    for name, workload in (("guest to host", "streams"), ("host to guest", "pull")):
        found = both(workload, 100, seconds)
        row(f"100 streams, {name}", "GB/s", found, "rate", 1, scale=1e-9)
        for contender, side in zip(contenders, found, strict=True):
            worst = max(f["most"] / f["least"] if f["least"] else float("inf") for f in side)
            notes.append(f"100 streams, {name}, {contender.name}: the fastest got {worst:.2f} of the slowest")
    trips = [
        machine.undisturbed(lambda: front(program, contenders[0], "crowd", CROWD), "crowd")["worst"] * 1e3
        for _ in range(runs)
    ]
    median = statistics.median(trips)
    verdict = "" if median <= CROWD_MS else "  MISSED"
    notes.append(
        f"worst round trip while {CROWD} connects wait on a full backlog: {median:.1f} ms, median of {runs} "
        f"runs (at most {CROWD_MS}){verdict}"
    )
    for contender in contenders:
        facts = front(program, contender, "send", 65536, seconds)
        how = f"{facts['rate'] / 1e9:.2f} GB/s" if not facts["lost"] else f"{facts['lost']:g} bytes lost"
        notes.append(f"64 KiB in two pieces of 32 KiB, {contender.name}: {how}")
    return rows, notes


def guest_rows(contenders: Sequence[Contender], runs: int) -> list[Row]:
    folder = Path(tempfile.mkdtemp(prefix="vb-"))
    try:
        testimage.make("no-heartbeat", folder / "eif")
        kernel, _, initramfs = parts(folder / "eif", folder)
        mine, theirs = take_turns(contenders, runs, "guest", lambda c: guest_facts(c, kernel, initramfs))
    finally:
        shutil.rmtree(folder)

    def row(name: str, unit: str, key: str, goal: float, scale: float, less: bool = False) -> Row:
        return Row(name, unit, [f[key] * scale for f in mine], [f[key] * scale for f in theirs], goal, less)

    return [
        row("guest to host, 16 KiB", "MB/s", "send", 1, 1 / MB),
        row("guest to host, processor", "s/GB", "send cpu", 1, 1, less=True),
        row("host to guest", "MB/s", "receive", 1, 1 / MB),
        row("host to guest, processor", "s/GB", "receive cpu", 1, 1, less=True),
        row("round trip, 1 byte", "us", "echo", 0.6, 1e6, less=True),
        row("connect", "us", "connect", 1, 1e6, less=True),
    ]


def show(title: str, rows: Sequence[Row]) -> None:
    table(title, [(f"{row.name} ({row.unit})", row.text()) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", default=5, type=int)
    parser.add_argument("--seconds", default=2.0, type=float, help="of each transfer (default 2)")
    parser.add_argument("--only", choices=["front", "guest"], help="one part")
    parser.add_argument("--json", action="store_true", help="all samples, on standard output")
    options = parser.parse_args()
    contenders = (ours(), peer())
    found: dict[str, list[Row]] = {}
    notes: list[str] = []
    if options.only != "guest":
        found["front"], notes = front_rows(contenders, options.runs, options.seconds)
    if options.only != "front":
        found["guest"] = guest_rows(contenders, options.runs)
    if options.json:
        parts = {part: [{**dataclasses.asdict(r), "ratio": r.ratio, "met": r.met} for r in rows]
                 for part, rows in found.items()}  # fmt: skip
        print(json.dumps({"peer": contenders[1].name, **parts, "notes": notes}, indent=2))
        return
    guest = f"With a Linux guest ({accelerator.choose().name})"
    titles = {"front": "Behind a fake front end", "guest": guest}
    table("The machine meanwhile", machine.rows())
    for part, rows in found.items():
        show(f"{titles[part]}: ours, {contenders[1].name}, ratio, goal", rows)
        if part == "front":
            print("\n".join(f"  {note}" for note in notes))


if __name__ == "__main__":
    with progress.quiet():
        main()
