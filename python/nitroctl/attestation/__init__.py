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
from nitroctl.attestation.verify import Policy, load_root, verify

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
