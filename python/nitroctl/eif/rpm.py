# SPDX-License-Identifier: MIT
"""Extracts files from an RPM package, without rpm: lead, two headers, a cpio archive (rpm's
docs/manual/format.md).

AWS's kernel and init come in such a package, and often the host has no rpm. The package's own digests are
checked, against damage. Its signature is not (`rpm -K` does that), but what is extracted is measured later.
The input is not trusted: every length is checked against a limit before it is used, and only the wanted files
are kept.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.base.errors import NitroError
from nitroctl.eif import newc
from nitroctl.eif.measure import CHUNK
from nitroctl.eif.unpack import unpacked_any

MAGIC = b"\xed\xab\xee\xdb"

_LEAD = 96
_HEADER = b"\x8e\xad\xe8\x01"
_ENTRY = struct.Struct(">4I")  # tag, type, offset, count
_STRINGS = (6, 8, 9)  # types: a text, an array of them, a translated one
_NUMBERS = 4  # 32 bits each
ENTRIES_MAX = 4096
STORE_MAX = 64 << 20

# Tags of the header, and of the signatures' header before it.
_NAME, _VERSION, _RELEASE, _ARCH = 1000, 1001, 1002, 1022
_PAYLOAD_FORMAT, _PAYLOAD_DIGEST, _DIGEST_ALGORITHM = 1124, 5092, 5093
_SIGNATURE_MD5, _SIGNATURE_SHA256 = 1004, 273
_BYTES = 7
_SHA256 = 8


@dataclass(frozen=True)
class Package:
    """The package's description of itself, and where its payload begins in the file."""

    name: str
    version: str  # with the release
    architecture: str
    payload: int
    digest: str | None  # of the payload as it is stored, SHA-256
    md5: bytes | None  # of header and payload
    header: tuple[int, int]  # of the main header: from, to


def is_rpm(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as f:
            return f.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: Path) -> Package:
    """Read a package's headers. Raises NitroError if the file is not a package, or is damaged."""
    with _opened(path) as f:
        try:
            return _package(f)
        except _Damaged as e:
            raise NitroError(f"{path} is no RPM package, or damaged: {e}") from None


def extract(path: Path, wanted: Mapping[bytes, int], into: Path) -> Package:
    """Write the files with the absolute names in `wanted` into a folder, under the last part of their names.
    `wanted` maps each name to the largest size that is accepted. Raises NitroError, also if the package's
    digests do not match."""
    with _opened(path) as f:
        try:
            package = _package(f)
            _check(f, package)
            f.seek(package.payload)
            for header, content in newc.read(unpacked_any(f)):
                name = b"/" + header.name.removeprefix(b".").lstrip(b"/")
                if name not in wanted or not stat.S_ISREG(header.mode):
                    continue
                if header.size > wanted[name]:
                    raise _Damaged(
                        f"{os.fsdecode(name)} has {header.size} bytes; at most {wanted[name]} are accepted"
                    )
                with open(into / os.fsdecode(name.rpartition(b"/")[2]), "wb") as out:
                    out.writelines(content)
        except (_Damaged, newc.NotReadable) as e:
            raise NitroError(f"{path} is no RPM package, or damaged: {e}") from None
        except OSError as e:
            raise NitroError(f"cannot unpack {path} to {into}: {e.strerror}") from e
    return package


class _Damaged(Exception):
    pass


def _opened(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path)
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e


def _take(f: io.FileIO, size: int) -> bytes:
    if size > os.fstat(f.fileno()).st_size:  # before it is allocated
        raise _Damaged("it ends within its headers")
    data = f.read(size)
    if len(data) < size:
        raise _Damaged("it ends within its headers")
    return data


# ---- headers ----


def _package(f: io.FileIO) -> Package:
    if _take(f, _LEAD)[: len(MAGIC)] != MAGIC:
        raise _Damaged("it does not begin like an RPM package")
    signatures, _ = _tags(f)
    f.seek(-f.tell() % 8, os.SEEK_CUR)
    start = f.tell()
    tags, text = _tags(f)
    expected = signatures.get(_SIGNATURE_SHA256)
    if isinstance(expected, str) and hashlib.sha256(text).hexdigest() != expected:
        raise _Damaged("the digest of its header does not match")
    if tags.get(_PAYLOAD_FORMAT, "cpio") != "cpio":
        raise _Damaged(f"its payload is {tags[_PAYLOAD_FORMAT]!r}, not cpio")
    digest, md5 = tags.get(_PAYLOAD_DIGEST), signatures.get(_SIGNATURE_MD5)
    return Package(
        name=str(tags.get(_NAME, "")),
        version=f"{tags.get(_VERSION, '')}-{tags.get(_RELEASE, '')}",
        architecture=str(tags.get(_ARCH, "")),
        payload=f.tell(),
        digest=digest if isinstance(digest, str) and tags.get(_DIGEST_ALGORITHM) == _SHA256 else None,
        md5=md5 if isinstance(md5, bytes) and len(md5) == 16 else None,
        header=(start, f.tell()),
    )


def _tags(f: io.FileIO) -> tuple[dict[int, Any], bytes]:
    """A header: its tags that are strings (the first one of an array), numbers or bytes; and its raw
    bytes."""
    intro = _take(f, 16)
    if intro[:4] != _HEADER:
        raise _Damaged("a header does not begin with the header magic")
    count, size = struct.unpack(">2I", intro[8:])
    if count > ENTRIES_MAX or size > STORE_MAX:
        raise _Damaged(f"a header has {count} entries and {size} bytes, which is too many")
    index, store = _take(f, count * _ENTRY.size), _take(f, size)
    found: dict[int, Any] = {}
    for tag, kind, offset, number in _ENTRY.iter_unpack(index):
        if offset >= size or not number:
            continue
        if kind in _STRINGS:
            end = store.find(b"\0", offset)
            if end >= 0:
                found.setdefault(tag, store[offset:end].decode("utf-8", "replace"))
        elif kind == _NUMBERS and offset + 4 <= size:
            found.setdefault(tag, int.from_bytes(store[offset : offset + 4], "big"))
        elif kind == _BYTES and offset + number <= size:
            found.setdefault(tag, store[offset : offset + number])
    return found, intro + index + store


# ---- payload ----


def _check(f: io.FileIO, package: Package) -> None:
    """Check the digests: rpm 4.14 and later write one of the payload, all versions write an MD5."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    f.seek(package.header[0])
    md5.update(_take(f, package.payload - package.header[0]))
    while data := f.read(CHUNK):
        sha256.update(data)
        md5.update(data)
    wrong = package.md5 is not None and md5.digest() != package.md5
    if wrong or (package.digest is not None and sha256.hexdigest() != package.digest):
        raise _Damaged("the digest of its payload does not match")
