# SPDX-License-Identifier: MIT
"""Locks as other processes meet them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nitroctl.base import locks

HOLDER = """
import signal, sys
from pathlib import Path
from nitroctl.base import locks
locks.take(Path(sys.argv[1]))
print("held", flush=True)
signal.pause()
"""


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        assert locks.taken(path)
        assert locks.take(path, wait=False) is None
        holder.send_signal(signal.SIGKILL)
    assert not locks.taken(path)
    os.close(locks.take(path))


def test_looking_makes_no_lock_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locks.taken(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_refusals_leave_no_descriptor(tmp_path: Path) -> None:
    file, folder = tmp_path / "lock", tmp_path / "folder"
    folder.mkdir()
    held = [locks.take(file), locks.take_folder(lambda: folder)]
    before = len(os.listdir("/proc/self/fd"))
    assert locks.take(file, wait=False) is None
    assert locks.take_folder(lambda: folder, wait=False) is None
    assert len(os.listdir("/proc/self/fd")) == before
    for fd in held:
        os.close(fd)


def test_a_folder_that_is_replaced_while_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is removed between opening and locking: its lock is worth nothing."""
    path = tmp_path / "folder"
    made = []

    def make() -> Path:
        path.mkdir(exist_ok=True)
        made.append(path)
        return path

    opened = os.open

    def late(*arguments: object, **more: object) -> int:
        fd = opened(*arguments, **more)  # type: ignore[arg-type]
        if len(made) == 1:
            path.rmdir()
        return fd

    monkeypatch.setattr(os, "open", late)
    fd = locks.take_folder(make)
    assert len(made) == 2
    assert os.path.samestat(os.fstat(fd), os.stat(path))
    os.close(fd)


def test_a_link_is_no_folder_to_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory|Too many levels"):
        locks.take_folder(lambda: tmp_path / "link")
