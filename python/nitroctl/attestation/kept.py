# SPDX-License-Identifier: MIT
"""Chains that were minted a short while ago, for the next enclave of the same parent instance: on AWS, too,
the enclaves of an instance are issued under one certificate of that instance. Costs no cryptography.

They lie beside the CA that they are of, whose own key could make as many as it likes. What is not as it
should be there is as good as nothing: a new chain is minted.
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
SECONDS = 3600.0  # so long is a chain handed out; it ends that much sooner for its last enclave


def chain(instance_id: str, *, days: int, form: pki.DocumentForm, unmeasured: bool) -> tuple[str, str]:
    """The chain and the instance's key in PEM, as `pki.mint` makes them. Raises NitroError as that does."""
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
