# SPDX-License-Identifier: MIT
"""The entries of a ramdisk: everything in their cpio headers, and a digest of the content. Memory use depends
only on the number of names.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from nitroctl.base.instants import UTC
from nitroctl.eif import linuxkit, newc
from nitroctl.eif.format import Section

LINK_MAX = 4096  # bytes of a link's target that are kept: Linux's limit
TEXT_MAX = 1 << 20  # bytes that are kept of a file that init reads
_TEXTS = (b"cmd", b"env", b"cmd0", b"env0")


@dataclass(frozen=True)
class Entry:
    """One name in a ramdisk. `text` is the content if it may matter: a link's target, or a file that init
    reads."""

    mode: int
    uid: int
    gid: int
    device: tuple[int, int]
    size: int
    digest: bytes
    mtime: int
    ino: int = 0
    links: int = 1
    text: bytes = b""

    @property
    def said(self) -> tuple[object, ...]:
        """What two entries must have in common to be the same."""
        return self.mode, self.uid, self.gid, self.device, self.size, self.digest, self.mtime

    def show(self, other: Entry | None) -> str:
        """The entry in the form of `ls -l`; with the digest or the time if nothing else differs from
        `other`."""
        text = f"{stat.filemode(self.mode)} {self.uid}:{self.gid} {self.size} bytes"
        if stat.S_ISBLK(self.mode) or stat.S_ISCHR(self.mode):
            text += f" device {self.device[0]},{self.device[1]}"
        if other and text == other.show(None):
            if self.digest != other.digest:
                text += f" sha256 {self.digest.hex()[:16]}"
            else:
                text += f" of {datetime.fromtimestamp(self.mtime, UTC):%Y-%m-%d %H:%M:%S} UTC"
        return text


@dataclass(frozen=True)
class Listing:
    """The entries of a ramdisk. `by_aws`: AWS's builder or `linuxkit` made it; their inode numbers show
    it."""

    entries: dict[bytes, Entry]
    by_aws: bool

    def without_slashes(self) -> Listing:
        """The same with folders' names without the slash at the end, which only AWS's archives have. If a
        name occurs twice, the last one counts, as for the kernel."""
        return replace(self, entries={name.rstrip(b"/"): entry for name, entry in self.entries.items()})


def read(fd: int, section: Section, path: Path) -> Listing:
    """Raises newc.NotReadable."""
    entries: dict[bytes, Entry] = {}
    content: dict[int, Entry] = {}  # of an inode with several names, the one that has the content
    first: newc.Header | None = None
    for header, pieces in newc.in_section(fd, section, path):
        first = first or header
        digest, text = hashlib.sha256(), b""
        keep = LINK_MAX if stat.S_ISLNK(header.mode) else TEXT_MAX if header.name in _TEXTS else 0
        for data in pieces:
            digest.update(data)
            text += data[: max(0, keep - len(text))]
        entry = Entry(
            header.mode, header.uid, header.gid, header.device, header.size, digest.digest(), header.mtime,
            header.ino, header.links, text,
        )  # fmt: skip
        entries[header.name] = entry
        if header.links > 1 and stat.S_ISREG(header.mode) and header.size:
            content[header.ino] = entry
    for name, entry in entries.items():
        if entry.links > 1 and not entry.size and (whole := content.get(entry.ino)):
            entries[name] = replace(entry, size=whole.size, digest=whole.digest, text=whole.text)
    by_aws = first is not None and (first.ino, first.file_system) == (linuxkit.FIRST_INODE, linuxkit.DEVICE)
    return Listing(entries, by_aws)
