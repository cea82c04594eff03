# SPDX-License-Identifier: MIT
"""Debian's static busybox, the programs that `nitroctl run --tools` brings into a guest: cache entry
busybox/KEY with busybox and manifest.json.

It comes through a private apt root, like Debian's kernel, and so verified and without rights. What becomes of
it in a guest is not known here.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base import progress
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError, NotBuilt
from nitroctl.toolchain import bundle, cache
from nitroctl.toolchain.cache import named
from nitroctl.toolchain.guest import SUITE, option

PACKAGE = "busybox-static"
SPACE = 20 * 10**6


def locate(arch: Arch | None = None) -> Path:
    """Where it is; raises NotBuilt with the command that fetches it."""
    arch = arch or arches.default()
    if brought := bundle.find("guest/busybox", arch):
        return brought
    root = cache.current(named("busybox", arch))
    if root is None or not (root / "busybox").is_file():
        raise NotBuilt("there are no tools for guests yet", hint=f"nitroctl guest tools{option(arch)}")
    return root / "busybox"


def fetch(*, arch: Arch | None = None, update: bool = False) -> Path:
    """The one that is here, else (or to `update`) the newest. Raises NitroError."""
    arch = arch or arches.default()
    if not update:
        try:
            return locate(arch)
        except NotBuilt:
            pass
    from nitroctl.toolchain.apt import AptRoot

    root = AptRoot.open(SUITE, arch, refresh=update)
    version = root.version(PACKAGE)

    def fill(folder: Path) -> None:
        cache.need_space(SPACE, what=f"unpacking {PACKAGE}")
        deb = root.download(PACKAGE, version)
        with (
            progress.task(f"Unpacking {PACKAGE}"),
            tempfile.TemporaryDirectory(prefix="tree.", dir=folder) as tree,
        ):
            root.unpack(deb, Path(tree))
            found = [path for path in Path(tree).glob("**/bin/busybox") if path.is_file()]
            if len(found) != 1:
                raise NitroError(f"the package {PACKAGE} {version} has {len(found)} files bin/busybox")
            shutil.copyfile(found[0], folder / "busybox")
        (folder / "busybox").chmod(0o755)
        cache.write_json(
            folder / "manifest.json",
            {"source": f"{PACKAGE} {version}", "sha256": cache.digest_file(folder / "busybox")},
        )

    return cache.build_entry(named("busybox", arch), version, fill) / "busybox"
