# SPDX-License-Identifier: MIT
"""Where AWS's blobs are (kernel, command line, init, nsm.ko) on hosts that have them. Reads none of them but
the line in which the kernel's configuration says what it is of.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

# Where AWS's package has them, and below what a checkout of aws-nitro-enclaves-cli does.
INSTALLED = Path("/usr/share/nitro_enclaves/blobs")
BELOW = ("", "blobs/x86_64", "x86_64")
PACKAGE = "aws-nitro-enclaves-cli-devel"
HINT = f"take {INSTALLED} of an Amazon Linux, a checkout of aws-nitro-enclaves-cli, or the RPM {PACKAGE}"


def installed() -> Path | None:
    """The folder, where AWS's package is installed."""
    return INSTALLED if (INSTALLED / "bzImage").is_file() else None


def named() -> Path | None:
    """What nitro-cli is told to take, if it is."""
    return Path(value) if (value := os.environ.get("NITRO_CLI_BLOBS")) else None


def found(folder: Path) -> Path:
    """The folder itself, or that of a checkout; where neither has a kernel, the folder itself."""
    return next((p for p in (folder / b for b in BELOW) if (p / "bzImage").is_file()), folder)


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
