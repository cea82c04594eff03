# SPDX-License-Identifier: MIT
"""Where AWS's blobs are (kernel, command line, init, nsm.ko) on hosts that have them. Reads none of them but
the line in which the kernel's configuration says what it is of.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from nitroctl.base.arch import ARCHES, Arch, facts, host

# Where AWS's package has them, and below what a checkout of aws-nitro-enclaves-cli does.
INSTALLED = Path("/usr/share/nitro_enclaves/blobs")
BELOW = ("", "blobs/{arch}", "{arch}")
PACKAGE = "aws-nitro-enclaves-cli-devel"
HINT = f"take {INSTALLED} of an Amazon Linux, a checkout of aws-nitro-enclaves-cli, or the RPM {PACKAGE}"


def installed(arch: Arch | None = None) -> Path | None:
    """The folder, where AWS's package is installed, and for `arch` if that is given."""
    has = arch_of(INSTALLED)
    return INSTALLED if has and arch in (None, has) else None


def named() -> Path | None:
    """What nitro-cli is told to take, if it is."""
    return Path(value) if (value := os.environ.get("NITRO_CLI_BLOBS")) else None


def arch_of(folder: Path) -> Arch | None:
    """What the kernel in it is for, by its name; where both are there, this host's."""
    have = [arch for arch in ARCHES if (folder / facts(arch).image).is_file()]
    return host() if len(have) > 1 and host() in have else have[0] if have else None


def found(folder: Path, arch: Arch | None = None) -> Path:
    """The folder itself, or that of a checkout, for `arch` if that is given, else for this host if there is
    one; where none has a kernel, the folder itself."""
    wanted = [arch] if arch else sorted(ARCHES, key=lambda one: one != host())
    places = (folder / below.format(arch=one) for one in wanted for below in BELOW)
    return next((place for place in places if arch_of(place)), folder)


def kernel_facts(kernel: Path) -> tuple[str, str]:
    """Operating system and kernel version as AWS's metadata have them: from the third line of the kernel's
    configuration beside it, "# Linux/x86_64 4.14.256 Kernel ..."; "Unknown" where that is not so."""
    try:
        with open(kernel.with_name(kernel.name + ".config"), encoding="utf-8", errors="replace") as f:
            lines = f.read(4096).splitlines()
    except OSError:
        lines = []
    fields = re.split("[ /-]", lines[2]) if len(lines) > 2 else []
    return (fields[1], fields[3]) if len(fields) > 3 else ("Unknown", "Unknown")


def package_version() -> str | None:
    """What the host's rpm knows of AWS's package; None where there is no rpm, or no package."""
    from nitroctl.base import proc
    from nitroctl.base.errors import NitroError

    if not (rpm := shutil.which("rpm")):
        return None
    try:
        done = proc.run([rpm, "-q", "--qf", "%{VERSION}-%{RELEASE}", PACKAGE], check=False)
    except NitroError:
        return None
    return done.stdout.decode(errors="replace").strip() or None if done.returncode == 0 else None
