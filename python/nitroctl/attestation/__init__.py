# SPDX-License-Identifier: MIT
"""Attestation documents of the Nitro Secure Module (NSM): read and verify them; and the local CA under which
local enclaves' documents are issued.

    verify       check a document, from its bytes to the caller's policy; returns it or raises
    document     decode a document strictly: COSE_Sign1 and payload
    chain        the X.509 path from the enclave's certificate to the root
    pki          the user's local CA, and the chain minted for one enclave
    errors       one class per reason to refuse a document

A local enclave's document proves which code was measured, under a root that its user owns. It never proves
isolation: there is no Nitro hardware behind it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nitroctl.attestation.document import Document, decode
    from nitroctl.attestation.errors import (
        AttestationError,
        DebugEnclave,
        NonceMismatch,
        PcrMismatch,
        PublicKeyMismatch,
        SignatureMismatch,
        StaleDocument,
        UnmeasuredEnclave,
        UserDataMismatch,
    )
    from nitroctl.attestation.verification import Policy, load_root, verify

__all__ = [
    "AttestationError",
    "DebugEnclave",
    "Document",
    "NonceMismatch",
    "PcrMismatch",
    "Policy",
    "PublicKeyMismatch",
    "SignatureMismatch",
    "StaleDocument",
    "UnmeasuredEnclave",
    "UserDataMismatch",
    "decode",
    "load_root",
    "verify",
]

# The modules of these names; all other names are in `errors`.
_HOMES = {
    "Document": "document",
    "Policy": "verification",
    "decode": "document",
    "load_root": "verification",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
