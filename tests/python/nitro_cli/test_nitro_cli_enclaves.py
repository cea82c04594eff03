# SPDX-License-Identifier: MIT
"""`nitro-cli`'s run, describe, terminate and console: real processes around a fake QEMU.

The expected texts, keys, their order and the statuses are AWS's, from its user guide and from transcripts of
its tool.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import eifmodel as model
import eifsigner as signer
from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, Running, steps, write_eif
from nitroctl.base.instants import UTC
from nitroctl.enclaves import records
from nitroctl.enclaves.records import State
from nitroctl.nitro_cli import enclaves
from nitroctl.testing.checks_nitro_cli import CYCLE

IDENTITY = [
    "EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs", "MemoryMiB",
]  # fmt: skip
BOOTS = steps(["print", "Unpacking initramfs...\nup\n"], HEARTBEAT)


@pytest.fixture
def host(bench: Bench) -> Iterator[Bench]:
    """No enclave outlives a test."""
    bench.env["NITROCTL_QEMU"] = str(bench.qemu)
    bench.env["NITROCTL_VSOCK_BACKEND"] = str(bench.backend)
    bench.env["NITRO_CLI_LOGS_PATH"] = str(bench.tmp / "logs")
    yield bench
    nitro_cli(bench, "terminate-enclave", "--all")
    bench.wait_gone()


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "nitroctl.nitro_cli", *map(str, argv)]


def nitro_cli(host: Bench, *argv: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv), env=host.environment(env), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=HANG,
    )  # fmt: skip


@contextmanager
def started(host: Bench, *argv: str | Path, **env: str) -> Iterator[Running]:
    process = subprocess.Popen(
        command(*argv), env=host.environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


def run_enclave(host: Bench, *more: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = ("run-enclave", "--eif-path", host.eif, "--memory", "512")
    cpus = () if "--cpu-ids" in more else ("--cpu-count", "2")
    return nitro_cli(host, *argv, *cpus, *more, **{**BOOTS, **env})


def ran(host: Bench, *more: str | Path, **env: str) -> dict[str, Any]:
    """What it printed of an enclave that runs."""
    done = run_enclave(host, *more, **env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def describe(host: Bench, *more: str) -> list[dict[str, Any]]:
    done = nitro_cli(host, "describe-enclaves", *more)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def codes(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.stdout == "" and "Traceback" not in done.stderr
    return re.findall(r"^\[ (E\d\d) \] ", done.stderr, re.MULTILINE)


def check_ends_in_process(done: subprocess.CompletedProcess[str], code: str) -> None:
    """What fails in the enclave's process ends with E39, whatever its own code."""
    assert codes(done) == [code, "E39"]
    assert done.returncode == 39
    assert "\nFailed connections: 1\n[ E39 ] " in done.stderr


# ---- run, describe, terminate ----


def test_the_cycle(host: Bench) -> None:
    assert describe(host) == []
    done = run_enclave(host)
    assert done.returncode == 0, done.stderr
    # A small host has notes about memory and CPUs.
    assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == [
        "Start allocating memory...",
        "Started enclave with enclave-cid: 16, memory: 512 MiB, cpu-ids: [1, 3]",
    ]
    found = json.loads(done.stdout)
    assert done.stdout == json.dumps(found, indent=2) + "\n"
    assert list(found) == IDENTITY
    assert found["EnclaveName"] == "hello"
    assert re.fullmatch("i-0000000000000000-enc[1-9a-f][0-9a-f]*", found["EnclaveID"])
    assert (found["EnclaveCID"], found["NumberOfCPUs"], found["CPUIDs"]) == (16, 2, [1, 3])
    assert found["MemoryMiB"] == 512
    assert Path(f"/proc/{found['ProcessID']}").exists()

    (listed,) = describe(host)
    assert list(listed) == [*IDENTITY, "State", "Flags", "Measurements"]
    assert {key: listed[key] for key in IDENTITY} == found
    assert (listed["State"], listed["Flags"]) == ("RUNNING", "NONE")
    described = json.loads(nitro_cli(host, "describe-eif", "--eif-path", host.eif).stdout)
    assert list(listed["Measurements"].items()) == list(described["Measurements"].items())

    (full,) = describe(host, "--metadata")
    assert list(full) == [*listed, "ImageName", "ImageVersion", "Metadata"]
    assert full["Metadata"] == described["Metadata"]

    done = nitro_cli(host, "terminate-enclave", "--enclave-id", found["EnclaveID"])
    assert (done.returncode, done.stderr) == (0, f"Successfully terminated enclave {found['EnclaveID']}.\n")
    assert list(json.loads(done.stdout).items()) == [
        ("EnclaveName", "hello"), ("EnclaveID", found["EnclaveID"]), ("Terminated", True),
    ]  # fmt: skip
    assert describe(host) == []
    assert host.processes() == {}


def test_a_script_for_awss_tool_runs_unchanged(host: Bench) -> None:
    """The one that the boot check `nitro-cli-script` runs with a real guest."""
    programs = host.tmp / "bin"
    programs.mkdir()
    (programs / "nitro-cli").write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
    (programs / "nitro-cli").chmod(0o755)
    env = host.environment({**BOOTS, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    done = subprocess.run(
        ["sh", "-c", CYCLE, "script", host.eif],
        cwd=host.tmp,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.processes() == {}


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(host: Bench, closed: str) -> None:
    """Nothing that is meant for one of them goes elsewhere, and the enclave's process can do without."""
    argv = ("run-enclave", "--eif-path", host.eif, "--memory", "512", "--cpu-count", "2")
    script = f"exec {shlex.join(command(*argv))} {closed}"
    done = subprocess.run(
        ["sh", "-c", script], env=host.environment(BOOTS), capture_output=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (listed,) = describe(host)
    assert listed["State"] == "RUNNING"
    if closed == "2>&-":
        assert json.loads(done.stdout)["EnclaveID"] == listed["EnclaveID"]


def test_options_and_their_traces(host: Bench) -> None:
    found = ran(host, "--cpu-ids", "2", "6", "--enclave-cid", "77", "--debug-mode", "--enclave-name", "mine")
    (listed,) = describe(host)
    assert {key: listed[key] for key in IDENTITY} == found
    assert (found["EnclaveName"], found["EnclaveCID"], found["CPUIDs"]) == ("mine", 77, [2, 6])
    # The file's measurements in debug mode as well, where the enclave itself reads zeros.
    assert listed["Flags"] == "DEBUG_MODE"
    assert len(set(listed["Measurements"]["PCR0"])) > 1


def test_a_config_file(host: Bench) -> None:
    config = host.tmp / "config.json"
    config.write_text(json.dumps({"eif_path": str(host.eif), "memory_mib": 513, "cpu_count": 1}))
    done = nitro_cli(host, "run-enclave", "--config", config, **BOOTS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Memory comes in whole huge pages.
    assert (found["MemoryMiB"], found["CPUIDs"]) == (514, [1])


def test_several_at_once(host: Bench) -> None:
    """AWS's tool has one port for all heartbeats: of two starts one fails. Names are made unique."""
    argv = ("run-enclave", "--eif-path", host.eif, "--memory", "512", "--cpu-count", "2")
    with started(host, *argv, **BOOTS) as a, started(host, *argv, **BOOTS) as b:
        assert (a.wait(), b.wait()) == (0, 0), a.err + b.err
    names = {found["EnclaveName"] for found in describe(host)}
    assert names == {"hello", "hello_1"}
    assert len({found["EnclaveCID"] for found in describe(host)}) == 2
    done = nitro_cli(host, "terminate-enclave", "--enclave-name", "hello_1")
    assert json.loads(done.stdout)["EnclaveName"] == "hello_1"
    done = nitro_cli(host, "terminate-enclave", "--all")
    assert [found["EnclaveName"] for found in json.loads(done.stdout)] == ["hello"]
    assert done.stderr.startswith("Successfully terminated enclave i-")
    done = nitro_cli(host, "terminate-enclave", "--all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_an_enclave_that_ended_is_not_listed(host: Bench) -> None:
    done = run_enclave(host, **steps(HEARTBEAT, RESET))
    host.wait_gone()
    assert done.returncode == 0, done.stderr
    assert describe(host) == []
    enclave_id = json.loads(done.stdout)["EnclaveID"]
    done = nitro_cli(host, "terminate-enclave", "--enclave-id", enclave_id)
    assert (codes(done), done.returncode) == (["E11"], 11)


def test_enclaves_of_nitroctl_run_are_there(host: Bench) -> None:
    argv = [sys.executable, "-m", "nitroctl", "run", "--detach", "--debug-mode", str(host.eif)]
    argv += ["--qemu", str(host.qemu), "--vsock-backend", str(host.backend)]
    subprocess.run(argv, env=host.environment(BOOTS), check=True, capture_output=True, timeout=HANG)
    (listed,) = describe(host)
    assert list(listed) == [*IDENTITY, "State", "Flags", "Measurements"]
    assert listed["EnclaveName"] == "hello" and listed["Flags"] == "DEBUG_MODE"


def test_states(host: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not run yet or any more is not listed; what is about to end has its own state."""
    ran(host)
    monkeypatch.setenv("XDG_STATE_HOME", host.environment({})["XDG_STATE_HOME"])
    (record,) = records.every()
    for state, listed in {
        State.STARTING: [], State.BOOTING: [], State.RUNNING: ["RUNNING"], State.STOPPING: ["TERMINATING"],
        State.ENDED: [],
    }.items():  # fmt: skip
        monkeypatch.setattr(records, "running", lambda state=state: [replace(record, state=state)])
        assert enclaves.describe_enclaves({"metadata": None}) == 0
        assert [found["State"] for found in json.loads(capsys.readouterr().out)] == listed


def test_an_enclave_that_cannot_be_ended(host: Bench) -> None:
    """With a single descriptor to spare its process can be looked up, and not be held while it is told."""
    ran(host)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))\n"
        "from nitroctl.nitro_cli import main; main(['terminate-enclave', '--all'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=host.environment({}), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    check_ends_in_process(done, "E38")
    assert len(describe(host)) == 1


@pytest.mark.parametrize("what", ["terminate-enclave", "console"])
def test_no_such_enclave(host: Bench, what: str) -> None:
    done = nitro_cli(host, what, "--enclave-id", "i-0000000000000000-enc1")
    assert (codes(done), done.returncode) == (["E11"], 11)
    done = nitro_cli(host, what, "--enclave-name", "nobody")
    assert (codes(done), done.returncode) == (["E58"], 58)
    assert "No enclave matched the given name." in done.stderr


# ---- console ----


def test_console(host: Bench) -> None:
    found = ran(host, "--debug-mode")
    with started(host, "console", "--enclave-id", found["EnclaveID"]) as running:
        running.until("up\n")
        assert nitro_cli(host, "terminate-enclave", "--all").returncode == 0
        assert running.wait() == 0  # it ends with the enclave
        assert running.out == (
            b"Connecting to the console for enclave 16...\nSuccessfully connected to the console.\n"
            b"Unpacking initramfs...\nup\n"
        )
        assert running.err == b""


def test_console_for_a_time(host: Bench) -> None:
    ran(host, "--debug-mode")
    done = nitro_cli(host, "console", "--enclave-name", "hello", "--disconnect-timeout", "2")
    assert done.returncode == 0 and done.stdout.endswith("up\n")
    assert len(describe(host)) == 1
    done = nitro_cli(host, "console", "--enclave-name", "hello", "--disconnect-timeout", "0")
    assert done.returncode == 0 and done.stdout.endswith("Successfully connected to the console.\n")
    done = nitro_cli(host, "console", "--enclave-name", "hello", "--disconnect-timeout", "soon")
    assert (codes(done), done.returncode) == (["E03"], 3)


def test_console_wants_debug_mode(host: Bench) -> None:
    ran(host)
    done = nitro_cli(host, "console", "--enclave-name", "hello")
    assert (codes(done), done.returncode) == (["E44"], 44)
    assert "not started with the debug flag set" in done.stderr


@pytest.mark.parametrize(
    ("argv", "status"), [(["console", "--enclave-name", "hello"], 46), (["describe-enclaves"], 1)]
)
def test_output_that_cannot_be_written(host: Bench, argv: list[str], status: int) -> None:
    ran(host, "--debug-mode")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(*argv), env=host.environment({}), stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=HANG,
        )  # fmt: skip
    assert done.returncode == status
    assert re.match(r"\[ E\d\d \] .*\n.*No space left on device\n", done.stderr)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


def test_a_console_that_cannot_be_read(host: Bench) -> None:
    """Its log is no file any more."""
    ran(host, "--debug-mode")
    (log,) = host.tmp.rglob("console.log")
    log.unlink()
    log.mkdir()
    done = nitro_cli(host, "console", "--enclave-name", "hello")
    assert done.returncode == 45
    assert done.stderr.startswith("[ E45 ] ") and "Is a directory" in done.stderr


def test_attach_console(host: Bench) -> None:
    """The identity, then the console to its end; --attach-console implies --debug-mode."""
    done = run_enclave(host, "--attach-console", **steps(["print", "here\n"], HEARTBEAT, RESET))
    host.wait_gone()
    assert done.returncode == 0, done.stderr
    identity, _, console = done.stdout.partition("\n}\n")
    assert list(json.loads(identity + "}")) == IDENTITY
    assert console == (
        "Connecting to the console for enclave 16...\nSuccessfully connected to the console.\nhere\n"
    )


def test_the_reader_of_the_console_may_go(host: Bench) -> None:
    ran(host, "--debug-mode")
    with started(host, "console", "--enclave-name", "hello") as running:
        running.until("up\n")
        assert running.process.stdout
        running.process.stdout.close()
        running.process.send_signal(2)
        assert running.process.wait(HANG) == 130
    assert len(describe(host)) == 1


# ---- refusals, in AWS's order ----


def signed(host: Bench, begin: timedelta, end: timedelta, *, pad: int = 0) -> Path:
    now = datetime.now(UTC).replace(microsecond=0)
    certificate, key = host.tmp / "cert.pem", host.tmp / "key.pem"
    certificate.write_bytes(signer.pem("P-384", begin=now + begin, end=now + end))
    key.write_bytes(signer.key_pem("P-384"))
    path = host.tmp / "signed.eif"
    path.write_bytes(model.pack([(model.KERNEL, model.bzimage()), *model.TINY[1:3], (3, bytes(pad))]))
    done = nitro_cli(
        host, "sign-eif", "--eif-path", path, "--signing-certificate", certificate, "--private-key", key
    )
    assert done.returncode == 0, done.stderr
    return path


DAY = timedelta(days=1)


def test_signatures(host: Bench) -> None:
    host.eif = signed(host, -2 * DAY, -DAY)
    done = run_enclave(host)
    check_ends_in_process(done, "E59")
    assert "expired" in done.stderr
    host.eif = signed(host, DAY, 2 * DAY)
    check_ends_in_process(run_enclave(host), "E59")
    host.eif = signed(host, -DAY, DAY)
    ran(host)
    (listed,) = describe(host)
    assert "PCR8" in listed["Measurements"]


def test_refusals(host: Bench) -> None:
    good = host.eif
    host.eif = host.tmp / "no.eif"
    done = run_enclave(host)
    check_ends_in_process(done, "E19")
    assert f"File: '{host.eif}', failing operation: 'Open'." in done.stderr
    # 17 MiB and a bad signature: the CPUs come first, then memory, then the signature.
    host.eif = signed(host, -2 * DAY, -DAY, pad=17 << 20)
    argv = ("run-enclave", "--eif-path", host.eif, "--memory", "64")
    check_ends_in_process(nitro_cli(host, *argv, "--cpu-ids", "1", "1"), "E20")
    done = nitro_cli(host, *argv, "--cpu-count", "2")
    check_ends_in_process(done, "E26")
    assert "`memory` is 64 MB" in done.stderr and "minimum memory should be 72 MB" in done.stderr
    host.eif.write_bytes(b"x" * 1000)
    check_ends_in_process(run_enclave(host), "E35")
    host.eif = good
    done = run_enclave(host, "--enclave-cid", "3")
    assert (codes(done), done.returncode) == (["E03"], 3)
    done = run_enclave(host, "--enclave-name", "")
    assert (codes(done), done.returncode) == (["E03"], 3)
    check_ends_in_process(run_enclave(host, NITROCTL_QEMU=str(host.tmp / "no-qemu")), "E33")
    assert host.processes() == {} and describe(host) == []


def test_a_context_id_in_use(host: Bench) -> None:
    ran(host, "--enclave-cid", "30")
    done = run_enclave(host, "--enclave-cid", "30")
    check_ends_in_process(done, "E33")
    assert "30 is in use" in done.stderr and "--cid" not in done.stderr  # which is nitroctl's option


def test_no_heartbeat_in_time(host: Bench) -> None:
    """What AWS's tool calls a timeout, and its limit can be shortened here."""
    done = run_enclave(host, NITROCTL_BOOT_TIMEOUT="2", **steps(["print", "Waiting for nobody\n"]))
    check_ends_in_process(done, "E36")
    said = "Waiting on enclave to boot failed with error VsockTimeoutError. Terminating the enclave...\n"
    assert said in done.stderr and "Waiting for nobody" in done.stderr
    host.wait_gone()
    assert describe(host) == []
    for value in ("soon", "nan", "0"):
        done = run_enclave(host, NITROCTL_BOOT_TIMEOUT=value)
        assert (codes(done), done.returncode) == (["E03"], 3)
        assert "NITROCTL_BOOT_TIMEOUT" in done.stderr


def test_boot_failures(host: Bench) -> None:
    done = run_enclave(host, **steps(["stderr", "no such machine"], ["exit", 1]))
    check_ends_in_process(done, "E33")
    assert "no such machine" in done.stderr
    said = "qemu: cannot set up guest memory 'ram': Cannot allocate memory"  # QEMU, and the kernel's ENOMEM
    check_ends_in_process(run_enclave(host, **steps(["stderr", said], ["exit", 1])), "E27")
    done = run_enclave(host, **steps(["print", "Kernel panic - not syncing: no init\n"], RESET))
    check_ends_in_process(done, "E36")
    assert "Waiting on enclave to boot failed with error " in done.stderr
    assert "Terminating the enclave...\n" in done.stderr and "no init" in done.stderr
    assert "Started enclave with enclave-cid: 16" in done.stderr
    host.wait_gone()
    assert describe(host) == []


def test_ctrl_c_during_the_boot(host: Bench) -> None:
    argv = ("run-enclave", "--eif-path", host.eif, "--memory", "512", "--cpu-count", "2")
    with started(host, *argv, **steps(["print", "slow"])) as running:
        running.until("Started enclave")
        running.process.send_signal(2)
        assert running.wait() == 130
    host.wait_gone()
    assert describe(host) == []


def test_the_log(host: Bench) -> None:
    found = ran(host)
    nitro_cli(host, "terminate-enclave", "--all")
    log = (host.tmp / "logs" / "nitro_enclaves.log").read_text()
    assert f"started {found['EnclaveID']}, CID 16" in log and f"terminated {found['EnclaveID']}" in log


@pytest.mark.parametrize("what", ["removed", "another"])
def test_the_image_may_be_gone(host: Bench, what: str) -> None:
    """What is told of a running enclave is about what runs, whatever has become of the file."""
    ran(host)
    inspect = [sys.executable, "-m", "nitroctl", "inspect", "hello"]
    while b'"pcrs": null' in subprocess.check_output(inspect, env=host.environment({}), timeout=HANG):
        pass  # it is measured beside the boot
    before = describe(host, "--metadata")
    host.eif.unlink()
    if what == "another":
        write_eif(host.eif, {"it is": "another one"})
    assert describe(host, "--metadata") == before


def test_file_names_of_no_encoding(host: Bench) -> None:
    host.eif = host.eif.rename(os.fsdecode(os.fsencode(host.tmp) + b"/odd\xff.eif"))
    assert ran(host)["EnclaveName"] == "odd?"
