# SPDX-License-Identifier: MIT
"""What came with nitroctl, built already: found before anything is built, and all that is needed to run.

    nitroctl/bundle/                     in the wheel `nitroctl` (tools/dist)
        bin/vhost-user-vsock
        lib/vsock-preload.so
        guest/init, agent, hello, tools, busybox
        kernel/bzImage, config, manifest.json
        plugins/BUILD-ID/bin, lib        for a distribution's QEMU with this build-id
        bundle.json
    nitroctl_qemu/                       the wheel `nitroctl-qemu`
        bin/qemu-system-x86_64, lib, share/qemu, bundle.json
    nitroctl_arm64/                      the wheel `nitroctl-arm64`: what runs inside arm64 enclaves
        guest/init, agent, hello, tools, busybox
        kernel/Image, config, manifest.json
        bundle.json

A checkout has none of it, and everything is built there. Only paths: nothing is made or run here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from nitroctl import __version__
from nitroctl.base.arch import Arch
from nitroctl.base.arch import qemu as emulator
from nitroctl.base.errors import NitroError

QEMU_PACKAGE = "nitroctl_qemu"
# What `nitroctl` itself brings is for x86_64.
GUESTS: dict[Arch, str] = {"aarch64": "nitroctl_arm64"}
RECORD = "bundle.json"


def _glibc() -> tuple[int, int] | None:
    """The version of the C library that this process runs on, if it is glibc."""
    try:
        said = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # musl does not know the name
        return None
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", said)
    return (int(match[1]), int(match[2])) if match else None


def _record(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError) as e:
        raise NitroError(f"{folder / RECORD}: {e}", hint="install nitroctl again") from e
    return found if isinstance(found, dict) else {}


def _folder(folder: Path) -> Path | None:
    """A bundle whose programs run on this host's C library; NitroError where they do not."""
    if not (folder / RECORD).is_file():
        return None
    need = str(_record(folder).get("glibc", "0.0"))
    major, _, minor = need.partition(".")
    have = _glibc()
    if have is None:
        raise NitroError(
            "the programs that come with nitroctl are linked with glibc, and this system has another C "
            "library (musl?)",
            hint="use a distribution with glibc, or build from a checkout",
        )
    if have < (int(major), int(minor)):
        raise NitroError(
            f"the programs that come with nitroctl need glibc {need}, and this system has "
            f"{have[0]}.{have[1]}",
            hint="use a newer distribution, or build from a checkout",
        )
    return folder


def root() -> Path | None:
    """The bundle in this package; None in a checkout."""
    return _folder(Path(__file__).resolve().parents[1] / "bundle")


def commit() -> str | None:
    """What the bundle was made from."""
    folder = root()
    found = _record(folder).get("commit") if folder else None
    return found if isinstance(found, str) else None


def find(name: str, arch: Arch = "x86_64") -> Path | None:
    """A file or folder of the bundle for guests of that architecture by its name there."""
    folder = root() if arch not in GUESTS else _guests(arch)
    if folder is None or not (folder / name).exists():
        return None
    return folder / name


def _guests(arch: Arch) -> Path | None:
    """The bundle of a companion package for guests, if it is installed. NitroError if it belongs to another
    nitroctl: init and the tools' agent speak with this one."""
    for folder in _package(GUESTS[arch]):
        if (folder / RECORD).is_file():
            made_with = _record(folder).get("nitroctl")
            if made_with != __version__:
                name = GUESTS[arch].replace("_", "-")
                raise NitroError(
                    f"{name} {made_with} does not belong to nitroctl {__version__}",
                    hint=f"pip install --upgrade 'nitroctl[{name.removeprefix('nitroctl-')}]'",
                )
            return folder
    return None


def _package(name: str) -> list[Path]:
    """The folders of an installed package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []


def plugin_for(build_id: str, arch: Arch = "x86_64") -> Path | None:
    """The launcher of the plugin for a QEMU for that architecture with this build-id."""
    if not re.fullmatch(r"[0-9a-f]{2,128}", build_id):
        return None
    return find(f"plugins/{build_id}/bin/{emulator(arch)}")


class Qemu(NamedTuple):
    """The QEMU of the wheel `nitroctl-qemu`."""

    path: Path
    nitroctl: str  # the version of nitroctl that it was made with
    version: str  # of QEMU
    source: str  # the source package
    revised: str  # the day of the source package, ISO 8601

    @property
    def age(self) -> int:
        """Days since the source package was made."""
        made = time.mktime(time.strptime(self.revised, "%Y-%m-%d"))
        return max(0, int((time.time() - made) // 86400))

    @property
    def misfit(self) -> str | None:
        """Why this nitroctl does not use it, as a clause."""
        if self.nitroctl != __version__:
            return f"nitroctl-qemu {self.nitroctl} does not belong to nitroctl {__version__}"
        return None


def installed_qemu(arch: Arch = "x86_64") -> Qemu | None:
    """The QEMU of `nitroctl-qemu` for that architecture, whether it fits or not; None if that is not
    installed."""
    for place in _package(QEMU_PACKAGE):
        folder = _folder(place)
        path = folder / "bin" / emulator(arch) if folder else None
        if folder and path and path.is_file():
            about = {name: str(value) for name, value in _record(folder).items()}
            return Qemu(path, *(about.get(key, "?") for key in ("nitroctl", "qemu", "source", "revised")))
    return None


def qemu(arch: Arch = "x86_64") -> Path | None:
    """The QEMU of `nitroctl-qemu`, if it is installed and belongs to this nitroctl."""
    found = installed_qemu(arch)
    return found.path if found and found.misfit is None else None
