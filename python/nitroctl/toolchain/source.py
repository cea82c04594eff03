# SPDX-License-Identifier: MIT
"""QEMU's source tree: where it comes from, its firmware, and the graft that lets our sources in.

From Debian's source package, a release tarball, a .dsc, or a folder of the user's. A tree that we unpack is a
cache entry: whole, grafted, with firmware in pc-bios as a release tarball has it, and without the sources of
firmware. A folder of the user's is grafted in place. Nothing is compiled here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nitroctl.base import proc, progress
from nitroctl.base.config import source_root
from nitroctl.base.errors import CommandFailed, NitroError, UsageError
from nitroctl.toolchain import cache, packages
from nitroctl.toolchain.steps import BuildFailed, logged, toolchain

if TYPE_CHECKING:
    from nitroctl.toolchain.apt import AptRoot

LINK = "nitro-overlay"  # where our sources are in a QEMU tree; the graft says the same

# Firmware, and the Debian packages that carry it: qboot and the boot ROMs for microvm, SeaBIOS for acpi=on.
FIRMWARE = {
    "qemu-system-data": ("qboot.rom", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"),
    "seabios": ("bios-microvm.bin",),
}
FIRMWARE_FILES = tuple(name for names in FIRMWARE.values() for name in names)

# Downloads, and what they unpack to before roms/ goes.
SPACE_SOURCE = 700 * 10**6


@dataclass(frozen=True)
class Series:
    """A QEMU release series that there is a graft for."""

    name: str
    suite: str  # the Debian suite whose source package is of this series
    options: tuple[str, ...]  # configure's
    sanitize: tuple[str, ...]  # configure's, for the ASan and UBSan build
    own_venv: bool  # configure makes a virtual environment, from the Python that it is told
    needs: tuple[packages.Need, ...] = ()  # beside packages.BUILD, for any configure
    tree_needs: tuple[packages.Need, ...] = ()  # beside these, for a QEMU
    # The version of its source package where the suite has newer series, too. Such a package vanishes one
    # day, so `make check` does without; `make check-series SERIES=X.Y` is for it.
    exact: str | None = None

    @property
    def graft(self) -> Path:
        return source_root() / "graft" / f"qemu-{self.name}.patch"


# A QEMU with our board and what that needs, and no other device.
NO_DEVICES = ("--without-default-devices", f"--with-devices-x86_64=../../../{LINK}/configs/x86_64")
SERIES = {
    "10.0": Series(
        name="10.0",
        suite="trixie",
        options=(
            "--target-list=x86_64-softmmu",
            "--without-default-features",
            *NO_DEVICES,
            "--enable-system",
            "--enable-kvm",
            "--enable-tcg",
            "--enable-gnutls",
            "--enable-libcbor",
            "--enable-seccomp",
            "--enable-stack-protector",
            "--enable-vhost-user",
            "--enable-trace-backends=log",
            "--disable-docs",
            "--disable-tools",
            "--disable-install-blobs",
            "--disable-download",
        ),
        sanitize=("--enable-asan", "--enable-ubsan"),
        own_venv=True,
        tree_needs=(packages.SECCOMP,),
    ),
    "7.2": Series(
        name="7.2",
        suite="bookworm",
        options=(
            "--target-list=x86_64-softmmu",
            "--without-default-features",
            *NO_DEVICES,
            "--enable-system",
            "--enable-kvm",
            "--enable-tcg",
            "--enable-gnutls",
            "--enable-fdt=system",
            "--enable-vhost-user",
            "--enable-trace-backends=log",
            "--disable-docs",
            "--disable-tools",
            "--disable-install-blobs",
            "--with-git-submodules=ignore",
        ),
        sanitize=("--enable-sanitizers",),
        own_venv=False,
        needs=(packages.PIXMAN,),
    ),
}
SERIES["10.2"] = dataclasses.replace(SERIES["10.0"], name="10.2", suite="sid", exact="1:10.2.2+ds-1")
DEFAULT_SERIES = "10.0"
CHECKED = [name for name, series in SERIES.items() if not series.exact]
# Whose firmware goes with a series of which Debian's own suite is ahead.
FIRMWARE_SUITE = "trixie"


@dataclass(frozen=True)
class Source:
    """A QEMU source tree with the graft in it."""

    root: Path
    key: str
    version: str
    series: Series
    origin: str
    managed: bool  # ours in the cache, unlike a folder of the user's


def plain_name(text: str) -> str:
    """`text` as part of a path that configure and make accept."""
    return re.sub(r"[^A-Za-z0-9.+-]", "-", text)


def _series_of(version: str, wanted: str | None) -> Series:
    """The series of a source of this version; raises if it is not the wanted one, or there is no graft."""
    name = ".".join(version.split(".")[:2])
    if wanted is not None and wanted != name:
        raise UsageError(f"the source is QEMU {version}, not of series {wanted}", hint="leave --series out")
    if name not in SERIES or not SERIES[name].graft.is_file():
        raise UsageError(
            f"there is no graft for QEMU {version}", hint=f"series with one: {', '.join(sorted(SERIES))}"
        )
    return SERIES[name]


def _version_of(tree: Path) -> str:
    try:
        return (tree / "VERSION").read_text().strip()
    except OSError as e:
        raise UsageError(f"{tree} is no QEMU source tree: {e.strerror}: VERSION") from e


def find_source(given: Path | None, series: str | None, *, update: bool = False) -> Source:
    """The source tree to build from, unpacked and grafted if it is not there yet.

    `given` is a folder, tarball or .dsc; None means Debian's source package, of which `update` looks for a
    newer one than is there. `series` None means what the source is, or the default.
    """
    if given is None:
        return _debian_source(series or DEFAULT_SERIES, update)
    path = given.resolve()
    if path.is_dir():
        version = _version_of(path)
        key = f"{plain_name(version)}-dir-{cache.digest_text(str(path))[:12]}"
        return Source(path, key, version, _series_of(version, series), str(path), managed=False)
    if path.is_file():
        return _archive_source(path, series)
    raise UsageError(f"--source {given}: no such file or folder")


def graft_digest(series: Series) -> str:
    return cache.digest_file(series.graft)


def _debian_source(name: str, update: bool) -> Source:
    """Debian's source package with the firmware of the same suite beside it."""
    if name not in SERIES:
        raise UsageError(f"there is no graft for QEMU {name}", hint=f"series with one: {', '.join(SERIES)}")
    series = SERIES[name]
    graft = graft_digest(series)
    pointer = f"qemu-source-{name}"
    have = cache.current(pointer)
    if have is not None and not update:
        record = cache.read_json(have / "nitroctl-source.json")
        if record and record.get("graft") == graft:
            return Source(have, have.name, record["version"], series, record["origin"], managed=True)

    from nitroctl.toolchain.apt import AptRoot

    toolchain(packages.BUILD + series.needs + packages.DEBIAN_SOURCE)
    cache.need_space(SPACE_SOURCE, what="QEMU's source")
    apt = AptRoot.open(series.suite, refresh=update)
    debian = series.exact or apt.version("qemu", source=True)
    upstream = debian.partition(":")[2] or debian
    version = re.split(r"[+~-]", upstream)[0]
    _series_of(version, name)
    binaries = AptRoot.open(FIRMWARE_SUITE) if series.exact else apt
    firmware = {package: binaries.version(package) for package in FIRMWARE}

    def fill(folder: Path) -> None:
        sources = apt.source("qemu", debian)
        debs = {package: binaries.download(package, which) for package, which in firmware.items()}
        (dsc,) = sources.glob("*.dsc")
        _unpack_dsc(dsc, folder)
        _add_firmware(binaries, debs, folder)
        apply_graft(series.graft, folder)
        # The package's version may leave the last number out: 7.2+dfsg for 7.2.22.
        origin = f"Debian {series.suite}, source package qemu {debian}"
        record = {"version": _version_of(folder), "origin": origin, "graft": graft, "firmware": firmware}
        cache.write_json(folder / "nitroctl-source.json", record)

    key = f"{plain_name(upstream)}-{cache.digest_text(graft, *firmware.values())[:10]}"
    root = cache.build_entry("qemu-source", key, fill, name=pointer)
    record = cache.read_json(root / "nitroctl-source.json") or {}
    version = str(record.get("version", version))
    return Source(root, key, version, series, str(record.get("origin", "Debian")), managed=True)


def package_source(debian: str, suite: str | None = None) -> Source:
    """The tree of exactly this version of Debian's source package, without firmware: for headers.

    `suite` is where it is, if not in its series'. The epoch counts.
    Raises NitroError where Debian's mirrors do not have this version (any more).
    """
    from nitroctl.toolchain.apt import AptRoot

    upstream = debian.partition(":")[2] or debian
    series = _series_of(re.split(r"[+~-]", upstream)[0], None)
    suite = suite or series.suite
    toolchain(packages.BUILD + series.needs + packages.DEBIAN_SOURCE)
    origin = f"Debian {suite}, source package qemu {debian}"
    graft = graft_digest(series)
    headers = f"qemu-headers-{series.name}{'' if suite == series.suite else f'-{suite}'}"
    for pointer in (f"qemu-source-{series.name}", headers):
        have = cache.current(pointer)
        record = cache.read_json(have / "nitroctl-source.json") if have else None
        if have and record and record.get("graft") == graft and record.get("origin") == origin:
            return Source(have, have.name, record["version"], series, origin, managed=True)

    def fill(folder: Path) -> None:
        cache.need_space(SPACE_SOURCE, what="QEMU's source")
        sources = cache.entry("source", f"qemu_{debian}")
        if not sources.is_dir():
            sources = _downloaded(AptRoot.open(suite), debian)
        (dsc,) = sources.glob("*.dsc")
        _unpack_dsc(dsc, folder)
        apply_graft(series.graft, folder)
        record = {"version": _version_of(folder), "origin": origin, "graft": graft}
        cache.write_json(folder / "nitroctl-source.json", record)

    key = f"{plain_name(upstream)}-{graft[:10]}-headers"
    root = cache.build_entry("qemu-source", key, fill, name=headers)
    return Source(root, key, _version_of(root), series, origin, managed=True)


def _downloaded(apt: AptRoot, debian: str) -> Path:
    try:
        return apt.source("qemu", debian)
    except CommandFailed as e:
        newest = apt.version("qemu", source=True)
        if newest == debian:
            raise
        raise NitroError(
            f"Debian's mirror no longer has the source of qemu {debian}; it has {newest}",
            hint="upgrade the installed QEMU (apt-get install --only-upgrade qemu-system-x86) and repeat, "
            "pass --source X.dsc, or use the tree build: nitroctl build",
        ) from e


def _archive_source(path: Path, wanted: str | None) -> Source:
    """A release tarball, or a source package's .dsc with its files beside it."""
    if path.suffix == ".dsc":
        toolchain(packages.DEBIAN_SOURCE)
    graft_digests = cache.digest_text(*(graft_digest(s) for s in SERIES.values() if s.graft.is_file()))[:8]
    key = f"{plain_name(path.name.split('.tar')[0])}-{cache.digest_file(path)[:12]}-g{graft_digests}"

    def fill(folder: Path) -> None:
        cache.need_space(SPACE_SOURCE, what="QEMU's source")
        if path.suffix == ".dsc":
            _unpack_dsc(path, folder)
        else:
            _unpack_tarball(path, folder)
        series = _series_of(_version_of(folder), wanted)
        apply_graft(series.graft, folder)

    root = cache.build_entry("qemu-source", key, fill, name="qemu-source-archive")
    version = _version_of(root)
    return Source(root, key, version, _series_of(version, wanted), str(path), managed=True)


def _unpack_dsc(dsc: Path, folder: Path) -> None:
    """`dpkg-source -x` checks the hashes of all files against the .dsc, then applies Debian's patches."""
    log = cache.log_path("qemu-unpack")
    log.unlink(missing_ok=True)
    into = folder / "unpacked"
    with progress.task(f"Unpacking {dsc.name}") as task:
        lines: list[str] = []

        def on_line(line: str) -> None:
            lines.append(line)
            task.set(0, note=line.removeprefix("dpkg-source: info: ")[:60])

        if logged(["dpkg-source", "--no-copy", "-x", os.fspath(dsc), os.fspath(into)], log, on_line):
            raise BuildFailed(f"unpacking {dsc}", lines[-8:], log)
        _move_up(into, folder)


def _unpack_tarball(tarball: Path, folder: Path) -> None:
    log = cache.log_path("qemu-unpack")
    log.unlink(missing_ok=True)
    into = folder / "unpacked"
    into.mkdir()
    lines: list[str] = []
    with progress.task(f"Unpacking {tarball.name}"):
        argv = [
            "tar",
            "--extract",
            "--no-same-owner",
            "--exclude=*/roms/*",
            f"--directory={into}",
            f"--file={tarball}",
        ]
        if logged(argv, log, lines.append):
            raise BuildFailed(
                f"unpacking {tarball}",
                lines[-8:],
                log,
                hint="--source takes a folder, a QEMU release tarball or a .dsc",
            )
        tops = list(into.iterdir())
        if len(tops) != 1 or not (tops[0] / "VERSION").is_file():
            raise UsageError(f"{tarball} is no QEMU release tarball: there is no VERSION in one top folder")
        _move_up(tops[0], folder)
        shutil.rmtree(into)


def _move_up(inner: Path, outer: Path) -> None:
    """Make the content of a folder that of its parent, without the sources of firmware, two thirds of it."""
    shutil.rmtree(inner / "roms", ignore_errors=True)
    for child in inner.iterdir():
        child.rename(outer / child.name)
    inner.rmdir()


def _add_firmware(apt: AptRoot, debs: Mapping[str, Path], tree: Path) -> None:
    """Put Debian's firmware where a release tarball has it: Debian's source package has none."""
    with tempfile.TemporaryDirectory(dir=tree) as temporary:
        for package, deb in debs.items():
            unpacked = Path(temporary) / package
            apt.unpack(deb, unpacked)
            for name in FIRMWARE[package]:
                found = [p for p in unpacked.rglob(name) if p.is_file()]
                if not found:
                    raise NitroError(f"{deb.name} has no {name}", hint="report this: Debian moved the file")
                target = tree / "pc-bios" / name
                target.unlink(missing_ok=True)
                shutil.copyfile(found[0], target)


def firmware_of(tree: Path) -> dict[str, Path]:
    """Firmware file -> its path in the tree's pc-bios; raises NitroError if one is missing."""
    files = {name: tree / "pc-bios" / name for name in FIRMWARE_FILES}
    absent = [name for name, path in files.items() if not path.is_file()]
    if absent:
        raise NitroError(
            f"{tree / 'pc-bios'} lacks {', '.join(absent)}",
            hint="use a QEMU release tarball, which carries its firmware, or copy these files there "
            f"(Debian packages: {', '.join(FIRMWARE)})",
        )
    return files


# --- graft -----------------------------------------------------------------------------------------------


def split_patch(text: str) -> dict[str, str]:
    """File (below the tree) -> its part of a unified diff. What stands before the first part is prose."""
    parts: dict[str, str] = {}
    for part in re.split(r"^(?=--- )", text, flags=re.MULTILINE)[1:]:
        match = re.match(r"--- \S+\n\+\+\+ [^/\s]+/(\S+)\n", part)
        if not match:
            raise NitroError(f"a part of the graft names no file: {part.splitlines()[0]}")
        parts[match[1]] = part
    return parts


def apply_graft(patch: Path, tree: Path) -> bool:
    """Apply a graft if it fits cleanly; returns False if it is there already.

    All files are patched aside before the first is replaced, and each is judged on its own, so that a run
    that was killed in between is completed by the next. Raises NitroError that names the file that does not
    fit; then nothing has changed.
    """
    try:
        parts = split_patch(patch.read_text())
    except OSError as e:
        raise NitroError(f"{patch}: {e.strerror}") from e
    with tempfile.TemporaryDirectory(prefix=".nitro-graft.", dir=tree) as temporary:
        ready: list[tuple[Path, Path]] = []
        for number, (name, part) in enumerate(parts.items()):
            original = tree / name
            if not original.is_file():
                raise NitroError(f"the graft does not fit: {tree} has no {name}", hint=_graft_hint(patch))
            done = _patched(original, part, Path(temporary) / f"{number}-back", reverse=True)
            if done is None:
                continue
            aside = Path(temporary) / str(number)
            reason = _patched(original, part, aside)
            if reason is not None:
                raise NitroError(
                    f"the graft does not fit: {name} of {tree} is not as {patch.name} expects it",
                    hint=_graft_hint(patch),
                    lines=reason,
                )
            shutil.copymode(original, aside)
            ready.append((aside, original))
        for aside, original in ready:
            aside.rename(original)
    return bool(ready)


def _patched(original: Path, part: str, output: Path, *, reverse: bool = False) -> list[str] | None:
    """Patch a file into `output`; returns None if it fits without any fuzz, else what patch said."""
    # --force: never guess that the patch is meant the other way round.
    argv = ["patch", "--force", "--fuzz=0", "--silent", "--reject-file=-", f"--output={output}"]
    if reverse:
        argv.append("--reverse")
    result = proc.run([*argv, os.fspath(original)], input=part.encode(), check=False)
    if result.returncode == 0:
        return None
    return (result.stdout + result.stderr).decode(errors="replace").splitlines()[:10]


def _graft_hint(patch: Path) -> str:
    return (
        f"the graft is for QEMU {patch.stem.removeprefix('qemu-')} as released; nothing was changed. Use an "
        "unmodified source, or adapt the patch"
    )
