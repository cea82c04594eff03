# SPDX-License-Identifier: MIT
"""Reads the members of an untrusted tar archive one by one. What they mean is left to other modules.

tarfile reads the headers. It is kept from allocating memory because a header says so, from going backwards or
in circles, and from taking damage for the end of the archive; any failure is an error that names the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from math import floor
from typing import IO, Any

from nitroctl.base.errors import NitroError

HEADER_MAX = 1 << 20  # bytes of an extended tar header: long names, attributes
HEADERS_MAX = 4 * HEADER_MAX  # bytes of all headers before one file, and of all global headers

# What tarfile and the decompressors raise for damaged input.
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, KeyError, IndexError)


@contextmanager
def damage(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as e:
        raise NitroError(f"{what} is damaged: {e}") from e


class Member(tarfile.TarInfo):
    """A tar header for which tarfile cannot allocate more memory than a name or an attribute needs; a damaged
    one is not taken for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Member:
        at = archive.offset
        try:
            return super().fromtarfile(archive)
        except RecursionError:
            raise tarfile.ReadError(f"too many extended headers in a row, from {at} on") from None
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise  # the end
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"{e}, of the header at {at}") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        member = super().frombuf(buf, encoding, errors)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if member.type in (*extended, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= member.size <= HEADER_MAX:
                raise tarfile.ReadError(f"an extended header of {member.size} bytes")
        return member


class _Bounded:
    """A tar's stream, from which tarfile can read at most HEADERS_MAX bytes while it looks for the next file:
    otherwise a sparse file's list of holes could be of any length."""

    def __init__(self, f: IO[bytes]) -> None:
        self._f = f
        self.seek, self.tell = f.seek, f.tell
        self.left: int | None = HEADERS_MAX  # None: no header is being read

    def read(self, size: int = -1) -> bytes:
        data = self._f.read(size)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise tarfile.ReadError(f"a file's headers have more than {HEADERS_MAX} bytes")
        return data


def members(f: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, Member]]:
    """The members of a tar, one by one; none is kept in memory."""
    bounded: Any = _Bounded(f)
    with tarfile.open(
        fileobj=bounded, mode="r:", tarinfo=Member, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        at = -1
        while True:
            # tarfile keeps every header that it has seen, for seeking.
            tar.members = []  # type: ignore[attr-defined]
            bounded.left = HEADERS_MAX
            member = tar.next()
            bounded.left = None
            if member is None:
                return
            assert isinstance(member, Member)
            _check_member(tar, member, at)
            at = tar.offset
            yield tar, member


def seconds(member: tarfile.TarInfo) -> int:
    """The time of a member in whole seconds, without the fraction. The time in an extended header is read as
    a decimal: as a float, 1600000000.999999999 would be rounded up to the next second."""
    text = member.pax_headers.get("mtime")
    try:
        return floor(member.mtime if text is None else Decimal(text))
    except (InvalidOperation, ValueError, OverflowError):
        raise tarfile.ReadError(f"the time {str(text)[:40]!r}, with the header at {member.offset}") from None


def _check_member(tar: tarfile.TarFile, member: Member, before: int) -> None:
    """Refuse what tarfile would accept: a negative size, which would lead back to where it was `before`;
    holes that overlap; and too many global headers."""
    if member.size < 0 or tar.offset <= before:
        raise tarfile.ReadError(f"a file of {member.size} bytes, with the header at {member.offset}")
    end = 0
    holes: Any = member.sparse or ()  # pairs of offset and size of what is there
    for offset, size in holes:
        if offset == size == 0:
            continue  # an entry that is not used
        if not (end <= offset and 0 <= size and offset + size <= member.size):
            raise tarfile.ReadError(f"a sparse file with wrong holes, with the header at {member.offset}")
        end = offset + size
    if sum(len(key) + len(value) for key, value in tar.pax_headers.items()) > HEADERS_MAX:
        raise tarfile.ReadError(f"global headers of more than {HEADERS_MAX} bytes")
