# SPDX-License-Identifier: MIT
"""Keeps recently minted chains for the next enclave of the same parent instance, which saves the
cryptography. On AWS, too, the documents of an instance's enclaves are issued under one certificate of that
instance.

The chains are stored beside the CA that issued them, whose key, in the same folder, could make any number of
them anyway. A stored chain that is damaged or does not fit is ignored, and a new one is minted.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from nitroctl.attestation import pki
from nitroctl.base import atomic

FOLDER = "instances"
SECONDS = 3600.0  # how long a chain is reused; for its last enclave it expires that much earlier


def chain(instance_id: str, *, days: int, form: pki.DocumentForm, unmeasured: bool) -> tuple[str, str]:
    """The chain and the instance CA's key in PEM, as `pki.mint` makes them. Raises NitroError like
    `pki.mint`."""
    wanted = {"instance_id": instance_id, "days": days, "form": form, "unmeasured": unmeasured}
    path = pki.ca_dir() / FOLDER / f"{instance_id.encode().hex()}.{days}.{form}.{int(unmeasured)}"
    with contextlib.suppress(OSError, ValueError):
        root = (pki.ca_dir() / pki.ROOT_FILE).read_text("ascii")
        kept = json.loads(path.read_bytes())
        if isinstance(kept, dict) and _fits(kept, {**wanted, "root": root}):
            return kept["chain"], kept["key"]
    authority = pki.load_or_init()
    minted = pki.mint(authority, instance_id, days=days, form=form, unmeasured=unmeasured)
    found = minted.pem.decode("ascii"), minted.key_pem.decode("ascii")
    with contextlib.suppress(OSError):
        root = (pki.ca_dir() / pki.ROOT_FILE).read_text("ascii")
        _keep(path, {**wanted, "root": root, "minted": time.time(), "chain": found[0], "key": found[1]})
    return found


def _fits(kept: dict[str, Any], wanted: dict[str, object]) -> bool:
    minted = kept.get("minted")
    if not isinstance(minted, float) or not 0 <= time.time() - minted < SECONDS:
        return False
    texts = isinstance(kept.get("chain"), str) and isinstance(kept.get("key"), str)
    return texts and all(kept.get(name) == value for name, value in wanted.items())


def _keep(path: Path, value: dict[str, object]) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    for old in path.parent.iterdir():
        if time.time() - old.stat().st_mtime > SECONDS:
            old.unlink(missing_ok=True)
    atomic.write(path, json.dumps(value).encode(), mode=0o600)
