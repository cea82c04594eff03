# SPDX-License-Identifier: MIT
"""What runs inside enclaves that we make: where a kernel, the init and the applications are, for either
architecture; and those programs themselves.

    build_init       guest/*.c, compiled to static programs: cache entry init/KEY
    kernel.build     our kernel
    prebuilt.fetch   Debian's

KEY is the content of all that goes in. Another architecture's than the host's are compiled by Debian's cross
compiler, which is asked for only then. Entries of the cache for x86_64 have no architecture in their names;
others do. How images are put together from these is not known here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nitroctl.base import arch as arches
from nitroctl.base import proc, progress
from nitroctl.base.arch import Arch
from nitroctl.base.config import source_root
from nitroctl.base.errors import NitroError, NotBuilt
from nitroctl.toolchain import bundle, cache, packages
from nitroctl.toolchain.cache import named
from nitroctl.toolchain.steps import BuildFailed, logged, toolchain

SUITE = "trixie"

# Static, small, the same bytes wherever they are compiled with the same tools.
PROGRAM_FLAGS = ("-std=gnu11", "-Os", "-Wall", "-Wextra", "-static", "-s", "-Wl,--build-id=none")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "init": ("init.c", "clock.c", "modules.c"),
    "agent": ("agent.c", "agent-high.c", "agent-machine.c", "agent-modes.c", "agent-nsm.c", "agent-vsock.c"),
    "hello": ("hello.c",),
    "features": ("features.c",),
    "tools": (
        "tools.c",
        "tools-agent.c",
        "tools-core.c",
        "tools-exec.c",
        "tools-frame.c",
        "tools-top.c",
    ),
}

_STATIC_LIBC = packages.Need("libc6-dev", "glibc-static", "static programs", header="stdio.h")


def option(arch: Arch) -> str:
    """What a command for this architecture has behind it, beginning with a space."""
    return "" if arch == arches.host() else f" --arch {arch}"


def locate(what: str, arch: Arch | None = None) -> Path:
    """Where a kernel or a program for guests is. Raises NitroError with what makes it."""
    arch = arch or arches.default()
    image = arches.facts(arch).image
    name, file, command = {
        "kernel": ("kernel", image, "guest kernel"),
        "prebuilt": ("kernel-prebuilt", image, "guest kernel --prebuilt"),
        "init": ("init", "init", "guest init"),
        "agent": ("init", "agent", "guest init"),
        "hello": ("init", "hello", "guest init"),
        "tools": ("init", "tools", "guest init"),
    }[what]
    if brought := bundle.find(f"{'guest' if name == 'init' else name}/{file}", arch):
        return brought
    root = cache.current(named(name, arch))
    if root is None or not (root / file).is_file():
        raise NotBuilt(
            f"there is no {what} for{'' if arch == arches.host() else f' {arch}'} guests yet",
            hint=f"nitroctl {command}{option(arch)}",
        )
    return root / file


def default_kernel(arch: Arch | None = None) -> str:
    """For those who do not care: "own" if it has been built; else "prebuilt", which needs no compiling."""
    try:
        locate("kernel", arch)
    except NitroError:
        return "prebuilt"
    return "own"


def manifest_of(kernel: Path) -> dict[str, Any]:
    """What a kernel of ours was made from."""
    return cache.read_json(kernel.parent / "manifest.json") or {}


# --- init and applications -------------------------------------------------------------------------------


def build_init(arch: Arch | None = None) -> Path:
    """Compile init and applications, or find them compiled; returns the folder that they are in."""
    arch = arch or arches.default()
    if brought := bundle.find("guest", arch):
        return brought
    guest = source_root() / "guest"
    cc = f"{arches.cross(arch)}{'gcc' if arches.cross(arch) else 'cc'}"
    needs = [*needed(packages.BUILD, "cc", "stdio.h"), *packages.cross(arches.cross(arch))]
    tools = toolchain(needs, cc=cc)
    libc = _static_libc(cc, arch)
    sources = cache.digest_files((p for p in sorted(guest.iterdir()) if p.suffix in (".c", ".h")), root=guest)
    other = () if arch == "x86_64" else (arch,)
    key = cache.digest_text(sources, tools["cc"], cache.digest_file(libc), *PROGRAM_FLAGS, *other)[:16]

    def fill(folder: Path) -> None:
        log = cache.log_path(named("init", arch))
        log.unlink(missing_ok=True)
        with progress.task("Compiling the guest's init", unit="steps", total=len(PROGRAMS)) as task:
            for name, files in PROGRAMS.items():
                lines: list[str] = []
                argv = [cc, *PROGRAM_FLAGS, "-o", os.fspath(folder / name), *files]
                if logged(argv, log, lines.append, cwd=guest):
                    raise BuildFailed(f"compiling guest/{files[0]}", reasons(lines), log)
                task.advance()

    return cache.build_entry(named("init", arch), key, fill)


def _static_libc(cc: str, arch: Arch) -> Path:
    """The compiler's libc.a; NitroError where the host has none, or compiles for another machine."""
    machine = proc.run([cc, "-dumpmachine"]).stdout.decode().strip()
    if machine.partition("-")[0] != arch:
        raise NitroError(
            f"the guest is {arch}, and this host's {cc} compiles for {machine}",
            hint=f"put a {cc} for {arch} first in PATH",
        )
    # cc answers with the bare name when it does not know the file.
    path = Path(proc.run([cc, "-print-file-name=libc.a"]).stdout.decode().strip())
    if not path.is_absolute() or not path.is_file():
        cross = packages.cross(arches.cross(arch))
        raise NitroError(
            f"{cc} has no static C library (libc.a), which the guest's programs are linked with",
            hint=packages.install_line(cross or [_STATIC_LIBC]),
        )
    return path


def needed(table: Sequence[packages.Need], *what: str) -> list[packages.Need]:
    return [need for need in table if need.what in what]


def reasons(lines: Iterable[str]) -> list[str]:
    """What a compiler or make complained about: from the line before its first error on."""
    kept = [line for line in lines if line.strip()]
    telling = re.compile(r"\berror\b|\bundefined reference\b|\*\*\*", re.IGNORECASE)
    first = next((i for i, line in enumerate(kept) if telling.search(line)), len(kept) - 10)
    return kept[max(0, first - 1) :][:12]
