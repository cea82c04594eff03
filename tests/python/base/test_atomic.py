# SPDX-License-Identifier: MIT
"""What others see of a file or folder while it is made, and what the disk is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nitroctl.base import atomic


@pytest.fixture(params=["unnamed", "named"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On a file system that has O_TMPFILE, and as on one that has not."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return tmp_path


def test_the_old_file_stands_until_the_new_one_is_whole(where: Path) -> None:
    path = where / "file"
    path.write_text("old")
    with atomic.file(path) as fd:
        os.write(fd, b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyError), atomic.file(path):
        raise KeyError
    assert path.read_text() == "new" and os.listdir(where) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_a_mode_is_the_files_whatever_the_umask(where: Path, mode: int) -> None:
    old = os.umask(0o077)
    try:
        atomic.write(where / "file", b"x", mode=mode)
    finally:
        os.umask(old)
    assert (where / "file").stat().st_mode & 0o777 == mode


def test_what_must_not_be_lost_is_synced_first(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name; the name is lost with its folder."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        events.append("folder" if os.path.samestat(os.fstat(fd), where.stat()) else "content")
        fsync(fd)

    def renamed(*names: Path) -> None:
        events.append("name")
        rename(*names)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    atomic.write(where / "file", b"x", sync=True)
    assert events == ["content", "name", "folder"]
    events.clear()
    with atomic.folder(where / "made", sync=True) as aside:
        (aside / "a").write_text("a")
    assert events == ["content", "content", "name", "folder"]
    events.clear()
    atomic.write(where / "file", b"x")
    assert events == ["name"]


def test_a_folder_stands_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(KeyError), atomic.folder(path) as aside:
        (aside / "a").touch()
        raise KeyError
    assert os.listdir(tmp_path) == []
    with atomic.folder(path) as aside:
        (aside / "a").touch()
        assert not path.exists()
    with pytest.raises(OSError, match="not empty"), atomic.folder(path):
        pass
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(path) == ["a"]
    atomic.remove(path)
    assert os.listdir(tmp_path) == []


def test_a_link_replaces_a_link(tmp_path: Path) -> None:
    for target in ("a", "b"):
        atomic.symlink(tmp_path / "link", Path(target))
    assert os.readlink(tmp_path / "link") == "b" and os.listdir(tmp_path) == ["link"]


def test_a_long_name_has_room_for_a_name_aside(where: Path) -> None:
    atomic.write(where / ("\u20ac" * 85), b"x")  # 255 bytes
    assert len(os.listdir(where)) == 1


def test_a_link_takes_no_folder_s_place(tmp_path: Path) -> None:
    """And nothing is left beside it."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.symlink(tmp_path / "folder", Path("target"))
    assert os.listdir(tmp_path) == ["folder"]
    atomic.symlink(tmp_path / "link", Path("one"))
    atomic.symlink(tmp_path / "link", Path("two"))
    assert os.readlink(tmp_path / "link") == "two"
