# SPDX-License-Identifier: MIT
"""On a host that has the real thing, the real thing runs: AWS's driver, and a command that is not ours.

Only the decision and the exec; called before anything else is done.
"""

from __future__ import annotations

import os
from pathlib import Path

from nitroctl.base.shown import say

DRIVER = Path("/dev/nitro_enclaves")

# Set for the program that we become: should that be a wrapper which calls us again, then we are meant.
STEPPED = "NITROCTL_STEPPED_ASIDE"

# In every launcher of ours, whichever tool installed it.
MARK = b"nitroctl.nitro_cli"


def step_aside(argv: list[str], name: str = "nitro-cli") -> None:
    """Become the real command of this name, with the same arguments, where it and the driver are."""
    if os.environ.get(STEPPED) or not DRIVER.exists():
        return
    other = find_other(os.environ.get("PATH", os.defpath), name)
    if other is None:
        return
    say(f"nitroctl's {name}: this host has {DRIVER}; {other} takes over")
    try:
        os.execve(other, [name, *argv], {**os.environ, STEPPED: "1"})
    except OSError as e:
        say(f"warning: {other} does not start: {e.strerror}; going on locally")


def find_other(path: str, name: str) -> Path | None:
    """The first such command in these folders that is not a launcher of ours."""
    for folder in path.split(os.pathsep):
        candidate = Path(folder or ".") / name
        if candidate.is_file() and os.access(candidate, os.X_OK) and not _is_ours(candidate):
            return candidate
    return None


def _is_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as f:
            return MARK in f.read(4096)
    except OSError:
        return False
