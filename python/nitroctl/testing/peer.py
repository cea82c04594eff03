# SPDX-License-Identifier: MIT
"""rust-vmm's vhost-device-vsock, to be measured against and tested with: Debian forky's package, unpacked
into the cache with the C library that it was built for. Nothing is installed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base.arch import triplet
from nitroctl.toolchain import cache
from nitroctl.toolchain.apt import AptRoot

SUITE = "forky"
PACKAGES = ("vhost-device-vsock", "libc6", "libgcc-s1")


@dataclass(frozen=True)
class Peer:
    version: str
    argv: tuple[str, ...]  # starts it, without options


def vhost_device_vsock() -> Peer:
    """The newest."""
    root = AptRoot.open(SUITE)
    versions = [root.version(package) for package in PACKAGES]

    def fill(folder: Path) -> None:
        for package, version in zip(PACKAGES, versions, strict=True):
            root.unpack(root.download(package, version), folder)

    key = f"{PACKAGES[0]}_" + "_".join(versions)
    folder = cache.build_entry("bench", key.replace(":", "-"), fill)
    libraries = folder / "usr/lib" / triplet(root.arch)
    (loader,) = libraries.glob("ld-linux-*.so.*")
    program = folder / "usr/bin/vhost-device-vsock"
    argv = (os.fspath(loader), "--library-path", os.fspath(libraries), os.fspath(program))
    return Peer(versions[0], argv)
