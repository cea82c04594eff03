# SPDX-License-Identifier: MIT
"""What is seen of a running enclave and done to it: the NSM's log, events, the timeline, faults, a debugger.

QEMU is a fake that keeps what its NSM was told; what the device makes of that is the qtests' subject, and
what an application sees of it the boot tests'.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, steps
from enclave_life import Life
from jsonpage import answer
from nitroctl.base.accelerator import Accelerator
from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import faults, timeline
from nitroctl.enclaves.events import KEYS
from nitroctl.enclaves.faults import ClockFault, Death, NsmFault
from nitroctl.enclaves.moments import Moments
from nitroctl.enclaves.qemu import QemuConfig, argv
from nitroctl.enclaves.records import State
from recorded import record

MICROSECONDS = 1769860800000000  # 2026-01-31 12:00:00 UTC


def log_line(request: Any, answer: Any, number: int = 0) -> str:
    asked, answered = cbor2.dumps(request), cbor2.dumps(answer)
    return f"1 {MICROSECONDS + number} 45 0 - {len(asked)} {asked.hex()} {answered.hex()}"


EXTENDED = log_line({"ExtendPCR": {"index": 16, "data": b"x"}}, {"ExtendPCR": {"data": bytes(48)}}, 1)
LOCKED = log_line({"LockPCRs": {"range": 20}}, "LockPCRs", 2)
ISSUED = log_line({"Attestation": {}}, {"Attestation": {"document": b"doc"}}, 3)
REFUSED = log_line({"LockPCR": {"index": 0}}, {"Error": "ReadOnlyIndex"}, 4)
BOOT_TIMES = "begun=1769860800100000,loaded=1769860800300000,ready=1,runs=1769860800400000,read=1500,crc=7"


@contextlib.contextmanager
def gate(path: Path) -> Iterator[None]:
    """A step that the fake QEMU takes once the body is done."""
    os.mkfifo(path)
    yield
    with open(path, "wb"):
        pass


def follow(bench: Bench, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nitroctl", *arguments],
        env=bench.environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_an_enclave_is_seen_and_disturbed(bench: Bench, life: Life) -> None:
    """One enclave for all of it: its log is read while it runs and after, and so are its events."""
    told, out, fifo = bench.tmp / "told", bench.tmp / "nsm.json", bench.tmp / "fifo"
    out.write_text("of another run\n")
    script = [
        ["print", "hello\r\n"], HEARTBEAT,
        ["nsm", EXTENDED], ["nsm", LOCKED], ["nsm", "junk"], ["nsm", ISSUED],
        ["await", str(fifo)], ["nsm", REFUSED], RESET,
    ]  # fmt: skip
    with gate(fifo):
        record = life.start(
            "--nsm-log", str(out), **steps(*script),
            FAKE_QEMU_PROPERTIES=str(told), FAKE_QEMU_BOOT_TIMES=BOOT_TIMES,
        )  # fmt: skip
        watched = follow(bench, "events", "hello", "--follow", "--json")
        asked = follow(bench, "nsm", "hello", "-f", "--json", "--documents")

        assert life.ok("fault", "hello", "nsm", "--error", "--kind", "Attestation", "--count", "2") == (
            "nsm error kind=Attestation count=2\n"
        )
        life.ok("fault", "clock", "hello", "--jump", "-5.5", "--drift", "100")
        wrong = life("fault", "nsm", "hello", "--delay", "4000")
        assert wrong.returncode == 2 and "a delay of 4000 s cannot be had; 0 to 3600 s" in wrong.stderr
        wrong = life("fault", "die", "hello", "tomorrow")
        assert wrong.returncode == 2 and "connection:PORT" in wrong.stderr
        wrong = life("fault", "die", "hello", "heartbeat")
        assert wrong.returncode == 2 and "has had its heartbeat already" in wrong.stderr
        state = answer("nitroctl fault list", life.ok("fault", "list", "hello", "--json"))
        assert state["faults"] == ["nsm error kind=Attestation count=2", "clock jump=-5.5 drift=100"]
        life.ok("fault", "hello", "clear")

    stdout, _ = asked.communicate(timeout=HANG)
    entries = [answer("nitroctl nsm", line) for line in stdout.splitlines()]
    assert [(e["kind"], e["result"]) for e in entries] == [
        ("ExtendPCR", "Success"), ("LockPCRs", "Success"), ("Attestation", "Success"),
        ("LockPCR", "ReadOnlyIndex"),
    ]  # fmt: skip
    assert entries[2]["document"] == b"doc".hex()
    # The user's file has the same, and both are nobody else's.
    assert [answer("nitroctl nsm", line) for line in out.read_text().splitlines()] == entries
    home = Path(record["home"])
    for path in (out, home / "nsm.log", home / "events.log"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = life.ok("nsm", "hello").splitlines()
    assert said[2] == "12:00:00.000003 Attestation -> a document of 3 bytes (45 us)" and len(said) == 4

    stdout, _ = watched.communicate(timeout=HANG)
    events = [answer("nitroctl events", line) for line in stdout.splitlines()]
    names = [e["event"] for e in events]
    assert names[0] == "started" and "heartbeat" in names and names[-1] == "stopped"
    assert names.count("fault") == 3 and names.count("document") == 1
    assert {(e["event"], e["index"]) for e in events if e["index"] is not None} == {
        ("pcr-extended", 16), ("pcrs-locked", 20),
    }  # fmt: skip
    assert all(set(e) == set(KEYS) for e in events)
    assert life.ok("events", "hello").splitlines()[-1].endswith(" hello: stopped: the guest ended")
    assert life.ok("events") == "" and len(life.ok("events", "--all").splitlines()) == len(events)

    # What armed the fault was set last; the clock was read before it jumped.
    settings = [line for line in told.read_text().splitlines() if line.startswith("/machine/nsm")]
    first = settings.index('/machine/nsm fault-kind "Attestation"')
    assert settings[first:first + 9] == [
        f"/machine/nsm {line}" for line in (
            'fault-kind "Attestation"', "fault-rate 1000", "fault-seed 0", "fault-expired false",
            "fault-delay-ms 0", "fault-delays 0", "fault-errors 2", "clock-drift-ppm 100",
            "clock-offset-ms -5500",
        )
    ]  # fmt: skip
    assert settings[-1] == "/machine/nsm clock-offset-ms 0"

    ended = life.ended()
    assert ended["faults"][-1] == "clear" and len(ended["faults"]) == 3
    assert ended["loading"] == {"read": 1500, "crc": 7}
    seen = ended["milestones"]
    assert (seen["begun"], seen["loaded"], seen["guest"]) == (1769860800.1, 1769860800.3, 1769860800.4)
    assert ended["started"] <= seen["backend"] <= seen["qemu"] and seen["heartbeat"] == ended["booted"]
    shown = answer("nitroctl timeline", life.ok("timeline", "hello", "--json"))
    assert [p["milestone"] for p in shown["items"]] == [m for m in timeline.MILESTONES if m in seen]
    life.ok("timeline", "hello", "-o", str(bench.tmp / "boot.svg"))
    ET.parse(bench.tmp / "boot.svg")

    life.ok("rm", "hello")
    assert not home.exists() and out.exists()


def test_it_dies_when_it_shall(bench: Bench, life: Life) -> None:
    """At its heartbeat, asked for before it; and at once."""
    fifo = bench.tmp / "fifo"
    os.mkfifo(fifo)
    with bench.start(**steps(["print", "first\n"], ["await", str(fifo)], HEARTBEAT)) as running:
        running.until("first\n")
        life.ok("fault", "hello", "die", "heartbeat")
        with open(fifo, "wb"):
            pass
        status = running.wait()
    assert status == 1 and b"killed by a fault that was asked for: die heartbeat" in running.err
    with bench.start(**steps(HEARTBEAT, ["print", "up\n"])) as running:
        running.until("up\n")
        life.ok("fault", "hello", "die", "now")
        status = running.wait()
    assert status == 1 and b"killed by a fault that was asked for: die now" in running.err
    gone = life("fault", "hello", "die", "now")
    assert gone.returncode == 1 and "no enclave is called 'hello'" in gone.stderr


def test_words_and_limits() -> None:
    fault = NsmFault.of(delay=1.5, rate=0.25, seed=7, kind="GetRandom")
    assert fault.words() == "nsm delay=1.5 kind=GetRandom rate=0.25 seed=7" and fault.delay_ms == 1500
    assert NsmFault.of(error=True, expired=True, count=3).words() == "nsm error expired count=3"
    assert [Death.of(t).words() for t in ("now", "connection:0", "nsm:3")] == [
        "die now", "die connection:0", "die nsm:3",
    ]  # fmt: skip
    assert ClockFault.of(jump=0.001).jump_ms == 1
    wrong: list[Callable[[], object]] = [
        lambda: NsmFault.of(),
        lambda: NsmFault.of(error=True, count=0),
        lambda: NsmFault.of(error=True, rate=0),
        lambda: NsmFault.of(error=True, kind="Open"),
        lambda: NsmFault.of(error=True, seed=1 << 64),
        lambda: ClockFault.of(),
        lambda: ClockFault.of(jump=4e9),
        lambda: ClockFault.of(drift=500001),
        lambda: Death.of("nsm:0"),
        lambda: Death.of("connection:4294967295"),
        lambda: Death.of("nsm"),
    ]
    for of in wrong:
        with pytest.raises(UsageError):
            of()
    assert set(faults.KINDS) == {
        "DescribeNSM", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs", "Attestation", "GetRandom",
    }  # fmt: skip


def test_moments() -> None:
    moments = Moments()
    assert (
        moments.reach("qemu", 1.0) and not moments.reach("qemu", 2.0) and moments.milestones == {"qemu": 1.0}
    )
    assert not moments.console_line(b"[    1.0] Run") and moments.console_line(
        b"[ 1.0] Run /init as init process"
    )
    assert moments.first_connection("enclave", 5) and not moments.first_connection("enclave", 5)
    assert moments.first_connection("parent", 5)
    moments.sentence(Death.of("connection:5"))
    moments.sentence(Death.of("nsm:9"))
    assert not moments.dies("heartbeat") and not moments.dies("connection", 6)
    assert moments.dies("connection", 5) == Death("connection", 5) and moments.dies("nsm") == Death("nsm", 9)
    moments.pardon()
    assert not moments.dies("nsm")


RECORD = record(name="<b>&\x1b", state=State.ENDED)


def test_timeline() -> None:
    """Phases follow each other, whatever is missing; names do no harm to the picture."""
    with pytest.raises(EnclaveError, match="nothing is known of the boot"):
        timeline.phases(RECORD)
    booted = replace(
        RECORD,
        milestones={"heartbeat": 104.0, "qemu": 100.5, "console": 102.0, "guest": 101.0, "other": 1.0},
        loading={"read": 1500, "pcr0": 20000},
    )
    found = timeline.phases(booted)
    assert [(p.name, p.begin, p.end) for p in found] == [
        ("qemu", 0.0, 0.5), ("guest", 0.5, 1.0), ("console", 1.0, 2.0), ("heartbeat", 2.0, 4.0),
    ]  # fmt: skip
    assert [row[:3] for row in timeline.rows(found)][-1] == ("4.000", "+2.000", "." * 20 + "#" * 20)
    root = ET.fromstring(timeline.svg(booted))
    boxes = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "16"]
    widths = [float(e.get("width") or 0) for e in boxes]
    assert widths == pytest.approx([60, 60, 120, 240]) and float(boxes[3].get("x") or 0) == pytest.approx(570)
    assert "Boot of <b>&?: 4.00 s (TCG, 512 MiB)" in {e.text for e in root.iter()}
    # A word of two that came the wrong way round makes no phase that ends before it begins.
    late = replace(booted, milestones={"backend": 101.0, "qemu": 100.0})
    assert [(p.begin, p.end) for p in timeline.phases(late)] == [(0.0, 1.0), (1.0, 1.0)]
    assert timeline.boot_times("") == ({}, {}) and timeline.boot_times("begun=x,read=-1,runs=0") == ({}, {})


def test_a_debugger_is_let_in(bench: Bench, life: Life) -> None:
    """QEMU is asked for its stub, and nothing of it without the option; the line to type is printed."""
    more = ["-chardev", "socket,id=gdb,path=/run/gdb,server=on,wait=off", "-gdb", "chardev:gdb"]
    config = QemuConfig(Path("q"), Path("e"), Path("v"), "n", "i", Accelerator("tcg", "asked for"), 512)
    assert argv(config._replace(gdb=Path("/run/gdb"))) == argv(config) + more
    assert argv(config._replace(gdb=Path("/run/gdb"), gdb_wait=True)) == [*argv(config), *more, "-S"]
    assert ".gdb,server=on" in bench.run("--dry-run", "--gdb").stdout
    assert bench.run("--wait").returncode == 2
    for path, status, words in ((bench.tmp, 2, "is no file"), (Path("/nowhere/x"), 1, "there is no folder")):
        done = bench.run("--nsm-log", str(path))
        assert done.returncode == status and words in done.stderr
    # A guest that stands still is given time.
    with bench.start("--gdb", **steps(["print", "still\n"])) as running:
        running.until("still")
        running.until(f"debugger: gdb -ex 'target remote {bench.runtime}/nitroctl/16/gdb'")
        running.process.terminate()
        running.wait()
