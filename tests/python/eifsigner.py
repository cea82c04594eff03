# SPDX-License-Identifier: MIT
"""Signature sections made for tests, by cbor2 and cryptography alone: nothing of nitroctl's is used.

`section` makes a good one; each of its keyword arguments spoils one thing before the rest is signed around
it, so that a test can make a section in which just one rule is broken.
"""

from __future__ import annotations

import functools
from datetime import datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nitroctl.base.instants import UTC

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
BEGIN = NOW - timedelta(days=10)
END = NOW + timedelta(days=10)

# name -> (curve, COSE algorithm, hash, bytes of r and of s); RFC 9053, table 1.
CURVES: dict[str, tuple[ec.EllipticCurve, int, hashes.HashAlgorithm, int]] = {
    "P-256": (ec.SECP256R1(), -7, hashes.SHA256(), 32),
    "P-384": (ec.SECP384R1(), -35, hashes.SHA384(), 48),
    "P-521": (ec.SECP521R1(), -36, hashes.SHA512(), 66),
}

_SECRETS = {"P-256": 0x1234567, "P-384": 0x2345678, "P-521": 0x3456789, "other": 0x456789A, "k1": 0x56789AB}


@functools.cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """The same key in every run. "other": a second one on P-384; "k1": one on secp256k1."""
    curve = {"other": ec.SECP384R1(), "k1": ec.SECP256K1()}.get(name) or CURVES[name][0]
    return ec.derive_private_key(_SECRETS[name], curve)


@functools.cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def certificate(
    name: str = "P-384", begin: datetime = BEGIN, end: datetime = END, common_name: str = "test signer"
) -> x509.Certificate:
    """Self-signed, as those of EIFs normally are."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    signing = rsa_key() if name == "rsa" else key(name)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).serial_number(77)
    builder = builder.public_key(signing.public_key()).not_valid_before(begin).not_valid_after(end)
    # Deterministic (RFC 6979), so that a failing example fails again.
    return builder.sign(signing, hashes.SHA384(), ecdsa_deterministic=None if name == "rsa" else True)


def pem(name: str = "P-384", **dates: Any) -> bytes:
    return certificate(name, **dates).public_bytes(Encoding.PEM)


def key_pem(name: str) -> bytes:
    return key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def raw_signature(name: str, protected: bytes, payload: bytes) -> bytes:
    """r || s over the Sig_structure of RFC 9052, section 4.4."""
    _, _, hash, half = CURVES["P-384" if name == "other" else name]
    message = cbor2.dumps(["Signature1", protected, b"", payload])
    der = key(name).sign(message, ec.ECDSA(hash, deterministic_signing=True))
    return b"".join(n.to_bytes(half, "big") for n in decode_dss_signature(der))


def section(
    pcr0: bytes,
    name: str = "P-384",
    *,
    index: Any = 0,
    value: Any = None,
    payload: bytes | None = None,
    protected: bytes | None = None,
    unprotected: Any = None,
    signing_key: str | None = None,
    raw: bytes | None = None,
    cose: bytes | None = None,
    tag: int | None = None,
    certificate_pem: bytes | None = None,
) -> bytes:
    """The data of a signature section over `pcr0` by the key `name`."""
    alg = CURVES[name][1] if name in CURVES else -35
    if payload is None:
        register = list(pcr0) if value is None else value
        payload = cbor2.dumps({"register_index": index, "register_value": register})
    if protected is None:
        protected = cbor2.dumps({1: alg})
    if raw is None:
        signer = signing_key or (name if name in CURVES else "P-384")
        raw = raw_signature(signer, protected, payload)
    if cose is None:
        items: Any = [protected, {} if unprotected is None else unprotected, payload, raw]
        cose = cbor2.dumps(items if tag is None else cbor2.CBORTag(tag, items))
    text = pem(name) if certificate_pem is None else certificate_pem
    return cbor2.dumps([{"signing_certificate": list(text), "signature": list(cose)}])
