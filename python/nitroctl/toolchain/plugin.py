# SPDX-License-Identifier: MIT
"""The plugin for the QEMU that is installed, where it came with nitroctl or was built; whether it still fits
that QEMU; and which QEMU is taken where there are several.

A plugin is a cache entry plugin/KEY: bin/qemu-system-ARCH, its launcher, lib/nitro-enclave.so, manifest.json.
How it is made is `plugin_build`'s business, and nothing of that is imported here: every enclave asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nitroctl.base import arch as arches
from nitroctl.base import elf
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError, NotBuilt
from nitroctl.toolchain import bundle, cache, packages, places
from nitroctl.toolchain.cache import named

Kind = Literal["plugin", "bundled", "tree"]
KINDS: tuple[Kind, ...] = get_args(Kind)

POINTER = "plugin"
# Debian's names of what has it.
PACKAGES: dict[Arch, str] = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


def arch_of(package: str) -> Arch:
    return "aarch64" if package == PACKAGES["aarch64"] else "x86_64"


def build_id(path: Path) -> str | None:
    """The GNU build-id of a 64-bit little-endian ELF file, in hex (elf(5)); None if there is none to be read.

    Raises OSError.
    """
    with open(path, "rb") as f, contextlib.suppress(ValueError):
        found = elf.read(f)
        if found and (value := found.notes.get((b"GNU", 3))):  # NT_GNU_BUILD_ID
            return value.hex()
    return None


@dataclass(frozen=True)
class Manifest:
    """What a plugin was built for and from, kept beside it as manifest.json. Digests are SHA-256 in hex."""

    key: str
    qemu: str  # path
    build_id: str
    package: str
    version: str  # of the package
    series: str
    source: str  # where the source came from
    source_dir: str
    overlay: str  # digest of our sources
    graft: str  # digest of the patch
    configure: list[str]
    tools: dict[str, str]  # versions of compiler and libraries
    build_dir: str
    plugin_sha256: str
    built: str  # UTC, ISO 8601
    seconds: float

    @property
    def arch(self) -> Arch:
        return arch_of(self.package)

    @property
    def launcher(self) -> Path:
        return cache.entry("plugin", self.key) / "bin" / arches.qemu(self.arch)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "launcher": os.fspath(self.launcher)}

    @classmethod
    def load(cls, root: Path) -> Manifest | None:
        """The manifest of a product; None if there is none, or one of another version of nitroctl."""
        return cache.read_record(cls, root / "manifest.json")


# --- choosing --------------------------------------------------------------------------------------------


def manifest(arch: Arch = "x86_64") -> Manifest | None:
    """The manifest of the plugin that was built last for that emulator, if any."""
    root = cache.current(named(POINTER, arch))
    return Manifest.load(root) if root else None


def misfit(built: Manifest) -> str | None:
    """Why a plugin cannot be used with the QEMU that is there now, as a clause; None: it can."""
    path = Path(built.qemu)
    try:
        found = build_id(path)
    except OSError as e:
        return f"{path}, which the plugin was built for, cannot be read: {e.strerror}"
    if found != built.build_id:
        return f"{path} is no longer {built.package} {built.version}, which the plugin was built for"
    if not built.launcher.is_file():
        return f"{built.launcher} is gone"
    return None


def locate(arch: Arch = "x86_64") -> Path:
    """The launcher of a plugin that fits; raises NitroError with the command that provides it."""
    if brought := prebuilt(arch):
        return brought
    built = manifest(arch)
    if built is None:
        which = "" if arch == "x86_64" else f" for {arches.qemu(arch)}"
        option = "" if arch == "x86_64" else f" --arch {arch}"
        raise NotBuilt(
            f"there is no plugin{which} built by nitroctl", hint=f"nitroctl build --plugin{option}"
        )
    reason = misfit(built)
    if reason:
        raise NitroError(reason, hint=f"nitroctl build --plugin --qemu {built.qemu}")
    return built.launcher


def prebuilt(arch: Arch = "x86_64") -> Path | None:
    """The launcher of the plugin that came with nitroctl for the distribution's QEMU of today, if there is
    one."""
    with contextlib.suppress(OSError):
        if found := build_id(Path(packages.emulator(arch).program)):
            launcher = bundle.plugin_for(found, arch)
            # The dynamic linker preloads nothing from such a folder.
            if launcher and not re.search(r"[\s:]", os.fspath(launcher)):
                return launcher
    return None


def fitting(arch: Arch) -> Path | None:
    """The plugin for the installed QEMU as it is now: the one that came with nitroctl, else the one built."""
    if brought := prebuilt(arch):
        return brought
    built = manifest(arch)
    return built.launcher if built and misfit(built) is None else None


def in_use(kind: Kind | None = None, arch: Arch = "x86_64") -> Path:
    """The QEMU that `choice` takes, where nothing has to be built first. Raises NitroError as that does."""
    if kind in (None, "plugin") and (found := fitting(arch)):
        return found
    if kind == "plugin":
        return locate(arch)
    if kind in (None, "bundled") and (found := bundle.qemu(arch)):
        return found
    if kind == "bundled":
        other = bundle.installed_qemu(arch)
        raise NitroError(
            (other and other.misfit) or "there is no QEMU that came with nitroctl",
            hint="pip install 'nitroctl[qemu]'",
        )
    try:
        return places.locate("qemu", arch=arch)
    except NitroError as e:
        if kind is None:
            option = "" if arch == "x86_64" else f" --arch {arch}"
            e.hint = f"{e.hint}, or, for the QEMU that is installed, nitroctl build --plugin{option}"
        raise
