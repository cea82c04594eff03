# SPDX-License-Identifier: MIT
"""Make signed-p256.eif, signed-p384.eif and signed-p521.eif beside this file.

Fixtures of the signature tests from independent tools: struct, hashlib, zlib,
cbor2 and cryptography (OpenSSL); nothing of this project is used. Keys are
thrown away. Prints the PCR8 values that test-eif-signature.c expects: run
again only with a reason, and copy them there.

    python3 tests/unit/data/make-signed-eif.py
"""

from __future__ import annotations

import datetime
import hashlib
import struct
import zlib
from pathlib import Path

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
CURVES = {
    "p256": (ec.SECP256R1(), hashes.SHA256(), -7, 32),
    "p384": (ec.SECP384R1(), hashes.SHA384(), -35, 48),
    "p521": (ec.SECP521R1(), hashes.SHA512(), -36, 66),
}
# The vector of test-eif.c, with shorter metadata: the same PCRs.
CONTENT = [
    (KERNEL, b"K" * 16),
    (CMDLINE, b"c"),
    (METADATA, b'{"ImageName":"tiny"}'),
    (RAMDISK, b"INITINIT"),
    (RAMDISK, b"APPLAPPLAPPL"),
]


def pcr(content: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).digest()


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "EIF signing test")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2040, 1, 1))
        .sign(key, hashes.SHA384())
    )


def signature(curve: str, pcr0: bytes) -> tuple[bytes, bytes]:
    group, digest, alg, half = CURVES[curve]
    key = ec.generate_private_key(group)
    cert = certificate(key)
    protected = cbor2.dumps({1: alg})
    payload = cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(to_be_signed, ec.ECDSA(digest)))
    raw = r.to_bytes(half, "big") + s.to_bytes(half, "big")
    cose = cbor2.dumps([protected, {}, payload, raw])
    pem = cert.public_bytes(serialization.Encoding.PEM)
    section = cbor2.dumps([{"signing_certificate": list(pem), "signature": list(cose)}])
    return section, pcr(cert.public_bytes(serialization.Encoding.DER))


def image(sections: list[tuple[int, bytes]]) -> bytes:
    offsets, sizes, offset = [0] * 32, [0] * 32, 548
    for i, (_, data) in enumerate(sections):
        offsets[i], sizes[i] = offset, len(data)
        offset += 12 + len(data)
    header = struct.pack(">4sHHQQHH", b".eif", 4, 0, 1 << 30, 2, 0, len(sections))
    header += struct.pack(">32Q32QI", *offsets, *sizes, 0)
    body = b"".join(struct.pack(">HHQ", kind, 0, len(data)) + data for kind, data in sections)
    return header + struct.pack(">I", zlib.crc32(header + body)) + body


def main() -> None:
    pcr0 = pcr(b"".join(data for kind, data in CONTENT if kind != METADATA))
    for curve in CURVES:
        section, pcr8 = signature(curve, pcr0)
        path = Path(__file__).with_name(f"signed-{curve}.eif")
        path.write_bytes(image([*CONTENT, (SIGNATURE, section)]))
        print(f"{curve} {pcr8.hex()}")


if __name__ == "__main__":
    main()
