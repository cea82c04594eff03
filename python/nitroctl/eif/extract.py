# SPDX-License-Identifier: MIT
"""Splits an EIF: writes each section to a file of its own, in a new folder. Ramdisks are not unpacked.

    kernel, cmdline, metadata.json, ramdisk-0.cpio (.gz, .xz, ...), signature.cbor, certificate.pem

The file names are fixed; nothing in the EIF influences them. The folder is created completely or not at all,
and only if the EIF breaks no rule.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from isal.isal_zlib import crc32

from nitroctl.base import atomic
from nitroctl.base.errors import EifError, NitroError
from nitroctl.eif import signature
from nitroctl.eif.format import CRC_OFFSET, Layout, Section, SectionType, open_eif, read_layout
from nitroctl.eif.measure import CHUNK, Progress, crc_mismatch, crc_of_gap, shown

# First bytes of the formats that a kernel can unpack (lib/decompress.c) -> suffix of the file's name.
_MAGICS = (
    (b"07070", ".cpio"),
    (b"\x1f\x8b", ".cpio.gz"),
    (b"\x28\xb5\x2f\xfd", ".cpio.zst"),
    (b"\xfd7zXZ", ".cpio.xz"),
    (b"BZh", ".cpio.bz2"),
    (b"\x02\x21\x4c\x18", ".cpio.lz4"),
    (b"\x89LZO", ".cpio.lzo"),
    (b"\x5d\x00", ".cpio.lzma"),
)


def suffix(head: bytes) -> str:
    """The suffix of a file's name for a ramdisk with these first bytes."""
    return next((s for magic, s in _MAGICS if head.startswith(magic)), "")


def read_section(fd: int, section: Section, path: Path) -> Iterator[bytes]:
    """The data of a section, piece by piece."""
    at = section.data_offset
    while at < section.end:
        data = os.pread(fd, min(CHUNK, section.end - at), at)
        if not data:
            raise EifError("io", "the file became shorter while it was being read", path=path, offset=at)
        yield data
        at += len(data)


def extract(path: Path, folder: Path) -> list[Path]:
    """Write the sections of `path` into `folder`, which must not exist or be empty; returns the files in file
    order. Raises NitroError; then nothing was written."""
    there = folder.is_dir()
    with open_eif(path) as (fd, size), shown(f"Extracting {path.name}", size) as advance:
        layout = read_layout(fd, size, path)
        try:
            if folder.exists() and (not there or any(folder.iterdir())):
                raise NitroError(f"{folder} already exists", hint="name a new folder, or an empty one")
            if (
                there
            ):  # an existing folder is filled, not replaced: a process may have it as working directory
                with tempfile.TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True) as aside:
                    names = _write(fd, layout, Path(aside), path, advance)
                    for name in names:
                        os.rename(Path(aside) / name, folder / name)
            else:
                with atomic.folder(folder) as made:
                    names = _write(fd, layout, made, path, advance)
        except OSError as e:
            raise NitroError(f"cannot write {folder}: {e.strerror}") from e
    return [folder / name for name in names]


def _write(fd: int, layout: Layout, folder: Path, path: Path, advance: Progress | None) -> list[str]:
    names: list[str] = []
    crc = crc32(layout.header.raw[:CRC_OFFSET])
    for section, gap in zip(layout.sections, layout.gaps, strict=True):
        names.append(_name(fd, section, sum(n.startswith("ramdisk") for n in names)))
        crc = crc32(section.header, crc_of_gap(crc, fd, gap, path))
        with open(folder / names[-1], "xb") as out:
            for data in read_section(fd, section, path):
                crc = crc32(data, crc)
                out.write(data)
                if advance:
                    advance(len(data))
    if crc != layout.header.crc32:
        raise crc_mismatch(crc, layout.header.crc32, path)
    if "signature.cbor" in names:
        decoded = signature.decode((folder / "signature.cbor").read_bytes(), path)
        (folder / "certificate.pem").write_bytes(decoded.pem)
        names.append("certificate.pem")
    return names


def _name(fd: int, section: Section, ramdisks: int) -> str:
    if section.type is SectionType.RAMDISK:
        return f"ramdisk-{ramdisks}{suffix(os.pread(fd, min(8, section.size), section.data_offset))}"
    return {
        SectionType.KERNEL: "kernel",
        SectionType.CMDLINE: "cmdline",
        SectionType.METADATA: "metadata.json",
        SectionType.SIGNATURE: "signature.cbor",
    }[section.type]
