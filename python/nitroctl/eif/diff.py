# SPDX-License-Identifier: MIT
"""Finds the differences between two EIFs: PCRs, sections, and files in ramdisks. If AWS's builder made one of
them, also the rule of that builder which explains a difference.

A ramdisk that is a cpio archive ("newc"), compressed or not, is compared file by file; any other as a whole.
Memory use depends on the number of names in a ramdisk, which is limited, and not on their contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nitroctl.eif import diff_rules, listing, newc
from nitroctl.eif.describe import Description, describe
from nitroctl.eif.extract import read_section
from nitroctl.eif.format import Section, SectionType, open_eif
from nitroctl.eif.listing import Listing


@dataclass(frozen=True)
class Difference:
    """`where` names a PCR, a section, or "ramdisk N: path"; `a` and `b` are what the two files have there,
    None for nothing; `pcrs` are the PCRs that change with it. `rule` is the name of the rule of AWS's builder
    that explains the difference, if there is one."""

    where: str
    a: str | None
    b: str | None
    pcrs: tuple[str, ...] = ()
    rule: str | None = None

    @property
    def why(self) -> str | None:
        return diff_rules.RULES[self.rule] if self.rule else None


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
    if any(d.rule == "archive-form" for d in found):
        found = [replace(d, rule=_of_the_file(d)) for d in found]
    return found


def _of_the_file(difference: Difference) -> str | None:
    """The rule that explains a difference outside the ramdisks, if AWS's builder made one of the files."""
    if difference.where == "kernel":
        return "blobs"
    return "metadata" if difference.where.startswith("metadata") else difference.rule


def is_consequence(difference: Difference) -> bool:
    """Whether this is a PCR or a whole ramdisk, which differs only because of what is in it."""
    return difference.where.startswith("PCR") or difference.rule == "archive-form"


def _moved(type: SectionType, number: int) -> tuple[str, ...]:
    """The PCRs into which the section is measured."""
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
    whole = Difference(name, was, f"{now}, other content" if was == now else now, pcrs)
    if not name.startswith("ramdisk") or not a[1] or not b[1]:
        return [whole]
    try:
        one, two = (listing.read(fd, s, path) for fd, s, path in (a, b) if s)
    except newc.NotReadable as e:
        return [whole, Difference(f"{name}: not looked into", str(e), str(e), pcrs)]
    if one.by_aws != two.by_aws:
        one, two = one.without_slashes(), two.without_slashes()
        whole = replace(whole, rule="archive-form")
    found = [whole]
    for key in sorted(one.entries | two.entries):
        old, new = one.entries.get(key), two.entries.get(key)
        if (old and old.said) != (new and new.said):
            where = f"{name}: {key.decode('utf-8', 'backslashreplace')}"
            rule = _rule(key, one, two, bootstrap=name == "ramdisk 0")
            shown = (old.show(new) if old else None, new.show(old) if new else None)
            found.append(Difference(where, *shown, pcrs, rule))
    return found


def _rule(key: bytes, one: Listing, two: Listing, *, bootstrap: bool) -> str | None:
    """Which rule of AWS's builder makes this difference."""
    old, new = one.entries.get(key), two.entries.get(key)
    if one.by_aws == two.by_aws:
        return diff_rules.folder_time(old, new) if one.by_aws and old and new else None
    aws, ours = (old, new) if one.by_aws else (new, old)
    if bootstrap:
        return diff_rules.of_bootstrap(key, aws, ours)
    return diff_rules.of_application(key, aws, ours, (two if one.by_aws else one).entries)
