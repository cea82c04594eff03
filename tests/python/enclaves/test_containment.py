# SPDX-License-Identifier: MIT
"""What is left of this host to a QEMU that a guest has broken out of: tests/unit/qemu-escape.c tries."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from eifverdict import program
from enclave_fakes import Bench
from nitroctl.base import confine, elf
from nitroctl.enclaves import containment

# What containers refuse without a sandbox of ours, too, or kernels and file systems lack.
NOT_EVERYWHERE = {
    "become-a-tool", "clone3", "connect-abstract", "dump-core", "io-uring", "make-in-tmp", "new-privileges",
    "signal-by-pidfd",
}  # fmt: skip


@pytest.fixture
def escape(bench: Bench) -> dict[str, str]:
    """A home with secrets, and what the program is to aim at. It is QEMU from now on."""
    home, qemu = bench.tmp / "home", bench.tmp / "qemu/bin/qemu-system-x86_64"
    home.mkdir()
    qemu.parent.mkdir(parents=True)
    shutil.copy2(program("qemu-escape"), qemu)
    for name in ("secret", "victim"):
        (home / name).write_text("not for guests")
    (home / "tool").write_text("#!/bin/sh\n")
    (home / "tool").chmod(0o755)
    bench.qemu = qemu
    return {"HOME": str(home), "ESCAPE_HOME": str(home), "ESCAPE_EIF": str(bench.eif)}


def attempts(bench: Bench, escape: dict[str, str], *options: str) -> dict[str, str]:
    """What came of each."""
    name = f"escape-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket() as tcp,
    ):
        unix.bind(str(bench.runtime / "agent"))
        abstract.bind(f"\0{name}")
        tcp.bind(("127.0.0.1", 0))
        for listener in (unix, abstract, tcp):
            listener.listen()
        bench.env = {
            **escape, "ESCAPE_SOCKET": str(bench.runtime / "agent"), "ESCAPE_ABSTRACT": name,
            "ESCAPE_PORT": str(tcp.getsockname()[1]),
        }  # fmt: skip
        done = bench.run(*options)
    found = dict(re.findall(r"^((?:allowed: )?[\w-]+): (.*?)\r?$", done.stdout, re.MULTILINE))
    assert len([name for name in found if name.startswith("allowed: ")]) == 8, done
    return found


@pytest.mark.skipif(len(confine.kinds()) < 2, reason="this kernel has no Landlock, or no seccomp")
def test_a_guest_that_has_broken_out_gets_nothing(bench: Bench, escape: dict[str, str]) -> None:
    before = sorted((p.name, p.stat().st_mode, p.stat().st_mtime_ns) for p in Path(escape["HOME"]).iterdir())
    found = attempts(bench, escape)
    allowed = {name for name in found if name.startswith("allowed: ")}
    assert {name: found[name] for name in allowed} == dict.fromkeys(allowed, "done")
    got = {name for name in found.keys() - allowed if found[name] == "done"}
    assert got == (set() if confine.landlock_version() >= 6 else got & {"connect-abstract"})
    after = sorted((p.name, p.stat().st_mode, p.stat().st_mtime_ns) for p in Path(escape["HOME"]).iterdir())
    assert after == before


def test_without_a_sandbox_it_has_what_its_user_has(bench: Bench, escape: dict[str, str]) -> None:
    """So the attempts are real ones."""
    found = attempts(bench, escape, "--no-sandbox")
    failed = {name for name, came in found.items() if came != "done"}
    assert failed <= NOT_EVERYWHERE


def test_a_script_in_qemus_place_is_its_users_own(bench: Bench) -> None:
    """What it needs is not known here."""
    assert not containment.is_program(bench.qemu) and not containment.has_sandbox(bench.qemu)


def test_the_home_is_never_among_qemus_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for qemu in (home / "qemu", home / "bin/qemu", tmp_path / "qemu", home / "a/b/bin/qemu"):
        places = set(containment._places(qemu))
        assert qemu in places
        assert not places & {home, *home.parents}
    assert home / "a/b/share/qemu" in set(containment._places(home / "a/b/bin/qemu"))


def test_needed_libraries_are_those_of_readelf() -> None:
    for path in (Path("/bin/sh"), Path(program("qemu-escape")), Path(shutil.which("readelf") or "")):
        said = subprocess.run(["readelf", "-dW", path], check=True, capture_output=True, text=True).stdout
        with open(path, "rb") as file:
            about = elf.read(file)
        assert about and list(about.needed) == re.findall(r"\(NEEDED\).*\[(.*)\]", said)
        assert about.needed


@pytest.mark.parametrize(("column", "header"), [(0, "asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_the_numbers_of_calls_are_the_kernels(column: int, header: str) -> None:
    text = f"#define __BITS_PER_LONG 64\n#include <{header}>\n"
    said = subprocess.run(
        ["gcc", "-E", "-dM", "-D__ARCH_WANT_SYS_CLONE3", "-"],
        input=text,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    known = dict(re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", said, re.MULTILINE))
    numbers = {
        **confine._FORBIDDEN, "clone": confine._CLONE, "clone3": confine._CLONE3, "kill": confine._KILL,
        "tgkill": confine._TGKILL, "prlimit64": confine._PRLIMIT, "seccomp": confine._SECCOMP,
    }  # fmt: skip
    for name, of in numbers.items():
        if name in known:
            assert of[column] == int(known[name]), name
    newer = {name for name in numbers if name not in known}
    assert newer <= {"fchmodat2", "setxattrat", "removexattrat", "file_setattr"} | (
        {name for name, of in numbers.items() if of[column] is None}
    )


def test_a_launcher_of_a_plugin_has_a_sandbox(tmp_path: Path) -> None:
    """It runs a distribution's QEMU. What is no program has none, nor what is not there."""
    launcher = tmp_path / "bin/qemu-system-x86_64"
    launcher.parent.mkdir()
    shutil.copy2("/bin/true", launcher)
    assert not containment.has_sandbox(launcher)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/nitro-enclave.so").touch()
    assert containment.has_sandbox(launcher)
    assert not containment.is_program(tmp_path / "gone") and not containment.has_sandbox(tmp_path / "gone")


def test_where_the_environment_sends_the_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    """ld.so(8): folders and libraries between colons, semicolons or blanks; never all of the host."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib:relative::/:/opt/lib64;/x")
    monkeypatch.setenv("LD_PRELOAD", "/opt/a.so /opt/b.so:c.so")
    found = list(containment._libraries())
    assert found == [Path(p) for p in ("/opt/lib", "/opt/lib64", "/x", "/opt/a.so", "/opt/b.so")]


def test_a_user_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers have them. The home that HOME says is still none of QEMU's folders."""
    monkeypatch.setattr(os, "getuid", lambda: 0x7FFFFFF0)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path not in set(containment._places(tmp_path / "bin/qemu"))
