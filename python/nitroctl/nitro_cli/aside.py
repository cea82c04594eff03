# SPDX-License-Identifier: MIT
"""On a host with AWS's driver and AWS's command of the same name, that command runs instead of ours.

Only the decision and the exec; called before anything else is done.
"""

from __future__ import annotations

import os
from pathlib import Path

from nitroctl.base.shown import say

DRIVER = Path("/dev/nitro_enclaves")

# Set for the program that we exec: if it is a wrapper that calls us again, we must run ourselves.
STEPPED = "NITROCTL_STEPPED_ASIDE"

# A text in each of our launchers, whichever tool installed it.
MARK = b"nitroctl.nitro_cli"


def step_aside(argv: list[str], name: str = "nitro-cli") -> None:
    """Exec AWS's command of this name with the same arguments, if it and the driver are there."""
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
    """The first command of this name in the folders of `path` that is not a launcher of ours."""
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
