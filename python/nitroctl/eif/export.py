# SPDX-License-Identifier: MIT
"""The file system of a container that Docker would make from an image, as `docker export` writes it.

AWS's builder takes an image's files from there, so dockerd decides about names, order, modes and times in the
application ramdisk (and so about PCR2):

    layers      each is unpacked on its own, then they are stacked, as the overlay driver mounts them;
                so a folder in a layer hides a link of the same name in a lower layer
    init layer  mount points, /etc/hosts and the like, made when the container is created
    WORKDIR     made if it is not in the image
    order       of a walk: each folder's names sorted by their bytes, its contents directly after it

Only headers are read here; a file is identified by its layer and its place in it. The time of a folder that
no layer lists (`Folder.listed`) is the only thing that can differ from one export to the next. Ramdisks are
made elsewhere.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nitroctl.base.errors import NitroError
from nitroctl.eif.blobs import encoded
from nitroctl.eif.cpio import readable
from nitroctl.eif.image import Image
from nitroctl.eif.layers import ENTRIES_MAX, LINKS_MAX, check_limits, layer_members, layer_name, path_parts
from nitroctl.eif.measure import Progress
from nitroctl.eif.tar import Member, seconds

# Docker sets times that it cannot express to 0: before 1970, or more nanoseconds than fit into 63 bits.
TIME_MAX = (1 << 63) // 10**9

# What a new container gets above its image, in dockerd's order: folders, empty files, and a link.
_INIT_LAYER: tuple[tuple[bytes, int, bytes], ...] = (
    (b"dev/pts", stat.S_IFDIR, b""),
    (b"dev/shm", stat.S_IFDIR, b""),
    (b"proc", stat.S_IFDIR, b""),
    (b"sys", stat.S_IFDIR, b""),
    (b".dockerenv", stat.S_IFREG, b""),
    (b"etc/resolv.conf", stat.S_IFREG, b""),
    (b"etc/hosts", stat.S_IFREG, b""),
    (b"etc/hostname", stat.S_IFREG, b""),
    (b"dev/console", stat.S_IFREG, b""),
    (b"etc/mtab", stat.S_IFLNK, b"/proc/mounts"),
)


@dataclass(eq=False, slots=True)
class Inode:
    """A file, link, device or pipe; it may have several names. `layer` and `index` say which member of which
    layer has a file's content; -1: it is empty."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # seconds since 1970
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    layer: int = -1
    index: int = -1
    early: bool = False  # the time in its header is before 1970


@dataclass(eq=False, slots=True)
class Folder:
    """A folder. `listed`: a layer has a header for it, so its time comes from the image; otherwise it gets
    the time of unpacking."""

    mode: int = stat.S_IFDIR | 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    listed: bool = False
    opaque: bool = False  # in a layer: hides the folder's contents in lower layers
    children: dict[bytes, Inode | Folder] = field(default_factory=dict)


class _Whiteout(Inode):
    """In a layer: removes that name of the lower layers."""


@dataclass(frozen=True)
class Export:
    root: Folder

    def walk(self) -> Iterator[tuple[bytes, Inode | Folder]]:
        """All names but the root's, in the order of the export."""
        stack: list[tuple[bytes, Inode | Folder]] = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            if isinstance(node, Folder):
                for name in sorted(node.children, reverse=True):
                    stack.append((path + b"/" + name if path else name, node.children[name]))


def export(image: Image, workdir: str, progress: Progress | None = None) -> Export:
    """What `docker export` writes for a container of the image. Progress counts the layers' bytes as stored.
    Raises NitroError for what Docker would refuse, too, and for damaged layers."""
    root = Folder()
    budget = _Budget()
    for number in range(len(image.layers)):
        _stack(root, _unpack(image, number, budget, progress))
    _add_init_layer(root)
    if workdir:
        _make_workdir(root, workdir)
    return Export(root)


# ---- one layer ----


class _Budget:
    """Limits the names in all layers together, unlisted folders included, because memory use depends on
    them."""

    def __init__(self) -> None:
        self._left = ENTRIES_MAX

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise NitroError(f"the image has more than {ENTRIES_MAX} entries")


def _unpack(image: Image, number: int, budget: _Budget, progress: Progress | None) -> Folder:
    """One layer, as if it were unpacked into an empty folder."""
    root = Folder(listed=True)
    what = layer_name(image, number)
    for index, member in enumerate(layer_members(image, number, progress)):
        name = encoded(member.name)
        try:
            budget.take()
            _unpack_member(root, member, name, number, index, budget)
        except NitroError as e:
            raise NitroError(f"{what}, entry {readable(name)}: {e}") from None
    return root


def _unpack_member(
    root: Folder, member: Member, name: bytes, layer: int, index: int, budget: _Budget
) -> None:
    check_limits(member, name)
    parts = path_parts(name)
    if not parts:
        return  # the root has no entry in an export
    base = parts.pop()
    folder = _parent(root, parts, budget)
    if base == b".wh..wh..opq":
        folder.opaque = True
    elif base.startswith(b".wh..wh."):
        pass  # aufs's own bookkeeping
    elif base.startswith(b".wh."):
        hidden = base.removeprefix(b".wh.")
        if hidden in (b"", b".", b".."):
            raise NitroError("a whiteout without a name")
        if not isinstance(folder.children.get(hidden), _Whiteout | None):
            raise NitroError("a whiteout of something in the same layer, which Docker cannot unpack")
        folder.children[hidden] = _Whiteout(0)
    else:
        old = folder.children.get(base)
        if member.isdir():
            new: Folder | Inode = old if isinstance(old, Folder) else Folder()
        else:
            new = _inode(root, member, layer, index, budget)
        folder.children[base] = new
        _set_attributes(new, member)


def _parent(root: Folder, parts: Sequence[bytes], budget: _Budget) -> Folder:
    """The folder at a path in a layer; it and its parents are made if they are missing. Links in the same
    layer are followed."""
    found = _follow(root, parts, budget)
    if not isinstance(found, Folder):
        raise NitroError(
            f"{readable(b'/'.join(parts))} is not a folder, so Docker cannot unpack what is in it"
        )
    return found


def _follow(root: Folder, parts: Sequence[bytes], make: _Budget | None) -> Folder | Inode | None:
    """What is at a path; all links are followed, the last one too. With `make` missing folders are made, but
    not at the target of a link, where mkdir(2) does not make one either."""
    trail: list[Folder | Inode] = [root]
    todo = [(part, False) for part in reversed(parts)]  # (part, whether it comes from a link's target)
    links = 0
    while todo:
        part, linked = todo.pop()
        if part == b"..":
            del trail[max(1, len(trail) - 1) :]
            continue
        here = trail[-1]
        if not isinstance(here, Folder):
            return None
        node = here.children.get(part)
        if node is None:
            if make is None or linked:
                return None
            make.take()
            node = here.children[part] = Folder()
        if stat.S_ISLNK(node.mode):
            assert isinstance(node, Inode)
            links += 1
            if links > LINKS_MAX:
                raise NitroError(f"more than {LINKS_MAX} symbolic links in a name")
            if node.target.startswith(b"/"):
                trail = [root]
            todo += [(p, True) for p in reversed(node.target.split(b"/")) if p not in (b"", b".")]
            continue
        trail.append(node)
    return trail[-1]


def _inode(root: Folder, member: Member, layer: int, index: int, budget: _Budget) -> Inode:
    if member.islnk():
        # As with link(2), a link as the last component is not followed.
        *parts, base = path_parts(encoded(member.linkname)) or [b""]
        folder = _follow(root, parts, None)
        target = folder.children.get(base) if isinstance(folder, Folder) else None
        if not isinstance(target, Inode) or isinstance(target, _Whiteout):
            what = "a folder" if target else "nothing"
            link = readable(encoded(member.linkname))
            raise NitroError(f"a hard link to {link}, where this layer has {what}: Docker cannot unpack it")
        return target
    if member.isreg():
        return Inode(stat.S_IFREG, size=member.size, layer=layer, index=index)
    if member.issym():
        return Inode(stat.S_IFLNK, target=encoded(member.linkname))
    if member.isfifo():
        return Inode(stat.S_IFIFO)
    if member.isdev():
        device = (member.devmajor, member.devminor)
        if member.ischr() and device == (0, 0):
            raise NitroError("a character device 0:0, which the overlay driver takes for a whiteout")
        return Inode(stat.S_IFCHR if member.ischr() else stat.S_IFBLK, device=device)
    raise NitroError(f"an entry of the unknown type {member.type!r}")


def _set_attributes(node: Inode | Folder, member: Member) -> None:
    kind = stat.S_IFMT(node.mode)
    node.mode = kind | (0o777 if kind == stat.S_IFLNK else member.mode & 0o7777)
    node.uid, node.gid = member.uid, member.gid
    mtime = seconds(member)
    node.mtime = mtime if 0 <= mtime <= TIME_MAX else 0
    if isinstance(node, Folder):
        node.listed = True
    else:
        node.early = mtime < 0


# ---- layers over each other ----


def _stack(lower: Folder, upper: Folder) -> None:
    """Stack a layer on the result of the lower layers. `lower` becomes the new result."""
    todo = [(lower, upper)]
    while todo:
        below, above = todo.pop()
        below.mode, below.uid, below.gid = above.mode, above.uid, above.gid
        below.mtime, below.listed = above.mtime, above.listed
        if above.opaque:
            below.children.clear()
        for name, node in above.children.items():
            if isinstance(node, _Whiteout):
                below.children.pop(name, None)
            elif isinstance(node, Folder):
                old = below.children.get(name)
                if not isinstance(old, Folder):
                    old = below.children[name] = Folder()
                todo.append((old, node))
            else:
                below.children[name] = node


# ---- what a container adds ----


def _add_init_layer(root: Folder) -> None:
    for path, kind, target in _INIT_LAYER:
        *parts, base = path.split(b"/")
        folder = root
        for part in parts:
            folder = _real_folder(folder, part)
        if isinstance(folder.children.get(base), Folder):
            continue  # an existing folder stays, whatever should be there
        if kind == stat.S_IFDIR:
            _real_folder(folder, base)
        else:
            mode = 0o777 if kind == stat.S_IFLNK else 0o755
            folder.children[base] = Inode(kind | mode, target=target)


def _real_folder(parent: Folder, name: bytes) -> Folder:
    """The folder of that name; anything else of that name is replaced by a new folder."""
    node = parent.children.get(name)
    if not isinstance(node, Folder):
        node = parent.children[name] = Folder()
    return node


def _make_workdir(root: Folder, workdir: str) -> None:
    """Make WORKDIR and its parents, as dockerd does when it creates a container."""
    if not workdir.startswith("/"):
        workdir = "/" + workdir
    parts = path_parts(encoded(workdir))
    found = _follow(root, parts, None)
    if found is None:
        # The existing parent of the first new folder gets a new time, too.
        known = len(parts)
        while known and _follow(root, parts[:known], None) is None:
            known -= 1
        parent = _follow(root, parts[:known], None)
        if isinstance(parent, Folder) and known:
            parent.listed, parent.mtime = False, 0
        found = _follow(root, parts, _Budget())
    if not isinstance(found, Folder):
        raise NitroError(
            f"the working directory {workdir!r} is not a folder, so Docker cannot create a container"
        )
