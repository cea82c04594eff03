# SPDX-License-Identifier: MIT
"""The kit as files, for verifiers and tests in other languages: each document, the root, and an index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nitroctl.base import atomic, jsontext
from nitroctl.base.errors import NitroError
from nitroctl.base.place import place
from nitroctl.torture.kit import Case, Kit
from nitroctl.torture.rows import Row

INDEX = "index.json"
ROOT, ROOT_DER = "root.pem", "root.der"


def described(case: Case | Row) -> dict[str, Any]:
    """What there is to say about a case without its document."""
    return {
        "name": case.name,
        "expected": case.expected,
        "what": case.what,
        "reason": case.reason,
        "source": case.source,
        "needs": list(case.needs),
        "forged": case.forged,
    }


def write(kit: Kit, names: Iterable[str], folder: Path) -> int:
    """Make the folder, which must not be there or be empty; return how many documents are in it."""
    try:
        with place(folder), atomic.folder(folder) as aside:
            entries = []
            for case in kit.cases(names):
                file = f"{case.name}.cose"
                (aside / file).write_bytes(case.document)
                entries.append(
                    {
                        **described(case),
                        "file": file,
                        "sha256": hashlib.sha256(case.document).hexdigest(),
                        "time": f"{case.time:%FT%TZ}",
                        "unix_time": int(case.time.timestamp()),
                        "nonce": case.nonce.hex(),
                        "pcr0": case.pcr0.hex(),
                    }
                )
            (aside / ROOT).write_bytes(kit.root_pem)
            (aside / ROOT_DER).write_bytes(kit.root)
            index = {
                "schema": 1,
                "time": f"{kit.time:%FT%TZ}",
                "seed": kit.seed,
                "root": ROOT,
                "root_der": ROOT_DER,
                "root_sha256": hashlib.sha256(kit.root).hexdigest(),
                "items": entries,
            }
            (aside / INDEX).write_text(jsontext.pretty(index) + "\n", encoding="utf-8")
    except OSError as e:
        raise NitroError(
            f"cannot write {folder}: {e.strerror}", hint="name a new folder, or an empty one"
        ) from e
    return len(entries)
