# SPDX-License-Identifier: MIT
"""Where a file could not be written: the kernel's error names no file when it comes of writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def place(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError of the body that names no file names this one, or the folder that the files are in."""
    try:
        yield
    except OSError as e:
        if e.filename is None and e.errno is not None:
            e.filename = os.fspath(path)
        raise
