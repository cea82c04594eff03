# SPDX-License-Identifier: MIT
"""Our kernel for guests: Debian's kernel source with guest/kernel.config, and perhaps a user's options: cache
entry kernel/KEY with bzImage (aarch64: Image), config, and vmlinux, which has the symbols.

The source comes through a private apt root, so it is verified and needs no rights. KEY is the content of all
that goes in. The source's tree lives only while it is compiled. A kernel for the other architecture than the
host's is cross-compiled; its configuration is the same but for guest/kernel-aarch64.config.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base import files, proc, progress
from nitroctl.base.arch import Arch
from nitroctl.base.config import source_root
from nitroctl.base.errors import CommandFailed, NitroError
from nitroctl.toolchain import bundle, cache, packages
from nitroctl.toolchain.cache import named
from nitroctl.toolchain.guest import SUITE, needed, reasons
from nitroctl.toolchain.image import check_image, give_text_offset
from nitroctl.toolchain.steps import BuildFailed, logged, toolchain

SOURCE = "linux-source-6.12"

SPACE = 1600 * 10**6

# How many lines make prints for our configuration: how long the progress bar is, nothing else.
STEPS = 1850

# A line of a kernel's configuration: name and value, or the name of what is off.
_OPTION = re.compile(r"(CONFIG_\w+)=(.+)|# (CONFIG_\w+) is not set")
OPTIONS_MAX = 1 << 20

# Without these there is no enclave.
NEEDED = (
    "CONFIG_NSM=",
    "CONFIG_VIRTIO_VSOCKETS=",
    "CONFIG_VIRTIO_MMIO",
    "CONFIG_BLK_DEV_INITRD=",
)

# What the cache calls the kernel with options of the user's that was wanted last.
CONFIGURED = "kernel-with-options"

# Of the kernel's source, what no kernel of that architecture is compiled from. Kconfig files name those of
# all architectures.
_NEVER = (
    "Documentation/[a-z]*",
    "Documentation/ABI",
    "arch/xtensa/*.[chS]",
    "drivers/gpu/drm/amd/*.[ch]",
    "tools/perf/*",
    "tools/testing/*",
)
NOT_UNPACKED: dict[Arch, tuple[str, ...]] = {
    "x86_64": (*_NEVER, "arch/[!x]*.[chS]", "arch/[!x]*.dts*"),
    "aarch64": (*_NEVER, "arch/[!a]*.[chS]", "arch/a[!r]*.[chS]", "arch/arc/*.[chS]", "arch/*.dts*"),
}


def make_options(arch: Arch) -> tuple[str, ...]:
    """make's command line, less its targets: all that decides what comes out, and nothing of the user's own
    settings."""
    cross = arches.cross(arch)
    name = "x86_64" if arch == "x86_64" else arches.facts(arch).kernel
    return (
        "env", "-u", "MAKEFLAGS", "-u", "MFLAGS",  # a make above us has nothing to say here
        "make",
        f"ARCH={name}",
        f"CC={cross}gcc" if cross else "CC=cc",
        "HOSTCC=cc",
        "LLVM=",
        f"CROSS_COMPILE={cross}",
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


def fragment_for(arch: Arch) -> str:
    """The options of our kernel. What the other architecture has otherwise takes the place of x86_64's."""
    guest = source_root() / "guest"
    fragment = (guest / "kernel.config").read_text()
    if arch == "x86_64":
        return fragment
    other = (guest / f"kernel-{arch}.config").read_text()
    return _without(fragment, other) + other


def build(
    *,
    arch: Arch | None = None,
    jobs: int | None = None,
    update: bool = False,
    config: Path | None = None,
    symbols: bool = False,
) -> Path:
    """Build the guest kernel, or find it built; returns the file that boots.

    The newest source package that is here is used; `update` looks for a newer one. `config` is a file of
    options that come to ours, or take the place of ours: such a kernel is no one's default. With `symbols`,
    vmlinux is beside it, which a package does not bring. Raises NitroError.
    """
    arch = arch or arches.default()
    image = arches.facts(arch).image
    added = read_options(config) if config else ""
    if not update and not added and not symbols and (brought := bundle.find(f"kernel/{image}", arch)):
        return brought
    cross = arches.cross(arch)
    needs = needed(packages.BUILD, "cc", "stdio.h", "make", "perl", "pkg-config", "xz")
    tools = toolchain([*needs, *packages.KERNEL, *packages.cross(cross)], cc=f"{cross}gcc" if cross else "cc")
    fragment = fragment_for(arch)
    if added:
        fragment = _without(fragment, added) + added
    deb = _source(update)
    version = deb.name.split("_")[1]
    ld = proc.run([f"{cross}ld", "--version"]).stdout.decode().partition("\n")[0]
    options = make_options(arch)
    key = f"{version}-{cache.digest_text(fragment, version, tools['cc'], ld, *options)[:16]}"

    def fill(folder: Path) -> None:
        cache.need_space(SPACE, what="building the guest kernel")
        started = time.monotonic()
        log = cache.log_path(named("kernel", arch))
        log.unlink(missing_ok=True)
        # Below the entry in the making: whatever interrupts us, it goes with it.
        with _source_folder(folder) as tree:
            source = _unpack(deb, tree, arch)
            make = _make(source, arch)
            _configure(source, make, fragment, added, log)
            _compile(source, make, image, version, jobs, log)
            shutil.copyfile(source / f"arch/{arches.facts(arch).kernel}/boot/{image}", folder / image)
            shutil.copyfile(source / "vmlinux", folder / "vmlinux")
            shutil.copyfile(source / ".config", folder / "config")
            release = (source / "include/config/kernel.release").read_text().strip()
        made = folder / image
        check_image(made, arch)
        give_text_offset(made, arch)
        cache.write_json(folder / "manifest.json", {
            "release": release,
            "source": f"{SOURCE} {version}",
            "fragment": cache.digest_text(fragment),
            "options": sorted(_options(added)),
            "tools": {"cc": tools["cc"], "ld": ld},
            "size": made.stat().st_size,
            "sha256": cache.digest_file(made),
            "seconds": round(time.monotonic() - started, 1),
        })  # fmt: skip

    name = named(CONFIGURED if added else "kernel", arch)
    return cache.build_entry(named("kernel", arch), key, fill, name=name) / image


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


def _source(update: bool) -> Path:
    """Debian's package of the kernel's source: the one that is here, else (or to `update`) the newest."""
    have = cache.current(f"deb-{SOURCE}")
    if have is not None and not update:
        for deb in have.glob("*.deb"):
            return deb
    from nitroctl.toolchain.apt import AptRoot

    return AptRoot.open(SUITE, refresh=update).download(SOURCE)


def _unpack(deb: Path, into: Path, arch: Arch) -> Path:
    """Unpack the tarball in the package as it comes out of it, and nothing of it twice on disk."""
    read = ["dpkg-deb", "--fsys-tarfile", os.fspath(deb)]
    pick = ["tar", "--extract", "--to-stdout", "--wildcards", f"*/{SOURCE}.tar.xz"]
    unpack = ["tar", "--extract", "--xz", "--directory", os.fspath(into), "--no-same-owner"]
    unpack += ["--anchored", *(f"--exclude={SOURCE}/{pattern}" for pattern in NOT_UNPACKED[arch])]
    # The tarball does not compress any further, so it is about as large as the package.
    with progress.task(f"Unpacking {SOURCE}", unit="bytes", total=deb.stat().st_size) as task:
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
    return into / SOURCE


def _make(source: Path, arch: Arch) -> list[str]:
    """make's command line up to its targets."""
    # The day of the source, not today: the same source gives the same kernel.
    made = time.gmtime((source / "Makefile").stat().st_mtime)
    return [*make_options(arch), f"KBUILD_BUILD_TIMESTAMP={time.strftime('%a %b %e %H:%M:%S UTC %Y', made)}"]


def read_options(path: Path) -> str:
    """A user's file of options, in the form of the kernel's own .config. Raises NitroError."""
    over = f"{path} has more than {OPTIONS_MAX} bytes: this is no file of kernel options"
    data = files.read_at_most(path, OPTIONS_MAX, over=over)
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


def _configure(source: Path, make: list[str], fragment: str, added: str, log: Path) -> None:
    (source / "nitroctl.config").write_text(fragment)
    lines: list[str] = []
    with progress.task("Configuring the guest kernel"):
        argv = [*make, "KCONFIG_ALLCONFIG=nitroctl.config", "allnoconfig"]
        if logged(argv, log, lines.append, cwd=source):
            raise BuildFailed("configuring the guest kernel", reasons(lines), log)
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


def _compile(source: Path, make: list[str], image: str, version: str, jobs: int | None, log: Path) -> None:
    lines: list[str] = []
    count = jobs or len(os.sched_getaffinity(0))
    argv = [*make, f"-j{count}", image]
    with progress.task(f"Building the guest kernel {version}", unit="steps", total=STEPS) as task:

        def on_line(line: str) -> None:
            lines.append(line)
            task.set(min(task.done + 1, STEPS), note=line.strip()[:60])

        if logged(argv, log, on_line, cwd=source):
            raise BuildFailed("building the guest kernel", reasons(lines), log)
