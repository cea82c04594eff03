# SPDX-License-Identifier: MIT
"""Running a parent program that was written for AF_VSOCK: whether the library vsock-preload.so can stand
between it and the kernel, and the environment in which it does.

A program that the dynamic linker would run without the library is refused by name and reason, for it would
only say that there is no vsock. What the library does is told in contrib/vsock-preload.
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

# execve(2): as many interpreters that are scripts themselves, and as many bytes of the first line.
_SCRIPTS = 5
_LINE = 256
_MACHINES = {3: "32-bit x86", 40: "32-bit Arm", 62: "x86-64", 183: "arm64", 243: "RISC-V"}

_OTHER_WAYS = "docs/parent.md has ways for such programs: unix sockets, TCP, the host's own vsock"


class UnsuitableProgram(NitroError):
    """A program that the library cannot stand before."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}", hint=_OTHER_WAYS)
        self.path = path


def environment(library: Path, given: Mapping[str, str]) -> dict[str, str]:
    """`given`, with the library behind those that are preloaded already."""
    text = os.fspath(library)
    if re.search(r"[\s:]", text):
        raise NitroError(
            f"the dynamic linker takes no library with a space or colon in its path: {text}",
            hint="set XDG_CACHE_HOME to another folder, and build again: nitroctl build",
        )
    ports = sockets.shared_ports()
    sockets.check_path(sockets.port_path(ports, sockets.PORT_MAX))
    before = [name for name in re.split(r"[\s:]", given.get(PRELOAD, "")) if name not in ("", text)]
    folder = os.fspath(ports.parents[1])
    return {**given, PRELOAD: ":".join([*before, text]), PARENT_FOLDER: folder}


def check(argv: Sequence[str], library: Path, path: str | None = None) -> str:
    """The file that runs as `argv[0]`, found as a shell finds it (`path`: in place of PATH). Raises
    NitroError if there is none, UnsuitableProgram if the library would be left out."""
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
        raise NitroError(f"{name} is no file that can be executed")
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
    """Of a script: its interpreter, and the rest of the line as one argument (execve(2))."""
    words = os.fsdecode(line[2:].partition(b"\n")[0]).strip().split(None, 1)
    if not words:
        raise NitroError(f"{program} is a script without an interpreter")
    return words


def _behind_env(arguments: Sequence[str]) -> list[str]:
    """What env(1) will run; nothing for options that are not known here."""
    words = list(arguments)
    while words:
        word = words[0]
        if word.startswith("-S") or word.startswith("--split-string="):
            rest = word.removeprefix("--split-string=").removeprefix("-S")
            words[:1] = shlex.split(rest)
            if not rest and words:
                words[:1] = shlex.split(words[0])
        elif word in ("-i", "-", "--ignore-environment"):
            return []  # without our environment, too
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
            program, f"is a program for {_kind(found)}, and the library for {_kind(ours)}"
        )
    if (b"Go", 4) in found.notes:  # its build ID
        raise UnsuitableProgram(program, "is written in Go, which makes system calls without libc")
    if found.linker is None:
        raise UnsuitableProgram(program, "is statically linked: no library can stand before its system calls")
    if "ld-linux" not in os.path.basename(found.linker):
        raise UnsuitableProgram(program, f"is linked by {found.linker}, with another libc than glibc")


def _check_rights(program: str, status: os.stat_result) -> None:
    """ld.so(8): in secure-execution mode it preloads nothing from a user's folder."""
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
