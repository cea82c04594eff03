# SPDX-License-Identifier: MIT
"""Logs that are bounded, on disks that fill up, and read while they grow."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nitroctl.enclaves import logs
from nitroctl.enclaves.logs import LogSink


def text(home: Path) -> bytes:
    return b"".join(logs.read(home, "x"))


def test_two_halves_are_kept(tmp_path: Path) -> None:
    """What is written is a whole number of pieces, so both ends are sharp: at most `limit` bytes."""
    sink = LogSink(tmp_path, "x", limit=20)
    for number in range(10):
        sink.append(b"%04d\n" % number)
    sink.close()
    older, newer = logs.paths(tmp_path, "x")
    assert older.read_bytes() == b"0006\n0007\n" and newer.read_bytes() == b"0008\n0009\n"
    assert text(tmp_path) == b"0006\n0007\n0008\n0009\n" and logs.size(tmp_path, "x") == 20
    assert logs.read_tail(tmp_path, "x", 12) == b"7\n0008\n0009\n"
    sink = LogSink(tmp_path, "x", limit=20)  # goes on where it was
    sink.append(b"next\n")
    sink.close()
    assert text(tmp_path) == b"0008\n0009\nnext\n"
    assert text(tmp_path / "gone") == b"" == logs.read_tail(tmp_path / "gone", "x", 5)


def test_what_a_full_disk_loses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once on standard error, and in the log when there is room again."""
    sink = LogSink(tmp_path, "x")
    sink.append(b"before\n")
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino == logs.paths(tmp_path, "x")[1].stat().st_ino:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        sink.append(b"lost\n")
        sink.append(b"as well\n")
    sink.append(b"after\n")
    sink.close()
    path = tmp_path / "x.log"
    assert capsys.readouterr().err == (f"warning: {path}: No space left on device; the log will have a gap\n")
    assert path.read_bytes() == b"before\n\n[nitroctl: 13 bytes were lost]\nafter\n"


def test_a_file_of_the_user_s_that_is_moved_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As logrotate(8) does it: it takes no more than what belongs into it, and the log goes on."""
    path = tmp_path / "mine.json"
    sink = LogSink.at(path)
    sink._half = 10
    sink.append(b"0000\n")
    path.rename(tmp_path / "moved")
    for number in range(1, 4):
        sink.append(b"%04d\n" % number)
    sink.close()
    assert (tmp_path / "moved").read_bytes() == b"0000\n0001\n" and path.read_bytes() == b"0002\n0003\n"
    assert not (tmp_path / "mine.json.0").exists() and capsys.readouterr().err == ""


def test_a_reader_misses_nothing_when_the_halves_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that grows and changes its halves just after its reader has come to the end of a file: what came
    last into the older half is read before the newer one."""
    sink = LogSink(tmp_path, "x", limit=20)
    sink.append(b"0000\n")
    reader, real, left = logs._Reader(tmp_path, "x"), os.read, [b"0001\n", b"0002\n"]

    def read(fd: int, size: int) -> bytes:
        data = real(fd, size)
        while not data and left:
            sink.append(left.pop(0))
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        found = b"".join(reader.pieces())
    found += b"".join(reader.pieces())
    reader.close()
    sink.close()
    assert found == b"0000\n0001\n0002\n"
    assert [path.read_bytes() for path in logs.paths(tmp_path, "x")] == [b"0000\n0001\n", b"0002\n"]


def test_a_reader_comes_while_the_halves_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the older half there is for a moment no newer one: it is read the next time."""
    sink = LogSink(tmp_path, "x", limit=20)
    for line in (b"0000\n", b"0001\n", b"0002\n"):
        sink.append(line)
    reader, real, path = logs._Reader(tmp_path, "x"), os.read, logs.paths(tmp_path, "x")[1]

    def read(fd: int, size: int) -> bytes:
        if not (data := real(fd, size)):
            path.rename(tmp_path / "moved")
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        found = b"".join(reader.pieces())
    assert found == b"0000\n0001\n"
    (tmp_path / "moved").rename(path)
    assert b"".join(reader.pieces()) == b"0002\n"
    reader.close()
    sink.close()


def test_a_folder_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    pid = os.pidfd_open(os.getpid())
    try:
        with logs.watch(home) as wait:
            home.rename(tmp_path / "other")
            assert wait(pid, None)
        with pytest.raises(FileNotFoundError), logs.watch(home):
            pass
    finally:
        os.close(pid)
