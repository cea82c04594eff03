# SPDX-License-Identifier: MIT
"""Would the machine accept this EIF? Checks every rule, in the loader's order, up to the first broken one.

Only what depends on the guest is left out: whether kernel and initramfs fit into its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from nitroctl.base.errors import EifError, NitroError
from nitroctl.base.instants import UTC
from nitroctl.eif import boot
from nitroctl.eif import measure as measuring
from nitroctl.eif.format import SectionType
from nitroctl.eif.measure import Scan
from nitroctl.eif.pcr import DIGEST_SIZE, Measurements


class EifMismatch(NitroError):
    """A valid file, but not the expected one: PCR `index` has another value."""

    def __init__(self, path: Path, index: int, expected: bytes, found: bytes) -> None:
        super().__init__(
            f"{path}: PCR{index} is {found.hex()}, but {expected.hex()} was expected",
            hint="it is another build of the image; `nitroctl eif diff` compares two files",
        )
        self.path = path
        self.index = index
        self.expected = expected
        self.found = found


def verify(
    path: Path,
    *,
    now: datetime | None = None,
    pcrs: Mapping[int, bytes] | None = None,
    file_rules_only: bool = False,
) -> Measurements:
    """Check all rules of a file, and return its measurements.

    Raises EifError for the first broken rule, and EifMismatch for a PCR (0, 1, 2 or 8) whose value is not the
    one in `pcrs` (48 bytes; PCR8 of an unsigned file is zero). `now` (with a time zone) is the time at which
    the signing certificate must be valid. With `file_rules_only` whether the content can be booted is not
    checked.
    """
    found = judge(measuring.scan(path), now or datetime.now(UTC), path, file_rules_only=file_rules_only)
    values = {0: found.pcr0, 1: found.pcr1, 2: found.pcr2, 8: found.pcr8 or bytes(DIGEST_SIZE)}
    for index, expected in (pcrs or {}).items():
        if values[index] != expected:
            raise EifMismatch(path, index, expected, values[index])
    return found


def refusal(scan: Scan, path: Path | None = None, *, file_rules_only: bool = False) -> EifError | None:
    """Why the machine will refuse the file, apart from the checksum and the signature, for which
    `nitro-cli describe-eif` has keys of its own; None if it will not."""
    try:
        if not file_rules_only:
            boot.check_sizes(scan.layout, path)
        scan.check_cmdline(path)
        if not file_rules_only:
            _check_kernel(scan, path)
    except EifError as e:
        return e
    return None


def _check_kernel(scan: Scan, path: Path | None) -> None:
    section = scan.layout.of_type(SectionType.KERNEL)[0]
    kernel = boot.parse_kernel(scan.kernel_header, section.size, scan.layout.arch, path, section.data_offset)
    boot.check_cmdline(scan.layout.of_type(SectionType.CMDLINE)[0].size, kernel, path)


def judge(
    scan: Scan, now: datetime, path: Path | None = None, *, file_rules_only: bool = False
) -> Measurements:
    """Check the rules with the results of one pass over the file."""
    if not file_rules_only:
        boot.check_sizes(scan.layout, path)
    scan.check(path)
    if not file_rules_only:
        _check_kernel(scan, path)
    if scan.signature is None:
        return scan.measurements
    from nitroctl.eif import signature

    decoded = signature.decode(scan.signature, path)
    signature.check(decoded, scan.measurements.pcr0, now, path)
    return signature.with_pcr8(scan.measurements, decoded, path)
