# SPDX-License-Identifier: MIT
"""Why an attestation document is refused: one class for each step of the verification. No logic here.

AttestationError
├── MalformedDocument       not an untagged or tagged COSE_Sign1 of the right shape
├── FieldError              a payload field is missing, of a wrong type or out of range: `field`
├── RootMismatch            the cabundle does not begin with the trusted root
├── ChainError              a certificate does not follow from its issuer
│   ├── CertificateError    a certificate lacks the properties that its place in the chain needs
│   └── CertificateExpired  a certificate is not valid at the time of the check
├── SignatureMismatch       the document was not signed by the enclave's key
└── PolicyError             a genuine document, but not what the caller expects
    ├── DebugEnclave        PCR0 is zero: the enclave runs in debug mode
    ├── UnmeasuredEnclave   it runs code that its PCRs do not measure, as its issuer's name says
    ├── PcrMismatch         PCR `index` has another value, or none: `expected`, `found`
    ├── NonceMismatch, UserDataMismatch, PublicKeyMismatch
    └── StaleDocument       older than allowed, or from the future
"""

from __future__ import annotations

from nitroctl.base import shown
from nitroctl.base.errors import NitroError


class AttestationError(NitroError):
    pass


class MalformedDocument(AttestationError):
    pass


class FieldError(AttestationError):
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(shown.line(f"the document's {field} {problem}", 300))
        self.field = field


class RootMismatch(AttestationError):
    pass


class ChainError(AttestationError):
    pass


class CertificateError(ChainError):
    pass


class CertificateExpired(ChainError):
    pass


class SignatureMismatch(AttestationError):
    pass


class PolicyError(AttestationError):
    pass


class DebugEnclave(PolicyError):
    pass


class UnmeasuredEnclave(PolicyError):
    pass


class PcrMismatch(PolicyError):
    def __init__(self, index: int, expected: bytes, found: bytes | None) -> None:
        what = "is not in the document" if found is None else f"is {found.hex()}"
        super().__init__(f"PCR{index} {what}, expected {expected.hex()}")
        self.index = index
        self.expected = expected
        self.found = found


class NonceMismatch(PolicyError):
    pass


class UserDataMismatch(PolicyError):
    pass


class PublicKeyMismatch(PolicyError):
    pass


class StaleDocument(PolicyError):
    pass
