# SPDX-License-Identifier: MIT
"""The file system that layers make, into a cpio archive: the layers are read a second time, and what is left
of them is sent on. Nothing else is written to disk.
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
            raise NitroError(f"{layer_name(image, number)} was changed while it was read")

        def fill(sink: Sink, content: Iterator[bytes] = content) -> None:
            for data in content:
                sink.write(data)

        archive.add(replace(_entry(path, node), filler=fill, size=size), also.get(node, ()))
