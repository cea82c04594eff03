# SPDX-License-Identifier: MIT
"""What runs inside enclaves that we make: a kernel, the init, and three small applications.

    build_kernel     Debian's kernel source with guest/kernel.config, and perhaps a user's options: cache
                     entry kernel/KEY with bzImage, config, and vmlinux, which has the symbols
    fetch_prebuilt   Debian's own kernel for clouds, nothing compiled: cache entry kernel-prebuilt/KEY
    build_init       guest/*.c, compiled to static programs: cache entry init/KEY

Packages come through a private apt root, so they are verified and need no rights. KEY is the content of all
that goes in. A kernel's source tree lives only while it is compiled. How images are put together from these
is not known here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.base import proc, progress
from nitroctl.base.config import source_root
from nitroctl.base.errors import CommandFailed, NitroError, NotBuilt
from nitroctl.toolchain import bundle, cache, modules, packages
from nitroctl.toolchain.steps import BuildFailed, logged, toolchain

SUITE = "trixie"
KERNEL_SOURCE = "linux-source-6.12"
# A package without files that depends on the newest kernel of its flavour.
PREBUILT = "linux-image-cloud-amd64"

SPACE_KERNEL = 1600 * 10**6
SPACE_PREBUILT = 300 * 10**6

# How many lines make prints for our configuration: how long the progress bar is, nothing else.
KERNEL_STEPS = 1850

# A line of a kernel's configuration: name and value, or the name of what is off.
_OPTION = re.compile(r"(CONFIG_\w+)=(.+)|# (CONFIG_\w+) is not set")
OPTIONS_MAX = 1 << 20

# Without these there is no enclave.
NEEDED = (
    "CONFIG_NSM=",
    "CONFIG_VIRTIO_VSOCKETS=",
    "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=",
    "CONFIG_BLK_DEV_INITRD=",
)

# What the cache calls the kernel with options of the user's that was wanted last.
CONFIGURED = "kernel-with-options"

# Of the kernel's source, what no x86 kernel is compiled from. Kconfig files name those of all architectures.
NOT_UNPACKED = (
    "Documentation/[a-z]*",
    "Documentation/ABI",
    "arch/[!x]*.[chS]",
    "arch/[!x]*.dts*",
    "arch/xtensa/*.[chS]",
    "drivers/gpu/drm/amd/*.[ch]",
    "tools/perf/*",
    "tools/testing/*",
)

# All that decides what comes out, and nothing of the user's own settings.
KERNEL_MAKE = (
    "env", "-u", "MAKEFLAGS", "-u", "MFLAGS",  # a make above us has nothing to say here
    "make",
    "ARCH=x86_64",
    "CC=cc",
    "HOSTCC=cc",
    "LLVM=",
    "CROSS_COMPILE=",
    "O=",
    "KCONFIG_CONFIG=.config",
    "KCFLAGS=",
    "KAFLAGS=",
    "KCPPFLAGS=",
    "LOCALVERSION=",
    "KBUILD_BUILD_USER=nitroctl",
    "KBUILD_BUILD_HOST=nitroctl",
    "KBUILD_BUILD_VERSION=1",
)  # fmt: skip

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


@dataclass(frozen=True)
class Prebuilt:
    """Debian's kernel. It finds virtio devices through ACPI alone: the machine needs acpi=on."""

    bzimage: Path
    modules_dir: Path  # goes into the root of the ramdisk that has the init: two lists of modules, and ko/
    release: str  # as uname -r prints it
    lacks: tuple[str, ...] = ()  # of what AWS's kernel has


def locate(what: str) -> Path:
    """Where a kernel or a program for guests is. Raises NitroError with what makes it."""
    name, file, command = {
        "kernel": ("kernel", "bzImage", "guest kernel"),
        "prebuilt": ("kernel-prebuilt", "bzImage", "guest kernel --prebuilt"),
        "init": ("init", "init", "guest init"),
        "agent": ("init", "agent", "guest init"),
        "hello": ("init", "hello", "guest init"),
        "tools": ("init", "tools", "guest init"),
    }[what]
    if brought := bundle.find(f"{'guest' if name == 'init' else name}/{file}"):
        return brought
    root = cache.current(name)
    if root is None or not (root / file).is_file():
        raise NotBuilt(f"there is no {what} for guests yet", hint=f"nitroctl {command}")
    return root / file


# --- init and applications -------------------------------------------------------------------------------


def default_kernel() -> str:
    """For those who do not care: "own" if it has been built; else "prebuilt", which needs no compiling."""
    try:
        locate("kernel")
    except NitroError:
        return "prebuilt"
    return "own"


def build_init() -> Path:
    """Compile init and applications, or find them compiled; returns the folder that they are in."""
    if brought := bundle.find("guest"):
        return brought
    guest = source_root() / "guest"
    needs = _needed(packages.BUILD, "cc", "stdio.h")
    tools = toolchain(needs)
    libc = _static_libc()
    sources = cache.digest_files((p for p in sorted(guest.iterdir()) if p.suffix in (".c", ".h")), root=guest)
    key = cache.digest_text(sources, tools["cc"], cache.digest_file(libc), *PROGRAM_FLAGS)[:16]

    def fill(folder: Path) -> None:
        log = cache.log_path("init")
        log.unlink(missing_ok=True)
        with progress.task("Compiling the guest's init", unit="steps", total=len(PROGRAMS)) as task:
            for name, files in PROGRAMS.items():
                lines: list[str] = []
                argv = ["cc", *PROGRAM_FLAGS, "-o", os.fspath(folder / name), *files]
                if logged(argv, log, lines.append, cwd=guest):
                    raise BuildFailed(f"compiling guest/{files[0]}", _reasons(lines), log)
                task.advance()

    return cache.build_entry("init", key, fill)


def _static_libc() -> Path:
    """The compiler's libc.a; NitroError where the host has none, or compiles for another machine."""
    machine = proc.run(["cc", "-dumpmachine"]).stdout.decode().strip()
    if not machine.startswith("x86_64"):
        raise NitroError(
            f"guests are x86_64, and this host's cc compiles for {machine}",
            hint="run nitroctl on an x86_64 host",
        )
    # cc answers with the bare name when it does not know the file.
    path = Path(proc.run(["cc", "-print-file-name=libc.a"]).stdout.decode().strip())
    if not path.is_absolute() or not path.is_file():
        raise NitroError(
            "this host has no static C library (libc.a), which the guest's programs are linked with",
            hint=packages.install_line([_STATIC_LIBC]),
        )
    return path


def _needed(table: Sequence[packages.Need], *what: str) -> list[packages.Need]:
    return [need for need in table if need.what in what]


def _reasons(lines: Iterable[str]) -> list[str]:
    """What a compiler or make complained about: from the line before its first error on."""
    kept = [line for line in lines if line.strip()]
    telling = re.compile(r"\berror\b|\bundefined reference\b|\*\*\*", re.IGNORECASE)
    first = next((i for i, line in enumerate(kept) if telling.search(line)), len(kept) - 10)
    return kept[max(0, first - 1) :][:12]


# --- our kernel ------------------------------------------------------------------------------------------


def build_kernel(
    *, jobs: int | None = None, update: bool = False, config: Path | None = None, symbols: bool = False
) -> Path:
    """Build the guest kernel, or find it built; returns the bzImage.

    The newest source package that is here is used; `update` looks for a newer one. `config` is a file of
    options that come to ours, or take the place of ours: such a kernel is no one's default. With `symbols`,
    vmlinux is beside it, which a package does not bring. Raises NitroError.
    """
    added = read_options(config) if config else ""
    if not update and not added and not symbols and (brought := bundle.find("kernel/bzImage")):
        return brought
    needs = _needed(packages.BUILD, "cc", "stdio.h", "make", "perl", "pkg-config", "xz")
    tools = toolchain([*needs, *packages.KERNEL])
    fragment = (source_root() / "guest" / "kernel.config").read_text()
    if added:
        fragment = _without(fragment, added) + added
    deb = _kernel_source(update)
    version = deb.name.split("_")[1]
    ld = proc.run(["ld", "--version"]).stdout.decode().partition("\n")[0]
    key = f"{version}-{cache.digest_text(fragment, version, tools['cc'], ld, *KERNEL_MAKE)[:16]}"

    def fill(folder: Path) -> None:
        cache.need_space(SPACE_KERNEL, what="building the guest kernel")
        started = time.monotonic()
        log = cache.log_path("kernel")
        log.unlink(missing_ok=True)
        # Below the entry in the making: whatever interrupts us, it goes with it.
        with _source_folder(folder) as tree:
            source = _unpack_kernel(deb, tree)
            make = _kernel_make(source)
            _configure_kernel(source, make, fragment, added, log)
            _compile_kernel(source, make, version, jobs, log)
            shutil.copyfile(source / "arch/x86/boot/bzImage", folder / "bzImage")
            shutil.copyfile(source / "vmlinux", folder / "vmlinux")
            shutil.copyfile(source / ".config", folder / "config")
            release = (source / "include/config/kernel.release").read_text().strip()
        bzimage = folder / "bzImage"
        check_bzimage(bzimage)
        cache.write_json(folder / "manifest.json", {
            "release": release,
            "source": f"{KERNEL_SOURCE} {version}",
            "fragment": cache.digest_text(fragment),
            "options": sorted(_options(added)),
            "tools": {"cc": tools["cc"], "ld": ld},
            "size": bzimage.stat().st_size,
            "sha256": cache.digest_file(bzimage),
            "seconds": round(time.monotonic() - started, 1),
        })  # fmt: skip

    return cache.build_entry("kernel", key, fill, name=CONFIGURED if added else "kernel") / "bzImage"


@contextlib.contextmanager
def _source_folder(folder: Path) -> Iterator[Path]:
    """A folder below this one, gone afterwards, also after a failure or Ctrl-C: with its eighty thousand
    files that takes minutes on some disks, and is shown."""
    tree = Path(tempfile.mkdtemp(prefix="tree.", dir=folder))
    try:
        yield tree
    finally:
        with progress.task("Removing the kernel's source"):
            shutil.rmtree(tree)


def _kernel_source(update: bool) -> Path:
    """Debian's package of the kernel's source: the one that is here, else (or to `update`) the newest."""
    have = cache.current(f"deb-{KERNEL_SOURCE}")
    if have is not None and not update:
        for deb in have.glob("*.deb"):
            return deb
    from nitroctl.toolchain.apt import AptRoot

    return AptRoot.open(SUITE, refresh=update).download(KERNEL_SOURCE)


def _unpack_kernel(deb: Path, into: Path) -> Path:
    """Unpack the tarball in the package as it comes out of it, and nothing of it twice on disk."""
    read = ["dpkg-deb", "--fsys-tarfile", os.fspath(deb)]
    pick = ["tar", "--extract", "--to-stdout", "--wildcards", f"*/{KERNEL_SOURCE}.tar.xz"]
    unpack = ["tar", "--extract", "--xz", "--directory", os.fspath(into), "--no-same-owner"]
    unpack += ["--anchored", *(f"--exclude={KERNEL_SOURCE}/{pattern}" for pattern in NOT_UNPACKED)]
    # The tarball does not compress any further, so it is about as large as the package.
    with progress.task(f"Unpacking {KERNEL_SOURCE}", unit="bytes", total=deb.stat().st_size) as task:
        reader = proc.start(read, stdout=subprocess.PIPE)
        picker = proc.start(pick, stdin=reader.stdout, stdout=subprocess.PIPE)
        unpacker = proc.start(unpack, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert reader.stdout and picker.stdout and unpacker.stdin and unpacker.stderr
        reader.stdout.close()
        try:
            with picker.stdout as tarball, unpacker.stdin as sink:
                while block := tarball.read(1 << 20):
                    sink.write(block)
                    task.advance(len(block))
        except BrokenPipeError:
            pass  # tar ended early; it says why
        except BaseException:
            for process in (reader, picker, unpacker):
                proc.stop(process)
            raise
        with unpacker.stderr as complaints:
            said = complaints.read().decode(errors="replace")
        # The last one first: when it fails, the others die of it.
        statuses = [(unpack, unpacker.wait()), (pick, picker.wait()), (read, reader.wait())]
        for argv, status in statuses:
            if status:
                raise CommandFailed(argv, status, output=said)
    return into / KERNEL_SOURCE


def _kernel_make(source: Path) -> list[str]:
    """make's command line up to its targets."""
    # The day of the source, not today: the same source gives the same kernel.
    made = time.gmtime((source / "Makefile").stat().st_mtime)
    return [*KERNEL_MAKE, f"KBUILD_BUILD_TIMESTAMP={time.strftime('%a %b %e %H:%M:%S UTC %Y', made)}"]


def read_options(path: Path) -> str:
    """A user's file of options, in the form of the kernel's own .config. Raises NitroError."""
    try:
        with open(path, "rb") as f:
            data = f.read(OPTIONS_MAX + 1)
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e
    if len(data) > OPTIONS_MAX:
        raise NitroError(f"{path} has more than {OPTIONS_MAX} bytes: this is no file of kernel options")
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not _OPTION.fullmatch(line) and not line.startswith("#"):
            raise NitroError(
                f"{path}, line {number}: {line[:100]!r} is no option",
                hint='CONFIG_NAME=y, CONFIG_NAME=42, CONFIG_NAME="text" or # CONFIG_NAME is not set',
            )
    kept = [line for line in lines if _OPTION.fullmatch(line)]
    if not kept:
        raise NitroError(f"{path} has no option: a line like CONFIG_EXT4_FS=y")
    return "".join(f"{line}\n" for line in kept)


def _without(fragment: str, added: str) -> str:
    """The options that the other ones do not set."""
    theirs = _options(added)
    lines = [(line, _OPTION.fullmatch(line)) for line in fragment.splitlines()]
    kept = [line for line, match in lines if not match or (match[1] or match[3]) not in theirs]
    return "".join(f"{line}\n" for line in kept)


def _configure_kernel(source: Path, make: list[str], fragment: str, added: str, log: Path) -> None:
    (source / "nitroctl.config").write_text(fragment)
    lines: list[str] = []
    with progress.task("Configuring the guest kernel"):
        argv = [*make, "KCONFIG_ALLCONFIG=nitroctl.config", "allnoconfig"]
        if logged(argv, log, lines.append, cwd=source):
            raise BuildFailed("configuring the guest kernel", _reasons(lines), log)
    got = (source / ".config").read_text()
    if lost := lost_options(added, got):
        raise NitroError(
            "the kernel does not take these options: " + ", ".join(lost),
            hint="add what they depend on (the Kconfig files say it); the kernel has no modules, so y, not m",
        )
    lost = lost_options(fragment, got)
    if added and not any(option.startswith(NEEDED) for option in lost):
        if lost:  # what depends on something that the user has switched off
            progress.say("with your options the kernel has no longer: " + ", ".join(lost))
        return
    if lost:
        raise NitroError(
            "the kernel's configuration does not come out as guest/kernel.config has it: " + ", ".join(lost),
            hint="add what these options depend on, or take them out",
        )


def lost_options(fragment: str, config: str) -> list[str]:
    """What a configuration fragment asks for and the .config made from it does not have, each as
    "CONFIG_X=y (is not set)"."""
    got = _options(config)
    lost = []
    for name, value in _options(fragment).items():
        # An option whose menu is off is not in the file at all.
        actual = got.get(name, "n")
        if actual != value:
            lost.append(f"{name}={value} (is {'not set' if actual == 'n' else actual})")
    return lost


def _options(text: str) -> dict[str, str]:
    """Each option's value; "n" for one that is not set."""
    matches = (_OPTION.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1] or match[3]: match[2] or "n" for match in matches if match}


def _compile_kernel(source: Path, make: list[str], version: str, jobs: int | None, log: Path) -> None:
    lines: list[str] = []
    count = jobs or len(os.sched_getaffinity(0))
    argv = [*make, f"-j{count}", "bzImage"]
    with progress.task(f"Building the guest kernel {version}", unit="steps", total=KERNEL_STEPS) as task:

        def on_line(line: str) -> None:
            lines.append(line)
            task.set(min(task.done + 1, KERNEL_STEPS), note=line.strip()[:60])

        if logged(argv, log, on_line, cwd=source):
            raise BuildFailed("building the guest kernel", _reasons(lines), log)


def check_bzimage(path: Path) -> None:
    """Raise NitroError unless the file has a bzImage's header (Linux: Documentation/arch/x86/boot.rst)."""
    with open(path, "rb") as f:
        head = f.read(0x206)
    if len(head) < 0x206 or head[0x202:0x206] != b"HdrS":
        raise NitroError(f"{path} is not a bzImage: no HdrS at offset 0x202")


# --- Debian's kernel -------------------------------------------------------------------------------------


def fetch_prebuilt(*, update: bool = False) -> Prebuilt:
    """Debian's kernel for clouds with the modules that an enclave needs; raises NitroError.

    The one that is here is taken, else (or to `update`) the newest.
    """
    have = cache.current("kernel-prebuilt")
    if have is not None and not update:
        found = _prebuilt(have)
        if found:
            return found
    from nitroctl.toolchain.apt import AptRoot

    root = AptRoot.open(SUITE, refresh=update)
    package = _prebuilt_package(root.depends(PREBUILT))
    version = root.version(package)

    def fill(folder: Path) -> None:
        cache.need_space(SPACE_PREBUILT, what="unpacking Debian's kernel")
        deb = root.download(package, version, name=PREBUILT)
        with (
            progress.task(f"Unpacking {package}"),
            tempfile.TemporaryDirectory(prefix="tree.", dir=folder) as tree,
        ):
            root.unpack(deb, Path(tree))
            release, lacks = _pick_prebuilt(Path(tree), folder)
        cache.write_json(folder / "manifest.json", {
            "release": release,
            "lacks": lacks,
            "source": f"{package} {version}",
            "sha256": cache.digest_file(folder / "bzImage"),
        })  # fmt: skip

    made = _prebuilt(cache.build_entry("kernel-prebuilt", _prebuilt_key(package, version), fill))
    assert made is not None
    return made


def _prebuilt_key(package: str, version: str) -> str:
    """Also of the rules by which modules go into the ramdisk."""
    folder = Path(modules.__file__).parent
    rules = cache.digest_files([folder / "modules.py"], root=folder)
    return f"{version}-{cache.digest_text(package, rules)[:12]}"


def _prebuilt(root: Path) -> Prebuilt | None:
    data = cache.read_json(root / "manifest.json")
    if data is None or not (root / "bzImage").is_file():
        return None
    if _prebuilt_key(*str(data.get("source")).partition(" ")[::2]) != root.name:
        return None  # made by other rules
    lacks = data.get("lacks")
    return Prebuilt(
        root / "bzImage",
        root / "ramdisk",
        str(data.get("release")),
        tuple(map(str, lacks)) if isinstance(lacks, list) else (),
    )


def _prebuilt_package(depends: Iterable[str]) -> str:
    names = [name for name in depends if re.fullmatch(r"linux-image-\d.*-cloud-amd64", name)]
    if len(names) != 1:
        raise NitroError(f"Debian {SUITE}'s {PREBUILT} names no one kernel: {', '.join(names) or 'none'}")
    return names[0]


def _pick_prebuilt(tree: Path, into: Path) -> tuple[str, list[str]]:
    """Copy the kernel and its modules for the ramdisk out of an unpacked package; returns its release, and
    what it lacks."""
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise NitroError(f"the package has {len(kernels)} kernels in /boot, expected one")
    release = kernels[0].name.removeprefix("vmlinuz-")
    shutil.copyfile(kernels[0], into / "bzImage")
    check_bzimage(into / "bzImage")
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
    return release, modules.lacking(options, folder)


# --- for users -------------------------------------------------------------------------------------------


def manifest_of(kernel: Path) -> dict[str, Any]:
    """What a kernel of ours was made from."""
    return cache.read_json(kernel.parent / "manifest.json") or {}
