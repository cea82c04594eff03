# SPDX-License-Identifier: MIT
"""Whoever starts an enclave and its supervisor, two processes: what goes over, the same on both sides.
The life of detached enclaves is test_life's."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enclave_fakes import HEARTBEAT, PYTHON, Bench, steps
from enclave_life import Life
from nitroctl.attestation import pki
from nitroctl.base.accelerator import Accelerator
from nitroctl.base.errors import NitroError
from nitroctl.enclaves import foreground, records, supervised
from nitroctl.enclaves.plan import Plan
from nitroctl.enclaves.records import Ending, Party
from nitroctl.enclaves.request import RunRequest

UP = (HEARTBEAT, ["print", "up\r\n"])


def test_an_enclave_ends_with_its_starter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it belongs to it; its last record says so."""
    for name, value in bench.environment(steps(*UP)).items():
        monkeypatch.setenv(name, value)
    request = RunRequest(bench.eif, qemu=bench.qemu, vsock_backend=bench.backend, ca_days=None)
    enclave = supervised.Supervised(request)
    record = enclave.wait_booted()
    enclave.stop()
    last = records.find(record.id)
    assert last.ending is Ending.STOPPED and last.ended_by is Party.REQUEST
    assert bench.processes() == {}


def test_an_error_is_the_same_on_both_sides(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in a supervisor's process fails as it does in this one, whether a program or we failed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(bench.tmp / "data"))
    for name, value in bench.environment(steps(["print", "[    0.1] kernel panic\r\n"], ["exit", 9])).items():
        monkeypatch.setenv(name, value)
    request = RunRequest(bench.eif, qemu=bench.qemu, vsock_backend=bench.backend)
    root = bench.tmp / "data/nitroctl/ca/root.pem"
    pki.load_or_init()
    good = root.read_bytes()
    for damage in (b"nonsense", good):
        root.write_bytes(damage)
        told = []
        for start in (foreground_run, supervised.start):
            with pytest.raises(NitroError) as caught:
                start(request)
            told.append(caught.value)
        here, there = told
        assert type(here) is type(there) and str(here) == str(there) and here.facts == there.facts
        for name in ("message", "lines", "hint", "cause", "tail", "exit_status"):
            assert getattr(here, name) == getattr(there, name), name
        assert (here.record.ending, here.record.message) == (there.record.ending, there.record.message)
        assert there.record == records.find(there.record.id)
        assert there.record.hint == there.hint and str(there) == there.record.message
        records.remove(there.record)


def foreground_run(request: RunRequest) -> None:
    foreground.run(request).check()


def test_one_that_is_stopped_while_it_boots(bench: Bench, life: Life) -> None:
    """Whoever waits for its heartbeat learns who wanted that, and fails: there is no enclave."""
    fifo = bench.tmp / "fifo"
    os.mkfifo(fifo)
    with bench.start("--detach", **steps(["await", str(fifo)])) as run:
        with open(fifo, "wb"):  # QEMU is up
            life.ok("stop", "hello")
        assert run.wait() == 1
    last = life.ended()
    assert (last["ending"], last["booted"]) == ("stopped", None)
    assert run.out == b"" and run.err.decode().endswith(f"error: enclave hello: {last['message']}\n")


def test_the_supervisor_gets_the_whole_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of field, with a value that is not its default; paths for a process in another folder."""
    monkeypatch.chdir(tmp_path)
    given = {
        "eif": "a.eif", "memory": 600, "memory_check": False, "cpus": 2, "cid": 20, "name": "n", "role": "r",
        "instance_id": "i-1", "append": "quiet", "boot_timeout": 0.5, "debug_mode": True, "ca_days": None,
        "document_form": "2023", "ignore_signature": True, "publish": ("a:1=2",), "proxy": ("80=a:80",),
        "listen_port": ("1=/s",), "connect_port": ("2=/t",), "forward_cid": 1, "forward_listen": ("5+6",),
        "accel": "tcg", "qemu": "qemu", "vsock_backend": Path("backend"), "forwards": ("proxy=80=a:80",),
    }  # fmt: skip
    request = RunRequest(**given)  # type: ignore[arg-type]
    plan = Plan(
        request, name="m", memory_mib=600, boot_timeout=0.5, accel=Accelerator("tcg", "so", "aarch64"),
        acpi=True, module_id="i-1-enc0", cmdline="a\udcff", notes=("n", "o"), unmeasured=("u",),
    )  # fmt: skip
    assert None not in vars(plan).values() and len(vars(plan)) == len(dataclasses.fields(Plan))
    decoded = supervised.decode(supervised.encode(plan))
    paths = {name: tmp_path / given[name] for name in ("eif", "qemu", "vsock_backend")}  # type: ignore[operator]
    there = dataclasses.replace(request, **paths)  # type: ignore[arg-type]
    assert decoded == dataclasses.replace(plan, request=there)


# For every Python process of a start: who opens the image. QEMU and the backend are started without it.
WATCH = """\
import os, sys, threading

def opened(event, arguments):
    if event == "open" and str(arguments[0]).endswith("hello.eif"):
        with open(os.environ["OPENED"], "a") as file:
            file.write("main\\n" if threading.get_native_id() == os.getpid() else "aside\\n")

sys.addaudithook(opened)
"""


# Prints the PCRs of its enclave when they have been measured.
BY_PYTHON = """\
import sys, time, nitroctl
with nitroctl.Enclave(sys.argv[1], qemu=sys.argv[2], vsock_backend=sys.argv[3]) as enclave:
    while enclave.record.pcrs is None:
        time.sleep(0.01)
    print(len(enclave.record.pcrs))
"""


def test_an_image_is_judged_once(bench: Bench, life: Life) -> None:
    """By who starts the enclave, the command or Python. Afterwards nobody reads it but QEMU and, aside,
    what measures it."""
    (bench.tmp / "site").mkdir()
    (bench.tmp / "site/sitecustomize.py").write_text(WATCH)
    told = bench.tmp / "opened"
    bench.env = {**steps(*UP), "PYTHONPATH": f"{PYTHON}:{bench.tmp / 'site'}", "OPENED": str(told)}
    life.start()
    while life.records()[0]["pcrs"] is None:
        time.sleep(0.01)
    assert sorted(told.read_text().split()) == ["aside", "main"]
    told.unlink()
    files = (bench.eif, bench.qemu, bench.backend)
    done = subprocess.run(
        [sys.executable, "-c", BY_PYTHON, *files], env=bench.environment({}), capture_output=True, text=True
    )
    assert (done.stdout, sorted(told.read_text().split())) == ("3\n", ["aside", "main"]), done.stderr
