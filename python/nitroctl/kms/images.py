# SPDX-License-Identifier: MIT
"""Which image a PCR value belongs to. Measurements seen here are remembered, so that the log can name the
image whose PCR a policy contains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from nitroctl.kms.store import Store

MOST = 4096  # how many rows are kept, the latest ones
# Enclaves in which the PCR is zero. PCR4 is zero without an instance id; PCR16 and higher are zero until the
# application extends them.
_ZEROS = {
    **dict.fromkeys((0, 1, 2), "debug mode"),
    3: "a parent without a role, or of debug mode",
    8: "an unsigned image, or of debug mode",
}


def pcrs_of(eif: Path) -> dict[int, str]:
    """PCR0, 1, 2, and 8 of a signed image, in hexadecimal. Raises EifError and OSError."""
    from nitroctl.eif.measure import measure

    return {int(name.removeprefix("PCR")): value for name, value in measure(eif).items()}


def remember(store: Store, eif: Path, pcrs: Mapping[int, str]) -> None:
    with store.transaction(write=True) as db:
        for pcr, value in pcrs.items():
            row = (str(eif.resolve()), pcr, value, time.time())
            db.execute("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)", row)
        db.execute(
            "DELETE FROM measurements WHERE rowid NOT IN (SELECT rowid FROM measurements ORDER BY seen DESC "
            "LIMIT ?)",
            (MOST,),
        )


def tell(store: Store, pcr: int, value: str) -> str | None:
    """What is known about this PCR value, to be put after "that is"; None if nothing."""
    if value == "0" * 96:
        whose = _ZEROS.get(pcr)
        return whose and f"the PCR{pcr} of {whose}"
    row = store.one(
        "SELECT path, seen FROM measurements WHERE pcr = ? AND value = ? ORDER BY seen DESC",
        pcr,
        value.lower(),
    )
    if row is None:
        return None
    newest = store.one(
        "SELECT value FROM measurements WHERE pcr = ? AND path = ? ORDER BY seen DESC", pcr, row["path"]
    )
    rebuilt = " before it was rebuilt" if newest and newest["value"] != value.lower() else ""
    return f"the PCR{pcr} of {Path(row['path']).name}{rebuilt}"
