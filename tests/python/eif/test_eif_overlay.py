# SPDX-License-Identifier: MIT
"""Overlays: a folder laid over an image changes what it holds and nothing else, whatever the image has there.

Linux's rules of unpacking are a model here, written from its init/initramfs.c; that a real one does the same
is a boot test's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

import cpiomodel
import eifmodel as model
from cpiomade import Memory
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.eif import cpio, layers, overlay

File = list[bytes]  # one content, of an inode that several names may share
Unpacked = dict[bytes, tuple[int, int, File]]  # mode, owner, content


def unpack(data: bytes, into: Unpacked) -> None:
    """As Linux does it, by name alone: do_name(), clean_path(), maybe_link(), do_symlink(). Links on the way
    are followed; those that begin with / would leave the application's root, and are refused here."""
    inodes: dict[int, File] = {}

    def real(name: bytes) -> bytes:
        done: list[bytes] = []
        todo = name.split(b"/")[::-1]
        while todo:
            part = todo.pop()
            if part == b"..":
                done.pop()
                continue
            path = b"/".join([*done, part])
            if todo and path in into and stat.S_ISLNK(into[path][0]):
                target = into[path][2][0]
                assert not target.startswith(b"/"), path
                todo += target.split(b"/")[::-1]
                continue
            done.append(part)
        return b"/".join(done)

    for item in cpiomodel.read(data):
        name = real(item.name)
        folder = name.rpartition(b"/")[0]
        if folder and not (folder in into and stat.S_ISDIR(into[folder][0])):
            continue  # it cannot be made, and nobody is told
        old = into.get(name)
        if old and stat.S_IFMT(old[0]) != stat.S_IFMT(item.mode):
            if stat.S_ISDIR(old[0]):
                continue  # rmdir() of a folder that has something in it
            del into[name]
            old = None
        if stat.S_ISREG(item.mode):
            content = inodes.get(item.ino) or (old[2] if old else [b""])
            if item.nlink > 1:
                inodes[item.ino] = content
            if item.nlink == 1 or item.data:
                content[0] = item.data
            into[name] = (item.mode, item.uid, content)
        else:
            into[name] = (item.mode, item.uid, [item.data])


def archive(entries: Iterable[tuple[cpio.Entry, tuple[bytes, ...]]]) -> bytes:
    sink = Memory()
    whole = cpio.Archive(sink)
    for entry, also in entries:
        whole.add(entry, also)
    whole.finish()
    return sink.data


OWNER = 1000
BUNDLE = "rootfs/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
FIRST = [(cpio.directory("rootfs"), ()), (cpio.file("init", b"INIT", 0o755), ())]
SECOND = [
    (cpio.directory("rootfs/tmp", 0o1777), ()),
    (cpio.Entry(b"rootfs/home", stat.S_IFDIR | 0o700, uid=OWNER), ()),
    (cpio.file("rootfs/home/notes", b"mine"), ()),
    *((cpio.directory(f"rootfs/{name}"), ()) for name in ("usr", "usr/lib", "usr/bin", "etc", "etc/ssl",
      "etc/ssl/certs", "etc/pki", "etc/pki/ca-trust", "etc/pki/ca-trust/extracted",
      "etc/pki/ca-trust/extracted/pem")),
    (cpio.symlink("rootfs/lib", "usr/lib"), ()),
    (cpio.symlink("rootfs/bin", "/usr/bin"), ()),
    (cpio.file("rootfs/usr/bin/busybox", b"BUSY", 0o755), (b"rootfs/usr/bin/ls", b"rootfs/usr/bin/cat")),
    (cpio.Entry(BUNDLE.encode(), stat.S_IFREG | 0o444, b"# roots\nno newline", uid=OWNER), ()),
    (cpio.symlink("rootfs/etc/ssl/certs/ca-certificates.crt", "/" + BUNDLE.removeprefix("rootfs/")), ()),
]  # fmt: skip


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    import gzip

    path = tmp_path / "app.eif"
    disks = (archive(FIRST), gzip.compress(archive(SECOND)))
    path.write_bytes(model.pack([*model.TINY[:3], *((model.RAMDISK, disk) for disk in disks)]))
    return path


def before() -> Unpacked:
    found: Unpacked = {}
    unpack(archive(FIRST), found)
    unpack(archive(SECOND), found)
    return found


def changed(data: bytes) -> dict[str, tuple[int, int, bytes]]:
    """What an overlay changes or makes; nothing is ever gone."""
    old, new = before(), before()
    unpack(data, new)
    assert not old.keys() - new.keys()
    return {
        os.fsdecode(name): (mode, owner, content[0])
        for name, (mode, owner, content) in new.items()
        if old.get(name) != (mode, owner, content)
    }


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_changes_what_it_holds_and_nothing_else(tmp_path: Path, eif: Path) -> None:
    files = {
        "rootfs/tmp/a": b"1",  # its folder keeps mode and owner
        "rootfs/home/notes": b"2",
        "rootfs/lib/lib.so": b"3",  # where the link leads
        "rootfs/bin/tool": b"4",  # and one that is the application's, not the initramfs's
        "rootfs/usr/bin/ls": b"5",  # one name of three
        "rootfs/new/folder/file": b"6",
        "beside/init": b"7",
    }
    regular, folder = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
    output = tmp_path / "overlay.cpio"
    overlay.compose([make(tmp_path / "over", files)], eif, output)
    assert changed(output.read_bytes()) == {
        "rootfs/tmp/a": (regular, 0, b"1"),
        "rootfs/home/notes": (regular, 0, b"2"),
        "rootfs/usr/lib/lib.so": (regular, 0, b"3"),
        "rootfs/usr/bin/tool": (regular, 0, b"4"),
        "rootfs/usr/bin/ls": (regular, 0, b"5"),
        "rootfs/new": (folder, 0, b""),
        "rootfs/new/folder": (folder, 0, b""),
        "rootfs/new/folder/file": (regular, 0, b"6"),
        "beside": (folder, 0, b""),
        "beside/init": (regular, 0, b"7"),
    }
    assert output.stat().st_mode & 0o777 == 0o600 and output.stat().st_size % 4 == 0


def test_several_are_joined_and_the_last_one_wins(tmp_path: Path, eif: Path) -> None:
    first = make(tmp_path / "first", {"rootfs/x": b"first", "rootfs/y": b"first"})
    ready = tmp_path / "ready.cpio"
    ready.write_bytes(archive([(cpio.file("rootfs/x", b"ready"), ()), (cpio.file("rootfs/z", b"ready"), ())]))
    output = tmp_path / "overlay.cpio"
    overlay.compose([first, ready, lambda image: [cpio.file("rootfs/z", b"made")]], eif, output)
    data = output.read_bytes()
    assert data.count(b"TRAILER!!!") == 3
    found: dict[str, bytes] = {}
    while data:
        found |= {os.fsdecode(item.name): item.data for item in items(data)}
        data = data[data.index(b"TRAILER!!!") + 14 :]
    assert found == {"rootfs/x": b"ready", "rootfs/y": b"first", "rootfs/z": b"made"}


def items(data: bytes) -> list[cpiomodel.Item]:
    return cpiomodel.read(data[: data.index(b"TRAILER!!!") + 14])


@pytest.mark.parametrize(
    ("name", "text"),
    [("rootfs/tmp", "rootfs/tmp is a folder in the image"), ("init/x", "init is a folder, but in")],
)
def test_what_cannot_be_put_there(tmp_path: Path, eif: Path, name: str, text: str) -> None:
    with pytest.raises(NitroError, match=text):
        overlay.compose([make(tmp_path / "over", {name: b"x"})], eif, tmp_path / "out")


def test_an_image_that_cannot_be_looked_into(tmp_path: Path) -> None:
    eif = tmp_path / "odd.eif"
    up = archive([(cpio.file("rootfs/AA/x", b""), ())]).replace(b"/AA/", b"/../")
    out = archive([(cpio.file("AA/x", b""), ())]).replace(b"AA/x", b"../x")
    loop = archive([(cpio.symlink("rootfs", "rootfs"), ()), (cpio.file("rootfs/x", b""), ())])
    for ramdisk, text in (
        (b"no archive of any kind", "cannot be read: "),
        (out, "cannot be read: ../x: the name leads out of the image"),
        (loop, "more than 40 symbolic links"),
        (up, None),
    ):
        eif.write_bytes(model.pack([*model.TINY[:3], (model.RAMDISK, ramdisk)]))
        if text is None:
            overlay.compose([make(tmp_path / "over", {"rootfs/x": b""})], eif, tmp_path / "out")
            continue
        with pytest.raises(NitroError, match=text) as error:
            overlay.compose([make(tmp_path / "over", {"rootfs/x": b""})], eif, tmp_path / "out")
        assert "FILE.cpio" in str(error.value.hint) and not (tmp_path / "out").exists()


def test_a_ca_behind_the_images_own_roots(tmp_path: Path, eif: Path) -> None:
    """In the file that the links lead to, with its mode and owner."""
    pem = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
    output = tmp_path / "overlay.cpio"
    overlay.compose([lambda image: overlay.trusting(pem, image)], eif, output)
    wanted = (stat.S_IFREG | 0o444, OWNER, b"# roots\nno newline\n" + pem)
    assert changed(output.read_bytes()) == {BUNDLE: wanted}


def test_a_ca_where_there_are_no_roots(tmp_path: Path) -> None:
    eif = tmp_path / "bare.eif"
    eif.write_bytes(model.pack([*model.TINY[:3], (model.RAMDISK, archive(FIRST))]))
    output = tmp_path / "overlay.cpio"
    overlay.compose([lambda image: overlay.trusting(b"PEM", image)], eif, output)
    assert [item.name.decode() for item in cpiomodel.read(output.read_bytes())] == [
        "rootfs/etc", "rootfs/etc/ssl", "rootfs/etc/ssl/certs", f"rootfs/{layers.CA_BUNDLES[0].decode()}",
    ]  # fmt: skip


def test_what_is_refused_before_anything_starts(tmp_path: Path) -> None:
    good = tmp_path / "good.cpio"
    good.write_bytes(archive(FIRST))
    overlay.check(good)
    overlay.check(tmp_path)
    zipped, cut = tmp_path / "zipped", tmp_path / "cut"
    zipped.write_bytes(b"\x1f\x8b\b\0")
    cut.write_bytes(good.read_bytes()[:-1])
    for path, text in (
        (tmp_path / "absent", "absent: No such file"),
        (zipped, "zipped is not a cpio archive of the kind newc"),
        (cut, "not a multiple of 4"),
        (Path("/dev/null"), "neither a folder nor a file"),
    ):
        with pytest.raises(UsageError, match=text) as error:
            overlay.check(path)
        assert error.value.hint


def test_what_names_another_init() -> None:
    """The list of the machine's own test (tests/unit/test-eif-overlay.c)."""
    for text in (
        "init=/bin/sh", "rdinit=/x", "quiet rdinit=/x", "quiet\trdinit=", '"rdinit=/x y"', 'a=" rdinit=/x',
        'x"init=/y', "-- init=/x", "a\nrdinit=/x", "a\u00a0rdinit=/x", 'a\v"rdinit=/x"',
    ):  # fmt: skip
        assert overlay.names_init(text), text
    for text in (
        "", "quiet", "init", "rdinit", "systemd.init=/x", "noinit=1", "xrdinit=/x", "a=init=/x",
        "initcall_debug", "init_on_alloc=1", "rdinit /x", "init:=", "in it=",
    ):  # fmt: skip
        assert not overlay.names_init(text), text
