# SPDX-License-Identifier: MIT
"""Gathers the facts that `lint` checks: about an EIF's kernel, its ramdisks and the application in them, for
either architecture. Checks nothing itself.

The input is not trusted: `newc` limits names and their number, links are followed at most as often as by
Linux, and the only contents that are kept are what init reads, some files of /etc and the first bytes of one
program.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nitroctl.base.errors import EifError
from nitroctl.eif import kernel_parts, linuxkit, newc
from nitroctl.eif.about import METADATA_KEPT, parse_metadata
from nitroctl.eif.format import FLAG_AARCH64, Layout, SectionType, open_eif, read_layout
from nitroctl.eif.layers import LINKS_MAX, path_parts

# Where AWS's init looks for a program, whatever PATH the image has.
AWS_PATH = ("/sbin", "/usr/sbin", "/bin", "/usr/bin")
_TEXTS = {b"cmd", b"env", b"cwd", b"user", b"program"}
_KEPT = {b"rootfs/etc/hosts", b"rootfs/etc/resolv.conf", b"rootfs/etc/hostname", b"rootfs/etc/mtab"}
_TEXT_MAX = 1 << 20
_LINK_MAX = 4096

# The mark at the end of a one-file program of PyInstaller, which unpacks itself into /tmp.
_PYINSTALLER = b"MEI\014\013\012\013\016"


@dataclass(frozen=True)
class File:
    """A file in a ramdisk. `text` is its content, if that is kept, or a link's target."""

    mode: int
    size: int
    text: bytes = b""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Program:
    """The program that the application's command starts. `path` is None if it was not found; `head` are its
    first bytes; `by_aws`: AWS's init finds it too, not only ours."""

    path: bytes | None
    by_aws: bool = False
    head: bytes = b""
    pyinstaller: bool = False


@dataclass
class Facts:
    """`drivers`: None if the kernel cannot be unpacked. `unread`: ramdisks that cannot be read, and why.
    `by_aws`: AWS's builder made the application's ramdisk."""

    memory: int | None  # MiB that the enclave will be given, if that is known
    flags: int
    layout: Layout
    kernel_head: bytes
    refusal: EifError | None
    cmdline: bytes
    metadata: dict[str, Any] | None
    drivers: set[str] | None
    unread: list[str] = field(default_factory=list)
    boot: dict[bytes, File] = field(default_factory=dict)
    files: dict[bytes, File] = field(default_factory=dict)
    by_aws: bool = False
    unpacked: int = 0  # bytes of all ramdisks, and whether one is compressed
    compressed: bool = False
    program: Program | None = None

    @property
    def is_arm64(self) -> bool:
        return bool(self.flags & FLAG_AARCH64)

    def lines(self, name: bytes) -> list[bytes]:
        """The lines of a file beside rootfs, as init reads them."""
        file = self.files.get(name)
        return file.text.splitlines() if file else []

    def follow(self, path: bytes) -> tuple[bytes, File] | None:
        """Follow a path in the application's root, through links: the final name and the file; None if there
        is none."""
        todo = list(reversed(path_parts(path))) if path.startswith(b"/") else []
        at: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                del at[-1:]
                continue
            file = self.files.get(b"/".join((b"rootfs", *at, part)))
            if file is None:
                return None
            if stat.S_ISLNK(file.mode):
                links += 1
                if links > LINKS_MAX:
                    return None
                if file.text.startswith(b"/"):
                    at = []
                todo += reversed(file.text.split(b"/"))
                continue
            at.append(part)
        name = b"/" + b"/".join(at)
        found = self.files.get(b"rootfs" + name.rstrip(b"/"))
        return (name, found) if found else None


def gather(path: Path, memory: int | None = None) -> Facts:
    """Gather the facts about an EIF. Raises EifError if its headers break a rule: then no facts are known."""
    with open_eif(path) as (fd, size):
        flags = int.from_bytes(os.pread(fd, 2, 6), "big")

        layout = read_layout(fd, size, path)
        kernel, cmdline = (layout.of_type(t)[0] for t in (SectionType.KERNEL, SectionType.CMDLINE))
        metadata = layout.first(SectionType.METADATA)
        facts = Facts(
            memory=memory,
            flags=flags,
            layout=layout,
            kernel_head=os.pread(fd, 64, kernel.data_offset),
            refusal=_refusal(path),
            cmdline=os.pread(fd, min(cmdline.size, _TEXT_MAX), cmdline.data_offset),
            metadata=_metadata(os.pread(fd, min(metadata.size, METADATA_KEPT), metadata.data_offset))
            if metadata
            else None,
            drivers=kernel_parts.drivers_of(_Section(fd, kernel.data_offset, kernel.size), kernel.size),
        )
        for number, section in enumerate(layout.of_type(SectionType.RAMDISK)):
            facts.compressed |= os.pread(fd, 5, section.data_offset) != b"07070"
            try:
                _read_ramdisk(facts, newc.in_section(fd, section, path), number)
            except newc.NotReadable as e:
                facts.unread.append(f"ramdisk {number}: {e}")
        facts.program = _program(facts, fd, path)
    return facts


def _refusal(path: Path) -> EifError | None:
    from datetime import datetime

    from nitroctl.base.instants import UTC
    from nitroctl.eif.verify import verify

    try:
        verify(path, now=datetime.now(UTC))
    except EifError as e:
        return e
    return None


def _metadata(data: bytes) -> dict[str, Any] | None:
    return parse_metadata(data)[0]


class _Section(io.RawIOBase):
    """A section's data as a file."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._size = fd, offset, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: max(0, self._size - self._at)]
        n = os.preadv(self._fd, [room], self._offset + self._at) if room else 0
        self._at += n
        return n


def _read_ramdisk(facts: Facts, entries: Iterator[tuple[newc.Header, Iterator[bytes]]], number: int) -> None:
    first = True
    for header, content in entries:
        if first and number:
            facts.by_aws = (header.ino, header.file_system) == (linuxkit.FIRST_INODE, linuxkit.DEVICE)
        first = False
        name = header.name.strip(b"/").removeprefix(b"./")
        keep = _LINK_MAX if stat.S_ISLNK(header.mode) else _TEXT_MAX if name in _TEXTS | _KEPT else 0
        text = b"".join(content)[:keep] if keep and header.size <= _TEXT_MAX else b""
        into = facts.files if number else facts.boot
        into[name] = File(header.mode, header.size, text)
        facts.unpacked += header.size
        if not number and b".ko" in name and facts.drivers is not None:
            facts.drivers |= _module(name, content)


def _module(name: bytes, content: Iterator[bytes]) -> set[str]:
    """A module that is compressed is known by its name alone."""
    base = name.rpartition(b"/")[2]
    names = {b"nsm.ko": "nsm", b"vmw_vsock_virtio_transport.ko": "vsock"}
    known = {driver for module, driver in names.items() if base.startswith(module)}
    return known | kernel_parts.drivers_in(content)


# ---- the application ----


def _program(facts: Facts, fd: int, path: Path) -> Program | None:
    """The program that AWS's init would start, or that our own was told to start; None if there is no
    command."""
    if b"cmd" not in facts.files:
        return None
    word = (facts.lines(b"cmd") or [b"sh"])[0]
    folders = [b""] if b"/" in word else [f.encode() for f in AWS_PATH]
    ours = [*facts.lines(b"program"), *(cwd + b"/" + word for cwd in facts.lines(b"cwd"))]
    for by_aws, places in ((True, [b"/%s/%s" % (folder, word) for folder in folders]), (False, ours)):
        for place in places:
            if found := facts.follow(place):
                name, file = found
                return (
                    _look_into(Program(name, by_aws), fd, path, facts.layout)
                    if stat.S_ISREG(file.mode)
                    else None
                )
    return Program(None)


def _look_into(program: Program, fd: int, path: Path, layout: Layout) -> Program:
    wanted = b"rootfs" + (program.path or b"")
    for section in layout.of_type(SectionType.RAMDISK)[1:]:
        try:
            for header, content in newc.in_section(fd, section, path):
                if header.name.strip(b"/").removeprefix(b"./") != wanted or not header.size:
                    continue
                head, tail, cookie = b"", b"", False
                for data in content:
                    head = head or data[:64]
                    cookie |= _PYINSTALLER in tail + data
                    tail = data[-len(_PYINSTALLER) :]
                program = replace(program, head=head, pyinstaller=cookie)
        except newc.NotReadable:
            continue
    return program
