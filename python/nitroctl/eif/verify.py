# SPDX-License-Identifier: MIT
"""Would the machine accept this EIF? Every rule that a file must keep, to the first that it breaks.

Left out is only what depends on the boot: whether the kernel and the initramfs fit into the memory given.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nitroctl.eif import measure as measuring
from nitroctl.eif.measure import Measurements, Scan


def verify(path: Path, *, now: datetime | None = None) -> Measurements:
    """Measure a file that keeps all rules; raises EifError for the first broken one. `now` (with its zone) is
    the time that the signing certificate must be valid at."""
    return judge(measuring.scan(path), now or datetime.now(UTC), path)


def judge(scan: Scan, now: datetime, path: Path | None = None) -> Measurements:
    """`verify` of what one pass has found."""
    scan.check(path)
    if scan.signature is None:
        return scan.measurements
    from nitroctl.eif import signature

    decoded = signature.decode(scan.signature, path)
    signature.check(decoded, scan.measurements.pcr0, now, path)
    return signature.with_pcr8(scan.measurements, decoded, path)
