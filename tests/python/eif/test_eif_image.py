# SPDX-License-Identifier: MIT
"""Container images into EIFs: what is in the ramdisk is what an extractor would leave on a disk."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
import os
import random
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eif_cpio import Memory

import cpiomodel
import eifmodel as model
import imagemodel as im
from nitroctl.base.errors import NitroError
from nitroctl.cli import main
from nitroctl.eif import compose, reference
from nitroctl.eif.describe import describe
from nitroctl.eif.extract import extract
from nitroctl.eif.image import open_image
from nitroctl.eif.layers import read_tree
from nitroctl.eif.verify import verify
from nitroctl.nitro_cli import images
from nitroctl.toolchain import guest
from nitroctl.toolchain import prebuilt as prebuilt_kernel

REG, DIR, LNK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
BASE = {"dev", "proc", "run", "sys", "tmp", "var"}
# What linuxkit, of which AWS's builder is made, writes there.
HOSTS = b"""\
127.0.0.1       localhost
::1     localhost ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""
ETC = {"etc/hosts": HOSTS, "etc/mtab": b"/proc/mounts"}


def contents(application: compose.Application) -> dict[str, cpiomodel.Item]:
    """The root file system as the kernel will see it, but for the mount points and AWS's files in /etc that
    every image gets."""
    sink = Memory()
    compose._write_application(sink, application)
    items = {i.name.decode("utf-8", "surrogateescape"): i for i in cpiomodel.read(sink.data)}
    names = list(items)
    for name in names:  # folders first, or the kernel cannot make what is in them
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    inside = {n.removeprefix("rootfs/"): i for n, i in items.items() if n.startswith("rootfs/")}
    found = {n: i for n, i in inside.items() if n not in BASE and i.data != ETC.get(n)}
    if "etc" in found and not any(n.startswith("etc/") for n in found):
        del found["etc"]
    return found


def files(application: compose.Application) -> dict[str, bytes | None]:
    """name -> content, a link's target, or None for a folder."""
    found = contents(application)
    by_inode = {i.ino: i.data for i in found.values() if i.data}
    return {n: None if stat.S_ISDIR(i.mode) else by_inode.get(i.ino, b"") for n, i in found.items()}


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    (tmp_path / "bzImage").write_bytes(model.bzimage())
    (tmp_path / "init").write_bytes(b"init")
    return compose.Bootstrap(compose.Kernel(tmp_path / "bzImage"), tmp_path / "init", "quiet")


def opened(path: Path, *layers: bytes, **config: Any) -> dict[str, bytes | None]:
    return files(compose.from_image(im.docker(path / "app.tar", layers, **config)))


APP = im.entry("app", b"binary", mode=0o755)


# ---- kinds of images ----


@pytest.mark.parametrize("kind", ["docker", "oci gzip", "oci zstd", "oci plain", "folder", "docker and oci"])
def test_kinds_of_archives(tmp_path: Path, kind: str) -> None:
    layers = [im.layer(APP), im.layer(im.entry("etc"), im.entry("etc/x", b"y" * 100000))]
    path = tmp_path / "app.tar"
    packers = {"oci gzip": gzip.compress, "oci zstd": zstandard.ZstdCompressor().compress}
    if kind == "docker":
        im.docker(path, layers)
    elif kind == "folder":
        im.folder(path, im.oci_files(layers, [gzip.compress(data) for data in layers]))
    elif kind == "docker and oci":
        parts = im.oci_files(layers, layers)
        config = next(n for n, d in parts.items() if b"diff_ids" in d)
        names = [f"blobs/sha256/{im.digest(data)}" for data in layers]
        manifest = [{"Config": config, "RepoTags": ["app:1"], "Layers": names}]
        im.archive(path, parts | {"manifest.json": json.dumps(manifest).encode()})
    else:
        im.oci(path, layers, packer=packers.get(kind, bytes))
    application = compose.from_image(path)
    assert files(application) == {"app": b"binary", "etc": None, "etc/x": b"y" * 100000}
    assert application.cmd == ("/app", "x")
    assert application.name == "app" and re.fullmatch("[0-9a-f]{64}", application.version)


# ---- layers ----


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
    ("is no folder", im.entry("app/x", b"x")),
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
    with pytest.raises(NitroError, match="32 bits"):
        compose.compose(compose.from_image(image), start, tmp_path / "o", compose.Options())
    assert not (tmp_path / "o").exists()


# ---- damage ----


def lying(size: int) -> bytes:
    """A layer whose last entry claims more than there is."""
    info, _ = im.entry("liar", b"")
    info.size = size
    return im.layer(APP)[:1024] + info.tobuf(tarfile.GNU_FORMAT) + b"short"


@pytest.mark.parametrize("size", [100000, 1 << 40])
def test_a_layer_that_lies_about_a_size(tmp_path: Path, start: compose.Bootstrap, size: int) -> None:
    for packer in (bytes, gzip.compress, zstandard.ZstdCompressor().compress):
        image = im.oci(tmp_path / "a.tar", [lying(size)], packer=packer)
        with pytest.raises(NitroError, match="layer 1 of 1"):
            application = compose.from_image(image)
            compose.compose(application, start, tmp_path / "o", compose.Options())
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("damage", ["size", "checksum", "cut"])
def test_a_header_that_is_none_is_not_the_end(tmp_path: Path, damage: str) -> None:
    """Also in a layer whose digest is that of the damaged bytes: its maker may lie."""
    one, two = im.layer(APP)[:1024], im.layer(im.entry("two", b"2" * 600))
    header = bytearray(two)
    if damage == "checksum":
        header[100] ^= 1
    elif damage == "size":  # the next header would be within the content
        info, _ = im.entry("two", b"")
        info.size = 100
        header[:512] = info.tobuf(tarfile.GNU_FORMAT)
    layer = one + (two[:100] if damage == "cut" else bytes(header))
    for packer in (bytes, gzip.compress):
        with pytest.raises(NitroError, match="layer 1 of 1 .* is damaged: .* header at"):
            compose.from_image(im.oci(tmp_path / "a.tar", [layer], packer=packer))


def test_a_header_that_asks_for_memory(tmp_path: Path) -> None:
    """A long name of 4 GiB, in a layer that could deliver it."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    layer = im.layer(APP)[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)
    image = im.oci(tmp_path / "a.tar", [layer])
    with pytest.raises(NitroError, match="4294967296"):
        compose.from_image(image)


@pytest.mark.parametrize("packer", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_damaged_layer(tmp_path: Path, start: compose.Bootstrap, packer: Any) -> None:
    """A flipped bit anywhere in a layer is found by its digest at the latest."""
    layer = im.layer(APP, im.entry("data", os.urandom(5000)))
    parts = im.oci_files([layer], [packer(layer)])
    name = max(parts, key=lambda n: len(parts[n]))
    for at in range(0, len(parts[name]), len(parts[name]) // 40):
        damaged = bytearray(parts[name])
        damaged[at] ^= 4
        image = im.archive(tmp_path / "a.tar", parts | {name: bytes(damaged)})
        with pytest.raises(NitroError, match="layer 1 of 1"):
            compose.compose(compose.from_image(image), start, tmp_path / "o", compose.Options())
        assert not (tmp_path / "o").exists()


def test_a_damaged_docker_layer(tmp_path: Path, start: compose.Bootstrap) -> None:
    """There the configuration has the digests."""
    image = im.docker(tmp_path / "a.tar", [im.layer(APP, im.entry("data", b"needle" * 100))])
    image.write_bytes(image.read_bytes().replace(b"needleneedle", b"needleNeedle", 1))
    with pytest.raises(NitroError, match="layer 1 of 1.*damaged"):
        compose.compose(compose.from_image(image), start, tmp_path / "o", compose.Options())


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.data())
def test_any_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Random bytes changed anywhere in an archive: a NitroError or an image, nothing else."""
    folder = tmp_path_factory.mktemp("damage")
    layers = [im.layer(APP, im.entry("d"), im.entry("d/x", b"x" * 600), im.hardlink("y", "d/x"))]
    make = data.draw(st.sampled_from([im.docker, im.oci]))
    path = make(folder / "a.tar", layers)
    image = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(image) - 1))
        image[at : at + 2] = data.draw(st.binary(max_size=4))
    path.write_bytes(image)
    try:
        contents(compose.from_image(path))
    except NitroError:
        pass


def bad_archives(folder: Path) -> list[tuple[str, Path]]:
    layer = im.layer(APP)
    oci = im.oci_files([layer], [layer])
    manifest = next(n for n, d in oci.items() if b'"layers"' in d and b"diff_ids" not in d)
    blob = next(n for n in oci if n.endswith(im.digest(layer)))
    index = json.loads(oci["index.json"])
    arm = [m | {"platform": {"os": "linux", "architecture": "arm64"}} for m in index["manifests"]]
    deep = b"[" * 100000

    def tar(name: str, parts: dict[str, bytes]) -> Path:
        return im.archive(folder / name, parts)

    damaged = bytearray(tar("z1.tar", {"first": b"x", "index.json": b"{}"}).read_bytes())
    damaged[1024 + 100] ^= 1  # in the second header
    packed = gzip.compress(tar("z0.tar", oci).read_bytes())
    return [
        ("no container image", tar("empty.tar", {"x": b""})),
        (r"as a whole \(gzip", im.folder(folder, {"z.tar": packed}) / "z.tar"),
        (r"as a whole \(xz", im.folder(folder, {"z.tar.xz": lzma.compress(packed)}) / "z.tar.xz"),
        ("lacks blobs", tar("a.tar", {n: d for n, d in oci.items() if n != blob})),
        ("lacks blobs", tar("b.tar", {n: d for n, d in oci.items() if n != manifest})),
        ("there are", tar("c.tar", oci | {blob: layer[:-1]})),
        ("digest", tar("d.tar", oci | {manifest: oci[manifest].replace(b"2", b"3", 1)})),
        ("linux/arm64", tar("f.tar", oci | {"index.json": json.dumps({"manifests": arm}).encode()})),
        ("holds no image", tar("e.tar", oci | {"index.json": b'{"manifests":[]}'})),
        ("not JSON", tar("g.tar", oci | {"index.json": deep})),
        ("not JSON", tar("h.tar", {"manifest.json": b"\xff"})),
        ("no manifests", tar("i.tar", {"index.json": b"{}"})),
        ("lists no image", tar("j.tar", {"manifest.json": b"{}"})),
        ("no Config", tar("k.tar", {"manifest.json": b"[{}]"})),
        ("4194304", tar("l.tar", {"manifest.json": b" " * (1 << 23)})),
        ("linux/arm64", im.docker(folder / "m.tar", [layer], architecture="arm64")),
        ("no list of texts", im.docker(folder / "n.tar", [layer], run={"Cmd": "x"})),
        ("neither CMD nor", im.docker(folder / "o.tar", [layer], run={})),
        ("cannot read", folder / "gone.tar"),
        ("neither a tar", im.folder(folder, {"p.tar": b"hello"}) / "p.tar"),
        ("neither a tar", im.folder(folder, {"q.tar": b".eif" * 1000}) / "q.tar"),
        ("damaged", im.folder(folder, {"r.tar": bytes(damaged)}) / "r.tar"),
    ]


def test_archives_that_are_no_images(tmp_path: Path) -> None:
    for what, path in bad_archives(tmp_path):
        with pytest.raises(NitroError, match=what):
            compose.from_image(path)


# ---- references ----

# Does what `skopeo copy ... SOURCE oci:FOLDER:NAME` does, for the one image in the folder SKOPEO_IMAGE.
SKOPEO = """#!/usr/bin/env python3
import json, os, shutil, sys
command, *options, source, target = sys.argv[1:]
assert command == "copy" and set(options) == {"--override-os=linux", "--override-arch=amd64"}, sys.argv
if "gone" in source:
    sys.exit("FATA[0000] manifest unknown")
print("Copying blob 1")
transport, folder, name = target.split(":", 2)
assert transport == "oci"
shutil.copytree(os.environ["SKOPEO_IMAGE"], folder)
with open(folder + "/index.json") as f:
    index = json.load(f)
index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": name}
with open(folder + "/index.json", "w") as f:
    json.dump(index, f)
"""


@pytest.fixture
def skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A skopeo that knows one image; returns the folder where it is to be put."""
    program = tmp_path / "bin" / "skopeo"
    program.parent.mkdir()
    program.write_text(SKOPEO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SKOPEO_IMAGE", str(tmp_path / "layout"))
    (tmp_path / "scratch").mkdir()
    layers = [im.layer(APP)]
    im.folder(tmp_path / "layout", im.oci_files(layers, [gzip.compress(layers[0])]))
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    "text, name",
    [
        ("docker://alpine", "alpine"), ("docker://localhost:5000/team/app:1.2", "localhost:5000/team/app"),
        ("docker://a/b@sha256:" + "0" * 64, "a/b"), ("docker-daemon:app:latest", "app"),
        ("containers-storage:localhost/app", "localhost/app"),
    ],
)  # fmt: skip
def test_images_by_reference(skopeo: Path, text: str, name: str) -> None:
    with reference.fetched(text, skopeo) as found:
        application = compose.from_image(found.path)
        assert (application.name, files(application)) == (name, {"app": b"binary"})
        assert skopeo in found.path.parents
    assert not list(skopeo.iterdir())


def test_references_that_are_paths(skopeo: Path, tmp_path: Path) -> None:
    """Those need no skopeo."""
    layout = tmp_path / "layout"
    for text in (str(layout), f"oci:{layout}", f"oci-archive:{layout}", f"docker-archive:{layout}"):
        with reference.fetched(text, skopeo) as found:
            assert found == reference.Located(layout)


def test_what_skopeo_cannot_fetch(skopeo: Path) -> None:
    with pytest.raises(NitroError, match="manifest unknown") as e, reference.fetched("docker://gone", skopeo):
        pass
    assert "skopeo login" in str(e.value.hint)
    assert not list(skopeo.iterdir())


def test_without_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NitroError, match="takes skopeo") as e, reference.fetched("docker://alpine"):
        pass
    assert "apt-get install skopeo" in str(e.value.hint)
    with pytest.raises(NitroError, match="cannot read") as e:
        compose.from_image(Path("alpine"))
    assert "docker://alpine" in str(e.value.hint)


# ---- what runs ----

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/sh\n"
GROUP = b"root:x:0:\nweb:x:34:\ndata:x:50:web,root2\nmore:x:51:x,web\n"


def running(folder: Path, run: dict[str, Any], *entries: Any, aws_cmd: bool = False) -> compose.Application:
    layer = im.layer(
        APP, im.entry("etc/passwd", PASSWD), im.entry("etc/group", GROUP), im.entry("srv/web"),
        im.entry("usr/bin/tool", b"#!", mode=0o755), im.entry("usr/bin/plain", b"", mode=0o644), *entries,
    )  # fmt: skip
    return compose.from_image(im.docker(folder / "app.tar", [layer], run=run), aws_cmd=aws_cmd)


def test_entrypoint_and_cmd(tmp_path: Path) -> None:
    """Joined, as in a container; AWS's way takes CMD alone."""
    both = {"Entrypoint": ["/app", "-a"], "Cmd": ["b c"]}
    assert running(tmp_path, both).cmd == ("/app", "-a", "b c")
    assert running(tmp_path, both, aws_cmd=True).cmd == ("b c",)
    assert running(tmp_path, {"Entrypoint": ["/app"]}, aws_cmd=True).cmd == ("/app",)
    assert running(tmp_path, {"Cmd": ["/app"]}).cmd == ("/app",)


def test_programs_are_found_in_the_images_path(tmp_path: Path) -> None:
    """init looks in AWS's folders alone, so it is told the place; the first word stays what it is."""
    found = running(tmp_path, {"Cmd": ["tool", "x"], "Env": ["PATH=/none:/usr/bin"]})
    assert (found.cmd, found.program, found.warnings) == (("tool", "x"), "/usr/bin/tool", ())
    assert running(tmp_path, {"Cmd": ["tool"]}).program == "/usr/bin/tool"
    for missing in ("plain", "gone"):
        found = running(tmp_path, {"Cmd": [missing]})
        assert (found.cmd, found.program) == ((missing,), "") and missing in found.warnings[0]
    found = running(tmp_path, {"Cmd": ["./tool"], "WorkingDir": "/usr/bin"})
    assert (found.cmd, found.program, found.warnings) == (("./tool",), "", ())
    assert running(tmp_path, {"Cmd": ["tool"]}, aws_cmd=True).program == ""


def test_aws_init_is_given_the_place_as_first_word(tmp_path: Path, start: compose.Bootstrap) -> None:
    """It knows no file `program`; ours does."""
    application = running(tmp_path, {"Cmd": ["tool", "x"], "Env": ["PATH=/usr/bin"]})
    for aws, expected in ((False, {b"cmd": b"tool\nx\n", b"program": b"/usr/bin/tool\n"}),
                          (True, {b"cmd": b"/usr/bin/tool\nx\n"})):  # fmt: skip
        compose.compose(application, replace(start, aws=aws), tmp_path / "o", compose.Options())
        out = {p.name: p.read_bytes() for p in extract(tmp_path / "o", tmp_path / f"out-{aws}")}
        items = {i.name: i.data for i in cpiomodel.read(out["ramdisk-1.cpio"])}
        assert {name: items[name] for name in items if name in (b"cmd", b"program")} == expected


def test_environment(tmp_path: Path) -> None:
    run = {"Cmd": ["/app"], "Env": ["A=b=c", "PATH=/x"]}
    assert running(tmp_path, run).env == ("A=b=c", "PATH=/x", "HOME=/root")
    assert running(tmp_path, {"Cmd": ["/app"]}).env == (f"PATH={compose.PATH}", "HOME=/root")
    assert running(tmp_path, {"Cmd": ["/app"], "Env": ["A=b"]}, aws_cmd=True).env == ("A=b",)


@pytest.mark.parametrize(
    "user, numbers, home",
    [
        ("", "", "/root"), ("root", "", "/root"), ("0:0", "", "/root"), ("web", "33 34 50 51", "/srv/web"),
        ("33", "33 34 50 51", "/srv/web"), ("web:data", "33 50", "/srv/web"), ("web:99", "33 99", "/srv/web"),
        ("1000", "1000 0", "/"), ("1000:1001", "1000 1001", "/"), ("0:34", "0 34", "/root"),
    ],
)  # fmt: skip
def test_users(tmp_path: Path, user: str, numbers: str, home: str) -> None:
    found = running(tmp_path, {"Cmd": ["/app"], "User": user})
    assert found.user == numbers
    assert f"HOME={home}" in found.env


@pytest.mark.parametrize("user", ["nobody", "web:nogroup", "99999999999", "4294967295", "-1", "\u0663"])
def test_users_that_are_not_there(tmp_path: Path, user: str) -> None:
    with pytest.raises(NitroError, match="runs as"):
        running(tmp_path, {"Cmd": ["/app"], "User": user})


def test_working_directories(tmp_path: Path) -> None:
    """Made if it is not there, as container runtimes do."""
    found = running(tmp_path, {"Cmd": ["/app"], "WorkingDir": "/new/folder"})
    assert found.cwd == "/new/folder"
    assert contents(found)["new/folder"].mode == DIR | 0o755
    assert running(tmp_path, {"Cmd": ["/app"], "WorkingDir": "/"}).cwd == ""
    for bad in ("relative", "/app/x"):
        with pytest.raises(NitroError):
            running(tmp_path, {"Cmd": ["/app"], "WorkingDir": bad})


def test_what_init_cannot_be_given(tmp_path: Path) -> None:
    for run, what in (
        ({"Cmd": ["/app", "a\0b"]}, "NUL"), ({"Cmd": ["/app"], "Env": ["A=\0"]}, "NUL"),
        ({"Cmd": ["/app"], "WorkingDir": "/a\nb"}, "line break"),
    ):  # fmt: skip
        with pytest.raises(NitroError, match=what):
            running(tmp_path, run)


PEM = "KEY=-----BEGIN X-----\nMII=\n-----END X-----\n"


def test_line_breaks(tmp_path: Path, start: compose.Bootstrap) -> None:
    """Our init takes them, from files of its own; what has none is as AWS has it."""
    application = running(tmp_path, {"Cmd": ["/app", "a\nb", "c"], "Env": ["A=1", PEM, "HOME=/"]})
    compose.compose(application, start, tmp_path / "o", compose.Options())
    items = {i.name: i.data for i in cpiomodel.read(extract(tmp_path / "o", tmp_path / "x")[-1].read_bytes())}
    path = b"PATH=" + compose.PATH.encode()
    assert (items[b"cmd"], items[b"cmd0"]) == (b"/app\nc\n", b"/app\0a\nb\0c\0")
    assert items[b"env"] == path + b"\nA=1\nHOME=/\n"
    assert items[b"env0"] == path + b"\0A=1\0" + PEM.encode() + b"\0HOME=/\0"


@pytest.mark.parametrize(
    "run, what",
    [
        ({"Cmd": ["/app"], "Env": ["A=1", PEM]}, "the variable 'KEY' has a line break, which AWS's init"),
        ({"Cmd": ["/app", "a\nb"]}, "the argument .* has a line break, which AWS's init"),
    ],
)
def test_line_breaks_and_awss_init(
    tmp_path: Path, start: compose.Bootstrap, run: dict[str, Any], what: str
) -> None:
    with pytest.raises(NitroError, match=what):
        compose.compose(running(tmp_path, run), replace(start, aws=True), tmp_path / "o", compose.Options())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("key", ["Cmd", "Env", "WorkingDir", "User"])
def test_texts_that_are_not_unicode(tmp_path: Path, key: str) -> None:
    """JSON can escape half of a surrogate pair."""
    run: dict[str, Any] = {"Cmd": ["/app"]}
    run[key] = ["/app", "A=\ud800"] if key in ("Cmd", "Env") else "/\ud800"
    with pytest.raises(NitroError, match="is not JSON.*surrogates"):
        running(tmp_path, run)


def etc_of(folder: Path, *entries: Any) -> tuple[dict[str, tuple[int, bytes]], tuple[str, ...]]:
    """Mode and content of what is in /etc, and the notes."""
    image = im.docker(folder / "app.tar", [im.layer(APP, *entries)], run={"Cmd": ["/app"]})
    application = compose.from_image(image)
    sink = Memory()
    compose._write_application(sink, application)
    found = {i.name.decode(): (i.mode, i.data) for i in cpiomodel.read(sink.data)}
    return {n: v for n, v in found.items() if "etc/" in n}, application.notes


def test_etc_has_awss_files_where_the_image_has_none(tmp_path: Path) -> None:
    """So that `localhost` resolves in Debian's and Ubuntu's images. What is there stays, and is told."""
    hosts = {"rootfs/etc/hosts": (REG | 0o644, HOSTS)}
    mtab = {"rootfs/etc/mtab": (LNK | 0o777, b"/proc/mounts")}
    assert etc_of(tmp_path) == (hosts | mtab, ())
    assert etc_of(tmp_path, im.symlink("etc/mtab", "/proc/mounts")) == (hosts | mtab, ())
    resolv = {"rootfs/etc/resolv.conf": (LNK | 0o777, b"/run/resolvconf/resolv.conf")}
    link = im.symlink("etc/resolv.conf", "/run/resolvconf/resolv.conf")
    assert etc_of(tmp_path, link) == (hosts | mtab | resolv, ())
    own, notes = etc_of(tmp_path, im.entry("etc/hosts", b"1 me"), im.entry("etc/resolv.conf", b""))
    assert own == mtab | {
        "rootfs/etc/hosts": (REG | 0o644, b"1 me"),
        "rootfs/etc/resolv.conf": (REG | 0o644, b""),
    }
    assert notes == (
        "kept the image's own /etc/hosts and /etc/resolv.conf, which AWS's build-enclave replaces (--as-aws)",
    )
    # Dangling links are there as well; what is no folder is left as it is; a link to one is followed.
    root = im.folder(tmp_path / "root", {"app": b"x", "etc/mtab": b"own"})
    application = compose.from_directory(root, ("/app",))
    sink = Memory()
    compose._write_application(sink, application)
    items = {i.name.decode(): i.data for i in cpiomodel.read(sink.data)}
    assert (items["rootfs/etc/hosts"], items["rootfs/etc/mtab"]) == (HOSTS, b"own")
    assert "own /etc/mtab, which" in application.notes[0]
    found, (note,) = etc_of(tmp_path, im.symlink("etc/hosts", "nowhere"), im.symlink("etc/mtab", "x"))
    assert found["rootfs/etc/hosts"] == (LNK | 0o777, b"nowhere") and "/etc/hosts and /etc/mtab" in note
    assert etc_of(tmp_path, im.entry("etc", b"file")) == ({}, ())
    assert etc_of(tmp_path, im.entry("usr/etc"), im.symlink("etc", "usr/etc"))[0] == {
        name.replace("rootfs", "rootfs/usr"): item for name, item in (hosts | mtab).items()
    }


def test_a_mount_point_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(NitroError, match="/proc"):
        running(tmp_path, {"Cmd": ["/app"]}, im.entry("proc", b"x"))


def test_file_capabilities_are_a_warning(tmp_path: Path) -> None:
    ping = im.entry("ping", b"p", pax_headers={"SCHILY.xattr.security.capability": "x"})
    assert "1 files" in running(tmp_path, {"Cmd": ["/app"]}, ping).warnings[0]


# ---- the file ----


def test_the_eif(tmp_path: Path, start: compose.Bootstrap) -> None:
    """Two ramdisks as AWS has them, with what init needs, and metadata as nitro-cli writes them."""
    application = running(tmp_path, {"Cmd": ["/app"], "User": "web", "WorkingDir": "/srv/web"})
    made = compose.compose(application, start, tmp_path / "o.eif", compose.Options(custom={"k": 1}))
    assert made.measurements == verify(tmp_path / "o.eif")
    assert made.warnings == ()
    out = {p.name: p.read_bytes() for p in extract(tmp_path / "o.eif", tmp_path / "out")}
    assert [i.name for i in cpiomodel.read(out["ramdisk-0.cpio"])] == [b"dev", b"init"]
    items = {i.name: i for i in cpiomodel.read(out["ramdisk-1.cpio"])}
    assert [n for n in items if b"/" not in n] == [b"cmd", b"cwd", b"env", b"rootfs", b"user"]
    assert items[b"cmd"].data == b"/app\n" and items[b"cwd"].data == b"/srv/web\n"
    assert items[b"user"].data == b"33 34 50 51\n"
    assert items[b"rootfs/tmp"].mode == DIR | 0o1777
    value = describe(tmp_path / "o.eif").to_json()
    assert (value["ImageName"], len(value["ImageVersion"])) == ("app", 64)
    assert value["Metadata"]["DockerInfo"]["Config"]["User"] == "web"
    assert value["Metadata"]["k"] == 1
    assert out["cmdline"] == b"quiet"


def test_compressed_ramdisks(tmp_path: Path, start: compose.Bootstrap) -> None:
    application = running(tmp_path, {"Cmd": ["/app"]})
    for name in ("a", "b"):
        compose.compose(application, start, tmp_path / name, compose.Options(compress=True))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    out = extract(tmp_path / "a", tmp_path / "out")
    assert [p.name for p in out[3:]] == ["ramdisk-0.cpio.gz", "ramdisk-1.cpio.gz"]
    assert cpiomodel.read(gzip.decompress(out[3].read_bytes()))[1].data == b"init"


def test_compressed_ramdisks_need_memory_all_the_same(
    tmp_path: Path, start: compose.Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they unpack to does not follow the file's size, which the default memory does."""

    def warnings(mib: int, *, compress: bool) -> tuple[str, ...]:
        image = im.oci(tmp_path / "a.tar", [im.layer(APP, im.entry("zeros", bytes(mib << 20)))])
        options = compose.Options(compress=compress)
        return compose.compose(compose.from_image(image), start, tmp_path / "o", options).warnings

    # An enclave of 512 MiB was seen to unpack 240 MiB, and not 250.
    assert compose._memory_warnings(1 << 20, 240 << 20) == []
    assert compose._memory_warnings(1 << 20, 250 << 20) != []
    monkeypatch.setattr("nitroctl.base.memory.MIN_MEMORY_MIB", 40)
    assert warnings(12, compress=False) == ()
    assert warnings(8, compress=True) == ()
    (warning,) = warnings(12, compress=True)
    assert "13 MiB when the enclave has unpacked them" in warning
    assert "default memory of 40 MiB" in warning and warning.endswith("--memory 52")


@pytest.mark.parametrize("way", ["image", "directory"])
def test_a_full_disk_is_not_a_damaged_image(
    tmp_path: Path, start: compose.Bootstrap, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The error names the file that could not be written, not the layer that was being read."""
    data = random.Random(1).randbytes(8 << 20)
    if way == "image":
        application = compose.from_image(im.oci(tmp_path / "a.tar", [im.layer(APP, im.entry("x", data))]))
    else:
        application = compose.from_directory(im.folder(tmp_path / "d", {"app": data}), ("/app",))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NitroError, match=f"^cannot write {tmp_path}/o: No space left on device$"):
        compose.compose(application, start, tmp_path / "o", compose.Options())
    assert not (tmp_path / "o").exists()


def folder_tree(path: Path) -> Path:
    root = path / "root"
    im.folder(root, {"bin/app": b"a", "etc/passwd": PASSWD, "etc/group": GROUP})
    (root / "bin" / "app").chmod(0o4711)
    (root / "tmp").mkdir()
    (root / "link").symlink_to("/bin/app")
    return root


def test_from_a_directory(tmp_path: Path, start: compose.Bootstrap) -> None:
    """It is started as a container would be."""
    root = folder_tree(tmp_path)
    application = compose.from_directory(root, ("app", "x"), env=("A=b",), cwd="/new", user="web")
    found = contents(application)
    assert found["bin/app"].mode == REG | 0o4711 and found["link"].data == b"/bin/app"
    assert found["new"].mode == DIR | 0o755
    assert (found["bin/app"].uid, application.name) == (0, "root")
    assert application.cmd == ("app", "x") and application.warnings == ()
    assert application.program == "/bin/app"
    assert application.env == (f"PATH={compose.PATH}", "A=b", "HOME=/srv/web")
    assert (application.user, application.cwd) == ("33 34 50 51", "/new")
    assert compose.compose(application, start, tmp_path / "o", compose.Options())
    assert verify(tmp_path / "o")
    assert "no program" in compose.from_directory(root, ("/bin/gone",)).warnings[0]


@pytest.mark.parametrize(
    "what, given",
    [
        ("what to run", {"cmd": ()}), ("no user", {"user": "nobody"}), ("no group", {"user": "1:x"}),
        ("NAME=VALUE", {"env": ("A",)}), ("NAME=VALUE", {"env": ("=b",)}), ("not absolute", {"cwd": "bin"}),
        ("no folder", {"cwd": "/bin/app/x"}),
    ],
)  # fmt: skip
def test_directories_that_cannot_be_started(tmp_path: Path, what: str, given: dict[str, Any]) -> None:
    with pytest.raises(NitroError, match=what):
        compose.from_directory(folder_tree(tmp_path), **{"cmd": ("/bin/app",), **given})


def test_what_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that the caller may not list is an error. (Root may list all, hence the fake.)"""
    root = folder_tree(tmp_path)
    real = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "etc":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NitroError, match="etc: Permission denied"):
        compose.from_directory(root, ("/bin/app",))


def test_the_kernel_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's where ours was not built, also for `nitro-cli build-enclave`."""

    def locate(what: str, arch: str) -> Path:
        raise NitroError("there is none")

    prebuilt = prebuilt_kernel.Prebuilt(
        tmp_path / "bzImage", im.folder(tmp_path / "modules", {"modules": b""}), "6.1", ("a",)
    )
    monkeypatch.setattr(guest, "locate", locate)
    monkeypatch.setattr("nitroctl.toolchain.prebuilt.fetch", lambda **_: prebuilt)
    monkeypatch.setattr(guest, "build_init", lambda *_: tmp_path)
    monkeypatch.setattr("nitroctl.toolchain.aws_blobs.INSTALLED", tmp_path / "none")
    monkeypatch.delenv("NITRO_CLI_BLOBS", raising=False)
    for start in (compose.bootstrap(), images._bootstrap()):
        assert (start.kernel.image, start.kernel.acpi) == (tmp_path / "bzImage", True)
        assert start.kernel.marks == {"acpi": True, "lacks": ["a"]}
    with pytest.raises(NitroError, match="there is none"):
        compose.bootstrap("own")


def test_blobs(tmp_path: Path) -> None:
    """AWS's folder: kernel, init and module; its command line, trimmed; a warning where its init cannot."""
    parts = {"bzImage": model.bzimage(), "init": b"aws", "nsm.ko": b"ko"}
    blobs = im.folder(tmp_path / "blobs", parts | {"cmdline": b"console=ttyS0 reboot=k \n"})
    application = running(tmp_path, {"Cmd": ["/app"], "User": "web"})
    made = compose.compose(application, compose.from_blobs(blobs), tmp_path / "o", compose.Options())
    assert "USER" in made.warnings[0]
    out = {p.name: p.read_bytes() for p in extract(tmp_path / "o", tmp_path / "out")}
    assert out["cmdline"] == b"console=ttyS0 reboot=k"
    assert [(i.name, i.mode) for i in cpiomodel.read(out["ramdisk-0.cpio"])] == [
        (b"dev", DIR | 0o755), (b"init", REG | 0o755), (b"nsm.ko", REG | 0o755),
    ]  # fmt: skip
    (blobs / "init").unlink()
    with pytest.raises(NitroError, match="lacks init"):
        compose.from_blobs(blobs)


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as e:
        main(["eif", *map(str, argv)])
    assert isinstance(e.value.code, int)
    return e.value.code, capsys.readouterr().err


def test_command(tmp_path: Path, start: compose.Bootstrap, capsys: pytest.CaptureFixture[str]) -> None:
    image = im.docker(tmp_path / "app.tar", [im.layer(APP)])
    im.folder(tmp_path, {"cmdline": b"quiet"})
    argv: list[str | Path] = ["build", "--image", image, "--blobs", tmp_path, "-o", tmp_path / "o.eif"]
    assert run(capsys, *argv)[0] == 0
    assert verify(tmp_path / "o.eif")
    for wrong in (["--cmd", "x"], ["--ramdisk", image], ["--directory", tmp_path], ["--kernel", "own"],
                  ["--no-kernel-check"]):  # fmt: skip
        assert run(capsys, *argv, *wrong)[0] == 2, wrong
    parts = ["--kernel", "x", "--cmdline", "c"]
    assert run(capsys, "build", "-o", tmp_path / "o.eif", *parts, "--compress")[0] == 2
    assert run(capsys, "build", "-o", tmp_path / "o.eif")[0] == 2


# ---- the same everywhere, and small ----

CHILD = r"""
import os, re, sys
from pathlib import Path
from nitroctl.base import progress
from nitroctl.toolchain import guest
from nitroctl.toolchain import prebuilt as prebuilt_kernel
from nitroctl.eif import compose, reference
folder, given, out = map(Path, sys.argv[1:4])

def make(out):
    start = compose.Bootstrap(compose.Kernel(folder / "bzImage"), folder / "init", "quiet")
    if (given / "app").exists():
        application = compose.from_directory(given, ("/app",))
    else:
        application = compose.from_image(given)
    with progress.quiet():
        compose.compose(application, start, out, compose.Options(name="x", compress="compress" in sys.argv))

if "nobody" in sys.argv:
    make(Path(f"{out}.first"))  # imports what it takes, where nobody may read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
make(out)
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def child(*arguments: str | Path, user: bool = False, **settings: str) -> int:
    """Build in a process of its own; with `user` that of somebody else. Returns its most memory in KiB."""
    argv: list[str | Path] = [sys.executable, "-c", CHILD, *arguments]
    if user:  # root becomes nobody; others become whom the kernel shows in a name space that knows no users
        argv = [*argv, "nobody"] if os.geteuid() == 0 else ["unshare", "--user", *argv]
    umask = int(settings.pop("umask", "022"), 8)
    done = subprocess.run(argv, env={**os.environ, **settings}, umask=umask, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"TZ": "Asia/Kathmandu", "umask": "077", "PYTHONHASHSEED": "1"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"user": True, "HOME": "/", "USER": "somebody", "umask": "000"},
]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can get at, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="nitroctl-test-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def start_in(folder: Path) -> None:
    im.folder(folder, {"bzImage": model.bzimage(), "init": b"init"})


@pytest.mark.parametrize("option", ["plain", "compress"])
def test_the_same_bytes_anywhere(open_folder: Path, option: str) -> None:
    """Time zone, locale, umask, user."""
    start_in(open_folder)
    layers = [im.layer(APP, im.entry("b", b"1"), im.entry("a", b"2")), im.layer(im.entry("\u00e9", b"3"))]
    image = im.oci(open_folder / "app.tar", layers)
    made = []
    for i, setting in enumerate(SETTINGS):
        child(open_folder, image, open_folder / f"{i}", option, **setting)
        made.append((open_folder / f"{i}").read_bytes())
    assert made[1:] == made[:1] * (len(SETTINGS) - 1)


def test_the_same_bytes_from_any_copy_of_a_folder(open_folder: Path) -> None:
    """Whoever copied it, when, and in which order the file system has the names."""
    start_in(open_folder)
    names = ["app", "d/one", "d/two", "e/\u00e9", "e/f/g", "z"]
    made = []
    for i, setting in enumerate(SETTINGS):
        copy = open_folder / f"copy-{i}"
        im.folder(copy, {name: name.encode() for name in (names[::-1] if i % 2 else names)})
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.name == "app" else 0o644)
            os.utime(path, (i * 10**8, i * 10**8))
            if setting.get("user") and os.geteuid() == 0:
                os.chown(path, 65534, 65534)
        child(open_folder, copy, open_folder / f"{i}", **setting)
        made.append((open_folder / f"{i}").read_bytes())
    assert made[1:] == made[:1] * (len(SETTINGS) - 1)


def test_names_that_are_not_unicode(tmp_path: Path, start: compose.Bootstrap) -> None:
    """Also that of the folder, which becomes the image's."""
    folder = im.folder(tmp_path / "caf\udce9", {"app": b"a", "\udcff": b"x"})
    application = compose.from_directory(folder, ("/app",))
    assert files(application) == {"app": b"a", "\udcff": b"x"}
    compose.compose(application, start, tmp_path / "o", compose.Options())
    assert describe(tmp_path / "o").to_json()["ImageName"] == "caf?"


def sparse_layer(path: Path, size: int) -> None:
    """A tar of one GNU sparse file of `size` bytes: 5 at the begin and 5 at the end, holes between."""
    info, _ = im.entry("app", b"", mode=0o755)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 1024  # bytes stored: two runs, each filling a block
    header[156:157] = b"S"
    for i, (offset, count) in enumerate(((0, 512), (size - 512, 512))):
        header[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, count)
    header[482:483] = b"\0"
    header[483:495] = b"\x80" + (size).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    path.write_bytes(bytes(header) + b"begin".ljust(512, b"\0") + b"end".rjust(512, b"\0") + bytes(1024))


def test_many_files_are_cheap(tmp_path: Path, start: compose.Bootstrap) -> None:
    """A hundred thousand files, as an image of some gigabytes has them, in `make soak`; else some of them.
    One more costs less than a kibibyte."""
    count = 100_000 if "NITROCTL_FUZZ_ROUNDS" in os.environ else 20_000

    def memory(count: int) -> int:
        names = (f"usr/lib/python3/dist-packages/package{i // 100}/module_{i}.py" for i in range(count))
        image = im.oci(tmp_path / "app.tar", [im.layer(*(im.entry(name, b"pass\n") for name in names))])
        return child(tmp_path, image, tmp_path / "o.eif")

    assert memory(count) < memory(1) + count and memory(count) < 150 << 10


@pytest.mark.parametrize("packer", [bytes, lambda data: gzip.compress(data, 1)], ids=["plain", "gzip"])
def test_progress_within_one_file_of_a_layer(tmp_path: Path, packer: Callable[[bytes], bytes]) -> None:
    """32 MiB that are one file: bytes are told as they are read."""
    layer = im.layer(im.entry("app", random.Random(1).randbytes(32 << 20), mode=0o755))
    opened = open_image(im.oci(tmp_path / "app.tar", [layer], packer=packer))
    size = sum(blob.size for blob in opened.layers)
    steps: list[int] = []
    read_tree(opened, steps.append)
    assert sum(steps) <= size and sum(steps) > size - (1 << 20)
    if packer is not bytes:  # else the file is passed over in one step
        assert len(steps) > 20 and max(steps) < size // 20


def test_sparse_files_are_cheap(tmp_path: Path, start: compose.Bootstrap) -> None:
    """2 GB in a layer of 3 KB: little memory, and no disk for the holes."""
    size = 2 << 30
    sparse_layer(tmp_path / "layer", size)
    image = im.oci(tmp_path / "app.tar", [(tmp_path / "layer").read_bytes()])
    assert child(tmp_path, image, tmp_path / "o.eif") < 150 << 10
    status = (tmp_path / "o.eif").stat()
    assert status.st_size > size
    assert status.st_blocks * 512 < 64 << 20
    with open(tmp_path / "o.eif", "rb") as f:
        f.seek(-600, os.SEEK_END)
        assert b"end" in f.read()


def test_the_sparse_layer_is_one(tmp_path: Path) -> None:
    """The test's own tar is one: tarfile sees the sparse file."""
    sparse_layer(tmp_path / "layer", 1 << 20)
    with tarfile.open(tmp_path / "layer") as tar:
        (member,) = tar.getmembers()
        assert member.issparse() and member.size == 1 << 20


# ---- any layers, against a model ----

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
        with pytest.raises(NitroError, match="is no folder"):
            compose.from_image(image)
    else:
        assert files(compose.from_image(image)) == expected
