# SPDX-License-Identifier: MIT
"""Container images, by path: find their parts, and know their file system, without unpacking anything.

An image is an OCI layout (a folder, or a tar of it: "oci-archive") or what `docker save` writes.
`open_image` reads manifests and configuration (OCI image specification, image-layout.md, manifest.md,
config.md; Docker image specification v1.2). `read_tree` replays the layers' headers in memory as an extractor
would on a disk (layer.md: whiteouts, opaque folders, hard links), so that afterwards each file that is left
is known by its layer and its place there. `write_root` reads the layers a second time and sends what is left
into a cpio archive. Nothing is written to disk but that archive.

All of it is input from strangers. JSON is bounded, names cannot leave the root, links have a limit, a number
in a header makes nobody allocate, and what tarfile stumbles over is an error that names layer and entry.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from nitroctl.eif import cpio
from nitroctl.eif.build import Sink
from nitroctl.eif.cpio import readable
from nitroctl.eif.measure import CHUNK, Progress
from nitroctl.eif.unpack import GZIP_MAGIC, ZSTD_MAGIC, unpacked
from nitroctl.errors import NitroError

JSON_MAX = 4 << 20  # bytes of a manifest or configuration; registries take 4 MiB
ENTRIES_MAX = 2_000_000  # in all layers together
MEMBERS_MAX = 100_000  # of an archive that holds an image
PATH_MAX = 4095  # bytes of a name, as Linux has it
HEADER_MAX = 1 << 20  # bytes of an extended tar header: long names, attributes
HEADERS_MAX = 4 * HEADER_MAX  # bytes of all headers before one file, and of those that are for all files
LINKS_MAX = 40  # symbolic links in one name, as Linux has it
TABLES = (b"etc/passwd", b"etc/group")  # the files whose content is looked at
SMALL_MAX = 1 << 20  # bytes of them

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAKE = "make one: `docker save -o app.tar IMAGE`, or `skopeo copy docker://IMAGE oci-archive:app.tar`"
# What a whole archive may be compressed with, which cannot be read in place.
_COMPRESSED = {GZIP_MAGIC: "gzip", ZSTD_MAGIC: "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."

# What tarfile and the decompressors raise for damaged input.
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, KeyError, IndexError)


# ---- where things are ----


@dataclass(frozen=True)
class Blob:
    """A run of bytes in a file. `digest` ("sha256:...") and `size` are checked when all of it is read."""

    path: Path
    offset: int
    size: int
    digest: str | None = None


class _Slice(io.RawIOBase):
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
    with _Slice(blob) as f:
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
        with open(path, "rb") as f, _damage(what):
            head = f.read(8)
            for magic, program in _COMPRESSED.items():
                if head.startswith(magic):
                    hint = f"its parts are read in place; unpack it first: {program} -dc {path} > app.tar"
                    raise NitroError(f"{what} is compressed as a whole ({program})", hint=hint)
            f.seek(0)
            try:
                tarfile.open(fileobj=f, mode="r:", tarinfo=_Member).close()
            except tarfile.ReadError as e:
                raise NitroError(f"{path} is neither a tar archive nor a folder: {e}", hint=_MAKE) from None
            f.seek(0)
            for _, member in _members(f):
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
    with _Slice(config_blob) as f:
        id = hashlib.sha256(f.read(config_blob.size) or b"").hexdigest()
    info = {"Id": f"sha256:{id}", "Architecture": "amd64", "Os": "linux", "Config": run}
    return Image(path, name, id, config, tuple(layers), info)


# ---- layers ----


@contextmanager
def _damage(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as e:
        raise NitroError(f"{what} is damaged: {e}") from e


class _Member(tarfile.TarInfo):
    """A tar header that cannot ask tarfile for more memory than a name or an attribute needs, and that is
    not taken for the archive's end when it is none."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        at = archive.offset
        try:
            return super().fromtarfile(archive)
        except RecursionError:
            raise tarfile.ReadError(f"too many extended headers in a row, from {at} on") from None
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise  # the end
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"{e}, of the header at {at}") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if member.type in (*extended, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= member.size <= HEADER_MAX:
                raise tarfile.ReadError(f"an extended header of {member.size} bytes")
        return member


class _Bounded:
    """A tar's stream, from which tarfile cannot read more than HEADERS_MAX while it looks for a file: the
    lists of holes in sparse files are as long as they say."""

    def __init__(self, f: IO[bytes]) -> None:
        self._f = f
        self.seek, self.tell = f.seek, f.tell
        self.left: int | None = HEADERS_MAX  # None: no header is being read

    def read(self, size: int = -1) -> bytes:
        data = self._f.read(size)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise tarfile.ReadError(f"a file's headers have more than {HEADERS_MAX} bytes")
        return data


def _members(f: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, _Member]]:
    """The members of a tar one by one; none is kept."""
    bounded: Any = _Bounded(f)
    with tarfile.open(
        fileobj=bounded, mode="r:", tarinfo=_Member, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        at = -1
        while True:
            # tarfile keeps every header that it has seen, for seeking.
            tar.members = []  # type: ignore[attr-defined]
            bounded.left = HEADERS_MAX
            member = tar.next()
            bounded.left = None
            if member is None:
                return
            assert isinstance(member, _Member)
            _check_member(tar, member, at)
            at = tar.offset
            yield tar, member


def _check_member(tar: tarfile.TarFile, member: _Member, before: int) -> None:
    """What tarfile takes as it is said: a negative size, which would lead back to where it was `before`;
    holes that overlap; and headers for all files that pile up."""
    if member.size < 0 or tar.offset <= before:
        raise tarfile.ReadError(f"a file of {member.size} bytes, with the header at {member.offset}")
    end = 0
    holes: Any = member.sparse or ()  # pairs of offset and size of what is there
    for offset, size in holes:
        if offset == size == 0:
            continue  # an entry that is not used
        if not (end <= offset and 0 <= size and offset + size <= member.size):
            raise tarfile.ReadError(f"a sparse file with wrong holes, with the header at {member.offset}")
        end = offset + size
    if sum(len(key) + len(value) for key, value in tar.pax_headers.items()) > HEADERS_MAX:
        raise tarfile.ReadError(f"headers for all files of more than {HEADERS_MAX} bytes")


@contextmanager
def _layer(
    blob: Blob, what: str, progress: Progress | None = None
) -> Iterator[tuple[IO[bytes], _Slice]]:
    """A layer's tar, unpacked on the way if it is gzip or zstd."""
    with _Slice(blob, progress) as raw, unpacked(raw) as plain:
        yield plain, raw


class Node:
    """Something in the image's file system: an inode, or one more name of an inode."""

    __slots__ = (
        "mode", "uid", "gid", "mtime", "layer", "index", "size", "target", "device", "children", "linked",
    )  # fmt: skip

    def __init__(self, mode: int, layer: int, index: int = -1) -> None:
        self.mode = mode
        self.uid = self.gid = self.mtime = self.size = 0
        self.layer = layer
        self.index = index  # of the member that has the content, in its layer
        self.target = b""
        self.device = (0, 0)
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.linked: Node | None = None  # a further name of that inode


class Tree:
    """The file system that layers make, from their headers alone."""

    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR | 0o755, 0)
        self.attributes = 0  # entries with file capabilities or other extended attributes
        self.small: dict[Node, bytes] = {}  # the content of /etc/passwd and /etc/group
        self._entries = 0

    # -- layers --

    def apply(self, blob: Blob, number: int, what: str, progress: Progress | None = None) -> None:
        """Replay the next layer; `number` counts from 0. Raises NitroError."""
        with _damage(what), _layer(replace(blob, digest=None), what, progress) as (f, _):
            for index, (tar, member) in enumerate(_members(f)):
                name = encoded(member.name)
                try:
                    self._count()
                    node = self._entry(member, name, number, index)
                except NitroError as e:
                    raise NitroError(f"{what}, entry {readable(name)}: {e}") from None
                if node and name.lstrip(b"./") in TABLES and member.isreg():
                    content = tar.extractfile(member)
                    self.small[node] = content.read(SMALL_MAX) if content else b""

    def _count(self) -> None:
        """One more entry, or folder that nobody named: what the memory depends on."""
        self._entries += 1
        if self._entries > ENTRIES_MAX:
            raise NitroError(f"the image has more than {ENTRIES_MAX} entries")

    def _entry(self, member: _Member, name: bytes, layer: int, index: int) -> Node | None:
        if max(len(name), len(member.linkname)) > PATH_MAX:
            raise NitroError(f"a name of more than {PATH_MAX} bytes")
        numbers = (member.size, member.uid, member.gid, member.devmajor, member.devminor)
        if not all(0 <= n <= cpio.FIELD_MAX for n in numbers):
            raise NitroError(
                f"{member.size} bytes, owner {member.uid}:{member.gid}, device {member.devmajor}:"
                f"{member.devminor}; a ramdisk takes numbers of 32 bits"
            )
        parts = _clean(name)
        if not parts:
            if member.isdir():
                _attributes(self.root, member)
            return None
        base = parts.pop()
        if base == _OPAQUE:
            folder = self.find(parts, follow=True)
            if folder is not None and folder.children is not None:
                _prune(folder, layer)
            return None
        if base.startswith(_AUFS):
            return None  # aufs's own bookkeeping
        if base.startswith(_WHITEOUT):
            self._whiteout(parts, base.removeprefix(_WHITEOUT), layer)
            return None
        if any(part.startswith(_WHITEOUT) for part in parts):
            raise NitroError("a whiteout is no folder")
        folder = self._folder(parts, layer)
        assert folder.children is not None
        old = folder.children.get(base)
        if member.isdir() and old is not None and old.children is not None:
            node = old
            node.layer = layer
        else:
            node = self._made(member, layer, index)
            folder.children[base] = node
        if node.linked is None:
            _attributes(node, member)
        if any(key.startswith("SCHILY.xattr.") for key in member.pax_headers):
            self.attributes += 1
        return node

    def _made(self, member: _Member, layer: int, index: int) -> Node:
        if member.islnk():
            target = self.find(_clean(encoded(member.linkname)), follow=False)
            if target is None or target.children is not None:
                what = "nothing" if target is None else "a folder"
                raise NitroError(f"a hard link to {readable(encoded(member.linkname))}, where {what} is")
            node = Node(stat.S_IFREG, layer)
            node.linked = target.linked or target
            return node
        if member.isreg():
            node = Node(stat.S_IFREG, layer, index)
            node.size = member.size
        elif member.isdir():
            node = Node(stat.S_IFDIR, layer)
        elif member.issym():
            node = Node(stat.S_IFLNK, layer)
            node.target = encoded(member.linkname)
        elif member.isfifo():
            node = Node(stat.S_IFIFO, layer)
        elif member.isdev():
            node = Node(stat.S_IFCHR if member.ischr() else stat.S_IFBLK, layer)
            node.device = (member.devmajor, member.devminor)
        else:
            raise NitroError(f"an entry of the unknown type {member.type!r}")
        return node

    def _whiteout(self, parts: list[bytes], name: bytes, layer: int) -> None:
        if name in (b"", b".", b".."):
            raise NitroError("a whiteout of nothing")
        folder = self.find(parts, follow=True)
        if folder is None or folder.children is None or name not in folder.children:
            return
        old = folder.children[name]
        if old.children is not None:
            _prune(old, layer)
        # What this layer itself brings under that name stays.
        if old.layer < layer and not old.children:
            del folder.children[name]

    # -- names --

    def find(self, parts: Sequence[bytes], *, follow: bool) -> Node | None:
        """What is at a path; symbolic links on the way are followed, the last one only with `follow`."""
        return self._walk(list(parts), follow=follow, make=None)

    def _folder(self, parts: list[bytes], layer: int) -> Node:
        """The folder at a path, made with its parents if it is not there."""
        node = self._walk(parts, follow=True, make=layer)
        if node is None or node.children is None:
            raise NitroError(f"{readable(b'/'.join(parts))} is no folder")
        return node

    def _walk(self, parts: list[bytes], *, follow: bool, make: int | None) -> Node | None:
        trail = [self.root]
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            here = trail[-1]
            if here.children is None:
                return None
            node = here.children.get(part)
            if node is None:
                if make is None:
                    return None
                self._count()
                node = here.children[part] = Node(stat.S_IFDIR | 0o755, make)
            if stat.S_ISLNK(node.mode) and (todo or follow):
                links += 1
                if links > LINKS_MAX:
                    raise NitroError(f"more than {LINKS_MAX} symbolic links in a name")
                if node.target.startswith(b"/"):
                    trail = [self.root]
                todo += reversed(node.target.split(b"/"))
                continue
            trail.append(node)
        return trail[-1]

    def content_of(self, path: str) -> bytes:
        """What /etc/passwd or /etc/group has; empty if it is not there or no plain file."""
        node = self.find(_clean(encoded(path)), follow=True)
        return self.small.get(node.linked or node, b"") if node else b""

    def ensure_folder(self, path: str, mode: int = 0o755) -> None:
        """Make a folder, with its parents, unless there is one. Raises NitroError where something else is."""
        parts = _clean(encoded(path))
        if self.find(parts, follow=True) is None:
            self._folder(parts, 0).mode = stat.S_IFDIR | mode
        else:
            self._folder(parts, 0)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All names but the root's, folders before what is in them, sorted."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            for name in sorted(node.children or {}, reverse=True):
                assert node.children is not None
                stack.append((path + b"/" + name if path else name, node.children[name]))


def _clean(name: bytes) -> list[bytes]:
    """A tar's name as parts below the root: "/a", "./a" and "a/x/../a" are all fine; "../a" is not."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise NitroError("the name leads out of the image")
            parts.pop()
        elif part not in (b"", b"."):
            if b"\0" in part:
                raise NitroError("the name has a NUL byte")
            parts.append(part)
    return parts


def _attributes(node: Node, member: tarfile.TarInfo) -> None:
    node.mode = stat.S_IFMT(node.mode) | (0o777 if stat.S_ISLNK(node.mode) else member.mode & 0o7777)
    node.uid, node.gid = member.uid, member.gid
    node.mtime = int(member.mtime)


def _prune(folder: Node, layer: int) -> None:
    """Remove what lower layers brought into a folder, however deep."""
    # Two passes over a list instead of recursion: parents first, then children before parents.
    found = [folder]
    for node in found:
        found += [child for child in (node.children or {}).values() if child.children is not None]
    for node in reversed(found):
        assert node.children is not None
        for name, child in list(node.children.items()):
            if child.layer < layer and not child.children:
                del node.children[name]


def layer_name(image: Image, number: int) -> str:
    return f"layer {number + 1} of {len(image.layers)} of {image.path}"


def read_tree(image: Image, progress: Progress | None = None) -> Tree:
    """All layers replayed, bottom to top. Progress counts bytes of layers as they are stored."""
    tree = Tree()
    for number, blob in enumerate(image.layers):
        tree.apply(blob, number, layer_name(image, number), progress)
    return tree


# ---- into an archive ----


def write_root(archive: cpio.Archive, image: Image, tree: Tree, prefix: bytes) -> None:
    """Write the final file system below the folder `prefix`: folders, links and devices sorted, then files in
    the order in which the layers have them. Raises NitroError, also for a layer with a wrong digest."""
    root = tree.root
    archive.add(cpio.Entry(prefix, root.mode, uid=root.uid, gid=root.gid, mtime=root.mtime))
    special: list[tuple[Node, bytes]] = []  # devices and the like
    files: list[dict[int, tuple[Node, bytes]]] = [{} for _ in image.layers]
    also: dict[Node, list[bytes]] = {}  # further names of an inode, which few have
    linked = {name.linked for _, name in tree.walk() if name.linked}
    seen: set[Node] = set()  # of those
    for path, name in tree.walk():
        path = prefix + b"/" + path
        node = name.linked or name
        if stat.S_ISDIR(node.mode) or stat.S_ISLNK(node.mode):
            archive.add(_entry(path, node))  # the kernel knows no hard links between symbolic ones
        elif node in seen:
            also.setdefault(node, []).append(path)
        else:
            if node in linked:
                seen.add(node)
            if node.index >= 0:
                files[node.layer][node.index] = (node, path)
            else:
                special.append((node, path))
    for node, path in special:
        archive.add(_entry(path, node), also.get(node, ()))
    for number, blob in enumerate(image.layers):
        _write_layer(archive, blob, layer_name(image, number), files[number], also)


def _entry(path: bytes, node: Node) -> cpio.Entry:
    return cpio.Entry(
        path, node.mode, node.target, uid=node.uid, gid=node.gid, device=node.device, mtime=node.mtime
    )


def _write_layer(
    archive: cpio.Archive,
    blob: Blob,
    what: str,
    files: Mapping[int, tuple[Node, bytes]],
    also: Mapping[Node, Sequence[bytes]],
) -> None:
    with _damage(what), _layer(blob, what) as (f, raw):
        written = 0
        for index, (tar, member) in enumerate(_members(f)):
            if index not in files:
                continue
            node, path = files[index]
            content = tar.extractfile(member) if member.isreg() and member.size == node.size else None
            if content is None:
                raise NitroError(f"{what} was changed while it was read")

            def fill(sink: Sink, content: IO[bytes] = content, left: int = node.size) -> None:
                while left:
                    data = content.read(min(CHUNK, left))
                    if not data:
                        raise tarfile.ReadError("it ends within a file")
                    sink.write(data)
                    left -= len(data)

            entry = replace(_entry(path, node), filler=fill, size=node.size)
            archive.add(entry, also.get(node, ()))
            written += 1
        if written != len(files):
            raise NitroError(f"{what} was changed while it was read")
        raw.check(what)
