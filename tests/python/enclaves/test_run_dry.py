# SPDX-License-Identifier: MIT
"""`nitroctl run --dry-run`: the command lines that it prints, what is passed on in them, that they can be
pasted. With fake programs, as test_run.py.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess

import pytest

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, assert_nothing_left, steps, write_eif


def test_dry_run_starts_and_leaves_nothing(bench: Bench) -> None:
    done = bench.run("--dry-run", "--memory", "1g", "--role", "arn:aws:iam::1:role/x,y")
    assert done.returncode == 0, done.stderr
    backend, qemu = (shlex.split(line) for line in done.stdout.splitlines())
    folder = bench.runtime / "nitroctl"
    assert backend == [
        str(bench.backend), f"--socket-path={folder}/16.device", "--guest-cid=16",
        f"--uds-path={folder}/16.vsock", f"--fallback-path={folder}/ports/all", "--once",
    ]  # fmt: skip
    assert qemu[0] == str(bench.qemu)
    assert qemu[qemu.index("-kernel") + 1] == str(bench.eif)
    assert qemu[qemu.index("-m") + 1] == "1024M"
    machine = qemu[qemu.index("-M") + 1]
    module_id = r"i-0000000000000000-enc[0-9a-f]{16}"
    rest = "parent-id=i-0000000000000000,parent-role=arn:aws:iam::1:role/x,,y"
    assert re.fullmatch(rf"nitro-enclave,vsock=vsock,id={module_id},{re.escape(rest)}", machine)
    assert_nothing_left(bench)


def test_forwards_are_the_backends(bench: Bench) -> None:
    done = bench.run(
        "--dry-run", "--publish", "127.0.0.1:8080=80", "--publish", f"{bench.tmp}/s=81", "--proxy",
        "443=127.0.0.1:443", "--listen-port", f"5000={bench.tmp}/l", "--connect-port", f"82={bench.tmp}/c",
    )  # fmt: skip
    backend = shlex.split(done.stdout.splitlines()[0])
    expected = [
        "--publish=127.0.0.1:8080=80", f"--publish={bench.tmp}/s=81", "--proxy=443=127.0.0.1:443",
        f"--listen-port=5000={bench.tmp}/l", f"--connect-port=82={bench.tmp}/c",
    ]  # fmt: skip
    assert [argument for argument in backend if argument in expected] == expected


def test_a_wrong_forward_ends_the_run_before_anything_starts(bench: Bench) -> None:
    done = bench.run("--proxy", "8000=nowhere", **steps(HEARTBEAT, RESET))
    assert done.returncode == 2
    assert "error: --proxy 8000=nowhere: 'nowhere' is not HOST:PORT" in done.stderr
    twice = ("--proxy", "1=127.0.0.1:1", "--listen-port", f"1={bench.tmp}/x")
    done = bench.run(*twice, **steps(HEARTBEAT, RESET))
    assert done.returncode == 2
    assert "the parent's port 1 is served by more than one" in done.stderr
    assert_nothing_left(bench)


def test_debug_mode_and_a_bad_signature_are_passed_on(bench: Bench) -> None:
    done = bench.run("--dry-run", "--debug-mode", "--ignore-signature")
    assert ",debug-mode=on,eif-signature=ignore" in done.stdout
    assert "document-form" not in done.stdout


def test_dry_run_shows_acpi(bench: Bench) -> None:
    write_eif(bench.eif, {"nitroctl": {"acpi": True}})
    assert ",acpi=on " in bench.run("--dry-run").stdout


@pytest.mark.parametrize("name", ["plain", "it's $HOME; a test"])
def test_the_printed_command_lines_can_be_pasted(bench: Bench, name: str) -> None:
    """Two shells, as two terminals: the first backend, then QEMU, whose console is the terminal."""
    eif = bench.eif.rename(bench.tmp / f"{name}.eif")
    printed = bench.run("--dry-run", eif=eif)
    backend_line, qemu_line = printed.stdout.splitlines()
    env = bench.environment(steps(["print", "hello from the guest\n"], HEARTBEAT, RESET))
    backend = subprocess.Popen(
        ["sh", "-c", backend_line], env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert backend.stdout
    assert backend.stdout.readline() == b"ready\n"
    qemu = subprocess.run(
        ["sh", "-c", qemu_line], env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=HANG
    )
    assert qemu.stdout == b"hello from the guest\n"
    assert qemu.returncode == 0
    assert backend.stdout.read() == b"booted\n"
    assert backend.wait(HANG) == 0
    backend.stdout.close()
    assert_nothing_left(bench)


def test_a_manual_enclave_and_a_run_do_not_meet(bench: Bench) -> None:
    """Pasted command lines hold no lock: a run at the same time must leave their sockets alone."""
    printed = bench.run("--dry-run").stdout
    socket_path = shlex.split(printed.splitlines()[0])[1].partition("=")[2]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(socket_path)
        done = bench.run(**steps(HEARTBEAT, RESET))
        assert done.returncode == 0, done.stderr
        assert os.path.exists(socket_path)
