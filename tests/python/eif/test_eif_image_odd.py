# SPDX-License-Identifier: MIT
"""Container images with what is rare in them: bookkeeping of aufs, links through `..`, layers of old Docker
that are links themselves, headers without an end. As AWS's builder takes them (through `docker export`) and
as we do; formats: the image specifications of Docker (v1.2) and OCI, pax(1)."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

import imagemodel as im
from imagebuilt import APP, files, opened
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose
from nitroctl.eif.export import Folder, export
from nitroctl.eif.image import open_image
from nitroctl.eif.tar import HEADERS_MAX

HEADER = 1 << 20  # bytes of one extended header that are taken


def exported(path: Path, *layers: bytes, workdir: str = "") -> set[str]:
    found = export(open_image(im.docker(path / "app.tar", layers)), workdir)
    return {name.decode() + ("/" if isinstance(node, Folder) else "") for name, node in found.walk()}


def test_what_is_aufs_s_own_is_no_file(tmp_path: Path) -> None:
    layer = im.layer(APP, im.entry("./"), im.entry(".wh..wh.aufs", b""), im.entry(".wh..wh.plnk"),
                     im.entry("d"),
                     im.entry("d/.wh..wh.orph"))  # fmt: skip
    assert opened(tmp_path, layer) == {"app": b"binary", "d": None}
    assert {"app", "d/"} <= exported(tmp_path, layer)
    assert not any("wh" in name for name in exported(tmp_path, layer))


def test_links_through_the_parent(tmp_path: Path) -> None:
    """As the kernel follows them: .. of the root is the root."""
    layer = im.layer(APP, im.entry("usr/lib"), im.entry("etc"), im.symlink("etc/lib", "../usr/./lib"),
                     im.symlink("top", "../../usr"), im.entry("etc/lib/a", b"1"),
                     im.entry("top/b", b"2"))  # fmt: skip
    found = opened(tmp_path, layer)
    assert (found["usr/lib/a"], found["usr/b"], found["etc/lib"]) == (b"1", b"2", b"../usr/./lib")
    names = exported(tmp_path, layer, workdir="etc/lib/deep/er")
    assert {"usr/lib/a", "usr/b", "etc/lib", "top", "usr/lib/deep/er/"} <= names


def test_what_docker_cannot_unpack(tmp_path: Path) -> None:
    """A device 0:0 is how the overlay driver itself marks what is gone."""
    gone = im.entry("dev/gone", None, type=tarfile.CHRTYPE, devmajor=0, devminor=0)
    with pytest.raises(NitroError, match="entry dev/gone: a character device 0:0"):
        exported(tmp_path, im.layer(APP, gone))
    other = im.entry("dev/other", None, type=tarfile.BLKTYPE, devmajor=0, devminor=0)
    assert "dev/other" in exported(tmp_path, im.layer(APP, other))


def test_a_layer_that_is_a_link_to_another(tmp_path: Path) -> None:
    """`docker save` of old wrote a layer once that an image has twice."""
    layer = im.layer(APP)
    text = im.config([layer, layer])
    manifest = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["one/layer.tar", "two/layer.tar"]}]
    path = im.archive(tmp_path / "app.tar", {
        "c.json": text, "one/layer.tar": layer, "manifest.json": json.dumps(manifest).encode()
    })  # fmt: skip
    with tarfile.open(path, "a") as tar:
        tar.addfile(im.symlink("two/layer.tar", "../one/layer.tar")[0])
    assert files(compose.from_image(path)) == {"app": b"binary"}
    with tarfile.open(path, "a") as tar:
        tar.addfile(im.symlink("three/layer.tar", "../none/layer.tar")[0])
    assert files(compose.from_image(path)) == {"app": b"binary"}


def test_headers_without_an_end(tmp_path: Path) -> None:
    """What tarfile would gather for the files to come has a limit: names for all files, one header after
    another, holes of a sparse file."""
    whole = tarfile.TarInfo.create_pax_global_header
    many = b"".join(whole({f"key{n}": "v" * (HEADER - 100)}) for n in range(HEADERS_MAX // HEADER + 2))
    one = im.entry("x", type=tarfile.GNUTYPE_LONGNAME)[0]
    one.size = 2
    nested = (one.tobuf(tarfile.GNU_FORMAT) + b"y\0".ljust(512, b"\0")) * 5000
    for data in (many, nested):
        with pytest.raises(NitroError, match=r"layer 1 of 1 .* is damaged: .*header"):
            opened(tmp_path, data + im.layer(APP))


def change(text: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(text), **changes}).encode()


def test_configurations_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = im.layer(APP)
    good = im.config([layer])
    for text, layers, words in (
        (change(good, config=["x"]), [layer], "config is not an object"),
        (good, [], "lists 0 layers, but the configuration lists 1"),
        (
            change(good, architecture="s390x"),
            [layer],
            "is an image for linux/s390x, but the enclave is x86_64",
        ),
        (change(good, os="windows"), [layer], "is an image for windows/amd64"),
    ):
        manifest = [
            {"Config": "c.json", "RepoTags": None, "Layers": [f"{n}.tar" for n in range(len(layers))]}
        ]
        named = {f"{n}.tar": data for n, data in enumerate(layers)}
        path = im.archive(
            tmp_path / "app.tar", {"c.json": text, **named, "manifest.json": json.dumps(manifest).encode()}
        )
        with pytest.raises(NitroError, match=words):
            compose.from_image(path)
    # OCI's manifests need not say for which platform they are, and list layers on their own.
    with pytest.raises(NitroError, match="has no layers"):
        compose.from_image(im.folder(tmp_path / "empty", im.oci_files([layer], [])))
    layout = im.folder(tmp_path / "layout", im.oci_files([layer], [layer]))
    monkeypatch.setattr(im, "config", lambda *_: change(good, architecture="s390x"))
    with pytest.raises(NitroError, match="is an image for linux/s390x, but the enclave is x86_64"):
        compose.from_image(im.folder(tmp_path / "other", im.oci_files([layer], [layer])))
    index = json.loads((layout / "index.json").read_bytes())
    (layout / "index.json").write_text(json.dumps({**index, "manifests": ["x"]}))
    with pytest.raises(NitroError, match="a manifest's descriptor is not an object"):
        compose.from_image(layout)


def test_what_is_no_file_and_what_a_folder_lacks(tmp_path: Path) -> None:
    layout = im.folder(tmp_path / "layout", im.oci_files([im.layer(APP)], [im.layer(APP)]))
    for blob in sorted((layout / "blobs" / "sha256").iterdir()):
        data = blob.read_bytes()
        blob.unlink()
        with pytest.raises(NitroError, match=f"lacks blobs/sha256/{blob.name}"):
            compose.from_image(layout)
        blob.write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):  # opening the pipe would wait
        with pytest.raises(NitroError, match="not a regular file"):
            compose.from_image(path)
