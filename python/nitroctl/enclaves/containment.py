# SPDX-License-Identifier: MIT
"""What QEMU needs of this host, and so all that a guest that has broken out of it finds.

    its program, libraries, firmware and modules, and the system's     to read and to run
    the EIF, the enclave's certificates and overlay                    to read
    /dev/kvm and the devices that everybody has                        to use
    sockets and pipes that it was started with

A script in QEMU's place is somebody's own, and what it needs is not known: it has its user's rights. How a
child is kept to this is `base.confine`'s business.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from nitroctl.base import elf
from nitroctl.base.confine import Confinement

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store")
# What the dynamic linker, the C library and GnuTLS read, and where CPUs and nodes are counted.
CONFIGURATION = (
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/gnutls", "/etc/crypto-policies",
    "/etc/ssl/openssl.cnf", "/sys/devices/system",
)  # fmt: skip
DEVICES = ("/dev/kvm", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
# Beside bin: where QEMU is installed, and where it is built.
BESIDE = ("lib", "lib64", "libexec", "share/qemu", "pc-bios")

OPTIONS = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_PLUGIN = "lib/nitro-enclave.so"  # beside the bin of a launcher


def is_program(qemu: Path) -> bool:
    """Whether it is a binary, and not somebody's script around one."""
    return _read(qemu) is not None


def has_sandbox(qemu: Path) -> bool:
    """Whether this QEMU takes -sandbox: it was built with libseccomp, as distributions' are, which plugins
    are for."""
    about = _read(qemu)
    if about is None:
        return False
    if (_resolved(qemu).parents[1] / _PLUGIN).is_file():
        return True
    return any(name.startswith("libseccomp.so") for name in about.needed)


def confinement(qemu: Path, files: Iterable[Path | None]) -> Confinement:
    """For this QEMU, which may read these files. Raises EnclaveError."""
    read = [*map(Path, CONFIGURATION), *_libraries(), *(path for path in files if path)]
    run = [*map(Path, SYSTEM), *_places(_resolved(qemu))]
    return Confinement(read=read, run=run, devices=map(Path, DEVICES))


def _resolved(qemu: Path) -> Path:
    return Path(os.path.realpath(shutil.which(qemu) or qemu))


def _read(qemu: Path) -> elf.Elf | None:
    try:
        with open(_resolved(qemu), "rb") as file:
            return elf.read(file)
    except (OSError, ValueError):
        return None


def _places(program: Path) -> Iterator[Path]:
    """The program and what belongs to it; never the user's home or a folder that it is in."""
    homes = {Path(os.path.realpath(os.path.expanduser(home))) for home in ("~", f"~{_user()}")}
    yield program
    for folder in (program.parent, *(program.parents[1] / name for name in BESIDE)):
        folder = Path(os.path.realpath(folder))
        if not any(folder == home or folder in home.parents for home in homes):
            yield folder


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return ""


def _libraries() -> Iterator[Path]:
    """Where the environment sends the dynamic linker."""
    for variable in ("LD_LIBRARY_PATH", "LD_PRELOAD"):
        for name in os.environ.get(variable, "").replace(";", ":").replace(" ", ":").split(":"):
            if name.startswith("/") and name.strip("/"):
                yield Path(name)
