# SPDX-License-Identifier: MIT
"""Layers of a container image, merged in memory: the file system that unpacking them would leave on a disk.

`read_tree` replays the layers' headers (OCI image specification, layer.md: whiteouts, opaque folders, hard
links). Each file of the result is then identified by its layer and its place in it. Nothing is written, and
the contents of only a few small files are kept.

The input is not trusted: names cannot lead out of the root, the number of links is limited, no number in a
header makes this module allocate memory, and errors name the layer and the entry.
"""

from __future__ import annotations

import hashlib
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import IO

from nitroctl.base.errors import NitroError
from nitroctl.eif import cpio
from nitroctl.eif.blobs import Blob, Slice, check_digest, encoded
from nitroctl.eif.cpio import readable
from nitroctl.eif.image import Image
from nitroctl.eif.measure import CHUNK, Progress
from nitroctl.eif.tar import Member, damage, members, seconds
from nitroctl.eif.unpack import unpacked

ENTRIES_MAX = 2_000_000  # in all layers together
PATH_MAX = 4095  # bytes of a name, as Linux has it
LINKS_MAX = 40  # symbolic links in one name, as Linux has it
# Where TLS libraries look for trusted root certificates; the first is Debian's, Ubuntu's and Alpine's.
CA_BUNDLES = (
    b"etc/ssl/certs/ca-certificates.crt",
    b"etc/pki/tls/certs/ca-bundle.crt",
    b"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    b"etc/pki/tls/cacert.pem",
    b"etc/ssl/ca-bundle.pem",
    b"etc/ssl/cert.pem",
)
TABLES = (b"etc/passwd", b"etc/group", *CA_BUNDLES)  # the files whose content is read
SMALL_MAX = 1 << 20  # bytes of them

_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."


@contextmanager
def opened_layer(
    blob: Blob, what: str, progress: Progress | None = None
) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A layer's tar, decompressed while it is read (gzip, zstd); and a function that reads the rest and
    compares the digests."""
    hash = hashlib.sha256() if blob.content else None
    with Slice(blob, progress) as raw, unpacked(raw, hash) as plain:

        def check() -> None:
            while hash and plain.read(CHUNK):
                pass
            if hash:
                check_digest(what, hash, blob.content)
            raw.check(what)

        yield plain, check


class Node:
    """An entry of the image's file system: an inode, or another name of an inode."""

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
        self.linked: Node | None = None  # if this is another name of an inode: that inode


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
        with damage(what), opened_layer(replace(blob, digest=None, content=None), what, progress) as (f, _):
            for index, (tar, member) in enumerate(members(f)):
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
        """Count an entry, or a folder that no layer lists: memory use depends on their number."""
        self._entries += 1
        if self._entries > ENTRIES_MAX:
            raise NitroError(f"the image has more than {ENTRIES_MAX} entries")

    def _entry(self, member: Member, name: bytes, layer: int, index: int) -> Node | None:
        check_limits(member, name)
        parts = path_parts(name)
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
            raise NitroError("a whiteout cannot be a folder")
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

    def _made(self, member: Member, layer: int, index: int) -> Node:
        if member.islnk():
            target = self.find(path_parts(encoded(member.linkname)), follow=False)
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
            raise NitroError("a whiteout without a name")
        folder = self.find(parts, follow=True)
        if folder is None or folder.children is None or name not in folder.children:
            return
        old = folder.children[name]
        if old.children is not None:
            _prune(old, layer)
        # Entries of this layer itself under that name stay.
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
            raise NitroError(f"{readable(b'/'.join(parts))} is not a folder")
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
        """The content of /etc/passwd or /etc/group; empty if it does not exist or is not a regular file."""
        node = self.find(path_parts(encoded(path)), follow=True)
        return self.small.get(node.linked or node, b"") if node else b""

    def ensure_folder(self, path: str, mode: int = 0o755) -> None:
        """Make a folder, with its parents, unless it exists. Raises NitroError if something else is there."""
        parts = path_parts(encoded(path))
        if self.find(parts, follow=True) is None:
            self._folder(parts, 0).mode = stat.S_IFDIR | mode
        else:
            self._folder(parts, 0)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All names except the root's, sorted, each folder before its contents."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            for name in sorted(node.children or {}, reverse=True):
                assert node.children is not None
                stack.append((path + b"/" + name if path else name, node.children[name]))


def check_limits(member: Member, name: bytes) -> None:
    """Refuse a member with a name or a number that is too large for a ramdisk. Raises NitroError."""
    if max(len(name), len(member.linkname)) > PATH_MAX:
        raise NitroError(f"a name of more than {PATH_MAX} bytes")
    numbers = (member.size, member.uid, member.gid, member.devmajor, member.devminor)
    if not all(0 <= n <= cpio.FIELD_MAX for n in numbers):
        raise NitroError(
            f"{member.size} bytes, owner {member.uid}:{member.gid}, device {member.devmajor}:"
            f"{member.devminor}; a ramdisk holds only 32-bit numbers"
        )


def path_parts(name: bytes) -> list[bytes]:
    """A name in a tar, split into its parts below the root: "/a", "./a" and "a/x/../a" are valid, "../a" is
    not."""
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
    node.mtime = seconds(member)


def _prune(folder: Node, layer: int) -> None:
    """Remove from a folder, at any depth, what came from lower layers."""
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


# ---- one layer ----


def layer_members(image: Image, number: int, progress: Progress | None = None) -> Iterator[Member]:
    """The headers of a layer, in order. Its digest is not checked."""
    what = layer_name(image, number)
    unchecked = replace(image.layers[number], digest=None, content=None)
    with damage(what), opened_layer(unchecked, what, progress) as (f, _):
        for _, member in members(f):
            yield member


def layer_files(image: Image, number: int, indexes: Set[int]) -> Iterator[tuple[int, int, Iterator[bytes]]]:
    """(index, size, content) of the members of a layer with these indexes, in order. Each content must be
    read before the next member is asked for. Raises NitroError; at the end also for a wrong digest."""
    what = layer_name(image, number)
    with damage(what), opened_layer(image.layers[number], what) as (f, check):
        left = set(indexes)
        for index, (tar, member) in enumerate(members(f)):
            if index in left and member.isreg():
                left.remove(index)
                yield index, member.size, _content(tar, member)
        if left:
            raise NitroError(f"{what} was changed while it was being read")
        check()


def _content(tar: tarfile.TarFile, member: Member) -> Iterator[bytes]:
    file = tar.extractfile(member)
    left = member.size
    while left:
        data = file.read(min(CHUNK, left)) if file else b""
        if not data:
            raise tarfile.ReadError("it ends within a file")
        yield data
        left -= len(data)
