# SPDX-License-Identifier: MIT
"""Attestation documents of the Nitro Secure Module: read, verify, and the local CA that stands behind ours.

    verify       check a document from its bytes to its policy; returns it or raises
    document     what a document says: COSE_Sign1 and payload, decoded strictly
    chain        the X.509 path from the enclave's certificate to the root
    pki          the user's local CA, and the chain minted for one enclave
    errors       one class per reason to refuse a document

A document of a local enclave proves which code was measured, under a root that its user owns. It never
proves isolation: there is no Nitro hardware behind it.
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

# Where they are; all others are errors.
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
