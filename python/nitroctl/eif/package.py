# SPDX-License-Identifier: MIT
"""AWS's blobs from Amazon Linux's package aws-nitro-enclaves-cli-devel, unpacked once into the cache. `rpm`
reads the package.
"""

from __future__ import annotations

import os
from pathlib import Path

from nitroctl.base.arch import ARCHES, facts, named
from nitroctl.base.errors import NitroError
from nitroctl.eif import rpm
from nitroctl.toolchain import aws_blobs, cache

# The largest accepted size of each file; AWS's kernels have 4 to 10 MB.
_LIMITS = {
    "bzImage": 256 << 20,
    "bzImage.config": 4 << 20,
    "Image": 256 << 20,
    "Image.config": 4 << 20,
    "cmdline": 1 << 16,
    "init": 64 << 20,
    "nsm.ko": 64 << 20,
}
_HINT = f"on Amazon Linux: dnf download {aws_blobs.PACKAGE} (2023), yumdownloader {aws_blobs.PACKAGE} (2)"


def unpacked(path: Path) -> Path:
    """The folder with the unpacked blobs. Raises NitroError for another package, or another architecture."""
    package = rpm.read(path)
    arch = named(package.architecture)
    if arch is None:
        what = f"{package.name} {package.version} for {package.architecture}"
        raise NitroError(f"{path} is {what}; the package for {' or '.join(ARCHES)} is needed", hint=_HINT)

    def fill(folder: Path) -> None:
        wanted = {os.fsencode(aws_blobs.INSTALLED / name): most for name, most in _LIMITS.items()}
        rpm.extract(path, wanted, folder)
        if not (folder / facts(arch).image).is_file():
            what = f"the package {package.name} {package.version}"
            raise NitroError(f"{path} is {what}, but has no kernel in {aws_blobs.INSTALLED}", hint=_HINT)

    try:
        key = cache.digest_file(path)[:16]
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e
    return cache.build_entry("aws-blobs", key, fill)
