# SPDX-License-Identifier: MIT
"""The layers of container images: what is in the ramdisk is what an extractor would leave on a disk, also of
any layers, against a model; entries that cannot be are refused. Not damaged bytes: test_eif_image_damage.py.
"""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imagemodel as im
from imagebuilt import APP, DIR, LNK, REG, bootstrap, contents, files, opened
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    return bootstrap(tmp_path)


def test_upper_layers_win(tmp_path: Path) -> None:
    assert opened(
        tmp_path,
        im.layer(APP, im.entry("d", mode=0o700), im.entry("d/f", b"old"), im.entry("d/g", b"kept")),
        im.layer(im.entry("d", mode=0o711), im.entry("d/f", b"new")),
    ) == {"app": b"binary", "d": None, "d/f": b"new", "d/g": b"kept"}


def test_attributes(tmp_path: Path) -> None:
    """Owners, all modes, times, devices; the last word on a folder is the upper layer's."""
    device = im.entry("null", None, type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    block = im.entry("sda", None, type=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o660)
    fifo = im.entry("fifo", None, type=tarfile.FIFOTYPE, mode=0o600)
    program = im.entry("su", b"s", mode=0o4755, uid=7, gid=8, mtime=1234567890)
    layers = [im.layer(APP, device, block, fifo, program, im.entry("d"))]
    layers.append(im.layer(im.entry("d", mode=0o1777, uid=5)))
    found = contents(compose.from_image(im.docker(tmp_path / "a.tar", layers)))
    assert (found["null"].mode, found["null"].rdev) == (stat.S_IFCHR | 0o666, (1, 3))
    assert (found["sda"].mode, found["sda"].rdev) == (stat.S_IFBLK | 0o660, (8, 0))
    assert found["fifo"].mode == stat.S_IFIFO | 0o600
    su = found["su"]
    assert (su.mode, su.uid, su.gid, su.mtime) == (REG | 0o4755, 7, 8, 1234567890)
    assert (found["d"].mode, found["d"].uid) == (DIR | 0o1777, 5)


def test_whiteouts(tmp_path: Path) -> None:
    assert opened(
        tmp_path,
        im.layer(APP, im.entry("a", b"1"), im.entry("d"), im.entry("d/b", b"2"), im.entry("d/c", b"3")),
        im.layer(im.entry(".wh.a", b""), im.entry("d/.wh.b", b""), im.entry(".wh.never", b"")),
    ) == {"app": b"binary", "d": None, "d/c": b"3"}


@pytest.mark.parametrize("order", [0, 1])
def test_a_removed_folder_that_comes_back(tmp_path: Path, order: int) -> None:
    """Nothing of the old one, whichever of whiteout and folder comes first."""
    new = [im.entry(".wh.d", b""), im.entry("d"), im.entry("d/new", b"n")]
    assert opened(
        tmp_path,
        im.layer(APP, im.entry("d"), im.entry("d/old", b"o"), im.entry("d/sub"), im.entry("d/sub/x", b"x")),
        im.layer(*(new if order else [*new[1:], new[0]])),
    ) == {"app": b"binary", "d": None, "d/new": b"n"}


@pytest.mark.parametrize("order", [0, 1])
def test_opaque_folders(tmp_path: Path, order: int) -> None:
    new = [im.entry("d/.wh..wh..opq", b""), im.entry("d/sub"), im.entry("d/sub/new", b"n")]
    assert opened(
        tmp_path,
        im.layer(APP, im.entry("d"), im.entry("d/old", b"o"), im.entry("d/sub"), im.entry("d/sub/x", b"x")),
        im.layer(im.entry("d"), *(new if order else [*new[1:], new[0]])),
    ) == {"app": b"binary", "d": None, "d/sub": None, "d/sub/new": b"n"}


def test_one_kind_replaces_another(tmp_path: Path) -> None:
    """A folder by a file, a file by a folder, a link by a folder."""
    assert opened(
        tmp_path,
        im.layer(APP, im.entry("d"), im.entry("d/x", b"x"), im.entry("f", b"f"), im.symlink("l", "d")),
        im.layer(
            im.entry("d", b"file"), im.entry("f"), im.entry("f/y", b"y"), im.entry("l"), im.entry("l/z", b"z")
        ),
    ) == {"app": b"binary", "d": b"file", "f": None, "f/y": b"y", "l": None, "l/z": b"z"}


def test_hard_links_across_layers(tmp_path: Path) -> None:
    """One inode, also when its first name is gone and another file has that name."""
    layers = [
        im.layer(APP, im.entry("one", b"content", mode=0o600)),
        im.layer(im.hardlink("two", "one"), im.hardlink("three", "/two")),
        im.layer(im.entry(".wh.one", b""), im.entry("zero", b"zero")),
        im.layer(im.entry("one", b"other")),
    ]
    found = contents(compose.from_image(im.docker(tmp_path / "a.tar", layers)))
    assert found["two"].ino == found["three"].ino != found["one"].ino
    assert found["two"].nlink == found["three"].nlink == 2 and found["one"].nlink == 1
    assert sorted((found["two"].data, found["three"].data)) == [b"", b"content"]
    assert found["two"].mode == found["three"].mode == REG | 0o600


def test_hard_links_to_links_and_devices(tmp_path: Path) -> None:
    device = im.entry("null", None, type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    layer = im.layer(APP, im.symlink("s", "app"), im.hardlink("t", "s"), device, im.hardlink("zero", "null"))
    found = contents(compose.from_image(im.docker(tmp_path / "a.tar", [layer])))
    assert found["s"].data == found["t"].data == b"app" and found["t"].mode == LNK | 0o777
    assert found["null"].ino == found["zero"].ino and found["zero"].rdev == (1, 3)


def test_through_symbolic_links(tmp_path: Path) -> None:
    """A file that an upper layer puts through a folder's link lands where the link leads, in the image."""
    assert opened(
        tmp_path,
        im.layer(APP, im.entry("usr"), im.entry("usr/bin"), im.symlink("bin", "usr/bin"),
                 im.symlink("abs", "/usr"), im.symlink("up", "../../../usr")),
        im.layer(im.entry("bin/a", b"a"), im.entry("abs/b", b"b"), im.entry("up/c", b"c")),
    ) == {
        "app": b"binary", "usr": None, "usr/bin": None, "bin": b"usr/bin", "abs": b"/usr",
        "up": b"../../../usr", "usr/bin/a": b"a", "usr/b": b"b", "usr/c": b"c",
    }  # fmt: skip


def test_names(tmp_path: Path) -> None:
    """Absolute, with dots, not UTF-8, very long, without their parents, and twice (the last one counts)."""
    long = "l" * 200 + "/" + "m" * 180
    found = opened(
        tmp_path,
        im.layer(
            APP, im.entry("./"), im.entry("/abs", b"1"), im.entry("./a/./b/../c", b"2"),
            im.entry("\udcff\udcfe", b"3"), im.entry(long, b"4"), im.entry("deep/er/file", b"5"),
            im.entry("twice", b"first"), im.entry("twice", b"second"),
        ),
    )  # fmt: skip
    assert found == {
        "app": b"binary", "abs": b"1", "a": None, "a/c": b"2", "\udcff\udcfe": b"3", "l" * 200: None,
        long: b"4", "deep": None, "deep/er": None, "deep/er/file": b"5", "twice": b"second",
    }  # fmt: skip


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats(tmp_path: Path, format: int) -> None:
    name = "d" * 90 + "/" + "f" * 60
    assert opened(tmp_path, im.layer(APP, im.entry(name, b"x"), format=format))[name] == b"x"


BAD_ENTRIES = [
    ("out of the image", im.entry("../evil", b"x")),
    ("out of the image", im.entry("a/../../evil", b"x")),
    ("out of the image", im.hardlink("x", "../../etc/passwd")),
    ("where nothing is", im.hardlink("x", "gone")),
    ("where a folder is", im.hardlink("x", "dev")),
    ("is not a folder", im.entry("app/x", b"x")),
    ("whiteout", im.entry(".wh.", b"")),
    ("whiteout", im.entry(".wh...", b"")),
    ("whiteout", im.entry(".wh.d/x", b"")),
    ("symbolic links", im.entry("loop/x", b"")),
    ("4095", im.entry("n/" * 2100, b"")),
    ("4095", im.symlink("s", "t" * 4096)),
]


@pytest.mark.parametrize("what, bad", BAD_ENTRIES, ids=range(len(BAD_ENTRIES)))
def test_entries_that_cannot_be(tmp_path: Path, what: str, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    """The error names layer and entry."""
    layers = [im.layer(APP, im.symlink("loop", "loop"), im.entry("dev")), im.layer(bad)]
    with pytest.raises(NitroError, match=what) as e:
        compose.from_image(im.docker(tmp_path / "app.tar", layers))
    assert "layer 2 of 2" in str(e.value) and f"entry {bad[0].name[:200]}" in str(e.value)


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(NitroError) as e:
        compose.from_image(im.docker(tmp_path / "app.tar", [im.layer(im.entry("\x1b[31m/../../x", b""))]))
    assert "\\x1b[31m" in str(e.value) and "\x1b" not in str(e.value)


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that only names mention count too."""
    image = im.docker(tmp_path / "a.tar", [im.layer(APP, im.entry("a/b/c/d", b""))])
    monkeypatch.setattr("nitroctl.eif.layers.ENTRIES_MAX", 11)  # with the mount points
    assert compose.from_image(image)
    monkeypatch.setattr("nitroctl.eif.layers.ENTRIES_MAX", 4)
    with pytest.raises(NitroError, match="more than 4 entries"):
        compose.from_image(image)
    monkeypatch.setattr("nitroctl.eif.blobs.MEMBERS_MAX", 2)
    with pytest.raises(NitroError, match="more than 2 files"):
        compose.from_image(image)


def test_numbers_too_large(tmp_path: Path, start: compose.Bootstrap) -> None:
    image = im.docker(tmp_path / "a.tar", [im.layer(APP, im.entry("x", b"", uid=1 << 32))])
    with pytest.raises(NitroError, match="32-bit numbers"):
        compose.compose(compose.from_image(image), start, tmp_path / "o", compose.Options())
    assert not (tmp_path / "o").exists()


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
CHANGE = st.tuples(st.sampled_from(["file", "file", "folder", "remove", "opaque"]), NAMES)


def merged(layers: list[list[tuple[str, str]]]) -> dict[str, bytes | None] | None:
    """What layers leave, told by a flat table of names; None if a name leads through a file."""
    table: dict[str, bytes | None] = {"app": b"binary"}

    def drop(path: str) -> None:
        for name in [n for n in table if n == path or n.startswith(path + "/")]:
            del table[name]

    for number, layer in enumerate(layers):
        for kind, path in layer:
            if kind == "remove":
                drop(path)
            elif kind == "opaque":
                for name in [n for n in table if n.startswith(path + "/")]:
                    table.pop(name, None)
        for kind, path in layer:
            if kind not in ("file", "folder"):
                continue
            parts = path.split("/")
            for i in range(1, len(parts)):
                if table.setdefault("/".join(parts[:i]), None) is not None:
                    return None
            if kind == "file":
                drop(path)
                table[path] = b"%d" % number
            elif table.get(path, b"") is not None:
                table[path] = None
    return table


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(st.lists(CHANGE, max_size=6), min_size=1, max_size=4))
def test_any_layers(tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, str]]]) -> None:
    """Files, folders, whiteouts and opaque folders, in any combination (whiteouts first, as is usual)."""
    tars = [im.layer(APP)]
    for number, layer in enumerate(layers):
        entries = []
        for kind, path in sorted(layer, key=lambda change: change[0] in ("file", "folder")):
            folder, _, base = path.rpartition("/")
            if kind == "remove":
                entries.append(im.entry(f"{folder}/.wh.{base}", b""))
            elif kind == "opaque":
                entries.append(im.entry(f"{path}/.wh..wh..opq", b""))
            else:
                entries.append(im.entry(path, b"%d" % number if kind == "file" else None))
        tars.append(im.layer(*entries))
    image = im.docker(tmp_path_factory.mktemp("any") / "a.tar", tars)
    expected = merged(layers)
    if expected is None:
        with pytest.raises(NitroError, match="is not a folder"):
            compose.from_image(image)
    else:
        assert files(compose.from_image(image)) == expected
