# SPDX-License-Identifier: MIT
"""Adds the files in /etc that AWS's builder puts into every image, if the image has none. Without /etc/hosts
`localhost` does not resolve, and Debian's and Ubuntu's images have no such file (Docker makes one for each
container). Files of the image are kept, with a note, because AWS's builder replaces them (`linuxkit`).
"""

from __future__ import annotations

import stat

from nitroctl.base.errors import NitroError
from nitroctl.eif.layers import Node, Tree
from nitroctl.eif.linuxkit import HOSTS, RESOLV_CONF

MOUNTS = b"/proc/mounts"


def complete(tree: Tree) -> list[str]:
    """Add what is missing; returns notes about what AWS's builder would not have kept."""
    try:
        tree.ensure_folder("/etc")
    except NitroError:
        return []  # something else has that name: nothing is added
    own = []
    for name, made in (("hosts", _file(HOSTS)), ("resolv.conf", None), ("mtab", _link(MOUNTS))):
        folder = tree.find([b"etc"], follow=True)
        assert folder is not None and folder.children is not None
        there = folder.children.get(name.encode())
        if there is None and made is not None:
            folder.children[name.encode()] = made
        elif there is not None and (stat.S_IFMT(there.mode), there.target) not in _AWS:
            own.append(f"/etc/{name}")
    if not own:
        return []
    names = own[0] if len(own) == 1 else f"{', '.join(own[:-1])} and {own[-1]}"
    return [f"kept the image's own {names}, which AWS's build-enclave replaces (--as-aws)"]


# What stays the same under AWS's builder: its own links.
_AWS = ((stat.S_IFLNK, MOUNTS), (stat.S_IFLNK, RESOLV_CONF))


def _file(content: bytes) -> Node:
    node = Node(stat.S_IFREG | 0o644, 0)
    node.target = content  # content that is in no layer is kept here, as for a link
    return node


def _link(target: bytes) -> Node:
    node = Node(stat.S_IFLNK | 0o777, 0)
    node.target = target
    return node
