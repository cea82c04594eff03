# SPDX-License-Identifier: MIT
"""Writes cpio archives in "newc" format, which the kernel takes as an initramfs. Reads none.

(Linux, Documentation/driver-api/early-userspace/buffer-format.rst.) The bytes depend only on the entries:
inode numbers count from 1, the archive's own device numbers are zero, names are sorted (by `write`). The end
is padded with zeros to a multiple of four bytes, as in AWS's ramdisks, so that another archive can follow.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nitroctl.base import shown
from nitroctl.base.errors import NitroError

MAGIC = b"070701"
TRAILER = b"TRAILER!!!"
FIELD_MAX = (1 << 32) - 1  # every number has eight hexadecimal digits
NAME_MAX = 4095  # PATH_MAX without the NUL: the kernel skips an entry with a longer name


class Sink(Protocol):
    """Where the archive goes; `eif.build.Writer` is one."""

    def write(self, data: bytes) -> None: ...
    def copy(self, fd: int, size: int | None, name: str) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One name in the archive.

    `name` is relative, without "." or "..", in bytes as the kernel will see it. `mode` is st_mode with the
    file type. The content is `data` (a file's bytes, or a link's target), or that of the file `path`, which
    is read when the archive is written, or the `size` bytes that `filler` writes. `device` is a node's
    (major, minor).
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
    mtime: int | None = None  # seconds since 1970; None: the archive's

    @property
    def content_size(self) -> int:
        """Bytes of content, as far as they are known before it is written."""
        if self.path is not None:
            return self.path.stat().st_size if self.path.exists() else 0
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


def tree(folder: Path, *, every_mode: bool = False) -> Iterator[Entry]:
    """The contents of a folder, as entries for the archive's root. Of the mode only the execute bit is kept,
    and the owner is dropped, so that the archive depends on neither umask nor user; with `every_mode` both
    are kept, and devices are included. Raises NitroError for what cannot be read or cannot be in an
    archive."""
    try:
        for path in _below(folder):
            name = os.fspath(path.relative_to(folder))
            status = path.lstat()
            mode = status.st_mode
            if stat.S_ISLNK(mode):
                entry = symlink(name, os.readlink(path))
            elif stat.S_ISDIR(mode):
                entry = directory(name)
            elif stat.S_ISREG(mode):
                entry = file(name, path, 0o755 if mode & 0o100 else 0o644)
            elif every_mode and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
                number = status.st_rdev
                entry = device(name, stat.S_IFMT(mode), os.major(number), os.minor(number))
            elif every_mode and stat.S_ISFIFO(mode):
                entry = Entry(os.fsencode(name), mode)
            else:
                raise NitroError(f"{path} is of a kind that cannot be in a ramdisk")
            yield replace(entry, mode=mode, uid=status.st_uid, gid=status.st_gid) if every_mode else entry
    except OSError as e:
        raise NitroError(f"cannot read {e.filename or folder}: {e.strerror}") from e


def _below(folder: Path) -> Iterator[Path]:
    """All names below a folder, each folder before its contents. Raises OSError if a folder cannot be read,
    which pathlib's rglob would leave out silently."""
    todo = [folder]
    while todo:
        with os.scandir(todo.pop()) as found:
            for item in sorted(found, key=lambda item: item.name):
                yield Path(item.path)
                if item.is_dir(follow_symlinks=False):
                    todo.append(Path(item.path))


class Archive:
    """An archive that is being written: entries in the caller's order, each folder before its contents."""

    def __init__(self, sink: Sink, *, mtime: int = 0) -> None:
        self._sink = sink
        self._mtime = mtime
        self._inode = 0
        self._written = 0

    def add(self, entry: Entry, also: Sequence[bytes] = ()) -> None:
        """Write an entry, and then more names of the same file (hard links).

        Raises NitroError for a name that cannot be in an archive, a number that is too large for one, and a
        file that cannot be read.
        """
        self._inode += 1
        links = 2 if stat.S_ISDIR(entry.mode) else 1 + len(also)

        def begin(name: bytes, size: int) -> None:
            _check_name(name)
            numbers = (entry.mode, entry.uid, entry.gid, links, self._time(entry), size)
            if not all(0 <= n <= FIELD_MAX for n in (*numbers, *entry.device)):
                raise NitroError(f"{readable(name)} has {size} bytes, owner {entry.uid}:{entry.gid}; "
                                 "a cpio archive holds only 32-bit numbers")  # fmt: skip
            self._put(_header(self._inode, *numbers, entry.device, name))

        def end(size: int) -> None:
            self._written += size
            self._put(bytes(-size % 4))

        if entry.filler:
            begin(entry.name, entry.size)
            entry.filler(self._sink)
            end(entry.size)
        elif entry.path is None:
            begin(entry.name, len(entry.data))
            self._sink.write(entry.data)
            end(len(entry.data))
        else:
            try:
                fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                raise NitroError(f"cannot open {entry.path}: {e.strerror}") from e
            try:
                size = os.fstat(fd).st_size
                begin(entry.name, size)
                self._sink.copy(fd, size, str(entry.path))
                end(size)
            finally:
                os.close(fd)
        for name in also:
            begin(name, 0)

    def finish(self) -> None:
        self._put(_header(self._inode + 1, 0, 0, 0, 1, 0, 0, (0, 0), TRAILER))
        assert self._written % 4 == 0

    def _time(self, entry: Entry) -> int:
        mtime = self._mtime if entry.mtime is None else entry.mtime
        return min(max(mtime, 0), FIELD_MAX)

    def _put(self, data: bytes) -> None:
        self._sink.write(data)
        self._written += len(data)


def write(sink: Sink, entries: Iterable[Entry], *, mtime: int = 0) -> None:
    """Write a whole archive, sorted, so that each folder comes before its contents. Raises NitroError like
    `Archive.add`, and for a name that is given twice."""
    archive = Archive(sink, mtime=mtime)
    last: bytes | None = None
    for entry in sorted(entries, key=lambda e: e.name.split(b"/")):
        if entry.name == last:
            raise NitroError(f"the archive would contain {readable(entry.name)} twice")
        last = entry.name
        archive.add(entry)
    archive.finish()


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
        raise NitroError(f"{readable(name)!r} cannot be a name in an archive")
    if len(name) > NAME_MAX:
        raise NitroError(f"a name of {len(name)} bytes cannot be in an archive ({readable(name[:40])})")


def readable(name: bytes) -> str:
    """A name as text for a message."""
    return shown.line(name.decode("utf-8", "backslashreplace"), 300)
