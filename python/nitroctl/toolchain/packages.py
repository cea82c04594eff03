# SPDX-License-Identifier: MIT
"""What must be installed on the host to build and test, how to notice that it is not, and what to install.

One table for `nitroctl build`, `nitroctl doctor` and the set-up script, which runs before there is a virtual
environment: nothing but the standard library here. Nothing is installed here either.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Need(NamedTuple):
    """Something of the host's. Exactly one of the probes is set."""

    debian: str  # package on Debian and Ubuntu
    fedora: str
    why: str
    program: str = ""  # found in PATH
    library: str = ""  # known to pkg-config
    header: str = ""  # below the compiler's include folders
    module: str = ""  # importable by the system's Python

    @property
    def what(self) -> str:
        return self.program or self.library or self.header or f"python module {self.module}"


# For QEMU and the vsock backend.
BUILD = (
    Need("gcc", "gcc", "compiling", program="cc"),
    Need("libc6-dev", "glibc-devel", "compiling", header="stdio.h"),
    Need("make", "make", "QEMU's configure", program="make"),
    Need("patch", "patch", "grafting onto QEMU", program="patch"),
    Need("perl", "perl-interpreter", "QEMU's scripts", program="perl"),
    Need("pkg-config", "pkgconf", "finding libraries", program="pkg-config"),
    Need("libglib2.0-dev", "glib2-devel", "QEMU and the cores", library="glib-2.0"),
    Need("libgnutls28-dev", "gnutls-devel", "SHA-384 and signatures", library="gnutls"),
    Need("libcbor-dev", "libcbor-devel", "the NSM's messages", library="libcbor"),
    Need("zlib1g-dev", "zlib-devel", "CRC32 of EIFs", library="zlib"),
    Need("libfdt-dev", "libfdt-devel", "QEMU's device trees", header="libfdt.h"),
    Need("xz-utils", "xz", "unpacking sources", program="xz"),
)

# QEMU 7.2 does not configure without it.
PIXMAN = Need("libpixman-1-dev", "pixman-devel", "QEMU 7.2", library="pixman-1")

# For `-sandbox on`.
SECCOMP = Need("libseccomp-dev", "libseccomp-devel", "QEMU's sandbox", library="libseccomp")

# What the plugin is for. By its path: PATH may have a QEMU that nitroctl linked.
DISTRIBUTION_QEMU = Need(
    "qemu-system-x86", "qemu-system-x86", "running enclaves in it", program="/usr/bin/qemu-system-x86_64"
)
# The same, for enclaves of arm64.
DISTRIBUTION_QEMU_ARM = Need(
    "qemu-system-arm", "qemu-system-aarch64", "running arm64 enclaves in it",
    program="/usr/bin/qemu-system-aarch64",
)  # fmt: skip
# Debian's releases whose own QEMU the plugin supports, as os-release(5) names them.
# What its QEMU's configure needs beside BUILD.
PLUGIN_RELEASES = {"bookworm": (PIXMAN,), "trixie": ()}

# For source packages of Debian.
DEBIAN_SOURCE = (Need("dpkg-dev", "dpkg-dev", "unpacking Debian's source packages", program="dpkg-source"),)

# For the guest's kernel.
KERNEL = (
    Need("flex", "flex", "the kernel's build", program="flex"),
    Need("bison", "bison", "the kernel's build", program="bison"),
    Need("bc", "bc", "the kernel's build", program="bc"),
    Need("lz4", "lz4", "the kernel's build", program="lz4"),
    Need("libelf-dev", "elfutils-libelf-devel", "the kernel's build", library="libelf"),
    Need("cpio", "cpio", "the kernel's build", program="cpio"),
    Need("kmod", "kmod", "the kernel's build", program="depmod"),
    Need("bzip2", "bzip2", "the kernel's build", program="bzip2"),
)

# For guests of the other architecture than the host's, by what a cross compiler's programs begin with.
CROSS = {
    "aarch64-linux-gnu-": (
        Need(
            "gcc-aarch64-linux-gnu", "gcc-aarch64-linux-gnu", "compiling for arm64 guests",
            program="aarch64-linux-gnu-gcc",
        ),
        Need(
            "libc6-dev-arm64-cross", "glibc-static", "static programs of arm64 guests",
            header="/usr/aarch64-linux-gnu/include/stdio.h",
        ),
    ),
    "x86_64-linux-gnu-": (
        Need(
            "gcc-x86-64-linux-gnu", "gcc-x86_64-linux-gnu", "compiling for x86-64 guests",
            program="x86_64-linux-gnu-gcc",
        ),
        Need(
            "libc6-dev-amd64-cross", "glibc-static", "static programs of x86-64 guests",
            header="/usr/x86_64-linux-gnu/include/stdio.h",
        ),
    ),
}  # fmt: skip


def cross(prefix: str) -> list[Need]:
    """What compiling with tools of that prefix takes; nothing for the host's own, which has none."""
    return list(CROSS[prefix]) if prefix else []


# For `make check` beside the above.
CHECK = (
    Need("openssl", "openssl", "independent digests and signatures in tests", program="openssl"),
    Need("libssl-dev", "openssl-static", "the example that calls KMS", header="openssl/cms.h"),
    Need("curl", "curl", "a program that looks for EC2's metadata", program="curl"),
    Need("gdb", "gdb", "core dumps in tests", program="gdb"),
    Need("git", "git", "listing the sources to lint", program="git"),
    Need("mmdebstrap", "mmdebstrap", "fresh systems to install wheels in", program="mmdebstrap"),
    Need("strace", "strace", "what programs of the wheels open", program="strace"),
    Need("tshark", "wireshark-cli", "reading captures of vsock", program="tshark"),
    *CROSS["aarch64-linux-gnu-"],
)

# For the virtual environment.
VENV = (Need("python3-venv", "python3", "the virtual environment", module="ensurepip"),)

ALL = BUILD + (PIXMAN, SECCOMP) + DEBIAN_SOURCE + KERNEL + CHECK + VENV


def _search_path() -> str:
    # depmod lives in sbin, which is not in every user's PATH.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _has_header(name: str) -> bool:
    folders = [Path("/usr/include"), Path("/usr/local/include"), *Path("/usr/include").glob("*-linux-gnu")]
    return any((folder / name).is_file() for folder in folders)


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of those libraries that pkg-config knows; empty without pkg-config."""
    if not shutil.which("pkg-config"):
        return {}
    names = list(libraries)
    answer = subprocess.run(
        ["pkg-config", "--modversion", *names],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode == 0:
        return dict(zip(names, answer.stdout.split(), strict=True))
    if len(names) < 2:
        return {}
    return {name: version for one in names for name, version in versions([one]).items()}


def missing(needs: Sequence[Need]) -> list[Need]:
    """Those that this host lacks, in the table's order."""
    known = versions(need.library for need in needs if need.library)

    def has(need: Need) -> bool:
        if need.program:
            return shutil.which(need.program, path=_search_path()) is not None
        if need.library:
            return need.library in known
        if need.header:
            return _has_header(need.header)
        return importlib.util.find_spec(need.module) is not None

    return [need for need in needs if not has(need)]


def _release(os_release: Path) -> str:
    try:
        fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    except OSError:
        return ""
    return fields.get("VERSION_CODENAME", "").strip("\"'")


def emulator(arch: str) -> Need:
    """The distribution's QEMU for enclaves of that architecture."""
    return DISTRIBUTION_QEMU_ARM if arch == "aarch64" else DISTRIBUTION_QEMU


def distribution_qemu(os_release: Path = Path("/etc/os-release")) -> tuple[Need, ...]:
    """The distribution's QEMU, where the plugin supports it."""
    return (DISTRIBUTION_QEMU,) if _release(os_release) in PLUGIN_RELEASES else ()


def emulators(os_release: Path = Path("/etc/os-release")) -> tuple[Need, ...]:
    """The distribution's QEMUs for enclaves of either architecture, where the plugin supports them."""
    here = distribution_qemu(os_release)
    return (*here, DISTRIBUTION_QEMU_ARM) if here else ()


def demonstration(os_release: Path = Path("/etc/os-release")) -> tuple[Need, ...]:
    """What `nitroctl demo` builds with on this host: the plugin where it is supported, else a QEMU."""
    release = _release(os_release)
    if release in PLUGIN_RELEASES:
        return BUILD + DEBIAN_SOURCE + (DISTRIBUTION_QEMU,) + PLUGIN_RELEASES[release]
    return BUILD + DEBIAN_SOURCE + (SECCOMP,)


def install_line(needs: Sequence[Need]) -> str:
    """The command that installs them on this host; on an unknown system, the names on Debian."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("apt-get"):
        return f"{sudo}apt-get install {' '.join(dict.fromkeys(n.debian for n in needs))}"
    if shutil.which("dnf"):
        return f"{sudo}dnf install {' '.join(dict.fromkeys(n.fedora for n in needs))}"
    return f"install what Debian calls {' '.join(dict.fromkeys(n.debian for n in needs))}"
