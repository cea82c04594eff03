# SPDX-License-Identifier: MIT
"""Context IDs and their folders: the lowest free one, many at once, and what a crash left."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from nitroctl.base.errors import (
    EnclaveError,
    NitroError,
)
from nitroctl.enclaves import folder as folders
from nitroctl.enclaves.folder import release, reserve


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder / "nitroctl"


def test_the_lowest_free_context_ids(runtime: Path) -> None:
    first, second = reserve(None), reserve(None)
    assert (first.cid, second.cid) == (16, 17)
    assert second.path == runtime / "17"
    assert second.path.stat().st_mode & 0o777 == 0o700
    release(first)
    third = reserve(None)
    assert third.cid == 16
    release(second)
    release(third)
    assert list(runtime.iterdir()) == []


def test_a_context_id_in_use(runtime: Path) -> None:
    folder = reserve(99)
    with pytest.raises(EnclaveError, match="context ID 99 is in use"):
        reserve(99)
    release(folder)
    release(reserve(99))


def test_what_a_crash_left_is_taken_over(runtime: Path) -> None:
    reserve(None)  # makes the folder; then everything below dies without cleaning
    folder = runtime / "17"
    folder.mkdir(mode=0o700)
    (folder / "vsock_5000").touch()
    taken = reserve(None)
    assert taken.cid == 17
    assert list(folder.iterdir()) == []
    release(taken)


def test_a_lock_on_a_removed_folder_is_worth_nothing(runtime: Path) -> None:
    """Whoever opened the folder before its owner removed it must not believe to own the new one."""
    first = reserve(16)
    late = os.open(first.path, os.O_RDONLY)
    release(first)
    fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = reserve(16)
    assert not os.path.samestat(os.fstat(late), os.stat(second.path))
    os.close(late)
    release(second)


def test_many_at_once_get_different_context_ids(runtime: Path) -> None:
    """Reserving, removing and reserving again in eight threads: at no moment do two have the same ID."""
    held: set[int] = set()
    guard = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                folder = reserve(None)
                with guard:
                    assert folder.cid not in held
                    held.add(folder.cid)
                with guard:
                    held.remove(folder.cid)
                release(folder)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert list(runtime.iterdir()) == []


def test_a_runtime_folder_too_deep_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(NitroError, match="at most 107") as error:
        reserve(None)
    assert error.value.hint and "XDG_RUNTIME_DIR" in error.value.hint
    assert list((deep / "nitroctl").iterdir()) == []


def test_no_context_id_is_left(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LAST_AUTOMATIC_CID", 17)
    held = [reserve(None), reserve(None)]
    with pytest.raises(EnclaveError, match="all context IDs from 16 to 17 are in use") as caught:
        reserve(None)
    assert caught.value.hint and "--cid" in caught.value.hint
    release(reserve(18))  # a number of one's own
    release(held[0])
    with pytest.raises(EnclaveError):
        reserve(None, taken=[16])
    release(reserve(None))
    release(held[1])


def test_what_somebody_put_into_a_folder_stays(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only sockets and files are ours to remove. The number is free again."""
    folder = reserve(20)
    (folder.path / "theirs").mkdir()
    release(folder)
    assert capsys.readouterr().err == f"warning: cannot remove {folder.path}: Directory not empty\n"
    again = reserve(20)
    assert again.path == folder.path
    (folder.path / "theirs").rmdir()
    release(again)
    assert not folder.path.exists()
