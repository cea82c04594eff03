# SPDX-License-Identifier: MIT
"""What differs between two EIFs: which register, section, and file in a ramdisk. Judges nothing else.

Ramdisks are looked into where they are cpio archives ("newc"), plain, gzip or zstd; others are compared as
a whole. Memory grows with the number of names in a ramdisk, not with their content, and names have a limit.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nitroctl.eif import newc
from nitroctl.eif.describe import Description, describe
from nitroctl.eif.extract import read_section
from nitroctl.eif.format import Section, SectionType, open_eif


@dataclass(frozen=True)
class Difference:
    """`where` names a register, a section, or "ramdisk N: path"; `a` and `b` are what the two files have
    there, None for nothing; `pcrs` are the registers that a difference there moves."""

    where: str
    a: str | None
    b: str | None
    pcrs: tuple[str, ...] = ()


def diff(a: Path, b: Path) -> list[Difference]:
    """All differences, registers first. Raises EifError where one of the files breaks a rule of structure."""
    first, second = describe(a), describe(b)
    found = _compare(dict(_registers(first)), dict(_registers(second)))
    found += _compare(dict(_cmdline(first)), dict(_cmdline(second)), ("PCR0", "PCR1"))
    found += _compare(dict(_signer(first)), dict(_signer(second)), ("PCR8",))
    found += _compare(dict(_unmeasured(first)), dict(_unmeasured(second)))
    with open_eif(a) as (fd_a, _), open_eif(b) as (fd_b, _):
        types = [SectionType.KERNEL, SectionType.RAMDISK, SectionType.SIGNATURE]
        if first.metadata is None or second.metadata is None:  # not compared above
            types.append(SectionType.METADATA)
        for type in types:
            pairs = zip_longest(first.layout.of_type(type), second.layout.of_type(type))
            for i, (one, two) in enumerate(pairs):
                name = f"ramdisk {i}" if type is SectionType.RAMDISK else type.name.lower()
                if one is None or two is None or _digest(fd_a, one, a) != _digest(fd_b, two, b):
                    found += _compare_section(name, (fd_a, one, a), (fd_b, two, b), _moved(type, i))
    if not found and first.crc32 != second.crc32:
        found.append(Difference("reserved fields", f"CRC {first.crc32:08x}", f"CRC {second.crc32:08x}"))
    return found


def _moved(type: SectionType, number: int) -> tuple[str, ...]:
    """The registers that the content of the section measures into."""
    if type not in (SectionType.KERNEL, SectionType.RAMDISK):
        return ()
    return ("PCR0", "PCR2" if type is SectionType.RAMDISK and number else "PCR1")


def _compare(a: dict[str, str], b: dict[str, str], pcrs: tuple[str, ...] = ()) -> list[Difference]:
    return [Difference(key, a.get(key), b.get(key), pcrs) for key in a | b if a.get(key) != b.get(key)]


def _registers(d: Description) -> Iterator[tuple[str, str]]:
    yield from d.measurements.items()


def _cmdline(d: Description) -> Iterator[tuple[str, str]]:
    yield "cmdline", d.cmdline.decode("utf-8", "backslashreplace")


def _unmeasured(d: Description) -> Iterator[tuple[str, str]]:
    header = d.layout.header
    yield "version", str(header.version)
    yield "flags", f"{header.flags:#06x}"
    yield "default memory", f"{header.default_mem} bytes"
    yield "default CPUs", str(header.default_cpus)
    yield "gaps between sections", f"{d.layout.gap_size} bytes"
    yield "order of sections", " ".join(s.type.name.lower() for s in d.layout.sections)
    yield from _flat("metadata", d.metadata)


def _signer(d: Description) -> Iterator[tuple[str, str]]:
    if d.signature:
        digest = hashlib.sha256(d.signature.signer.der).hexdigest()
        yield "signer", f"{d.signature.signer.subject}, certificate sha256 {digest[:16]}"


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A JSON value as ("metadata.BuildMetadata.BuildTool", text) and so on, as deep as AWS's keys are."""
    if isinstance(value, dict) and value and name.count(".") < 4:
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif value is not None:
        yield name, str(value)


Open = tuple[int, Section | None, Path]


def _digest(fd: int, section: Section, path: Path) -> bytes:
    digest = hashlib.sha256()
    for data in read_section(fd, section, path):
        digest.update(data)
    return digest.digest()


def _compare_section(name: str, a: Open, b: Open, pcrs: tuple[str, ...]) -> list[Difference]:
    was, now = (None if s is None else f"{s.size} bytes" for s in (a[1], b[1]))
    found = [Difference(name, was, f"{now}, other content" if was == now else now, pcrs)]
    if name.startswith("ramdisk") and a[1] and b[1]:
        try:
            one, two = (dict(_entries(fd, s, path)) for fd, s, path in (a, b) if s)
        except newc.NotReadable as e:
            return [*found, Difference(f"{name}: not looked into", str(e), str(e), pcrs)]
        for key in sorted(one | two):
            if one.get(key) != two.get(key):
                old, new = one.get(key), two.get(key)
                where = f"{name}: {key.decode('utf-8', 'backslashreplace')}"
                found.append(Difference(where, _shown(old, new), _shown(new, old), pcrs))
    return found


# ---- archives ----


@dataclass(frozen=True)
class _Entry:
    mode: int
    uid: int
    gid: int
    device: tuple[int, int]
    size: int
    digest: bytes

    def show(self, other: _Entry | None) -> str:
        """As `ls -l` does it; the digest too where nothing else differs from `other`."""
        text = f"{stat.filemode(self.mode)} {self.uid}:{self.gid} {self.size} bytes"
        if stat.S_ISBLK(self.mode) or stat.S_ISCHR(self.mode):
            text += f" device {self.device[0]},{self.device[1]}"
        if other and text == other.show(None):
            text += f" sha256 {self.digest.hex()[:16]}"
        return text


def _shown(entry: _Entry | None, other: _Entry | None) -> str | None:
    return entry.show(other) if entry else None


def _entries(fd: int, section: Section, path: Path) -> Iterator[tuple[bytes, _Entry]]:
    for header, content in newc.in_section(fd, section, path):
        digest = hashlib.sha256()
        for data in content:
            digest.update(data)
        yield (
            header.name,
            _Entry(header.mode, header.uid, header.gid, header.device, header.size, digest.digest()),
        )
