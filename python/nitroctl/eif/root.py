# SPDX-License-Identifier: MIT
"""Writes the merged layers of an image to a cpio archive: the layers are read a second time, and the files
that remain after merging are copied. Nothing else is written to disk.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nitroctl.base.errors import NitroError
from nitroctl.eif import cpio
from nitroctl.eif.build import Sink
from nitroctl.eif.image import Image
from nitroctl.eif.layers import Node, Tree, layer_files, layer_name


def write_root(archive: cpio.Archive, image: Image, tree: Tree, prefix: bytes) -> None:
    """Write the merged file system below the folder `prefix`: folders, links and devices sorted, then files
    in their order in the layers. Raises NitroError, also for a layer with a wrong digest."""
    root = tree.root
    archive.add(cpio.Entry(prefix, root.mode, uid=root.uid, gid=root.gid, mtime=root.mtime))
    special: list[tuple[Node, bytes]] = []  # devices and the like
    files: list[dict[int, tuple[Node, bytes]]] = [{} for _ in image.layers]
    also: dict[Node, list[bytes]] = {}  # the other names of inodes that have several
    linked = {name.linked for _, name in tree.walk() if name.linked}
    seen: set[Node] = set()  # of those
    for path, name in tree.walk():
        path = prefix + b"/" + path
        node = name.linked or name
        if stat.S_ISDIR(node.mode) or stat.S_ISLNK(node.mode):
            archive.add(_entry(path, node))  # the kernel's unpacker makes no hard links to symbolic links
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
    for number in range(len(image.layers)):
        _write_layer(archive, image, number, files[number], also)


def _entry(path: bytes, node: Node) -> cpio.Entry:
    return cpio.Entry(
        path, node.mode, node.target, uid=node.uid, gid=node.gid, device=node.device, mtime=node.mtime
    )


def _write_layer(
    archive: cpio.Archive,
    image: Image,
    number: int,
    files: Mapping[int, tuple[Node, bytes]],
    also: Mapping[Node, Sequence[bytes]],
) -> None:
    for index, size, content in layer_files(image, number, files.keys()):
        node, path = files[index]
        if size != node.size:
            raise NitroError(f"{layer_name(image, number)} was changed while it was being read")

        def fill(sink: Sink, content: Iterator[bytes] = content) -> None:
            for data in content:
                sink.write(data)

        archive.add(replace(_entry(path, node), filler=fill, size=size), also.get(node, ()))
