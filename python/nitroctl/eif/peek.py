# SPDX-License-Identifier: MIT
"""What must be known about an EIF before an enclave starts: checks all rules about headers and small
sections.

Reads only some kilobytes, whatever the file's size: the machine's loader reads the whole file, and nobody
should wait for a second pass. The loader checks the rest: the rules about all data, crc-mismatch and
signature-pcr0, and whether kernel and initramfs fit into the guest's memory. `verify` checks everything but
that last one.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from nitroctl.base.arch import Arch
from nitroctl.eif import boot
from nitroctl.eif.about import METADATA_KEPT, lacking, parse_metadata, wants_acpi
from nitroctl.eif.format import Layout, SectionType, open_eif, read_layout


class Peek(NamedTuple):
    """What was read. `metadata` is None if there is none, or if AWS's tools cannot have written it;
    `signature` is the section's data."""

    path: Path
    layout: Layout
    kernel: boot.KernelInfo
    cmdline: bytes
    metadata: dict[str, Any] | None
    signature: bytes | None

    @property
    def size(self) -> int:
        return self.layout.file_size

    @property
    def arch(self) -> Arch:
        return self.layout.arch

    @property
    def needs_acpi(self) -> bool:
        return wants_acpi(self.metadata)

    @property
    def lacks(self) -> list[str]:
        """Which features of AWS's kernel this image's kernel lacks."""
        return lacking(self.metadata)

    def check_cmdline(self, added: int) -> None:
        """Check that the kernel takes its command line with `added` more bytes. Raises cmdline-too-long."""
        boot.check_cmdline(len(self.cmdline) + added, self.kernel, self.path)

    def check_signature(self, now: datetime) -> None:
        """Check the signature, if there is one, except that it is over this image's PCR0."""
        if self.signature is not None:
            from nitroctl.eif import signature

            signature.check(signature.decode(self.signature, self.path), None, now, self.path)


def peek(path: Path, *, only: Arch | None = None) -> Peek:
    """Read and check an EIF; `only`: see `read_layout`. Raises EifError for the first broken rule, in the
    loader's order."""
    with open_eif(path) as (fd, size):
        layout = read_layout(fd, size, path, only=only)
        boot.check_sizes(layout, path)

        def read(type: SectionType, limit: int) -> bytes | None:
            section = layout.first(type)
            return os.pread(fd, min(section.size, limit), section.data_offset) if section else None

        cmdline = read(SectionType.CMDLINE, boot.CMDLINE_MAX) or b""
        header = read(SectionType.KERNEL, boot.KERNEL_HEADER_SIZE) or b""
        metadata = read(SectionType.METADATA, METADATA_KEPT)
        signature = read(SectionType.SIGNATURE, size)  # the layout's rules bound it
    if 0 in cmdline:
        raise boot.cmdline_nul(layout.of_type(SectionType.CMDLINE)[0].data_offset + cmdline.index(0), path)
    section = layout.of_type(SectionType.KERNEL)[0]
    kernel = boot.parse_kernel(header, section.size, layout.arch, path, section.data_offset)
    known = parse_metadata(metadata)[0] if metadata is not None else None
    return Peek(path, layout, kernel, cmdline, known, signature)
