# SPDX-License-Identifier: MIT
"""Writes cpio archives of the "newc" kind, the form in which the kernel takes an initramfs. Reads none.

(Linux, Documentation/driver-api/early-userspace/buffer-format.rst.) The archive depends on its entries alone:
names sorted, inode numbers counted from 1, every time the same, device numbers of the archive's own zero, the
end padded with zeros to a multiple of four, as AWS's ramdisks have it, so that another can follow.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nitroctl.errors import NitroError

MAGIC = b"070701"
TRAILER = b"TRAILER!!!"
FIELD_MAX = (1 << 32) - 1  # every number has eight hexadecimal digits
NAME_MAX = 4095  # PATH_MAX less its NUL: the kernel skips what is longer


class Sink(Protocol):
    """Where the archive goes; `eif.build.Writer` is one."""

    def write(self, data: bytes) -> None: ...
    def copy(self, fd: int, size: int | None, name: str) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One name in the archive.

    `name` is relative, without "." or "..", in bytes as the kernel will see it. `mode` is st_mode with the
    file type. The content is `data` (a file's bytes, or a link's target), that of the file `path`, read when
    the archive is written, or the `size` bytes that `filler` writes. `device` is (major, minor) of a node.
    """

    name: bytes
    mode: int
    data: bytes = b""
    path: Path | None = None
    filler: Callable[[Sink], None] | None = None
    size: int = 0
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)

    @property
    def content_size(self) -> int:
        """Bytes of content, as far as they are known before it is written."""
        if self.path is not None:
            return self.path.stat().st_size
        return self.size if self.filler else len(self.data)


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(os.fsencode(name), stat.S_IFDIR | mode)


def file(name: str, content: bytes | Path, mode: int = 0o644) -> Entry:
    if isinstance(content, Path):
        return Entry(os.fsencode(name), stat.S_IFREG | mode, path=content)
    return Entry(os.fsencode(name), stat.S_IFREG | mode, content)


def symlink(name: str, target: str) -> Entry:
    return Entry(os.fsencode(name), stat.S_IFLNK | 0o777, os.fsencode(target))


def device(name: str, kind: int, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A device node; `kind` is stat.S_IFCHR or stat.S_IFBLK."""
    return Entry(os.fsencode(name), kind | mode, device=(major, minor))


def tree(folder: Path) -> Iterator[Entry]:
    """What is in a folder, for the archive's root. Of the modes only the right to execute is kept, and no
    owner, so that neither umask nor user shows."""
    for path in sorted(folder.rglob("*")):
        name = os.fspath(path.relative_to(folder))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield symlink(name, os.readlink(path))
        elif stat.S_ISDIR(mode):
            yield directory(name)
        elif stat.S_ISREG(mode):
            yield file(name, path, 0o755 if mode & 0o100 else 0o644)
        else:
            raise NitroError(f"{path} is neither file, folder nor symbolic link")


def write(sink: Sink, entries: Iterable[Entry], *, mtime: int = 0) -> None:
    """Write a whole archive, sorted, so that a directory comes before what is in it.

    Raises NitroError for a name that is given twice or cannot be in an archive, and for a file of 4 GiB or
    more, which the format cannot hold.
    """
    written = 0
    last = b""
    inode = 0
    for inode, entry in enumerate(sorted(entries, key=lambda e: e.name.split(b"/")), 1):
        _check_name(entry.name)
        if entry.name == last:
            raise NitroError(f"the archive would have {_text(last)} twice")
        last = entry.name
        written += _write_entry(sink, entry, inode, mtime)
    written += _put(sink, _header(inode + 1, 0, 0, 0, 1, 0, 0, (0, 0), TRAILER))
    assert written % 4 == 0


def _write_entry(sink: Sink, entry: Entry, inode: int, mtime: int) -> int:
    links = 2 if stat.S_ISDIR(entry.mode) else 1

    def header(size: int) -> bytes:
        if size > FIELD_MAX:
            raise NitroError(f"{_text(entry.name)} has {size} bytes; too many for a cpio archive")
        numbers = (inode, entry.mode, entry.uid, entry.gid, links, mtime, size)
        return _header(*numbers, entry.device, entry.name)

    if entry.filler:
        head = _put(sink, header(entry.size))
        entry.filler(sink)
        return head + entry.size + _put(sink, bytes(-entry.size % 4))
    if entry.path is None:
        size = len(entry.data)
        return _put(sink, header(size)) + _put(sink, entry.data + bytes(-size % 4))
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise NitroError(f"cannot open {entry.path}: {e.strerror}") from e
    try:
        size = os.fstat(fd).st_size
        head = _put(sink, header(size))
        sink.copy(fd, size, str(entry.path))
        return head + size + _put(sink, bytes(-size % 4))
    finally:
        os.close(fd)


def _put(sink: Sink, data: bytes) -> int:
    sink.write(data)
    return len(data)


def _header(
    inode: int, mode: int, uid: int, gid: int, links: int, mtime: int, size: int, device: tuple[int, int],
    name: bytes,
) -> bytes:  # fmt: skip
    fields = (inode, mode, uid, gid, links, mtime, size, 0, 0, *device, len(name) + 1, 0)
    header = MAGIC + b"".join(b"%08X" % value for value in fields) + name + b"\0"
    return header + bytes(-len(header) % 4)


def _check_name(name: bytes) -> None:
    parts = name.split(b"/")
    if not name or name == TRAILER or b"\0" in name or any(p in (b"", b".", b"..") for p in parts):
        raise NitroError(f"{_text(name)!r} cannot be a name in an archive")
    if len(name) > NAME_MAX:
        raise NitroError(f"a name of {len(name)} bytes cannot be in an archive ({_text(name[:40])}...)")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
