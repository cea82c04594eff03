# SPDX-License-Identifier: MIT
"""Running a parent program that was written for AF_VSOCK: checks whether the library vsock-preload.so can be
preloaded into it, and makes the environment for that.

A program that the dynamic linker would run without the library is refused with the reason: it would only
report that there is no vsock. The library is described in contrib/vsock-preload.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from nitroctl.base import elf
from nitroctl.base.elf import Elf
from nitroctl.base.errors import NitroError
from nitroctl.base.proc import PARENT_FOLDER
from nitroctl.vsock import sockets

PRELOAD = "LD_PRELOAD"

# execve(2): how many interpreters can be scripts themselves, and how many bytes of the first line are read.
_SCRIPTS = 5
_LINE = 256
_MACHINES = {3: "32-bit x86", 40: "32-bit Arm", 62: "x86-64", 183: "arm64", 243: "RISC-V"}

_OTHER_WAYS = "docs/parent.md has ways for such programs: unix sockets, TCP, the host's own vsock"


class UnsuitableProgram(NitroError):
    """A program into which the library cannot be preloaded."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}", hint=_OTHER_WAYS)
        self.path = path


def environment(library: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment `given`, with the library added after those that are already preloaded. Raises
    NitroError."""
    text = os.fspath(library)
    if re.search(r"[\s:]", text):
        raise NitroError(
            f"the dynamic linker cannot preload a library with a space or colon in its path: {text}",
            hint="set XDG_CACHE_HOME to another folder, and build again: nitroctl build",
        )
    ports = sockets.shared_ports()
    sockets.check_path(sockets.port_path(ports, sockets.PORT_MAX))
    before = [name for name in re.split(r"[\s:]", given.get(PRELOAD, "")) if name not in ("", text)]
    folder = os.fspath(ports.parents[1])
    return {**given, PRELOAD: ":".join([*before, text]), PARENT_FOLDER: folder}


def check(argv: Sequence[str], library: Path, path: str | None = None) -> str:
    """The file that runs as `argv[0]`, found as a shell finds it (`path` replaces PATH). Raises NitroError if
    there is none, UnsuitableProgram if the library would not be preloaded into it."""
    found = _find(argv[0], path)
    with open(library, "rb") as file:
        ours = _read_elf(file, os.fspath(library))
    _check(found, argv[1:], ours, path, _SCRIPTS)
    return found


def _find(name: str, path: str | None) -> str:
    found = shutil.which(name, path=path)
    if found:
        return found
    if "/" in name and os.path.exists(name):
        raise NitroError(f"{name} is not an executable file")
    raise NitroError(f"there is no program {name}" + ("" if "/" in name else " in PATH"))


def _check(program: str, arguments: Sequence[str], ours: Elf, path: str | None, scripts: int) -> None:
    try:
        with open(program, "rb") as file:
            start = file.read(_LINE)
            if start.startswith(b"#!"):
                words = _interpreter(start, program)
                if not scripts:
                    raise NitroError(f"{program}: too many scripts that are interpreters of scripts")
                _check(_find(words[0], path), words[1:], ours, path, scripts - 1)
                return
            status = os.fstat(file.fileno())
            _check_elf(program, _read_elf(file, program), ours)
    except OSError as e:
        raise NitroError(f"cannot read {program}: {e.strerror}") from e
    _check_rights(program, status)
    if os.path.basename(program) == "env" and scripts:
        with contextlib.suppress(ValueError):
            if words := _behind_env(arguments):
                _check(_find(words[0], path), words[1:], ours, path, scripts - 1)


def _interpreter(line: bytes, program: str) -> list[str]:
    """A script's interpreter, and the rest of the line as one argument (execve(2))."""
    words = os.fsdecode(line[2:].partition(b"\n")[0]).strip().split(None, 1)
    if not words:
        raise NitroError(f"{program} is a script without an interpreter")
    return words


def _behind_env(arguments: Sequence[str]) -> list[str]:
    """The command that env(1) will run; empty if env has options that are not known here."""
    words = list(arguments)
    while words:
        word = words[0]
        if word.startswith("-S") or word.startswith("--split-string="):
            rest = word.removeprefix("--split-string=").removeprefix("-S")
            words[:1] = shlex.split(rest)
            if not rest and words:
                words[:1] = shlex.split(words[0])
        elif word in ("-i", "-", "--ignore-environment"):
            return []  # env may drop our environment
        elif "=" in word:
            del words[0]
        elif word.startswith("-"):
            return []
        else:
            break
    return words


def _read_elf(file: BinaryIO, name: str) -> Elf:
    try:
        found = elf.read(file)
    except ValueError as e:
        raise NitroError(f"{name}: {e}") from e
    if not found:
        raise NitroError(f"{name} is neither an ELF program nor a script that begins with #!")
    return found


def _kind(found: Elf) -> str:
    return _MACHINES.get(found.machine, f"ELF machine {found.machine}, {found.bits} bits")


def _check_elf(program: str, found: Elf, ours: Elf) -> None:
    if (found.bits, found.machine) != (ours.bits, ours.machine):
        raise UnsuitableProgram(
            program, f"is a program for {_kind(found)}, but the library is for {_kind(ours)}"
        )
    if (b"Go", 4) in found.notes:  # its build ID
        raise UnsuitableProgram(program, "is written in Go, which makes system calls without libc")
    if found.linker is None:
        raise UnsuitableProgram(program, "is statically linked: no library can be preloaded into it")
    if "ld-linux" not in os.path.basename(found.linker):
        raise UnsuitableProgram(program, f"uses the dynamic linker {found.linker}, so its libc is not glibc")


def _check_rights(program: str, status: os.stat_result) -> None:
    """Check that the program does not run in secure-execution mode, in which ld.so(8) preloads nothing from a
    user's folder."""
    if status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
        raise UnsuitableProgram(program, "is set-user-ID: the dynamic linker preloads nothing for it")
    if status.st_mode & stat.S_ISGID and status.st_gid != os.getgid():
        raise UnsuitableProgram(program, "is set-group-ID: the dynamic linker preloads nothing for it")
    if os.getuid():
        try:
            os.getxattr(program, "security.capability")
        except OSError:
            return
        raise UnsuitableProgram(program, "has file capabilities: the dynamic linker preloads nothing for it")
