# SPDX-License-Identifier: MIT
"""Container images, by path: find their parts in a file or folder.

An image is an OCI layout (a folder, or a tar of it: "oci-archive") or what `docker save` writes.
`open_image` reads manifests and configuration (OCI image specification, image-layout.md, manifest.md,
config.md; Docker image specification v1.2). Layers are only found here; `layers` merges them, `root` writes
what is left.

All of it is input from strangers: JSON is bounded, and no name leads out of the image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.eif import cpio
from nitroctl.eif.measure import CHUNK, Progress
from nitroctl.eif.tar import Member, damage, members
from nitroctl.eif.unpack import GZIP_MAGIC, ZSTD_MAGIC
from nitroctl.errors import NitroError

JSON_MAX = 4 << 20  # bytes of a manifest or configuration; registries take 4 MiB
MEMBERS_MAX = 100_000  # of an archive that holds an image

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAKE = "make one: `docker save -o app.tar IMAGE`, or `skopeo copy docker://IMAGE oci-archive:app.tar`"
# What a whole archive may be compressed with, which cannot be read in place.
_COMPRESSED = {GZIP_MAGIC: "gzip", ZSTD_MAGIC: "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}


# ---- where things are ----


@dataclass(frozen=True)
class Blob:
    """A run of bytes in a file. `digest` ("sha256:...") and `size` are checked when all of it is read."""

    path: Path
    offset: int
    size: int
    digest: str | None = None


class Slice(io.RawIOBase):
    """A blob as a file that can be read and, forwards and backwards, sought in. Progress counts how far it
    was read."""

    def __init__(self, blob: Blob, progress: Progress | None = None) -> None:
        self._fd = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
        self._blob = blob
        self._at = 0
        self._progress = progress
        self._told = 0
        self._hash: Any = hashlib.sha256() if blob.digest else None
        self._hashed = 0

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blob.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = max(0, min(len(buffer), self._blob.size - self._at))
        view = memoryview(buffer)[:room]
        n = os.preadv(self._fd, [view], self._blob.offset + self._at) if room else 0
        if self._progress and self._at + n > self._told:
            self._progress(self._at + n - self._told)
            self._told = self._at + n
        if self._hash and self._at <= self._hashed < self._at + n:
            self._hash.update(view[self._hashed - self._at : n])
            self._hashed = self._at + n
        self._at += n
        return n

    def check(self, what: str) -> None:
        """Read what is left, and compare the digest."""
        if not self._hash:
            return
        self.seek(self._hashed)
        buffer = bytearray(CHUNK)
        while self.readinto(buffer):
            pass
        found = "sha256:" + self._hash.hexdigest()
        if found != self._blob.digest:
            raise NitroError(f"{what} is damaged: its digest is {found}, not {self._blob.digest}")


def encoded(text: str) -> bytes:
    """An image's text in bytes: UTF-8 in every locale, and what was not UTF-8 as it was."""
    return text.encode("utf-8", "surrogateescape")


def _json(blob: Blob, what: str) -> Any:
    if blob.size > JSON_MAX:
        raise NitroError(f"{what} has {blob.size} bytes; more than {JSON_MAX} are not read")
    with Slice(blob) as f:
        data = f.read(blob.size) or b""
        f.check(what)
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()  # escapes can say what is not Unicode
        return value
    except (ValueError, RecursionError) as e:
        raise NitroError(f"{what} is not JSON: {e}") from None


def _get(value: Any, key: str, kind: type, what: str) -> Any:
    """A key of a JSON object that must be there and be of that kind."""
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise NitroError(f"{what} has no {key} that is a {kind.__name__}")
    return value[key]


# ---- manifests ----


@dataclass(frozen=True)
class Config:
    """What the image says about running it."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""


@dataclass(frozen=True)
class Image:
    """`name` is for the metadata; `id` the SHA-256 of the configuration in hex, as Docker's image id."""

    path: Path
    name: str
    id: str
    config: Config
    layers: tuple[Blob, ...]
    info: Mapping[str, Any]


def open_image(path: Path) -> Image:
    """Find an image in a folder or archive. Raises NitroError."""
    try:
        blobs = _Folder(path) if path.is_dir() else _Archive(path)
        names = blobs.names()
        if "manifest.json" in names:
            return _docker(path, blobs)
        if "index.json" in names:
            return _oci(path, blobs)
    except OSError as e:
        reference = isinstance(e, FileNotFoundError) and path.suffix not in (".tar", ".oci", ".gz")
        hint = f"one in a registry is docker://{path}" if reference else None
        raise NitroError(f"cannot read the image {path}: {e.strerror or e}", hint=hint) from e
    raise NitroError(
        f"{path} is no container image: there is neither index.json (OCI) nor manifest.json (docker save)",
        hint=_MAKE,
    )


class _Folder:
    """The files of an OCI layout."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> set[str]:
        return {name for name in ("manifest.json", "index.json") if (self._path / name).is_file()}

    def blob(self, name: str, digest: str | None = None) -> Blob:
        path = self._path / os.path.normpath("/" + name)[1:]
        if not path.is_file():
            raise NitroError(f"the image {self._path} lacks {cpio.readable(encoded(name))}")
        return Blob(path, 0, path.stat().st_size, digest)


class _Archive:
    """The members of an image's tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        what = f"the image {path}"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NitroError(f"{what} is not a regular file; an image's parts are read in place")
        size = status.st_size
        with open(path, "rb") as f, damage(what):
            head = f.read(8)
            for magic, program in _COMPRESSED.items():
                if head.startswith(magic):
                    hint = f"its parts are read in place; unpack it first: {program} -dc {path} > app.tar"
                    raise NitroError(f"{what} is compressed as a whole ({program})", hint=hint)
            f.seek(0)
            try:
                tarfile.open(fileobj=f, mode="r:", tarinfo=Member).close()
            except tarfile.ReadError as e:
                raise NitroError(f"{path} is neither a tar archive nor a folder: {e}", hint=_MAKE) from None
            f.seek(0)
            for _, member in members(f):
                if len(self._members) + len(links) >= MEMBERS_MAX:
                    raise NitroError(f"{what} has more than {MEMBERS_MAX} files")
                name = os.path.normpath("/" + member.name)[1:]
                if member.issym():
                    target = os.path.join("/", os.path.dirname(name), member.linkname)
                    links[name] = os.path.normpath(target)[1:]
                elif member.isreg() and not member.issparse():
                    if member.offset_data + member.size > size:
                        raise NitroError(f"{what} ends within {cpio.readable(encoded(name))}")
                    self._members[name] = (member.offset_data, member.size)
        # Old versions of Docker link a layer that comes twice.
        for name, target in links.items():
            if target in self._members:
                self._members.setdefault(name, self._members[target])

    def names(self) -> set[str]:
        return set(self._members)

    def blob(self, name: str, digest: str | None = None) -> Blob:
        name = os.path.normpath("/" + name)[1:]
        if name not in self._members:
            raise NitroError(f"the image {self._path} lacks {cpio.readable(encoded(name))}")
        return Blob(self._path, *self._members[name], digest)


def _docker(path: Path, blobs: _Folder | _Archive) -> Image:
    what = f"manifest.json of {path}"
    manifests = _json(blobs.blob("manifest.json"), what)
    if not isinstance(manifests, list) or not manifests:
        raise NitroError(f"{what} lists no image")
    if len(manifests) > 1:
        hint = "save one: docker save -o app.tar IMAGE"
        raise NitroError(f"{path} holds {len(manifests)} images", hint=hint)
    config = blobs.blob(_get(manifests[0], "Config", str, what))
    layers = _get(manifests[0], "Layers", list, what)
    if not all(isinstance(name, str) for name in layers):
        raise NitroError(f"{what}: a layer's name is no text")
    tags = manifests[0].get("RepoTags")
    name = tags[0] if isinstance(tags, list) and tags and isinstance(tags[0], str) else path.stem
    # Layers are named by their digest, or else are plain tars whose digests the configuration lists.
    text = f"the configuration of {path}"
    diff_ids = _get(_get(_json(config, text), "rootfs", dict, text), "diff_ids", list, text)
    found = []
    for i, layer in enumerate(layers):
        digest = "sha256:" + layer.removeprefix("blobs/sha256/")
        if not _DIGEST.fullmatch(digest):
            digest = str(diff_ids[i]) if i < len(diff_ids) else ""
        found.append(blobs.blob(layer, digest if _DIGEST.fullmatch(digest) else None))
    return _image(path, name, config, found)


def _oci(path: Path, blobs: _Folder | _Archive) -> Image:
    what = f"index.json of {path}"
    index = _json(blobs.blob("index.json"), what)
    name = path.stem
    for _ in range(4):  # an index may name indexes
        found = []
        for item in _get(index, "manifests", list, what):
            if not isinstance(item, dict):
                raise NitroError(f"{what}: a manifest's descriptor is no object")
            platform = item.get("platform")
            if not isinstance(platform, dict):
                platform = {"os": "linux", "architecture": "amd64"}  # not said
            if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
                found.append(item)
        if len(found) != 1:
            raise NitroError(
                f"{what} names {len(found)} images for linux/amd64; one is needed",
                hint="copy the one that you want: skopeo copy oci:DIR:TAG oci-archive:app.tar",
            )
        notes = found[0].get("annotations")
        if isinstance(notes, dict):
            keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
            names = [str(notes[key]) for key in keys if notes.get(key)]
            # The second key's value is a tag alone where people keep to the specification.
            name = next((n for n in names if re.search("[:/]", n)), name)
        what = f"a manifest of {path}"
        manifest = _json(_described(found[0], blobs, what), what)
        if isinstance(manifest, dict) and "manifests" in manifest:
            index = manifest
            continue
        config = _described(_get(manifest, "config", dict, what), blobs, what)
        layers = [_described(item, blobs, what) for item in _get(manifest, "layers", list, what)]
        return _image(path, name, config, layers)
    raise NitroError(f"{path}: an index of indexes, four deep")


def _described(descriptor: Any, blobs: _Folder | _Archive, what: str) -> Blob:
    """The blob that an OCI descriptor names; its size must be the one said there."""
    digest = _get(descriptor, "digest", str, what)
    size = _get(descriptor, "size", int, what)
    if not _DIGEST.fullmatch(digest):
        raise NitroError(f"{what} has a digest that is not sha256:HEX: {digest[:100]!r}")
    blob = blobs.blob("blobs/sha256/" + digest.removeprefix("sha256:"), digest)
    if blob.size != size:
        raise NitroError(f"{what} says {size} bytes for {digest}; there are {blob.size}")
    return blob


def _image(path: Path, name: str, config_blob: Blob, layers: list[Blob]) -> Image:
    what = f"the configuration of {path}"
    value = _json(config_blob, what)
    system = f"{_get(value, 'os', str, what)}/{_get(value, 'architecture', str, what)}"
    if system != "linux/amd64":
        other = cpio.readable(encoded(system))
        raise NitroError(f"{path} is an image for {other}; enclaves here are linux/amd64")
    if _get(_get(value, "rootfs", dict, what), "diff_ids", list, what) and not layers:
        raise NitroError(f"{path} has no layers")
    run = value.get("config") or {}

    def texts(key: str) -> tuple[str, ...]:
        items = run.get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise NitroError(f"{what}: {key} is no list of texts")
        return tuple(items)

    def text(key: str) -> str:
        item = run.get(key) or ""
        if not isinstance(item, str):
            raise NitroError(f"{what}: {key} is no text")
        return item

    if not isinstance(run, dict):
        raise NitroError(f"{what}: config is no object")
    config = Config(texts("Entrypoint"), texts("Cmd"), texts("Env"), text("WorkingDir"), text("User"))
    with Slice(config_blob) as f:
        id = hashlib.sha256(f.read(config_blob.size) or b"").hexdigest()
    info = {"Id": f"sha256:{id}", "Architecture": "amd64", "Os": "linux", "Config": run}
    return Image(path, name, id, config, tuple(layers), info)
