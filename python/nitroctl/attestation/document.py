# SPDX-License-Identifier: MIT
"""Decodes an attestation document strictly: the COSE_Sign1 envelope and its payload.

No signature or certificate is verified here; `verify` does that. The rules for the structure are those of
AWS's guide (aws-nitro-enclaves-nsm-api, docs/attestation_process.md) and RFC 9052. Where real documents
differ from the guide, they are followed: no tag, null for absent fields, a 96-byte signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nitroctl.attestation.certificate import units_of
from nitroctl.attestation.errors import FieldError, MalformedDocument
from nitroctl.base import cbor
from nitroctl.base.instants import UTC

ES384 = -35  # RFC 9053, section 2.1
SIGNATURE_SIZE = 96  # r and s of P-384, 48 bytes each
PAYLOAD_MAX = 16384  # AWS: size of the payload, 1..16384
CERTIFICATE_MAX = 1024  # AWS: size of each certificate, 1..1024
# public_key, user_data and nonce. AWS's text says 512 or 1024, but its hypervisor only limits the size of the
# request that contains them; an ML-KEM-1024 key has 1568 bytes.
FIELD_MAX = 4096
# Payload, signature and heads; anything longer cannot be a document and is refused unread.
DOCUMENT_MAX = PAYLOAD_MAX + 256
TIME_MAX = 253402300800000  # the year 10000, in milliseconds since 1970
UNMEASURED = "unmeasured"  # the machine's NSM_UNMEASURED
PCR_COUNT = 32
PCR_SIZE = 48  # of SHA384, the only digest
ALGORITHM, CRITICAL = 1, 2  # labels of header parameters (RFC 9052, section 3.1)


@dataclasses.dataclass(frozen=True)
class Document:
    """A decoded attestation document. `protected`, `payload` and `signature` are the bytes as received."""

    protected: bytes
    payload: bytes
    signature: bytes
    module_id: str
    digest: str
    timestamp: int  # milliseconds since 1970-01-01 UTC
    pcrs: Mapping[int, bytes]
    certificate: bytes  # DER, of the enclave
    cabundle: tuple[bytes, ...]  # DER, root first, issuer of `certificate` last
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def time(self) -> datetime:
        """When the document was issued."""
        return datetime.fromtimestamp(self.timestamp / 1000, UTC)

    @property
    def debug(self) -> bool:
        """True for an enclave in debug mode, whose PCR0 reads as zeros."""
        return not any(self.pcrs[0])

    @property
    def unmeasured(self) -> bool:
        """True for an enclave that runs code which its PCRs do not measure. A certificate above its own then
        has the word "unmeasured", in any case, in an organizational unit of its name. AWS's documents never
        have it."""
        return any(UNMEASURED in unit.lower() for der in self.cabundle for unit in units_of(der))

    def signed_bytes(self) -> bytes:
        """The Sig_structure that the signature covers (RFC 9052, section 4.4), with no external data."""
        import cbor2

        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])


def _bytes(payload: dict[Any, Any], field: str, low: int, high: int) -> bytes:
    value = payload[field]
    if not isinstance(value, bytes):
        raise FieldError(field, f"is {_kind(value)}, not a byte string")
    if not low <= len(value) <= high:
        raise FieldError(field, f"has {len(value)} bytes; {low} to {high} are allowed")
    return value


def _optional(payload: dict[Any, Any], field: str, low: int, high: int) -> bytes | None:
    return None if payload.get(field) is None else _bytes(payload, field, low, high)


def _kind(value: object) -> str:
    names = {
        dict: "a map", list: "an array", bytes: "a byte string", str: "text", int: "an integer",
        bool: "true or false", float: "a floating-point number", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), "undefined, or a simple value")


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pcrs(value: object) -> dict[int, bytes]:
    if not isinstance(value, dict):
        raise FieldError("pcrs", f"is {_kind(value)}, not a map")
    if not 1 <= len(value) <= PCR_COUNT:
        raise FieldError("pcrs", f"has {len(value)} entries; 1 to {PCR_COUNT} are allowed")
    for index, pcr in value.items():
        if not _integer(index) or not 0 <= index < PCR_COUNT:
            raise FieldError("pcrs", f"has the index {index!r}; 0 to {PCR_COUNT - 1} are allowed")
        if not isinstance(pcr, bytes) or len(pcr) != PCR_SIZE:
            size = f"{len(pcr)} bytes" if isinstance(pcr, bytes) else _kind(pcr)
            raise FieldError("pcrs", f"has {size} at index {index}, not the {PCR_SIZE} bytes of a SHA384")
    if 0 not in value:
        raise FieldError("pcrs", "has no PCR0, which identifies the image and shows debug mode")
    return dict(sorted(value.items()))


def _payload(payload: dict[Any, Any], field_max: int) -> dict[str, Any]:
    for field in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"):
        if payload.get(field) is None:
            raise FieldError(field, "is missing")
    if not isinstance(payload["module_id"], str) or not payload["module_id"]:
        raise FieldError("module_id", f"is {payload['module_id']!r}, not a non-empty text")
    if payload["digest"] != "SHA384":
        raise FieldError("digest", f'is {payload["digest"]!r}, not "SHA384"')
    if not _integer(payload["timestamp"]) or not 0 < payload["timestamp"] < TIME_MAX:
        raise FieldError("timestamp", f"is {payload['timestamp']!r}, not milliseconds since 1970")
    bundle = payload["cabundle"]
    if not isinstance(bundle, list) or not bundle:
        problem = "is an empty array" if bundle == [] else f"is {_kind(bundle)}"
        raise FieldError("cabundle", f"{problem}, not an array of certificates")
    named = {f"cabundle[{i}]": der for i, der in enumerate(bundle)}
    return {
        "module_id": payload["module_id"],
        "digest": payload["digest"],
        "timestamp": payload["timestamp"],
        "pcrs": _pcrs(payload["pcrs"]),
        "certificate": _bytes(payload, "certificate", 1, CERTIFICATE_MAX),
        "cabundle": tuple(_bytes(named, name, 1, CERTIFICATE_MAX) for name in named),
        "public_key": _optional(payload, "public_key", 1, field_max),
        "user_data": _optional(payload, "user_data", 0, field_max),
        "nonce": _optional(payload, "nonce", 0, field_max),
    }


def _label(value: object) -> bool:
    """Whether `value` can label a header parameter: an integer or a text, but not True, which Python treats
    as 1."""
    return isinstance(value, str) or _integer(value)


def _check_headers(protected: object, unprotected: dict[Any, Any]) -> None:
    """Check the headers (RFC 9052, sections 3 and 3.1): the protected header says ES384, and no unknown
    parameter is critical."""
    if not isinstance(protected, dict):
        raise MalformedDocument(f"the protected header is {_kind(protected)}, not a map")
    for label in (*protected, *unprotected):
        if not _label(label):
            raise MalformedDocument(f"a header has the label {label!r}; only integers and texts are allowed")
    if both := protected.keys() & unprotected.keys():
        raise MalformedDocument(f"the label {min(both, key=str)!r} is in both headers")
    algorithm = protected.get(ALGORITHM)
    if not _integer(algorithm) or algorithm != ES384:
        raise MalformedDocument(f"the protected header's algorithm is {algorithm!r}, not {ES384} (ES384)")
    if CRITICAL in unprotected:
        raise MalformedDocument(
            "crit (label 2) is in the unprotected header; it must be in the protected one"
        )
    if CRITICAL in protected:
        critical = protected[CRITICAL]
        if not isinstance(critical, list) or not critical:
            raise MalformedDocument("crit (label 2) is not a non-empty array of labels")
        for label in critical:
            if not _label(label) or label != ALGORITHM:
                raise MalformedDocument(f"the header parameter {label!r} is critical, but unknown")


def decode(data: bytes, field_max: int = FIELD_MAX) -> Document:
    """Decode a document and check all rules for its structure. Raises MalformedDocument or FieldError.

    `field_max` is the most bytes that public_key, user_data and nonce may each have.
    """
    if len(data) > DOCUMENT_MAX:
        raise MalformedDocument(
            f"{len(data)} bytes are too many for an attestation document: at most {DOCUMENT_MAX}"
        )
    try:
        envelope = cbor.loads(data, tag=cbor.TAG_COSE_SIGN1)
    except cbor.CborError as e:
        raise MalformedDocument(f"the document is not CBOR that is accepted: {e}") from e
    if not isinstance(envelope, list) or len(envelope) != 4:
        size = f" of {len(envelope)}" if isinstance(envelope, list) else ""
        raise MalformedDocument(
            f"a COSE_Sign1 is an array of 4 elements, but this is {_kind(envelope)}{size}"
        )
    protected, unprotected, payload, signature = envelope
    for name, value, kind in (
        ("protected header", protected, bytes),
        ("unprotected header", unprotected, dict),
        ("payload", payload, bytes),
        ("signature", signature, bytes),
    ):
        if not isinstance(value, kind):
            raise MalformedDocument(f"the {name} is {_kind(value)}")
    try:
        header = cbor.loads(protected)
    except cbor.CborError as e:
        raise MalformedDocument(f"the protected header is not CBOR: {e}") from e
    _check_headers(header, unprotected)
    if len(signature) != SIGNATURE_SIZE:
        raise MalformedDocument(f"the signature has {len(signature)} bytes, not {SIGNATURE_SIZE}")
    if not 1 <= len(payload) <= PAYLOAD_MAX:
        raise MalformedDocument(f"the payload has {len(payload)} bytes; 1 to {PAYLOAD_MAX} are allowed")
    try:
        fields = cbor.loads(payload)
    except cbor.CborError as e:
        raise MalformedDocument(f"the payload is not CBOR that is accepted: {e}") from e
    if not isinstance(fields, dict):
        raise MalformedDocument(f"the payload is {_kind(fields)}, not a map")
    return Document(protected=protected, payload=payload, signature=signature, **_payload(fields, field_max))
