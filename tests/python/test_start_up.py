# SPDX-License-Identifier: MIT
"""What a command does not use it does not import: by name, since times depend on the machine.

What it costs is `make bench`'s to say. A module that is missing here is one that somebody waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_fakes import write_eif

# Runs a program of ours and tells on a descriptor what has been imported then.
WITNESS = """\
import os, sys
from nitroctl.entry import nitroctl
sys.argv[0] = "nitroctl"
try:
    nitroctl()
except SystemExit as e:
    status = e.code or 0
os.write(int(os.environ["WITNESS"]), " ".join(sys.modules).encode())
sys.exit(status)
"""

# Nothing of these is needed before there is a program to watch: event loop, cryptography, archives, the
# network, terminals; and of ours, whatever builds, measures or asks.
HEAVY = (
    "_hashlib", "asyncio", "cryptography", "email", "hashlib", "http", "isal", "pexpect", "qemu", "rich",
    "secrets", "ssl", "tarfile", "urllib.request", "xml", "yaml", "zstandard",
    "nitroctl.api", "nitroctl.attestation", "nitroctl.eif.certificate", "nitroctl.eif.compose",
    "nitroctl.eif.describe", "nitroctl.eif.image", "nitroctl.eif.layers", "nitroctl.eif.measure",
    "nitroctl.eif.overlay", "nitroctl.eif.signature", "nitroctl.enclaves.capture", "nitroctl.enclaves.cores",
    "nitroctl.enclaves.faults", "nitroctl.enclaves.lifecycle", "nitroctl.enclaves.supervisor",
    "nitroctl.enclaves.timeline", "nitroctl.kms", "nitroctl.testing", "nitroctl.toolchain.apt",
    "nitroctl.toolchain.busybox", "nitroctl.toolchain.guest", "nitroctl.toolchain.kernel",
    "nitroctl.toolchain.plugin_build", "nitroctl.toolchain.source", "nitroctl.toolchain.steps",
    "nitroctl.toolchain.tree",
)  # fmt: skip

# Each of our own modules is a file to find, read and execute: so many has a start, and who needs one more
# finds one that can come later.
OURS = 44


def imports(*argv: str, **env: str) -> tuple[str, set[str]]:
    """Standard output, and the modules of a program that ended well."""
    reader, writer = os.pipe()
    with open(reader, "rb") as told:
        done = subprocess.run(
            [sys.executable, "-c", WITNESS, *argv],
            pass_fds=[writer],
            env={**os.environ, **env, "WITNESS": str(writer)},
            capture_output=True,
            text=True,
        )
        os.close(writer)
        modules = set(told.read().decode().split())
    assert done.returncode == 0, done.stderr
    return done.stdout, modules


def among(names: tuple[str, ...], modules: set[str]) -> list[str]:
    return [one for one in sorted(modules) if any(one == n or one.startswith(f"{n}.") for n in names)]


def test_help_imports_nothing_and_is_what_click_would_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for word in ("--help", "-h"):
        shown, modules = imports(word)
        assert not among(("click", "nitroctl.cli", "nitroctl.base", "pathlib", "typing"), modules)
        # Of a width that is asked for click makes it.
        made, slow = imports(word, COLUMNS="80")
        assert "click" in slow
        assert shown == made and shown.startswith("Usage: nitroctl [OPTIONS] COMMAND [ARGS]...\n")
    assert imports("--help", COLUMNS="60")[0] != shown


def test_names_of_commands_and_options_are_completed_by_a_table() -> None:
    words = {"COMP_WORDS": "nitroctl r", "COMP_CWORD": "1", "_NITROCTL_COMPLETE": "bash_complete"}
    shown, modules = imports(**words)
    assert shown.split() == ["plain,rm", "plain,run"]
    assert {one for one in modules if "nitroctl" in one} == {"nitroctl", "nitroctl.entry", "nitroctl.offers"}
    assert not among((*HEAVY, "click", "dataclasses", "json", "pathlib", "typing"), modules)
    # What the table has not is click's to answer.
    shown, modules = imports(**{**words, "COMP_WORDS": "nitroctl run --accel t", "COMP_CWORD": "3"})
    assert shown.split() == ["plain,tcg"] and "click" in modules


def test_a_start_imports_what_it_needs(tmp_path: Path) -> None:
    eif = write_eif(tmp_path / "hello.eif")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    choice = ("--qemu", str(program), "--ca-days", "1", "--vsock-backend", str(program))
    shown, modules = imports("run", "--dry-run", str(eif), *choice)
    assert f"-kernel {eif}" in shown
    assert among(HEAVY, modules) == []
    assert len(among(("nitroctl",), modules)) <= OURS


def test_what_a_start_asks_others_for_imports_no_more_than_that() -> None:
    """Which QEMU and backend there are is told without what builds them, and who starts an enclave in another
    process needs nothing of what runs there."""
    script = (
        "import sys; from nitroctl.enclaves import supervised\n"
        "from nitroctl.toolchain import choice, places\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"nitroctl.enclaves.supervised", "nitroctl.toolchain.choice"} <= modules
    assert among((*HEAVY, "click"), modules) == []


def test_a_chain_is_minted_once_in_an_hour(tmp_path: Path) -> None:
    """The second of two enclaves of an instance is started without cryptography."""
    script = (
        "import sys; from nitroctl.attestation import kept\n"
        "pem, key = kept.chain(sys.argv[1], days=1, form='2025', unmeasured=False)\n"
        "print(hash((pem, key)), 'cryptography' in sys.modules)\n"
    )

    def chain(instance: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script, instance],
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONHASHSEED": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    first, again, other = chain("i-1"), chain("i-1"), chain("i-2")
    assert first[1] == "True" and again == [first[0], "False"]
    assert other[0] != first[0] and other[1] == "True"
