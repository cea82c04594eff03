# SPDX-License-Identifier: MIT
"""A file that appears whole or not at all. Only the naming of output; nothing here knows what is written.

On Linux file systems that can, the file has no name until it is complete (O_TMPFILE, open(2)), so that even
`kill -9` leaves nothing; elsewhere it is written beside its place and removed on failure.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from nitroctl.base.errors import NitroError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give a descriptor to write to; when the body ends well, the file stands at `path`.

    It replaces what was there; a symbolic link is followed. Raises NitroError where `path` cannot be made, or
    is there and no regular file.
    """
    target = Path(os.path.realpath(path))
    aside = target.parent / f".{target.name[:200]}.{secrets.token_hex(6)}"
    try:
        # By the name given: that of a pipe in /proc leads to no path.
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise NitroError(f"cannot write {path}: it exists and is not a regular file")
        fd, named = _open(target.parent, aside)
    except OSError as e:
        raise NitroError(f"cannot write {path}: {e.strerror}", hint=_hint(e, target.parent)) from e
    try:
        yield fd
        if not named:
            # linkat(2) tells how to name what O_TMPFILE opened; it cannot replace a file. Python follows the
            # link only if a folder is given, which an absolute path then ignores.
            os.link(f"/proc/self/fd/{fd}", aside, src_dir_fd=fd, follow_symlinks=True)
            named = True
        os.rename(aside, target)
        named = False
    except OSError as e:
        raise NitroError(f"cannot write {path}: {e.strerror}", hint=_hint(e, target.parent)) from e
    finally:
        os.close(fd)
        if named:
            with contextlib.suppress(OSError):
                aside.unlink()


def _open(folder: Path, aside: Path) -> tuple[int, bool]:
    """(descriptor, whether `aside` exists now). The mode is that of any new file: 0666 less the umask."""
    with contextlib.suppress(OSError, AttributeError):
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666), False
    return os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666), True


def _hint(e: OSError, folder: Path) -> str | None:
    if isinstance(e, FileNotFoundError):
        return f"make the folder first: mkdir -p {folder}"
    return None
