# SPDX-License-Identifier: MIT
"""Files and folders that appear whole or not at all: made aside, then renamed into place.

What a killed process leaves lies beside the place as `.NAME.RANDOM`; what fails leaves nothing. On Linux file
systems that can, a file has no name until it is complete (O_TMPFILE, open(2)), so that even `kill -9` leaves
nothing. With `sync`, for what must not be lost, the disk has it all before its name says so. Everything here
raises OSError.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def aside(path: Path) -> Path:
    """A new name beside `path`."""
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{name}.{os.urandom(6).hex()}")


@contextlib.contextmanager
def file(path: Path, *, mode: int | None = None, sync: bool = False) -> Iterator[int]:
    """Give a descriptor to write to; when the body ends well, the file replaces what is at `path`. Its mode
    is that of any new file (0666 less the umask) unless given."""
    new = aside(path)
    fd, named = _open(new, 0o666 if mode is None else mode)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        yield fd
        if sync:
            os.fsync(fd)
        if not named:
            # linkat(2) tells how to name what O_TMPFILE opened; it cannot replace a file. Python follows the
            # link only if a folder is given, which an absolute path then ignores.
            os.link(f"/proc/self/fd/{fd}", new, src_dir_fd=fd, follow_symlinks=True)
            named = True
        os.rename(new, path)
        named = False
        if sync:
            _sync(path.parent)
    finally:
        os.close(fd)
        if named:
            with contextlib.suppress(OSError):
                new.unlink()


def _open(new: Path, mode: int) -> tuple[int, bool]:
    """(descriptor, whether `new` exists now)."""
    with contextlib.suppress(OSError, AttributeError):
        return os.open(new.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode), False
    return os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode), True


def write(path: Path, data: bytes, *, mode: int | None = None, sync: bool = False) -> None:
    """A file with this content. As `file`."""
    with file(path, mode=mode, sync=sync) as fd, open(fd, "wb", closefd=False) as out:
        out.write(data)


def symlink(path: Path, target: Path) -> None:
    """A symbolic link that replaces what is at `path`."""
    new = aside(path)
    new.symlink_to(target)
    try:
        new.rename(path)
    except BaseException:
        new.unlink()
        raise


@contextlib.contextmanager
def folder(path: Path, *, mode: int = 0o777, sync: bool = False) -> Iterator[Path]:
    """Give a folder to fill; when the body ends well, it stands at `path`, where none but an empty one may
    be. The umask applies to `mode`."""
    new = aside(path)
    new.mkdir(mode)
    try:
        yield new
        if sync:
            for inner in [*new.rglob("*"), new]:
                _sync(inner)
        os.rename(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if sync:
        _sync(path.parent)


def remove(path: Path) -> None:
    """Remove a folder so that it is gone at once for all who look: out of sight first, then deleted."""
    new = aside(path)
    path.rename(new)
    shutil.rmtree(new)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
