# SPDX-License-Identifier: MIT
"""The cpio writer: the format as the kernel reads it, the same bytes every time, GNU cpio's opinion."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpiomodel
from cpiomade import archive
from nitroctl.base.errors import NitroError
from nitroctl.eif import cpio


@pytest.fixture
def entries(tmp_path: Path) -> list[cpio.Entry]:
    content = tmp_path / "content"
    content.write_bytes(b"from a file")
    return [
        cpio.file("init", b"#!\n", 0o755),
        cpio.directory("dev"),
        cpio.device("dev/console", stat.S_IFCHR, 5, 1),
        cpio.device("dev/vda", stat.S_IFBLK, 254, 0, 0o660),
        cpio.file("dev-like", b""),
        cpio.symlink("link", "/absolute/target"),
        cpio.directory("sub"),
        cpio.file("sub/file", content),
        cpio.Entry(b"sub/\xff\xfe", stat.S_IFREG | 0o4711, b"name of no encoding", uid=1000, gid=100),
        cpio.Entry(b"fifo", stat.S_IFIFO | 0o600),
        cpio.Entry(b"made", stat.S_IFREG | 0o600, filler=lambda sink: sink.write(b"12345"), size=5),
    ]


def test_what_the_kernel_reads(entries: list[cpio.Entry]) -> None:
    items = {i.name: i for i in cpiomodel.read(archive(entries, mtime=7))}
    assert list(items) == [
        b"dev", b"dev/console", b"dev/vda", b"dev-like", b"fifo", b"init", b"link", b"made", b"sub",
        b"sub/file", b"sub/\xff\xfe",
    ]  # fmt: skip
    assert [i.ino for i in items.values()] == list(range(1, len(entries) + 1))
    assert items[b"init"].mode == stat.S_IFREG | 0o755 and items[b"init"].data == b"#!\n"
    assert items[b"dev"].nlink == 2 and items[b"init"].nlink == 1
    assert items[b"dev/console"].mode == stat.S_IFCHR | 0o600 and items[b"dev/console"].rdev == (5, 1)
    assert items[b"dev/vda"].mode == stat.S_IFBLK | 0o660 and items[b"dev/vda"].rdev == (254, 0)
    assert items[b"link"].mode == stat.S_IFLNK | 0o777 and items[b"link"].data == b"/absolute/target"
    assert items[b"sub/file"].data == b"from a file"
    assert items[b"made"].data == b"12345"
    odd = items[b"sub/\xff\xfe"]
    assert (odd.uid, odd.gid, odd.mode & 0o7777) == (1000, 100, 0o4711)
    assert {i.mtime for i in items.values()} == {7}


def test_order_of_entries_does_not_show(entries: list[cpio.Entry]) -> None:
    expected = archive(entries)
    for seed in range(10):
        random.Random(seed).shuffle(entries)
        assert archive(entries) == expected


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.dictionaries(
        st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=3)
        .map(lambda parts: b"/".join(p.translate(bytes(46) + b".x" + bytes(range(48, 256))) for p in parts))
        .map(lambda name: name.replace(b"\0", b"n").replace(b".", b"d")),
        st.binary(max_size=30),
        max_size=8,
    )
)
def test_any_names_and_contents(files: dict[bytes, bytes]) -> None:
    """Every length of name and content, so every padding."""
    made = archive([cpio.Entry(name, stat.S_IFREG | 0o644, data) for name, data in files.items()])
    assert len(made) % 4 == 0
    assert {i.name: i.data for i in cpiomodel.read(made)} == files


BAD_NAMES = [b"", b"/etc", b"a/../b", b"..", b".", b"a//b", b"a/", b"a\0b", b"TRAILER!!!"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot_be(name: bytes) -> None:
    with pytest.raises(NitroError, match="cannot be a name"):
        archive([cpio.Entry(name, stat.S_IFREG | 0o644)])


def test_a_name_that_is_too_long() -> None:
    archive([cpio.Entry(b"x" * 4095, stat.S_IFREG)])
    with pytest.raises(NitroError, match="4096"):
        archive([cpio.Entry(b"x" * 4096, stat.S_IFREG)])


def test_a_name_twice() -> None:
    with pytest.raises(NitroError, match="twice"):
        archive([cpio.file("a", b"1"), cpio.file("b", b""), cpio.file("a", b"2")])


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    """4 GiB: the size has eight hexadecimal digits."""
    path = tmp_path / "large"
    with open(path, "wb") as f:
        f.truncate(1 << 32)
    with pytest.raises(NitroError, match="4294967296"):
        archive([cpio.file("large", path)])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NitroError, match="missing"):
        archive([cpio.file("x", tmp_path / "missing")])


def test_tree(tmp_path: Path) -> None:
    """A folder's content; modes are two only, whatever the umask was."""
    (tmp_path / "ko").mkdir(mode=0o700)
    (tmp_path / "ko" / "a.ko").write_bytes(b"module")
    (tmp_path / "ko" / "a.ko").chmod(0o600)
    (tmp_path / "run").write_bytes(b"#!")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "latest").symlink_to("ko")
    items = {i.name: (i.mode, i.data) for i in cpiomodel.read(archive(list(cpio.tree(tmp_path))))}
    assert items == {
        b"ko": (stat.S_IFDIR | 0o755, b""),
        b"ko/a.ko": (stat.S_IFREG | 0o644, b"module"),
        b"latest": (stat.S_IFLNK | 0o777, b"ko"),
        b"run": (stat.S_IFREG | 0o755, b"#!"),
    }


def test_tree_with_every_mode(tmp_path: Path) -> None:
    """As an overlay has it: owners, all modes, named pipes; a socket is somebody's who listens."""
    (tmp_path / "su").write_bytes(b"#!")
    (tmp_path / "su").chmod(0o4711)
    os.mkfifo(tmp_path / "pipe", 0o600)
    items = {i.name: i for i in cpiomodel.read(archive(list(cpio.tree(tmp_path, every_mode=True))))}
    assert {name: item.mode for name, item in items.items()} == {
        b"pipe": stat.S_IFIFO | 0o600, b"su": stat.S_IFREG | 0o4711,
    }  # fmt: skip
    assert {(item.uid, item.gid) for item in items.values()} == {
        (os.getuid(), (tmp_path / "su").stat().st_gid)
    }
    with pytest.raises(NitroError, match="pipe is of a kind that cannot be in a ramdisk"):
        list(cpio.tree(tmp_path))
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for every_mode in (False, True):
            with pytest.raises(NitroError, match="s is of a kind that cannot be in a ramdisk"):
                list(cpio.tree(tmp_path, every_mode=every_mode))


def test_gnu_cpio_reads_it(entries: list[cpio.Entry], tmp_path: Path) -> None:
    """Another reader's view of names, modes, sizes and devices."""
    tool = shutil.which("cpio")
    assert tool, "this test needs GNU cpio: apt-get install cpio"
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ["PATH"]}
    listing = subprocess.run(
        [tool, "-itvn", "--quiet"], input=archive(entries), capture_output=True, check=True, env=environment
    ).stdout.decode("latin-1")
    lines = [line.split() for line in listing.splitlines()]
    assert [(line[0], line[-1]) for line in lines if "dev" in line[-1]] == [
        ("drwxr-xr-x", "dev"), ("crw-------", "dev/console"), ("brw-rw----", "dev/vda"),
        ("-rw-r--r--", "dev-like"),
    ]  # fmt: skip
    assert "5,   1" in listing and "254,   0" in listing
    assert "link -> /absolute/target" in listing
    assert [line[4] for line in lines if line[-1] == "sub/file"] == ["11"]
