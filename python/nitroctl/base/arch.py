# SPDX-License-Identifier: MIT
"""The architectures of enclaves, and what each is called by those who have to do with it.

Names and numbers only: which QEMU, kernel or compiler is taken for one is decided where they are made.
"""

from __future__ import annotations

import platform
from typing import Literal, NamedTuple, get_args

from nitroctl.base.errors import NitroError

Arch = Literal["x86_64", "aarch64"]
ARCHES: tuple[Arch, ...] = get_args(Arch)

# Bit 0 of an EIF's flags (AWS: EIF specification).
EIF_FLAG = 1


class Facts(NamedTuple):
    """One architecture."""

    debian: str  # as Debian and container images call it
    rest: tuple[str, ...]  # what else uname and people call it
    eif: int  # bit 0 of an EIF's flags
    elf: tuple[int, int]  # e_machine of its programs: 32-bit ones, 64-bit ones (elf.h)
    kernel: str  # the name of a kernel's folder in its source, arch/NAME
    image: str  # the file that boots, below arch/NAME/boot
    cpu: str  # the CPU model that an emulator gives


_FACTS: dict[Arch, Facts] = {
    "x86_64": Facts("amd64", ("x86-64",), 0, (3, 62), "x86", "bzImage", "max"),
    # "max" has 52-bit addresses, which kernels older than it do not all bear; neoverse-n1 is Graviton2.
    "aarch64": Facts("arm64", (), EIF_FLAG, (40, 183), "arm64", "Image", "neoverse-n1"),
}


def facts(arch: Arch) -> Facts:
    return _FACTS[arch]


def named(name: str) -> Arch | None:
    """The architecture that uname, Debian, a container image or a person calls so."""
    for arch in ARCHES:
        if name in (arch, _FACTS[arch].debian, *_FACTS[arch].rest):
            return arch
    return None


def of_flags(flags: int) -> Arch:
    """The architecture that an EIF's flags tell."""
    return "aarch64" if flags & EIF_FLAG else "x86_64"


def host(machine: str | None = None) -> Arch | None:
    """The architecture of this host; None where enclaves have none like it."""
    return named(platform.machine() if machine is None else machine)


def default() -> Arch:
    """The architecture of what is made here, where nobody names one: the host's. NitroError on a host that
    is of neither."""
    found = host()
    if found is None:
        raise NitroError(
            f"this host is {platform.machine()}, and enclaves are x86_64 or aarch64",
            hint="name one: --arch aarch64",
        )
    return found


def qemu(arch: Arch) -> str:
    """The name of the emulator's program."""
    return f"qemu-system-{arch}"


def triplet(arch: Arch) -> str:
    """GNU's name, which a cross compiler's programs begin with."""
    return f"{arch}-linux-gnu"


def cross(arch: Arch) -> str:
    """What the names of compiler and linker for `arch` begin with on this host: nothing where it is the
    host's own."""
    return "" if host() == arch else f"{triplet(arch)}-"
