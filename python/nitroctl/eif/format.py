# SPDX-License-Identifier: MIT
"""The layout of an Enclave Image File (EIF), and the rules that every file must keep.

An EIF is a 548-byte header and up to 32 sections, each a 12-byte section header and its data, in the order of
their offsets. AWS's tools leave no gaps between sections, but Nitro boots files that have some.
All numbers are big-endian (AWS's EIF specification, version 4 of 2024-06-21; versions 2 and 3 have the same
layout). This module reads headers only; it never touches a section's data, and no number in a file makes it
allocate anything. `measure` reads the data.

The first broken rule is raised as an `EifError` whose `rule` is the machine's loader's name for it. Both
check the rules in the same order:

    file-too-short, bad-magic, bad-version, bad-arch, section-count,
    then for each entry of the header's tables  section-offset, section-beyond-file,
    trailing-bytes,
    then for each section header                section-size-mismatch, section-type, and by its type
        duplicate-kernel, duplicate-cmdline, ramdisk-before-kernel, duplicate-signature,
        signature-too-large, duplicate-metadata,
    no-kernel, no-cmdline, no-metadata

then, from the data (`measure`), crc-mismatch and cmdline-nul; then the rules of the signature (`signature`).
"""

from __future__ import annotations

import enum
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nitroctl.base import arch as arches
from nitroctl.base.arch import Arch
from nitroctl.base.errors import EifError

MAGIC = b".eif"
HEADER = struct.Struct(">4sHHQQHH32Q32QII")
HEADER_SIZE = HEADER.size  # 548
CRC_OFFSET = 544  # of the checksum's four bytes, which it does not cover
SECTION_HEADER = struct.Struct(">HHQ")
SECTION_HEADER_SIZE = SECTION_HEADER.size  # 12
MIN_VERSION, MAX_VERSION = 2, 4
MIN_SECTIONS, MAX_SECTIONS = 2, 32
SIGNATURE_MAX = 32768  # bytes of a signature section's data

FLAG_AARCH64 = arches.EIF_FLAG  # the only flag with a meaning; the others are reserved and ignored

# Constants that AWS's builder writes into every image; nothing reads them.
DEFAULT_MEM = 1 << 30
DEFAULT_CPUS = 2

MAX_U64 = (1 << 64) - 1


class SectionType(enum.IntEnum):
    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


class Section(NamedTuple):
    """One section. `offset` is where its 12-byte header is in the file; `size` is that of its data only."""

    type: SectionType
    offset: int
    size: int
    header: bytes

    @property
    def data_offset(self) -> int:
        return self.offset + SECTION_HEADER_SIZE

    @property
    def end(self) -> int:
        return self.data_offset + self.size


class Header(NamedTuple):
    """The file header's fields; `offsets` and `sizes` have one item per section, unused slots left out."""

    version: int
    flags: int
    default_mem: int
    default_cpus: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32: int
    raw: bytes


class Hints(NamedTuple):
    """The header's fields other than the sections' places; the defaults are what AWS's builder writes."""

    version: int = MAX_VERSION
    flags: int = 0
    default_mem: int = DEFAULT_MEM
    default_cpus: int = DEFAULT_CPUS

    def pack(self, offsets: list[int], sizes: list[int], crc32: int) -> bytes:
        """The 548 bytes of a header."""
        unused = [0] * (MAX_SECTIONS - len(offsets))
        return HEADER.pack(
            MAGIC, self.version, self.flags, self.default_mem, self.default_cpus, 0, len(offsets),
            *offsets, *unused, *sizes, *unused, 0, crc32,
        )  # fmt: skip


class Layout(NamedTuple):
    """The layout of a file whose headers keep all rules. The sections are in file order; the file ends with
    the last one."""

    header: Header
    sections: tuple[Section, ...]
    file_size: int

    def of_type(self, type: SectionType) -> tuple[Section, ...]:
        return tuple(s for s in self.sections if s.type is type)

    def first(self, type: SectionType) -> Section | None:
        return next(iter(self.of_type(type)), None)

    @property
    def arch(self) -> Arch:
        """The architecture that the image is for."""
        return arches.of_flags(self.header.flags)

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """(begin, end) of each gap before a section. The checksum covers gaps, no PCR does."""
        ends = (HEADER_SIZE, *(s.end for s in self.sections))
        return tuple((end, s.offset) for end, s in zip(ends, self.sections, strict=False))

    @property
    def gap_size(self) -> int:
        return sum(end - begin for begin, end in self.gaps)


ReadAt = Callable[[int, int], bytes]  # (offset, length) -> at most that many bytes


@contextmanager
def open_eif(path: Path) -> Iterator[tuple[int, int]]:
    """Open an EIF for reading: (file descriptor, size). Raises EifError `io` if the system refuses."""
    try:
        # O_NONBLOCK: otherwise opening a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise EifError("io", f"cannot open the file: {e.strerror}", path=path) from e
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            hint = _made_of(path) if (path / "index.json").is_file() else None  # an OCI layout
            raise EifError("io", "is not a regular file", path=path, hint=hint)
        yield fd, status.st_size
    except OSError as e:
        raise EifError("io", f"cannot read the file: {e.strerror}", path=path) from e
    finally:
        os.close(fd)


def image_arch(path: Path) -> Arch:
    """The architecture in a file's flags. If the file cannot be read or is not an EIF, the host's (or the
    default, if enclaves do not support that): its faults are reported where the file is checked."""
    try:
        with open_eif(path) as (fd, _):
            raw = os.pread(fd, 8, 0)
    except EifError:
        raw = b""
    if len(raw) < 8 or not raw.startswith(MAGIC):
        return arches.host() or "x86_64"
    return arches.of_flags(int.from_bytes(raw[6:8], "big"))


def _hint(raw: bytes, path: Path | None) -> str | None:
    """What to do with a file that is often mistaken for an EIF."""
    if raw[257:262] == b"ustar":
        return _made_of(path)
    if raw.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return "it is compressed: unpack it first"
    return None


def _made_of(path: Path | None) -> str:
    return f"make an EIF of a container image with `nitroctl eif build --image {path or 'FILE'} -o app.eif`"


def read_layout(fd: int, file_size: int, path: Path | None = None, *, only: Arch | None = None) -> Layout:
    """Read and check all headers of an open file. With `only` an image for another architecture is refused.

    Raises EifError for the first broken rule.
    """
    return parse_layout(lambda offset, length: os.pread(fd, length, offset), file_size, path, only=only)


def parse_layout(
    read_at: ReadAt, file_size: int, path: Path | None = None, *, only: Arch | None = None
) -> Layout:
    """Like `read_layout`, for anything that can be read at an offset."""
    header = _parse_header(read_at(0, HEADER_SIZE), file_size, path, only)
    sections: list[Section] = []
    for i, (offset, size) in enumerate(zip(header.offsets, header.sizes, strict=True)):
        raw = read_at(offset, SECTION_HEADER_SIZE)
        if len(raw) != SECTION_HEADER_SIZE:
            raise EifError("io", "the file became shorter while it was being read", path=path, offset=offset)
        sections.append(_parse_section(i, offset, size, raw, sections, path))
    layout = Layout(header, tuple(sections), file_size)
    for type, rule in ((SectionType.KERNEL, "no-kernel"), (SectionType.CMDLINE, "no-cmdline")):
        if not layout.first(type):
            raise EifError(
                rule, f"none of the {len(sections)} sections is a {type.name.lower()} section", path=path
            )
    if header.version >= 4 and not layout.first(SectionType.METADATA):
        raise EifError("no-metadata", f"version {header.version} needs a metadata section", path=path)
    return layout


def _parse_header(raw: bytes, file_size: int, path: Path | None, only: Arch | None) -> Header:
    def refuse(rule: str, message: str, offset: int) -> EifError:
        return EifError(rule, message, path=path, offset=offset)

    if file_size < HEADER_SIZE:
        raise refuse(
            "file-too-short", f"an EIF header has {HEADER_SIZE} bytes, the file only {file_size}", file_size
        )
    if len(raw) != HEADER_SIZE:
        raise refuse("io", "the file became shorter while it was being read", len(raw))
    fields = HEADER.unpack(raw)
    magic, version, flags, default_mem, default_cpus, _, count = fields[:7]
    if magic != MAGIC:
        text = f"not an EIF: it begins with {magic.hex()}, not {MAGIC.hex()} (.eif)"
        raise EifError("bad-magic", text, path=path, offset=0, hint=_hint(raw, path))
    if not MIN_VERSION <= version <= MAX_VERSION:
        raise refuse(
            "bad-version", f"EIF version {version} is unknown; known are {MIN_VERSION} to {MAX_VERSION}", 4
        )
    if only not in (None, found := arches.of_flags(flags)):
        raise refuse("bad-arch", f"the image is for {found} (flags {flags:#06x}), not for {only}", 6)
    if not MIN_SECTIONS <= count <= MAX_SECTIONS:
        raise refuse(
            "section-count",
            f"the header says {count} sections; an EIF has {MIN_SECTIONS} to {MAX_SECTIONS}",
            26,
        )
    offsets, sizes = fields[7 : 7 + count], fields[39 : 39 + count]
    end = HEADER_SIZE
    for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        slot = 28 + 8 * i
        if offset < end:
            raise refuse(
                "section-offset",
                f"section {i} begins at {offset}, before the end of what precedes it at {end} (overlap)",
                slot,
            )
        end = offset + SECTION_HEADER_SIZE + size
        if end > file_size or end > MAX_U64:
            raise refuse(
                "section-beyond-file",
                f"section {i} at {offset} has {size} bytes of data and would end at {end}; "
                f"the file has {file_size} bytes",
                slot + 256,
            )
    if end != file_size:
        raise refuse(
            "trailing-bytes", f"{file_size - end} bytes follow the last section, which ends at {end}", end
        )
    return Header(version, flags, default_mem, default_cpus, offsets, sizes, fields[-1], raw)


def _parse_section(
    i: int, offset: int, size: int, raw: bytes, before: list[Section], path: Path | None
) -> Section:
    def refuse(rule: str, message: str, at: int = 0) -> EifError:
        return EifError(rule, message, path=path, offset=offset + at)

    number, _, own_size = SECTION_HEADER.unpack(raw)
    if own_size != size:
        raise refuse(
            "section-size-mismatch",
            f"section {i} has the size {own_size} in its own header, but {size} in the file header",
            4,
        )
    try:
        type = SectionType(number)
    except ValueError:
        raise refuse("section-type", f"section {i} has the unknown type {number}") from None
    seen = {s.type for s in before}
    if type is SectionType.RAMDISK:
        if SectionType.KERNEL not in seen:
            raise refuse("ramdisk-before-kernel", f"section {i} is a ramdisk, but no kernel comes before it")
    elif type in seen:
        raise refuse(f"duplicate-{type.name.lower()}", f"section {i} is a second {type.name.lower()} section")
    if type is SectionType.SIGNATURE and size > SIGNATURE_MAX:
        raise refuse(
            "signature-too-large", f"the signature has {size} bytes; at most {SIGNATURE_MAX} are allowed", 4
        )
    return Section(type, offset, size, raw)
