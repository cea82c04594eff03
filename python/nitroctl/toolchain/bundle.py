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

A checkout has none of it, and everything is built there. Only paths: nothing is made or run here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from nitroctl import __version__
from nitroctl.base.errors import NitroError

QEMU_PACKAGE = "nitroctl_qemu"
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


def find(name: str) -> Path | None:
    """A file or folder of the bundle by its name there."""
    folder = root()
    if folder is None or not (folder / name).exists():
        return None
    return folder / name


def plugin_for(build_id: str) -> Path | None:
    """The launcher of the plugin for a QEMU with this build-id."""
    if not re.fullmatch(r"[0-9a-f]{2,128}", build_id):
        return None
    return find(f"plugins/{build_id}/bin/qemu-system-x86_64")


@dataclass(frozen=True)
class Qemu:
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


def installed_qemu() -> Qemu | None:
    """The QEMU of `nitroctl-qemu`, whether it fits or not; None if that is not installed."""
    try:
        spec = importlib.util.find_spec(QEMU_PACKAGE)
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = _folder(Path(place).resolve())
        path = folder / "bin/qemu-system-x86_64" if folder else None
        if folder and path and path.is_file():
            about = {name: str(value) for name, value in _record(folder).items()}
            return Qemu(path, *(about.get(key, "?") for key in ("nitroctl", "qemu", "source", "revised")))
    return None


def qemu() -> Path | None:
    """The QEMU of `nitroctl-qemu`, if it is installed and belongs to this nitroctl."""
    found = installed_qemu()
    return found.path if found and found.misfit is None else None
