# SPDX-License-Identifier: MIT
"""An overlay: cpio archives that Linux unpacks over an image's own ramdisks, and that are not measured.

Linux unpacks by name: an existing folder gets the mode and the owner in the archive, a folder replaces a link
(lib -> usr/lib), and a file is written into an existing inode, which other names may share. So a folder that
the user gives is adapted to the image first: existing folders are left out, links to folders are followed,
and a shared file is removed before it is written. A FILE.cpio is passed on unchanged.

The machine checks archives completely; here only cheap checks are made.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from nitroctl.base.errors import NitroError, UsageError
from nitroctl.eif import cpio, layers, newc, trust
from nitroctl.eif.cpio import readable
from nitroctl.eif.format import SectionType, open_eif, read_layout
from nitroctl.eif.layers import Node, Tree, path_parts
from nitroctl.eif.measure import CHUNK

ROOT = b"rootfs"  # where both inits find the application's root
_IMAGE = 1  # the layer number of what is in the image; what is added has 0
_HINT = "name a folder, or an archive of `cpio -o -H newc`"


class Image:
    """The file system to which an EIF's ramdisks unpack: names and types, read when first needed."""

    def __init__(self, eif: Path) -> None:
        self.eif = eif
        self.shared: dict[Node, tuple[int, int]] = {}  # files with several names -> (ramdisk, inode)

    @functools.cached_property
    def tree(self) -> Tree:
        """The tree of the whole initramfs. Raises NitroError."""
        tree = Tree()
        for count, (number, header, pieces) in enumerate(self._entries()):
            if count == layers.ENTRIES_MAX:
                raise self._odd(f"more than {count} names")
            link = stat.S_ISLNK(header.mode) and header.size <= layers.PATH_MAX
            try:
                self._add(tree, number, header, b"".join(pieces) if link else b"")
            except NitroError as e:
                raise self._odd(f"{readable(header.name)}: {e}") from e
        return tree

    @functools.cached_property
    def root(self) -> Tree:
        """The tree of the application's root, in which absolute links start at that root."""
        tree = Tree()
        found = self.tree.find([ROOT], follow=True)
        if found is not None and found.children is not None:
            tree.root = found
        return tree

    def read_small(self, tree: Tree, paths: Sequence[bytes]) -> None:
        """Read the contents of these files, if they exist, into `tree.small`."""
        found = [tree.find(path.split(b"/"), follow=True) for path in paths]
        names = {node: path for path, node in self.tree.walk()}
        wanted = {names[node]: node for node in found if node is not None and stat.S_ISREG(node.mode)}
        inodes = {self.shared[node]: node for node in wanted.values() if node in self.shared}
        for number, header, pieces in self._entries():
            node = wanted.get(b"/".join(path_parts(header.name)))
            if header.links > 1 and header.size:
                node = inodes.get((number, header.ino), node)
            if node is not None and (header.size or header.links == 1):
                tree.small[node] = b"".join(itertools.islice(pieces, 1 + layers.SMALL_MAX // CHUNK))

    def _add(self, tree: Tree, number: int, header: newc.Header, target: bytes) -> None:
        parts = path_parts(header.name)
        if not parts:
            return
        folder = tree.find(parts[:-1], follow=True)
        if folder is None or folder.children is None:
            return  # Linux does not unpack it, either
        old = folder.children.get(parts[-1])
        if stat.S_ISDIR(header.mode) and old is not None and old.children is not None:
            return
        node = folder.children[parts[-1]] = Node(header.mode, _IMAGE, 0)
        node.uid, node.gid, node.target = header.uid, header.gid, target
        if header.links > 1 and stat.S_ISREG(header.mode):
            self.shared[node] = (number, header.ino)

    def _entries(self) -> Iterator[tuple[int, newc.Header, Iterator[bytes]]]:
        with open_eif(self.eif) as (fd, size):
            sections = read_layout(fd, size, self.eif).of_type(SectionType.RAMDISK)
            for number, section in enumerate(sections):
                try:
                    for header, pieces in newc.in_section(fd, section, self.eif):
                        yield number, header, pieces
                except newc.NotReadable as e:
                    raise self._odd(str(e)) from e

    def _odd(self, why: str) -> NitroError:
        return NitroError(
            f"a ramdisk of {self.eif} cannot be read: {why}",
            hint="give the overlay as FILE.cpio, which is used unchanged",
        )


# A function that makes an overlay's entries for an image.
Maker = Callable[[Image], Iterable[cpio.Entry]]
Source = Path | Maker


def check(path: Path) -> None:
    """Check an overlay as far as possible before anything starts. Raises UsageError."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()
            return
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the overlay {path} is neither a folder nor a file", hint=_HINT)
        with path.open("rb") as f:
            head = f.read(len(cpio.MAGIC))
    except OSError as e:
        raise UsageError(f"cannot read the overlay {path}: {e.strerror}", hint=_HINT) from e
    if head.strip(b"\0") and head != cpio.MAGIC:
        raise UsageError(f"the overlay {path} is not a cpio archive of the kind newc", hint=_HINT)
    if status.st_size % 4:
        raise UsageError(
            f"the overlay {path} has {status.st_size} bytes, not a multiple of 4: it is truncated or invalid",
            hint=_HINT,
        )


def names_init(text: str) -> bool:
    """Whether a text for the kernel's command line names another init, by the machine's rule
    (`eif_cmdline_names_init`)."""
    return bool(re.search('(?:^|[\\t-\\r "\u00a0])(?:rd)?init=', text))


def compose(sources: Sequence[Source], eif: Path, output: Path) -> None:
    """Write all sources as one overlay into the new file `output`, in order, so that the last one wins.
    Raises NitroError; then `output` is removed."""
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as f:
                _write(_File(f), sources, Image(eif))
        except BaseException:
            output.unlink(missing_ok=True)
            raise
    except OSError as e:
        raise NitroError(f"cannot write the overlay {output}: {e.strerror}") from e


def _write(sink: _File, sources: Sequence[Source], image: Image) -> None:
    for source in sources:
        if isinstance(source, Path) and not source.is_dir():
            _append(sink, source)
            continue
        entries = fitted(source, image) if isinstance(source, Path) else source(image)
        archive = cpio.Archive(sink)
        for entry in entries:
            archive.add(entry)
        archive.finish()


def _append(sink: _File, path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise NitroError(f"cannot read the overlay {path}: {e.strerror}") from e
    try:
        sink.copy(fd, None, str(path))
    finally:
        os.close(fd)


class _File:
    """A `cpio.Sink` over a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def copy(self, fd: int, size: int | None, name: str) -> None:
        while size is None or size > 0:
            data = os.read(fd, CHUNK if size is None else min(CHUNK, size))
            if not data:
                if size is None:
                    return
                raise NitroError(f"{name} became shorter while it was read")
            self._file.write(data)
            size = size if size is None else size - len(data)


# ---- a folder, adapted to the image ----


def fitted(folder: Path, image: Image) -> Iterator[cpio.Entry]:
    """The entries of `folder` for `compose`. Raises NitroError for what cannot be put there."""
    places = _Places(image)
    for entry in sorted(cpio.tree(folder), key=lambda e: e.name.split(b"/")):
        yield from places.entries(entry)


def _unlinking(name: bytes) -> cpio.Entry:
    """An entry that makes Linux unlink the file of this name, because it has another type."""
    return cpio.Entry(name, stat.S_IFLNK | 0o777, b"overlay")


class _Places:
    """Maps the names of an overlay to places in the image."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._names = {node: path for path, node in image.tree.walk()}
        self._made: set[bytes] = set()  # folders that the overlay brings

    def entries(self, entry: cpio.Entry) -> Iterator[cpio.Entry]:
        """What the archive needs so that Linux leaves this entry, and nothing else, changed."""
        *parents, base = entry.name.split(b"/")
        folder = self._place(parents)
        name = folder + b"/" + base if folder else base
        there = self._find(entry.name.split(b"/"), follow=False)
        if stat.S_ISDIR(entry.mode):
            target = self._place(entry.name.split(b"/"))
            if target not in self._made and self._find(entry.name.split(b"/"), follow=True) is None:
                self._made.add(target)
                yield replace(entry, name=target)
            return
        if there is not None and there.children is not None:
            raise NitroError(f"the overlay's {readable(entry.name)} is a folder in the image")
        if there is not None and there in self._image.shared:
            yield _unlinking(name)
        yield replace(entry, name=name)

    def _find(self, parts: Sequence[bytes], *, follow: bool) -> Node | None:
        """Find a name; below the application's root, links are followed as the application sees them."""
        if parts and parts[0] == ROOT and self._image.root.root in self._names:
            return self._image.root.find(parts[1:], follow=follow)
        return self._image.tree.find(parts, follow=follow)

    def _place(self, parts: Sequence[bytes]) -> bytes:
        """The folder of that name, after following links."""
        for depth in range(len(parts), 0, -1):
            node = self._find(parts[:depth], follow=True)
            if node is None:
                continue
            if node.children is None:
                name = readable(b"/".join(parts[:depth]))
                raise NitroError(f"the overlay's {name} is a folder, but in the image it is not")
            found = self._names.get(node, b"")
            return b"/".join(filter(None, [found, *parts[depth:]]))
        return b"/".join(parts)


# ---- a CA in the image's bundles ----


def trusting(pem: bytes, image: Image) -> Iterator[cpio.Entry]:
    """The image's own CA bundles with these certificates appended, as `eif build --trust-ca` makes them.
    Raises NitroError."""
    tree = image.root
    image.read_small(tree, layers.CA_BUNDLES)
    trust.add(tree, pem)
    for path, node in tree.walk():
        name = ROOT + b"/" + path
        if node.layer != _IMAGE:
            yield cpio.Entry(name, node.mode, node.target)
        elif stat.S_ISREG(node.mode) and node.index < 0:
            if node in image.shared:
                yield _unlinking(name)
            yield cpio.Entry(name, node.mode, node.target, uid=node.uid, gid=node.gid)
