# SPDX-License-Identifier: MIT
"""Writes an output file that the user named, and explains why it cannot be written."""

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
    """Yield a file descriptor to write to; if the body succeeds, the file is then put at `path`.

    It replaces a file that was there; a symbolic link is followed. Raises NitroError if `path` cannot be
    created, or exists and is not a regular file.
    """
    target = Path(os.path.realpath(path))
    try:
        # Use the name as given: resolving a pipe's name in /proc gives no usable path.
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
