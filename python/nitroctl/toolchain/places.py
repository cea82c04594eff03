# SPDX-License-Identifier: MIT
"""Where the programs are that `tree` builds or that came with nitroctl: QEMU, the vsock backend, the library
for parent programs.

Nothing is built here, and nothing imported that building takes: every enclave asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base.arch import Arch
from nitroctl.base.config import default_prefix
from nitroctl.base.errors import NotBuilt
from nitroctl.toolchain import bundle, cache
from nitroctl.toolchain.cache import named

QEMU = "qemu-system-x86_64"
BACKEND = "vhost-user-vsock"
PRELOAD = "vsock-preload"


def locate(what: str, *, sanitize: bool = False, arch: Arch = "x86_64") -> Path:
    """Where "qemu" for enclaves of that architecture or "vsock" is; raises NitroError with the command that
    provides it."""
    emulator = named("qemu", arch), arches.qemu(arch)
    name, program = {"qemu": emulator, "vsock": ("vsock", BACKEND)}[what]
    if sanitize and what == "qemu":
        name += "-sanitize"
    for path in _candidates(name, program, linked=not sanitize):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    flag = " --sanitize" if sanitize else ""
    flag += f" --arch {arch}" if what == "qemu" and arch != "x86_64" else ""
    raise NotBuilt(f"there is no {program} built by nitroctl", hint=f"nitroctl build{flag}")


def preload() -> Path:
    """Where the library for parent programs is: beside the backend. Raises NitroError as `locate` does."""
    path = locate("vsock").parents[1] / "lib" / f"{PRELOAD}.so"
    if not path.is_file():
        raise NotBuilt(f"there is no {path.name} beside the vsock backend", hint="nitroctl build")
    return path


def _candidates(name: str, program: str, *, linked: bool) -> Iterator[Path]:
    """Where a program of ours can be: linked into this environment, or built last."""
    if linked:
        link = default_prefix() / "bin" / program
        # The prefix may have the plugin's launcher under the name of QEMU.
        if link.is_symlink() and link.resolve().parents[2].name in (name, name.partition("-")[0]):
            yield link.resolve()
    if name == "vsock" and (brought := bundle.find(f"bin/{program}")):
        yield brought
    root = cache.current(name)
    if root:
        yield root / "bin" / program
