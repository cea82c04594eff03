# SPDX-License-Identifier: MIT
"""Locks between processes that end with their holder: flock(2) on a file or a folder.

A lock is a descriptor. The kernel drops it with the last copy of that descriptor, whatever killed the holder,
so no lock is ever stale; a child that is given the descriptor holds the lock as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import overload


@overload
def take(path: Path) -> int: ...
@overload
def take(path: Path, *, wait: bool) -> int | None: ...
def take(path: Path, *, wait: bool = True) -> int | None:
    """Lock the file at `path`, made if need be; None if it is taken and we do not `wait`. Raises OSError."""
    return _lock(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), wait)


@overload
def take_folder(make: Callable[[], Path]) -> int: ...
@overload
def take_folder(make: Callable[[], Path], *, wait: bool) -> int | None: ...
def take_folder(make: Callable[[], Path], *, wait: bool = True) -> int | None:
    """As `take` for the folder that `make` makes, if need be, and names. What is locked in the end is the
    folder at that path: one that its owner has just removed is made again. Raises OSError."""
    while True:
        path = make()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if _lock(fd, wait) is None:
            return None
        try:
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int, wait: bool) -> int | None:
    """`fd`, locked; else it is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def taken(path: Path) -> bool:
    """Whether somebody has locked the file at `path`. Raises OSError, as where it is not there."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def end(fd: int) -> None:
    """Unlock and close, also for a child that was forked meanwhile and has the descriptor without knowing."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
