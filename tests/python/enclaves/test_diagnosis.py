# SPDX-License-Identifier: MIT
"""Likely causes from texts as kernels and inits print them. Each cause is made with a real guest in
tests/boot/test_causes.py; here is what tells them apart, and what must not be taken for one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_fakes import HEARTBEAT, RESET, Bench, steps
from nitroctl.base.arch import ARCHES
from nitroctl.enclaves.diagnosis import Clues, Evidence, diagnose, not_started

ROOT = Path(__file__).resolve().parents[3]

MMIO = "[    0.392408] virtio-mmio: Registering device virtio-mmio.1 at 0xfeb00000-0xfeb001ff, IRQ 5."
RUN = "[    0.462083] Run /init as init process"
DIED = "[    0.560138] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
NO_INIT = "[    0.526703] Kernel panic - not syncing: No working init found.  Try passing init= option"
SEEN = {"drivers": 1, "opened_by_guest": 1, "wrong_heartbeats": 0, "relayed_heartbeats": 0, "refused_port": 0}


def clues(*lines: str) -> Clues:
    found = Clues()
    for line in lines:
        found.line(line.encode())
    return found


def name(*lines: str, booted: bool = False, seen: dict[str, Any] | None = None, **more: Any) -> str | None:
    """The cause's name for an enclave that printed these lines."""
    received = sum(len(line) + 1 for line in lines)
    panic = next((line for line in lines if "Kernel panic" in line), None)
    found = diagnose(Evidence(clues(*lines), received, booted, statistics=seen, panic=panic, **more))
    return found.name if found else None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["[    0.449023] Initramfs unpacking failed: write error", RUN,
          "init: mount: /proc: No such file or directory", DIED], "memory"),
        (["[    1.2] x", "[   12.000001] Out of memory: Killed process 60 (app) total-vm:1kB"], "memory"),
        (["[    0.4] Initramfs unpacking failed: invalid magic at start of compressed archive"], "ramdisk"),
        (["[    0.411111] Failed to execute /init (error -8)", "[    0.5] Run /sbin/init as init process",
          NO_INIT], "init-not-executable"),
        ([NO_INIT], "no-init"),
        (["[    0.5] VFS: Cannot open root device \"(null)\" or unknown-block(0,0): error -6"], "no-init"),
        ([RUN, "init: socket: Address family not supported by protocol", DIED], "no-vsock-driver"),
        ([MMIO, RUN, "init: connect: No such device", DIED], "no-vsock-driver"),
        ([RUN, "init: connect: No such device", DIED], "no-virtio-driver"),
        ([RUN, "connect: No such device", DIED], "no-virtio-driver"),  # AWS's init, by perror
        ([RUN, "init: received wrong heartbeat: 0x17", DIED], "heartbeat-answer"),
        ([RUN, "failed to insert nsm driver: Exec format error", DIED], "module"),
        ([RUN, "init: the application's ramdisk lacks a file it must have: /cmd: No such file or directory",
          DIED], "no-application"),
        ([RUN, "mount --bind /rootfs /rootfs: No such file or directory", DIED], "no-application"),
        ([RUN, "init: mount: /proc: No such file or directory", DIED], "mount-point"),
        ([RUN, DIED], "init-died"),
        ([RUN, DIED.replace("00000100", "0000000b")], "init-died"),
    ],
)  # fmt: skip
def test_a_panic(lines: list[str], expected: str) -> None:
    assert name(*lines) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"wrong_heartbeats": 1}, "heartbeat-byte"),
        ({"relayed_heartbeats": 1}, "heartbeat-answer"),
        ({"refused_cid": 3, "refused_port": 9001}, "heartbeat-port"),
        # A --proxy of that port whose service is not there: the guest has done nothing wrong.
        ({"refused_cid": 3, "refused_port": 9000}, "heartbeat-answer"),
        ({"refused_cid": 5, "refused_port": 9000}, "heartbeat-port"),
        ({"opened_by_guest": 0}, "no-heartbeat"),
        ({"drivers": 0, "opened_by_guest": 0}, "no-vsock-driver"),
        ({}, None),  # it knocked, was answered, and the time was over
    ],
)
def test_a_timeout(seen: dict[str, int], expected: str | None) -> None:
    assert name(MMIO, RUN, seen={**SEEN, **seen}) == expected


def test_silence() -> None:
    nothing = {"drivers": 0}
    assert name(seen=nothing, cmdline="reboot=k console=hvc0") == "console"
    assert name(seen=nothing, cmdline="console=tty0 console=ttyS0,115200n8") == "kernel"
    assert name(seen=nothing) == "kernel"
    assert name(seen={"drivers": 1}) is None
    assert name(seen=None) is None


def test_nothing_odd_is_no_cause() -> None:
    """A kernel on its way, one whose backend does not tell, a panic of the kernel's own."""
    assert name(MMIO, seen={"drivers": 0}) is None
    assert name(MMIO, RUN) is None
    assert name(MMIO, RUN, "[    9.1] Kernel panic - not syncing: sysrq triggered crash", booted=True) is None


def test_what_others_print_is_no_clue() -> None:
    assert clues("my connect: No such device", "socket: closing", "see execvpe: it failed").found == {}
    assert clues("application: Initramfs", "init: user: all is well: ok").found == {}


def test_an_application_that_never_started() -> None:
    lost = clues(
        RUN,
        "init: execvpe: /missing: No such file or directory",
        "init: child exited with error: status 127",
        "[    0.5] reboot: Restarting system",
        "[    0.5] reboot: machine restart",
    )
    found = not_started(lost)
    assert found and found.text == "the application /missing could not be started (No such file or directory)"
    found = not_started(clues("execvpe: Permission denied"))
    assert found and found.text == "the application could not be started (Permission denied)"
    found = not_started(clues("init: working directory: /srv: No such file or directory"))
    assert found and "its working directory /srv" in found.text
    # Said long ago, and by somebody else, since much has been printed after it.
    assert not_started(clues("init: execvpe: /x: No such file or directory", *["work"] * 20)) is None
    assert not_started(clues("all", "is", "well")) is None


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_any_bytes_are_only_bytes(lines: list[bytes]) -> None:
    found = Clues()
    for line in lines:
        found.line(b"init: execvpe: " + line)
        found.line(line)
    diagnose(Evidence(found, 1, False, statistics={}))
    cause = not_started(found)
    assert cause is None or cause.text.isprintable()


def test_what_only_an_arm64_guest_is_told() -> None:
    """Its devices are in a tree, and no words on a command line; its kernel is another file."""
    silent = diagnose(Evidence(clues(), 0, False, statistics={}, arch="aarch64"))
    assert (
        silent and silent.name == "kernel" and "arm64 Image" in silent.hint and "bzImage" not in silent.hint
    )
    lines = ("init: socket: No such device",)
    here, there = (diagnose(Evidence(clues(*lines), 1, False, arch=arch)) for arch in ARCHES)
    assert here and there and here.name == there.name == "no-virtio-driver"
    assert "CMDLINE" in here.hint and "CMDLINE" not in there.hint and "CONFIG_VIRTIO_MMIO" in there.hint


def test_run_says_it(bench: Bench) -> None:
    seen = '{"drivers": 1, "refused_cid": 3, "refused_port": 9001}'
    script = steps(["print", f"{RUN}\r\nwaiting\r\n"])
    done = bench.run("--boot-timeout", "2", FAKE_STATISTICS=seen, **script)
    assert done.returncode == 3
    told = "likely cause: the guest knocked at port 9001 of CID 3, where nobody listens; the console"
    assert f"no heartbeat within 2 s; {told}" in done.stderr
    assert "the console's last lines: " in done.stderr
    assert "hint: the heartbeat goes to port 9000" in done.stderr
    assert seen not in done.stderr  # asked for by us, and for nobody else


def test_run_counts_an_application_that_never_started_as_failed(bench: Bench) -> None:
    script = steps(HEARTBEAT, ["print", "init: execvpe: /app: Permission denied\r\n"], RESET)
    done = bench.run(**script)
    assert done.returncode == 1
    assert "error: the application /app could not be started (Permission denied)" in done.stderr


def test_a_backend_that_says_nothing_sensible(bench: Bench) -> None:
    for answer in ("{", "[]", '{"drivers": null}'):
        done = bench.run("--boot-timeout", "0.2", FAKE_STATISTICS=answer, **steps(["print", "x\r\n"]))
        assert done.returncode == 3 and "no heartbeat within 0.2 s" in done.stderr


def test_every_cause_is_documented() -> None:
    code = (ROOT / "python/nitroctl/enclaves/diagnosis.py").read_text()
    names = set(re.findall(r'Cause\(\s*"([a-z-]+)"', code))
    text = (ROOT / "docs/troubleshooting.md").read_text()
    documented = set(re.findall(r"^## ([a-z-]+)$", text, re.MULTILINE))
    assert len(names) > 12 and names == documented


@pytest.mark.parametrize(
    ("status", "text", "hint"),
    [
        ("00000004", "init was killed by SIGILL", "more features than the guest's"),
        ("0000008b", "init was killed by SIGSEGV", "the lines before it"),  # and dumped core
        ("00000028", "init was killed by signal 40", "the lines before it"),
        ("00007f00", "init ended with status 127 before it had sent the heartbeat", "PID 1 must never end"),
    ],
)
def test_how_init_ended(status: str, text: str, hint: str) -> None:
    """The kernel prints what wait(2) would give."""
    lines = [RUN, DIED.replace("00000100", status)]
    found = diagnose(Evidence(clues(*lines), 200, False, panic=lines[1]))
    assert found and found.text == text and hint in (found.hint or "")
