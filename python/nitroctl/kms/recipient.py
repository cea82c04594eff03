# SPDX-License-Identifier: MIT
"""The Recipient of a request: verifies its attestation document, and seals the answer to the enclave's key.

Policies see a document's contents only after the whole document has been verified here. How long a document
can be used depends on the validity of its certificates, as at AWS: until then it can be sent again.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from nitroctl.attestation.chain import Remembering
from nitroctl.attestation.document import Document
from nitroctl.attestation.errors import AttestationError, UnmeasuredEnclave
from nitroctl.attestation.verification import Policy, verify_chain
from nitroctl.base.instants import UTC
from nitroctl.kms import envelope
from nitroctl.kms.errors import KmsError, invalid

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

ALGORITHM = "RSAES_OAEP_SHA_256"
MOST_BYTES = 262144  # RecipientInfo, API reference
KEY_BITS = (2048, 3072, 4096)
# The guide to RecipientInfo says RSA-2048; the SDK's enumeration lists the other sizes too.
SURE_BITS = 2048
_EVENT_PCRS = {0: "EnclaveImageDigest", **{n: f"EnclavePCR{n}" for n in (1, 2, 3, 4, 8)}}


@dataclass(frozen=True)
class Recipient:
    """A verified document, and the key in it."""

    document: Document
    key: RSAPublicKey
    spki: bytes
    notes: tuple[str, ...]

    def seal(self, plaintext: bytes, form: envelope.Form) -> bytes:
        return envelope.seal(plaintext, self.key, self.spki, form)

    def context(self) -> dict[str, tuple[str, ...]]:
        """The PCRs as policies see them: condition keys in lower case, with their values."""
        pcrs = {f"kms:recipientattestation:pcr{n}": (v.hex(),) for n, v in self.document.pcrs.items()}
        return {"kms:recipientattestation:imagesha384": (self.document.pcrs[0].hex(),), **pcrs}

    def event(self) -> dict[str, str]:
        """The PCRs in CloudTrail's form: the values in base64."""
        pcrs = {
            f"attestationDocument{name}": base64.b64encode(self.document.pcrs[n]).decode()
            for n, name in _EVENT_PCRS.items()
            if n in self.document.pcrs
        }
        return {"attestationDocumentModuleId": self.document.module_id, **pcrs}


def _refused(why: str) -> KmsError:
    return invalid("The request is not valid: the attestation document cannot be used.", why=why)


class Verifier:
    """Verifies documents under one root certificate. Raises KmsError.

    `max_age` (seconds) limits a document's age, which AWS does not; None leaves it to the certificates. An
    enclave that runs code which its PCRs do not measure is refused unless that is allowed: it would satisfy a
    policy that was meant for other code.
    """

    def __init__(
        self, root: x509.Certificate, max_age: timedelta | None = None, *, allow_unmeasured: bool = False
    ) -> None:
        self._root = root
        self._max_age = max_age
        self._allow_unmeasured = allow_unmeasured
        self._check_path = Remembering()

    def verify(self, given: dict[str, Any], at: datetime | None = None) -> Recipient:
        """Verify the Recipient `given`, whose shape has been checked and whose document is bytes. Raises
        KmsError."""
        data, algorithm = given.get("AttestationDocument"), given.get("KeyEncryptionAlgorithm")
        if data is None or algorithm is None:
            raise _refused("the Recipient needs AttestationDocument and KeyEncryptionAlgorithm")
        policy = Policy(
            allow_debug=True,
            allow_unmeasured=self._allow_unmeasured,
            max_age=self._max_age,
            at=at or datetime.now(UTC),
        )
        try:
            document, _ = verify_chain(data, self._root, policy, self._check_path)
        except UnmeasuredEnclave as e:
            raise _refused(f"{e}; `nitroctl kms serve --allow-unmeasured` takes its documents, and so does "
                           "`nitroctl run --kms --kms-allow-unmeasured`") from e  # fmt: skip
        except AttestationError as e:
            raise _refused(f"the attestation document does not verify: {e}") from e
        key, spki = _key(document)
        notes = []
        if key.key_size != SURE_BITS:
            notes.append(
                f"the recipient's key has {key.key_size} bits; AWS's guide promises {SURE_BITS} only"
            )
        if document.debug:
            notes.append("the enclave runs in debug mode, or unmeasured: its PCR0, 1, 2 and 8 are zero")
        if document.unmeasured:
            notes.append(
                "the enclave is unmeasured: it runs code that its PCRs do not cover, and is allowed to ask"
            )
        return Recipient(document, key, spki, tuple(notes))


def _key(document: Document) -> tuple[RSAPublicKey, bytes]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    if not document.public_key:
        raise _refused("the attestation document has no public_key: pass the NSM's Attestation request the "
                       "public key with whose private key the enclave opens the answer")  # fmt: skip
    try:
        key = load_der_public_key(document.public_key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _refused(f"the document's public_key is not a DER SubjectPublicKeyInfo: {e}") from e
    if not isinstance(key, RSAPublicKey):
        raise _refused("the document's public_key is not an RSA key")
    if key.key_size not in KEY_BITS:
        raise _refused(f"the document's public_key has {key.key_size} bits, not 2048, 3072 or 4096")
    if key.public_numbers().n % 2 == 0:  # OpenSSL would refuse it only when it is used
        raise _refused("the document's public_key is not an RSA key: its modulus is even")
    return key, document.public_key
