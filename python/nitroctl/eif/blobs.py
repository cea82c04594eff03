# SPDX-License-Identifier: MIT
"""The files of a container image, in a folder or a tar archive, found and read in place. What they contain is
left to other modules.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.base.errors import NitroError
from nitroctl.eif import cpio
from nitroctl.eif.measure import CHUNK, Progress
from nitroctl.eif.tar import Member, damage, members
from nitroctl.eif.unpack import GZIP_MAGIC, ZSTD_MAGIC

MEMBERS_MAX = 100_000  # how many members an image's archive may have

MAKE = "make one: `docker save -o app.tar IMAGE`, or `skopeo copy docker://IMAGE oci-archive:app.tar`"
# Programs that compress a whole archive, which then cannot be read in place.
_COMPRESSED = {GZIP_MAGIC: "gzip", ZSTD_MAGIC: "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}


@dataclass(frozen=True)
class Blob:
    """A range of bytes in a file. `digest` ("sha256:...") is the digest of these bytes, `content` that of the
    bytes to which they unpack; both are checked when the whole blob is read."""

    path: Path
    offset: int
    size: int
    digest: str | None = None
    content: str | None = None


class Slice(io.RawIOBase):
    """A blob as a file that can be read and seeked in, forwards and backwards. Progress counts how far it has
    been read."""

    def __init__(self, blob: Blob, progress: Progress | None = None) -> None:
        self._fd = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
        self._blob = blob
        self._at = 0
        self._progress = progress
        self._told = 0
        self._hash: Any = hashlib.sha256() if blob.digest else None
        self._hashed = 0

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blob.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = max(0, min(len(buffer), self._blob.size - self._at))
        view = memoryview(buffer)[:room]
        n = os.preadv(self._fd, [view], self._blob.offset + self._at) if room else 0
        if self._progress and self._at + n > self._told:
            self._progress(self._at + n - self._told)
            self._told = self._at + n
        if self._hash and self._at <= self._hashed < self._at + n:
            self._hash.update(view[self._hashed - self._at : n])
            self._hashed = self._at + n
        self._at += n
        return n

    def check(self, what: str) -> None:
        """Read the rest, and compare the digest."""
        if not self._hash:
            return
        self.seek(self._hashed)
        buffer = bytearray(CHUNK)
        while self.readinto(buffer):
            pass
        check_digest(what, self._hash, self._blob.digest)


def check_digest(what: str, hash: Any, expected: str | None) -> None:
    found = "sha256:" + hash.hexdigest()
    if found != expected:
        raise NitroError(f"{what} is damaged: its digest is {found}, not {expected}")


def encoded(text: str) -> bytes:
    """A text of an image as bytes: UTF-8 in every locale; what was not UTF-8 is given back unchanged."""
    return text.encode("utf-8", "surrogateescape")


def lines(items: Iterable[str]) -> bytes:
    """Texts of an image as init reads them, one per line."""
    return b"".join(encoded(item) + b"\n" for item in items)


class Folder:
    """The files of an image's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> set[str]:
        return {name for name in ("manifest.json", "index.json") if (self._path / name).is_file()}

    def blob(self, name: str, digest: str | None = None, *, content: str | None = None) -> Blob:
        path = self._path / os.path.normpath("/" + name)[1:]
        if not path.is_file():
            raise NitroError(f"the image {self._path} lacks {cpio.readable(encoded(name))}")
        return Blob(path, 0, path.stat().st_size, digest, content)


class Archive:
    """The members of an image's tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        what = f"the image {path}"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NitroError(f"{what} is not a regular file; save it to a file first")
        size = status.st_size
        with open(path, "rb") as f, damage(what):
            head = f.read(8)
            for magic, program in _COMPRESSED.items():
                if head.startswith(magic):
                    hint = f"its parts are read in place, so unpack it first: {program} -dc {path} > app.tar"
                    raise NitroError(f"{what} is compressed as a whole ({program})", hint=hint)
            f.seek(0)
            try:
                tarfile.open(fileobj=f, mode="r:", tarinfo=Member).close()
            except tarfile.ReadError as e:
                raise NitroError(f"{path} is neither a tar archive nor a folder: {e}", hint=MAKE) from None
            f.seek(0)
            for _, member in members(f):
                if len(self._members) + len(links) >= MEMBERS_MAX:
                    raise NitroError(f"{what} has more than {MEMBERS_MAX} files")
                name = os.path.normpath("/" + member.name)[1:]
                if member.issym():
                    target = os.path.join("/", os.path.dirname(name), member.linkname)
                    links[name] = os.path.normpath(target)[1:]
                elif member.isreg() and not member.issparse():
                    if member.offset_data + member.size > size:
                        raise NitroError(f"{what} ends within {cpio.readable(encoded(name))}")
                    self._members[name] = (member.offset_data, member.size)
        # Old versions of Docker store a layer that occurs twice as a link.
        for name, target in links.items():
            if target in self._members:
                self._members.setdefault(name, self._members[target])

    def names(self) -> set[str]:
        return set(self._members)

    def blob(self, name: str, digest: str | None = None, *, content: str | None = None) -> Blob:
        name = os.path.normpath("/" + name)[1:]
        if name not in self._members:
            raise NitroError(f"the image {self._path} lacks {cpio.readable(encoded(name))}")
        return Blob(self._path, *self._members[name], digest, content)
