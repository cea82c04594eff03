# SPDX-License-Identifier: MIT
"""QEMU with the nitro-enclave machine, and the vsock backend: from sources to programs in the cache.

    source      a QEMU tree with the graft in it (`toolchain.source`), our sources in its nitro-overlay/
    configure   small; one build folder per (source, options, tools), kept, so ninja does what changed
    ninja       the emulator and our qtests
    product     cache entry qemu/KEY: bin/, share/qemu/ (where QEMU looks for firmware), manifest.json

KEY is the content of all that goes in, so when nothing changed there is nothing to run. In a tree that we
unpacked, nitro-overlay/ is a copy of our sources brought up to date by content: what is built is exactly what
KEY names, also while somebody edits; and file times, which an installed package sets back, do not matter. In
a folder of the user's it is a link to our sources, and ninja decides.

Kernels and the init of guests are made elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.base import arch as arches
from nitroctl.base import atomic, proc, progress
from nitroctl.base.arch import Arch
from nitroctl.base.config import cache_dir, source_root
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import bundle, cache, packages
from nitroctl.toolchain.cache import named
from nitroctl.toolchain.places import BACKEND, PRELOAD
from nitroctl.toolchain.source import (
    LINK,
    Series,
    Source,
    apply_graft,
    find_source,
    firmware_of,
    graft_digest,
    plain_name,
)
from nitroctl.toolchain.steps import (
    BuildFailed,
    configure_reasons,
    logged,
    meson_version,
    ninja,
    tool,
    toolchain,
)

# What of our sources QEMU's build enters.
OVERLAY = ("Kconfig", "configs", "graft/Kconfig-7.2", "hw", "include", "tests/qtest")
# What the meson.build at our top enters; the backend and the parent programs' library are made from their own
# folders and the first two.
CORES = (
    "meson.build", "meson_options.txt", "contrib", "include", "hw", "tests/unit", "tests/fuzz", "tests/bench",
)  # fmt: skip
BACKEND_INPUTS = ("meson.build", "meson_options.txt", f"contrib/{BACKEND}", f"contrib/{PRELOAD}")

# Bytes, twice what 10.0 takes.
SPACE_BUILD = 300 * 10**6
SPACE_SANITIZED = 1600 * 10**6


@dataclass(frozen=True)
class BuildOptions:
    source: Path | None = None  # folder, tarball or .dsc; None: Debian's source package
    series: str | None = None  # None: what the source is; the default series for Debian's
    jobs: int | None = None
    sanitize: bool = False
    update: bool = False  # look for a newer source package than the one that is there
    arch: Arch = "x86_64"  # of the enclaves


@dataclass(frozen=True)
class Manifest:
    """What a QEMU was built from, kept beside it as manifest.json. Digests are SHA-256 in hex."""

    key: str
    series: str
    version: str
    source: str  # where the source came from
    source_dir: str
    overlay: str  # digest of our sources
    graft: str  # digest of the patch
    sanitize: bool
    configure: list[str]
    tools: dict[str, str]  # versions of compiler and libraries
    qemu_sha256: str
    firmware: dict[str, str]  # file -> digest
    build_dir: str
    qtests: list[str]  # programs below build_dir
    built: str  # UTC, ISO 8601
    seconds: float

    @property
    def root(self) -> Path:
        return cache.entry("qemu", self.key)

    @property
    def arch(self) -> Arch:
        return (
            "aarch64"
            if for_arch(("--target-list=x86_64-softmmu",), "aarch64")[0] in self.configure
            else "x86_64"
        )

    @property
    def qemu(self) -> Path:
        return self.root / "bin" / arches.qemu(self.arch)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "qemu": os.fspath(self.qemu)}

    @classmethod
    def load(cls, root: Path) -> Manifest | None:
        """The manifest of a product; None if there is none, or one of another version of nitroctl."""
        return cache.read_record(cls, root / "manifest.json")


# --- our sources ---


def sync_copy(paths: Iterable[str], origin: Path, into: Path) -> int:
    """Make `into` hold exactly these files and folders of `origin`; returns how many files changed.

    Only files whose content differs are written, and get the present time: ninja then rebuilds what
    depends on them and nothing else.
    """
    wanted: set[Path] = set()
    changed = 0
    for path in paths:
        top = origin / path
        files = [top] if top.is_file() else [f for f in sorted(top.rglob("*")) if f.is_file()]
        for file in files:
            if "__pycache__" in file.parts:
                continue
            copy = into / file.relative_to(origin)
            wanted.add(copy)
            content = file.read_bytes()
            if copy.is_file() and not copy.is_symlink() and copy.read_bytes() == content:
                if os.access(copy, os.X_OK) != os.access(file, os.X_OK):
                    shutil.copymode(file, copy)
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(copy, content, mode=stat.S_IMODE(file.stat().st_mode))
            changed += 1
    if into.is_dir():
        for old in sorted(into.rglob("*"), reverse=True):
            if old.is_dir() and not old.is_symlink():
                with contextlib.suppress(OSError):
                    old.rmdir()
            elif old not in wanted:
                old.unlink()
                changed += 1
    return changed


def originals(copy: str) -> Callable[[str], str]:
    """For messages of the compiler: names below our copy of the sources, as names of the sources."""
    pattern = re.compile(rf"[^\s:,]*/{copy}/")
    return lambda line: pattern.sub(f"{source_root()}/", line)


def _link_overlay(tree: Path) -> None:
    """In a tree of the user's: QEMU/nitro-overlay -> our sources."""
    link = tree / LINK
    if link.is_dir() and not link.is_symlink():
        raise NitroError(f"{link} is a folder; it should be a link to {source_root()}", hint="move it away")
    if not link.is_symlink() or link.resolve() != source_root():
        atomic.symlink(link, source_root())


# --- QEMU ------------------------------------------------------------------------------------------------


def for_arch(options: Iterable[str], arch: Arch) -> list[str]:
    """The options of a series, which name x86_64, for enclaves of that architecture."""
    return [o.replace("x86_64", arch) for o in options if o != "--enable-kvm" or arch == arches.host()]


def configure_options(series: Series, tree: Path, sanitize: bool, arch: Arch = "x86_64") -> list[str]:
    """configure's options for a source tree, without those that only this run needs (--python)."""
    options = for_arch(series.options, arch)
    # Release tarballs carry libfdt's source; Debian's source package does not.
    if "--enable-fdt=system" not in options and not (tree / "subprojects/dtc/meson.build").is_file():
        options.append("--enable-fdt=system")
    # A debugger wants the sanitized build anyway; without debug information the build is a third faster.
    options += series.sanitize if sanitize else ("--disable-debug-info",)
    return options


def overlay_digest(root: Path) -> str:
    return cache.digest_files((root / p for p in OVERLAY if (root / p).exists()), root=root)


def build_qemu(options: BuildOptions) -> Manifest:
    """Build QEMU, or find it built. Raises NitroError; nothing half-made is left where others look."""
    source = find_source(options.source, options.series, update=options.update)
    series = source.series
    tools = toolchain(packages.BUILD + series.needs + series.tree_needs)
    configure = configure_options(series, source.root, options.sanitize, options.arch)
    graft = graft_digest(series)
    configured = cache.digest_text(source.key, *configure, json.dumps(tools, sort_keys=True))
    suffix = "-sanitize" if options.sanitize else ""
    if options.arch != "x86_64":
        suffix = f"-{options.arch}{suffix}"
    program = arches.qemu(options.arch)
    build_key = f"{plain_name(source.version)}-{configured[:12]}{suffix}"
    build_dir = cache.entry("qemu-build", build_key)
    pointer = f"qemu{suffix}"

    def product_key(*content: str) -> str:
        return f"{plain_name(source.version)}-{cache.digest_text(configured, graft, *content)[:16]}{suffix}"

    if source.managed:
        key = product_key(overlay_digest(source_root()))
        manifest = Manifest.load(cache.entry("qemu", key))
        stamp = cache.read_json(build_dir / "nitroctl-build.json") or {}
        if manifest and manifest.qemu.is_file() and stamp.get("built") == key:
            for name in (pointer, f"{pointer}-{series.name}"):
                cache.set_current(name, "qemu", key)
            return manifest

    with cache.lock("qemu-source", source.key) as a, cache.lock("qemu-build", build_key) as b:
        started = time.monotonic()
        need = SPACE_SANITIZED if options.sanitize else SPACE_BUILD
        if not build_dir.is_dir():
            cache.need_space(need, what="building QEMU")
        if source.managed:
            sync_copy(OVERLAY, source_root(), source.root / LINK)
        else:
            apply_graft(series.graft, source.root)
            _link_overlay(source.root)
        overlay = overlay_digest(source.root / LINK)
        # The board for aarch64 boots without any.
        firmware = firmware_of(source.root) if options.arch == "x86_64" else {}
        log = cache.log_path(f"qemu{suffix}-{series.name}")
        log.unlink(missing_ok=True)
        configure_tree(source, build_dir, configure, log, (a, b))
        cache.set_current(f"qemu-build{suffix}-{series.name}", "qemu-build", build_key)
        _link_firmware(build_dir, firmware)
        qtests = _ninja_qemu(source, build_dir, options, log, (a, b))
        binary = build_dir / program
        if source.managed:
            key = product_key(overlay)
        else:
            # What a folder of the user's contains is not ours to know: the result is the key.
            key = product_key(overlay, cache.digest_file(binary))
        manifest = Manifest(
            key=key,
            series=series.name,
            version=source.version,
            source=source.origin,
            source_dir=os.fspath(source.root),
            overlay=overlay,
            graft=graft,
            sanitize=options.sanitize,
            configure=configure,
            tools=tools,
            qemu_sha256=cache.digest_file(binary),
            firmware={name: cache.digest_file(path) for name, path in firmware.items()},
            build_dir=os.fspath(build_dir),
            qtests=qtests,
            built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds=round(time.monotonic() - started, 1),
        )

        def fill(folder: Path) -> None:
            assert manifest is not None
            (folder / "bin").mkdir()
            (folder / "share/qemu").mkdir(parents=True)
            shutil.copy(binary, folder / "bin" / program)
            for name, path in firmware.items():
                shutil.copy(path, folder / "share/qemu" / name)
            check_machine(folder / "bin" / program)
            cache.write_json(folder / "manifest.json", dataclasses.asdict(manifest))

        root = cache.build_entry("qemu", key, fill, name=pointer)
        cache.set_current(f"{pointer}-{series.name}", "qemu", key)
        stamp = cache.read_json(build_dir / "nitroctl-build.json") or {}
        cache.write_json(build_dir / "nitroctl-build.json", {**stamp, "built": key})
        return Manifest.load(root) or manifest


def configure_tree(
    source: Source, build_dir: Path, options: list[str], log: Path, locks: tuple[int, ...]
) -> None:
    """Configure the build folder unless it is; a configure that was interrupted starts afresh."""
    stamp_file = build_dir / "nitroctl-build.json"
    stamp = cache.read_json(stamp_file)
    meson = meson_version()
    venv = not source.series.own_venv or (build_dir / "pyvenv/bin/python3").exists()
    if stamp and stamp.get("meson") == meson and venv and Path(str(stamp.get("prefix"))).is_dir():
        return
    if build_dir.exists():
        shutil.rmtree(build_dir)
    if re.search(r"[\s:]", os.fspath(build_dir) + os.fspath(source.root)):
        raise NitroError(
            f"QEMU's configure takes no spaces or colons: {build_dir}, {source.root}",
            hint="set XDG_CACHE_HOME to another folder",
        )
    build_dir.mkdir(parents=True)
    # Without a virtual environment of its own, configure takes the Python that it finds: ours.
    mine = f"--python={sys.executable}" if source.series.own_venv else f"--meson={tool('meson')}"
    argv = [os.fspath(source.root / "configure"), *options, mine, f"--ninja={tool('ninja')}"]
    lines: list[str] = []
    with progress.task(f"Configuring QEMU {source.version}") as task:

        def on_line(line: str) -> None:
            lines.append(line)
            task.set(0, note=line[:60])

        if logged(argv, log, on_line, cwd=build_dir, lock_fds=locks):
            raise BuildFailed("configuring QEMU", configure_reasons(lines), log)
    cache.write_json(stamp_file, {"meson": meson, "prefix": sys.prefix})


def _link_firmware(build_dir: Path, firmware: Mapping[str, Path]) -> None:
    """QEMU in its build folder looks for firmware in qemu-bundle/ (its util/cutils.c)."""
    folder = build_dir / "qemu-bundle/usr/local/share/qemu"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in firmware.items():
        link = folder / name
        if not link.is_symlink() or link.readlink() != path:
            atomic.symlink(link, path)


def _ninja_qemu(
    source: Source, build_dir: Path, options: BuildOptions, log: Path, locks: tuple[int, ...]
) -> list[str]:
    """Make the emulator and our qtests; returns the qtests' programs, relative to the build folder."""
    lines: list[str] = []
    # A changed meson.build shows first: then the list of qtests is read.
    if logged([tool("ninja"), "-C", os.fspath(build_dir), "build.ninja"], log, lines.append, lock_fds=locks):
        raise BuildFailed("configuring QEMU again", configure_reasons(lines), log)
    with open(build_dir / "meson-info/intro-targets.json") as f:
        targets = json.load(f)
    overlay = (source.root / LINK, (source.root / LINK).resolve())
    qtests = sorted(
        os.path.relpath(target["filename"][0], build_dir)
        for target in targets
        if target["type"] == "executable"
        and any(Path(target["defined_in"]).is_relative_to(folder) for folder in overlay)
    )
    what = " for aarch64" if options.arch == "aarch64" else ""
    title = f"Building QEMU {source.version}{what}{' with sanitizers' if options.sanitize else ''}"
    program = arches.qemu(options.arch)
    ninja(build_dir, [program, *qtests], title, options.jobs, log, locks, originals(LINK))
    return qtests


def check_machine(qemu: Path, env: Mapping[str, str] | None = None) -> None:
    """Kconfig leaves the machine out silently where something that it depends on is missing."""
    quiet = {"ASAN_OPTIONS": "detect_leaks=0"}
    machines = proc.run([qemu, "-M", "help"], env={**quiet, **(env or {})}).stdout.decode()
    if not re.search(r"^nitro-enclave\b", machines, re.MULTILINE):
        raise NitroError(
            "the QEMU that was built has no machine nitro-enclave",
            hint="our Kconfig needs LIBCBOR, GNUTLS, VHOST_USER and FDT; see config-host.h in its "
            "build folder",
        )


# --- the backend -----------------------------------------------------------------------------------------


def build_backend(*, jobs: int | None = None) -> Path:
    """Build vhost-user-vsock and the library for parent programs, or find them built; returns the program's
    path."""
    if brought := bundle.find(f"bin/{BACKEND}"):
        return brought
    origin = source_root()
    tools = toolchain(packages.BUILD)
    tools_key = cache.digest_text(json.dumps(tools, sort_keys=True))

    def key_of(root: Path) -> str:
        content = cache.digest_files((root / p for p in BACKEND_INPUTS if (root / p).exists()), root=root)
        return cache.digest_text(content, tools_key)[:16]

    key = key_of(origin)
    program = cache.entry("vsock", key) / "bin" / BACKEND
    if program.is_file():
        cache.set_current("vsock", "vsock", key)
        return program
    build_key = f"cores-{tools_key[:12]}"
    with cache.lock("core-build", build_key) as fd:
        folder = cache.entry("core-build", build_key)
        sync_copy(CORES, origin, folder / "src")
        key = key_of(folder / "src")
        log = cache.log_path("vsock")
        log.unlink(missing_ok=True)
        build_dir = folder / "build"
        configured = folder / "configured.json"
        stamp = cache.read_json(configured) or {}
        # ninja will want the very meson again, which may have been in an environment that is gone.
        if stamp.get("meson") != meson_version() or not Path(str(stamp.get("program"))).is_file():
            shutil.rmtree(build_dir, ignore_errors=True)
            lines: list[str] = []
            with progress.task("Configuring the vsock backend"):
                argv = [tool("meson"), "setup", os.fspath(build_dir), os.fspath(folder / "src")]
                if logged(argv, log, lines.append, lock_fds=(fd,)):
                    raise BuildFailed("configuring the vsock backend", configure_reasons(lines), log)
            cache.write_json(configured, {"meson": meson_version(), "program": tool("meson")})
        cache.set_current("core-build", "core-build", build_key)
        target, library = f"contrib/{BACKEND}/{BACKEND}", f"contrib/{PRELOAD}/{PRELOAD}.so"
        ninja(build_dir, [target, library], "Building the vsock backend", jobs, log, (fd,), originals("src"))

        def fill(into: Path) -> None:
            (into / "bin").mkdir()
            (into / "lib").mkdir()
            shutil.copy(build_dir / target, into / "bin" / BACKEND)
            shutil.copy(build_dir / library, into / "lib")

        return cache.build_entry("vsock", key, fill) / "bin" / BACKEND


# --- programs for users ----------------------------------------------------------------------------------


def link_programs(programs: Iterable[Path], prefix: Path) -> list[tuple[Path, Path, bool]]:
    """Link programs into PREFIX/bin; returns (link, program, whether it changed) for each.

    A file there that is not our link is left alone: NitroError.
    """
    folder = prefix / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    links = []
    for program in programs:
        link = folder / program.name
        if link.exists() and not link.is_symlink():
            raise NitroError(f"{link} exists and is no link", hint="remove it, or choose another --prefix")
        same = link.is_symlink() and link.readlink() == program
        if not same:
            atomic.symlink(link, program)
        links.append((link, program, not same))
        if not program.is_relative_to(cache_dir()):
            continue
        # What a prefix links to is in use, whatever has been built since.
        kind, key = program.parents[2].name, program.parents[1].name
        cache.set_current(f"{kind}@{cache.digest_text(os.fspath(folder))[:12]}", kind, key)
    return links


def manifest(*, sanitize: bool = False, series: str | None = None, arch: Arch = "x86_64") -> Manifest | None:
    """The manifest of the QEMU for that architecture that was built last, or last of that series, if any."""
    name = f"{named('qemu', arch)}{'-sanitize' if sanitize else ''}{f'-{series}' if series else ''}"
    root = cache.current(name)
    return Manifest.load(root) if root else None
