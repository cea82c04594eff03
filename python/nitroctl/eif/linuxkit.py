# SPDX-License-Identifier: MIT
"""The two ramdisks of an image as AWS's `nitro-cli build-enclave` makes them, byte for byte.

That tool uses linuxkit, which turns a tar stream into a cpio archive entry by entry, without sorting or
merging. `export` produces the files that linuxkit takes from `docker export`; this module does what linuxkit
does with them: the prefix, files that it replaces or leaves out, folders that occur twice, inode numbers, and
one fixed time for everything that it adds. This holds for the linuxkit in nitro-cli 1.3.4 to 1.5.0; older
versions are believed to write the same. Modes, owners and times of AWS's blobs have no effect.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base.errors import NitroError
from nitroctl.eif.blobs import lines
from nitroctl.eif.cpio import FIELD_MAX, MAGIC, TRAILER, Sink, readable
from nitroctl.eif.export import Export, Folder, Inode
from nitroctl.eif.image import Image
from nitroctl.eif.layers import layer_files

# The time of everything that linuxkit itself adds: 2017-04-18 16:30:00 UTC.
TIME = 1492533000
FIRST_INODE = 721
DEVICE = (3, 1)  # the device number in every header
_BLOCK = 512  # the archive is padded to a multiple of this

HOSTS = (
    b"127.0.0.1       localhost\n"
    b"::1     localhost ip6-localhost ip6-loopback\n"
    b"fe00::0 ip6-localnet\n"
    b"ff00::0 ip6-mcastprefix\n"
    b"ff02::1 ip6-allnodes\n"
    b"ff02::2 ip6-allrouters\n"
)
RESOLV_CONF = b"/run/resolvconf/resolv.conf"

# Names as in the export, where the names of folders end in a slash.
LEFT_OUT = {b".dockerenv", b"Dockerfile", b"dev/console", b"etc/hostname"}
_OWN_TIME = {b"dev/", b"dev/pts/", b"dev/shm/", b"etc/", b"etc/mtab", b"proc/", b"sys/"}
# Added at the end unless the export has exactly that name: (name, mode, content or target).
_NEEDED = (
    (b"dev/", stat.S_IFDIR | 0o755, b""),
    (b"dev/pts/", stat.S_IFDIR | 0o755, b""),
    (b"dev/shm/", stat.S_IFDIR | 0o755, b""),
    (b"etc/", stat.S_IFDIR | 0o755, b""),
    (b"etc/hosts", stat.S_IFREG | 0o644, HOSTS),
    (b"etc/mtab", stat.S_IFLNK | 0o755, b"/proc/mounts"),
    (b"etc/resolv.conf", stat.S_IFLNK | 0o644, RESOLV_CONF),
    (b"proc/", stat.S_IFDIR | 0o755, b""),
    (b"sys/", stat.S_IFDIR | 0o755, b""),
)
# Always added, even if the image has them; this is why /tmp is 0755 in the end.
ALWAYS = tuple(b"rootfs" + folder for folder in (b"", b"/dev", b"/run", b"/sys", b"/var", b"/proc", b"/tmp"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One header of the archive; `data` is its content, or that of the file `node`."""

    name: bytes
    mode: int
    data: bytes = b""
    node: Inode | None = None
    uid: int = 0
    gid: int = 0
    mtime: int = TIME
    device: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        return self.node.size if self.node else len(self.data)


def bootstrap(init: bytes, module: bytes | None) -> list[Entry]:
    """The ramdisk of PCR1: init, and nsm.ko (only nitro-cli before 1.0 did without)."""
    entries = [
        Entry(b"dev", stat.S_IFDIR | 0o755),
        Entry(b"init", stat.S_IFREG | 0o755, init),
    ]
    if module is not None:
        entries.append(Entry(b"nsm.ko", stat.S_IFREG | 0o755, module))
    return entries


def application(exported: Export, cmd: Sequence[str], env: Sequence[str]) -> Iterator[Entry]:
    """The entries of the ramdisk of PCR2. Raises NitroError for what would break AWS's archive."""
    yield Entry(b"rootfs", stat.S_IFDIR | 0o755)
    names: set[bytes] = set()
    for name, entry in _exported(exported):
        names.add(name)
        if entry:
            yield entry
    for name, mode, data in _NEEDED:
        if name not in names:
            yield Entry(b"rootfs/" + name.rstrip(b"/"), mode, data)
    for name in ALWAYS:
        yield Entry(name, stat.S_IFDIR | 0o755)
    yield Entry(b"cmd", stat.S_IFREG | 0o644, lines(cmd))
    yield Entry(b"env", stat.S_IFREG | 0o644, lines(env))


def uncertain(exported: Export) -> list[bytes]:
    """The folders to which Docker gives a new time with each unpacking or container, so that PCR2 changes."""
    folders = ((path, node) for path, node in exported.walk() if isinstance(node, Folder))
    return [path for path, node in folders if not node.listed and path + b"/" not in _OWN_TIME]


def _exported(exported: Export) -> Iterator[tuple[bytes, Entry | None]]:
    """The names in the export, each with its entry; None if it is left out."""
    first: dict[Inode, bytes] = {}  # a file's first name, whose entry has the content
    for path, node in exported.walk():
        if isinstance(node, Folder):
            name = path + b"/"
            mtime = TIME if name in _OWN_TIME else node.mtime
            yield name, Entry(b"rootfs/" + name, node.mode, b"", None, node.uid, node.gid, mtime)
            continue
        earlier = first.setdefault(node, path)
        if path in LEFT_OUT:
            yield path, None
        elif earlier != path:
            yield path, _link(path, earlier, node)
        else:
            yield path, _file(path, node)


def _link(path: bytes, target: bytes, node: Inode) -> Entry:
    """A hard link becomes a symbolic one, with the permissions of the file's header."""
    relative = posixpath.relpath(b"/" + target, b"/" + posixpath.dirname(path))
    mode = stat.S_IFLNK | stat.S_IMODE(node.mode)
    return Entry(b"rootfs/" + path, mode, relative, None, node.uid, node.gid, _time(path, node))


def _file(path: bytes, node: Inode) -> Entry:
    name = b"rootfs/" + path
    if path == b"etc/hosts":
        return Entry(name, stat.S_IFREG | stat.S_IMODE(node.mode), HOSTS, None, node.uid, node.gid)
    if path == b"etc/resolv.conf":
        return Entry(name, stat.S_IFLNK | stat.S_IMODE(node.mode), RESOLV_CONF, None, node.uid, node.gid)
    mtime = TIME if path in _OWN_TIME else _time(path, node)
    content = node if stat.S_ISREG(node.mode) and node.size else None
    return Entry(name, node.mode, node.target, content, node.uid, node.gid, mtime, node.device)


def _time(path: bytes, node: Inode) -> int:
    if node.mtime > FIELD_MAX:
        raise NitroError(
            f"{readable(path)} has the time {node.mtime} (seconds since 1970), after 2106: AWS's builder "
            "would write a ramdisk that no kernel unpacks",
            hint="give the file another date (touch) and rebuild the image",
        )
    return node.mtime


# ---- writing ----


class Contents:
    """The contents of an image's files, copied to a temporary file: the export needs them in an order that is
    not that of the layers."""

    def __init__(self, fd: int, places: dict[tuple[int, int], int]) -> None:
        self._fd = fd
        self._places = places

    def copy(self, node: Inode, sink: Sink, name: str) -> None:
        os.lseek(self._fd, self._places[node.layer, node.index], os.SEEK_SET)
        sink.copy(self._fd, node.size, name)


@contextmanager
def spooled(image: Image, exported: Export, scratch: Path | None = None) -> Iterator[Contents]:
    """Read the layers' contents, checking their digests, into a file below `scratch` that has no name."""
    wanted: list[set[int]] = [set() for _ in image.layers]
    for _, node in exported.walk():
        if isinstance(node, Inode) and node.size and node.index >= 0:
            wanted[node.layer].add(node.index)
    places: dict[tuple[int, int], int] = {}
    where = scratch or tempfile.gettempdir()
    try:
        spool = tempfile.TemporaryFile(dir=scratch)
    except OSError as e:
        raise NitroError(f"cannot make a temporary file in {where}: {e.strerror}") from e
    with spool:
        at = 0
        for number, indexes in enumerate(wanted):
            for index, _, chunks in layer_files(image, number, indexes):
                places[number, index] = at
                for data in chunks:
                    try:
                        spool.write(data)
                    except OSError as e:
                        raise NitroError(f"cannot keep the image's files in {where}: {e.strerror}") from e
                    at += len(data)
        spool.flush()
        yield Contents(spool.fileno(), places)


def write(sink: Sink, entries: Iterable[Entry], contents: Contents | None = None) -> None:
    """Write the archive: newc with lower-case digits, inodes counted from 721, its end padded to 512."""
    at = 0

    def put(data: bytes) -> None:
        nonlocal at
        sink.write(data)
        at += len(data)

    inode = FIRST_INODE
    for entry in entries:
        put(_header(inode, entry, at))
        if entry.node:
            assert contents
            contents.copy(entry.node, sink, readable(entry.name))
            at += entry.size
        else:
            put(entry.data)
        put(bytes(-at % 4))
        inode += 1
    put(_header(inode, Entry(TRAILER, 0, mtime=0), at))
    put(bytes(-at % _BLOCK))


def _header(inode: int, entry: Entry, at: int) -> bytes:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode, entry.mode, entry.uid, entry.gid, links, entry.mtime, entry.size, *DEVICE, *entry.device,
        len(entry.name) + 1, 0,
    )  # fmt: skip
    assert all(0 <= value <= FIELD_MAX for value in fields)
    header = MAGIC + b"".join(b"%08x" % value for value in fields) + entry.name + b"\0"
    return header + bytes(-(at + len(header)) % 4)
