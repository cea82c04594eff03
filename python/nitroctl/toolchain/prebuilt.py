# SPDX-License-Identifier: MIT
"""Debian's own kernel for clouds, nothing compiled: cache entry kernel-prebuilt/KEY with bzImage (aarch64:
Image) and the modules that an enclave needs.

It comes through a private apt root, so it is verified and needs no rights. Which modules go where is
`modules`' business; KEY has its rules, too.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base import progress
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import cache, modules
from nitroctl.toolchain.cache import named
from nitroctl.toolchain.guest import SUITE
from nitroctl.toolchain.image import check_image

SPACE = 300 * 10**6


@dataclass(frozen=True)
class Prebuilt:
    """Debian's kernel. That for x86_64 finds virtio devices through ACPI alone: the machine needs acpi=on;
    that for aarch64 by the device tree."""

    image: Path
    modules_dir: Path  # goes into the root of the ramdisk that has the init: two lists of modules, and ko/
    release: str  # as uname -r prints it
    lacks: tuple[str, ...] = ()  # of what AWS's kernel has
    acpi: bool = True


def package(arch: Arch) -> str:
    """A package without files that depends on the newest kernel of its flavour."""
    return f"linux-image-cloud-{arches.facts(arch).debian}"


def fetch(*, arch: Arch | None = None, update: bool = False) -> Prebuilt:
    """Debian's kernel for clouds with the modules that an enclave needs; raises NitroError.

    The one that is here is taken, else (or to `update`) the newest.
    """
    arch = arch or arches.default()
    have = cache.current(named("kernel-prebuilt", arch))
    if have is not None and not update:
        found = _made(have, arch)
        if found:
            return found
    from nitroctl.toolchain.apt import AptRoot

    root = AptRoot.open(SUITE, arch, refresh=update)
    flavour = package(arch)
    kernel = _the_kernel(root.depends(flavour), flavour)
    version = root.version(kernel)

    def fill(folder: Path) -> None:
        cache.need_space(SPACE, what="unpacking Debian's kernel")
        deb = root.download(kernel, version, name=flavour)
        with (
            progress.task(f"Unpacking {kernel}"),
            tempfile.TemporaryDirectory(prefix="tree.", dir=folder) as tree,
        ):
            root.unpack(deb, Path(tree))
            release, lacks = _pick(Path(tree), folder, arch)
        cache.write_json(folder / "manifest.json", {
            "release": release,
            "lacks": lacks,
            "source": f"{kernel} {version}",
            "sha256": cache.digest_file(folder / arches.facts(arch).image),
        })  # fmt: skip

    made = _made(cache.build_entry(named("kernel-prebuilt", arch), _key(kernel, version), fill), arch)
    assert made is not None
    return made


def _key(package: str, version: str) -> str:
    """Also of the rules by which modules go into the ramdisk."""
    folder = Path(modules.__file__).parent
    rules = cache.digest_files([folder / "modules.py"], root=folder)
    return f"{version}-{cache.digest_text(package, rules)[:12]}"


def _made(root: Path, arch: Arch) -> Prebuilt | None:
    data = cache.read_json(root / "manifest.json")
    image = root / arches.facts(arch).image
    if data is None or not image.is_file():
        return None
    if _key(*str(data.get("source")).partition(" ")[::2]) != root.name:
        return None  # made by other rules
    lacks = data.get("lacks")
    return Prebuilt(
        image,
        root / "ramdisk",
        str(data.get("release")),
        tuple(map(str, lacks)) if isinstance(lacks, list) else (),
        acpi=arch == "x86_64",
    )


def _the_kernel(depends: Iterable[str], flavour: str) -> str:
    ending = flavour.removeprefix("linux-image-")
    names = [name for name in depends if re.fullmatch(rf"linux-image-\d.*-{ending}", name)]
    if len(names) != 1:
        raise NitroError(f"Debian {SUITE}'s {flavour} names no one kernel: {', '.join(names) or 'none'}")
    return names[0]


def _pick(tree: Path, into: Path, arch: Arch) -> tuple[str, list[str]]:
    """Copy the kernel and its modules for the ramdisk out of an unpacked package; returns its release, and
    what it lacks."""
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise NitroError(f"the package has {len(kernels)} kernels in /boot, expected one")
    release = kernels[0].name.removeprefix("vmlinuz-")
    image = into / arches.facts(arch).image
    shutil.copyfile(kernels[0], image)
    check_image(image, arch)
    for lib in ("usr/lib/modules", "lib/modules"):
        if (tree / lib / release).is_dir():
            folder = modules.ModuleFolder(tree / lib / release)
            break
    else:
        raise NitroError(f"the package has no modules for its kernel {release}")
    config = tree / f"boot/config-{release}"
    options = config.read_text() if config.is_file() else ""
    # Those of every boot as they are: quicker. The others as small as the kernel takes them.
    devices = folder.in_order(modules.DEVICES)
    always = {*devices, *modules.late(folder)}
    packed = "CONFIG_MODULE_DECOMPRESS=y" in options.splitlines()
    (into / "ramdisk/ko").mkdir(parents=True)
    file_of = {}
    for name in dict.fromkeys([*devices, *modules.wanted(folder)]):
        keep = packed and name not in always
        file_of[name] = f"/ko/{name}.ko" + (".xz" if keep and folder.path(name).suffix == ".xz" else "")
        content = folder.path(name).read_bytes() if file_of[name].endswith(".xz") else folder.content(name)
        (into / f"ramdisk{file_of[name]}").write_bytes(content)
    cache.write_text(into / "ramdisk/modules", "".join(f"{file_of[name]}\n" for name in devices))
    lines = modules.demand(folder, file_of, devices)
    cache.write_text(into / "ramdisk/modules.demand", "".join(f"{line}\n" for line in lines))
    return release, modules.lacking(options, folder, arch)
