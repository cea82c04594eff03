# SPDX-License-Identifier: MIT
"""Container images that are damaged, lie or are none: each is an error that says where, or harmless."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import imagemodel as im
from imagebuilt import APP, bootstrap, contents
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    return bootstrap(tmp_path)


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
        ("not a container image", tar("empty.tar", {"x": b""})),
        (r"as a whole \(gzip", im.folder(folder, {"z.tar": packed}) / "z.tar"),
        (r"as a whole \(xz", im.folder(folder, {"z.tar.xz": lzma.compress(packed)}) / "z.tar.xz"),
        ("lacks blobs", tar("a.tar", {n: d for n, d in oci.items() if n != blob})),
        ("lacks blobs", tar("b.tar", {n: d for n, d in oci.items() if n != manifest})),
        ("has 10240 bytes, but it has 10239", tar("c.tar", oci | {blob: layer[:-1]})),
        ("digest", tar("d.tar", oci | {manifest: oci[manifest].replace(b"2", b"3", 1)})),
        ("linux/arm64", tar("f.tar", oci | {"index.json": json.dumps({"manifests": arm}).encode()})),
        ("contains no image", tar("e.tar", oci | {"index.json": b'{"manifests":[]}'})),
        ("not JSON", tar("g.tar", oci | {"index.json": deep})),
        ("not JSON", tar("h.tar", {"manifest.json": b"\xff"})),
        ("no manifests", tar("i.tar", {"index.json": b"{}"})),
        ("lists no image", tar("j.tar", {"manifest.json": b"{}"})),
        ("no Config", tar("k.tar", {"manifest.json": b"[{}]"})),
        ("4194304", tar("l.tar", {"manifest.json": b" " * (1 << 23)})),
        ("linux/arm64", im.docker(folder / "m.tar", [layer], architecture="arm64")),
        ("is not a list of strings", im.docker(folder / "n.tar", [layer], run={"Cmd": "x"})),
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
