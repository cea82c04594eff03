# SPDX-License-Identifier: MIT
"""Attestation documents made for tests, by cbor2 and cryptography alone: nothing of nitroctl's is used.

`Maker` holds a whole chain and can spoil any one thing before the rest is signed around it, so that a test
can make a document in which just one step of the verification fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nitroctl.base.instants import UTC

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PROTECTED = bytes.fromhex("a1013822")  # {1: -35}


@dataclasses.dataclass
class Level:
    """How one certificate of the chain is made; a test changes a field to spoil it."""

    name: str
    ca: bool = True
    path_length: int | None = None
    cert_sign: bool = True
    digital_signature: bool = True
    basic_constraints: bool = True
    critical: bool = True
    key_usage: bool = True
    begin: datetime = NOW - timedelta(days=1)
    end: datetime = NOW + timedelta(days=1)
    curve: ec.EllipticCurve = dataclasses.field(default_factory=ec.SECP384R1)
    digest: hashes.SHA256 | hashes.SHA384 = dataclasses.field(default_factory=hashes.SHA384)
    issuer_name: str | None = None
    signed_by_stranger: bool = False
    unit: str | None = None


def levels() -> list[Level]:
    return [
        Level("root"),
        Level("regional", path_length=2),
        Level("zonal", path_length=1),
        Level("instance", path_length=0, digital_signature=False),
        Level("leaf", ca=False, cert_sign=False),
    ]


def _name(text: str, unit: str | None = None) -> x509.Name:
    units = [] if unit is None else [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
    return x509.Name([*units, x509.NameAttribute(NameOID.COMMON_NAME, text)])


def make_chain(chain: list[Level]) -> tuple[list[bytes], ec.EllipticCurvePrivateKey]:
    """The certificates in DER, root first, and the last one's key."""
    ders: list[bytes] = []
    above: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
    for level in chain:
        key = ec.generate_private_key(level.curve)
        subject = _name(level.name, level.unit)
        issuer, signer = above or (subject, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name(level.issuer_name) if level.issuer_name else issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(level.begin)
            .not_valid_after(level.end)
        )
        if level.basic_constraints:
            constraints = x509.BasicConstraints(ca=level.ca, path_length=level.path_length)
            builder = builder.add_extension(constraints, critical=level.critical)
        if level.key_usage:
            usage = dict.fromkeys(
                ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "crl_sign", "encipher_only", "decipher_only"), False,
            )  # fmt: skip
            builder = builder.add_extension(
                x509.KeyUsage(
                    digital_signature=level.digital_signature, key_cert_sign=level.cert_sign, **usage
                ),
                critical=True,
            )
        if level.signed_by_stranger:
            signer = ec.generate_private_key(ec.SECP384R1())
        ders.append(builder.sign(signer, level.digest).public_bytes(Encoding.DER))
        above = (subject, key)
    return ders, key


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


class Maker:
    """Makes documents under one chain."""

    def __init__(self, change: Callable[[list[Level]], None] | None = None) -> None:
        chain = levels()
        if change:
            change(chain)
        *self.cabundle, self.leaf = (ders := make_chain(chain))[0]
        self.key = ders[1]
        self.root = x509.load_der_x509_certificate(self.cabundle[0])

    def payload(self) -> dict[Any, Any]:
        """The payload of a good document, in AWS's order of keys, to be changed before it is signed."""
        pcrs = {i: bytes(48) for i in range(16)}
        pcrs[0] = hashlib.sha384(b"image").digest()
        pcrs[4] = hashlib.sha384(bytes(48) + b"i-1234567890abcdef0").digest()
        return {
            "module_id": "i-1234567890abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": int(NOW.timestamp() * 1000) + 123,
            "pcrs": pcrs,
            "certificate": self.leaf,
            "cabundle": list(self.cabundle),
            "public_key": None,
            "user_data": None,
            "nonce": None,
        }

    def envelope(self, payload: Any = None, *, protected: bytes = PROTECTED) -> list[Any]:
        """The four parts of a signed COSE_Sign1 around `payload` (bytes are taken as they are)."""
        body = (
            payload
            if isinstance(payload, bytes)
            else cbor2.dumps(self.payload() if payload is None else payload)
        )
        signed = cbor2.dumps(["Signature1", protected, b"", body])
        return [protected, {}, body, raw_signature(self.key, signed)]

    def document(self, **changes: Any) -> bytes:
        """A good document but for `changes` of the payload."""
        return cbor2.dumps(self.envelope({**self.payload(), **changes}))


def nonce() -> bytes:
    return secrets.token_bytes(16)
