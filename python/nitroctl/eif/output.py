# SPDX-License-Identifier: MIT
"""Where an output that a user named can be, and what is said where it cannot."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nitroctl.base import atomic
from nitroctl.base.errors import NitroError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give a descriptor to write to; when the body ends well, the file stands at `path`.

    It replaces what was there; a symbolic link is followed. Raises NitroError where `path` cannot be made, or
    is there and no regular file.
    """
    target = Path(os.path.realpath(path))
    try:
        # By the name given: that of a pipe in /proc leads to no path.
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise NitroError(f"cannot write {path}: it exists and is not a regular file")
        with atomic.file(target) as fd:
            yield fd
    except OSError as e:
        raise NitroError(f"cannot write {path}: {e.strerror}", hint=_hint(e, target.parent)) from e


def _hint(e: OSError, folder: Path) -> str | None:
    if isinstance(e, FileNotFoundError):
        return f"make the folder first: mkdir -p {folder}"
    return None
