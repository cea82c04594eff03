# SPDX-License-Identifier: MIT
"""Key material: the key specs, how material for each is made, and the ciphertext blobs of symmetric keys.

A blob names its key and its material, so that Decrypt needs no KeyId. The encryption context is authenticated
(as additional data) but not stored in it. The format is our own; AWS's is not documented.

    "NKMS" | version 1 | key id, 40 bytes, NUL-padded | material id, 32 | nonce, 12 | AES-256-GCM ciphertext
    and tag
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nitroctl.base.errors import NitroError
from nitroctl.kms.errors import KmsError, bad_ciphertext

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

ENCRYPT, SIGN, MAC, AGREE = "ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT"
SYMMETRIC = "SYMMETRIC_DEFAULT"
RSA_BITS = {"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}
# name -> (curve, as cryptography names it, its signing algorithm)
CURVES = {
    "ECC_NIST_P256": ("SECP256R1", "ECDSA_SHA_256"),
    "ECC_NIST_P384": ("SECP384R1", "ECDSA_SHA_384"),
    "ECC_NIST_P521": ("SECP521R1", "ECDSA_SHA_512"),
    "ECC_SECG_P256K1": ("SECP256K1", "ECDSA_SHA_256"),
}
EDWARDS = "ECC_NIST_EDWARDS25519"
ML_DSA, ML_KEM = ("ML_DSA_44", "ML_DSA_65", "ML_DSA_87"), ("ML_KEM_512", "ML_KEM_768", "ML_KEM_1024")
MACS = {"HMAC_224": 28, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64}
PAIRS = (*RSA_BITS, *CURVES, EDWARDS, *ML_KEM)
USAGES: dict[str, tuple[str, ...]] = {
    SYMMETRIC: (ENCRYPT,),
    **dict.fromkeys(MACS, (MAC,)),
    **dict.fromkeys(RSA_BITS, (ENCRYPT, SIGN)),
    **dict.fromkeys(("ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"), (SIGN, AGREE)),
    **dict.fromkeys(("ECC_SECG_P256K1", EDWARDS, *ML_DSA), (SIGN,)),
}
OAEP = ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256")
RSA_SIGNING = tuple(f"RSASSA_{form}_SHA_{bits}" for form in ("PKCS1_V1_5", "PSS") for bits in (256, 384, 512))

_MAGIC = b"NKMS\x01"
_ID_SIZE, _NONCE, _TAG = 40, 12, 16
_HEAD = len(_MAGIC) + _ID_SIZE + 32


def hash_of(name: str) -> HashAlgorithm:
    """The hash with which an algorithm's name ends."""
    from cryptography.hazmat.primitives import hashes

    known: dict[str, type[HashAlgorithm]] = {
        "1": hashes.SHA1, "224": hashes.SHA224, "256": hashes.SHA256, "384": hashes.SHA384,
        "512": hashes.SHA512,
    }  # fmt: skip
    return known[name.rpartition("_")[2]]()


def generate(spec: str) -> bytes:
    """Make material: raw bytes for a symmetric or HMAC key, DER PKCS #8 for a key pair."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if spec == SYMMETRIC:
        return os.urandom(32)
    if spec in MACS:
        return os.urandom(MACS[spec])
    key: Any
    if spec in RSA_BITS:
        key = rsa.generate_private_key(65537, RSA_BITS[spec])
    elif spec in CURVES:
        key = ec.generate_private_key(getattr(ec, CURVES[spec][0])())
    else:
        key = _generate_newer(spec)
    return private_der(key)


def _newer(spec: str) -> Any:
    """The private key class for a spec that an older `cryptography` or OpenSSL may not have. Raises
    KmsError."""
    import importlib

    module = "ed25519" if spec == EDWARDS else spec[:6].replace("_", "").lower()
    name = "Ed25519PrivateKey" if spec == EDWARDS else f"{spec.replace('_', '')}PrivateKey"
    try:
        found = getattr(importlib.import_module(f"cryptography.hazmat.primitives.asymmetric.{module}"), name)
    except (ImportError, AttributeError) as e:
        raise too_old(spec) from e
    return found


def too_old(what: str) -> KmsError:
    import cryptography

    return KmsError(
        "UnsupportedOperationException", f"{what} is not served by this local KMS.",
        why=f"the Python package cryptography {cryptography.__version__} has no {what} here",
    )  # fmt: skip


def _generate_newer(spec: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return _newer(spec).generate()
    except UnsupportedAlgorithm as e:
        raise too_old(spec) from e


def private_der(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    der: bytes = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return der


def public_der(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def der_of_pem(pem: bytes, name: str) -> bytes:
    """The DER PKCS #8 of a PEM private key; `name` is for the error. Raises NitroError."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return private_der(load_pem_private_key(pem, None))
    except (ValueError, TypeError) as e:
        raise NitroError(f"{name} is not an unencrypted PEM private key: {e}") from e


def load_private(der: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    return load_der_private_key(der, None)


def fits(spec: str, data: bytes) -> str | None:
    """What is wrong with imported material for a key of this spec; None if nothing is."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    wanted = 32 if spec == SYMMETRIC else MACS.get(spec)
    if wanted is not None:
        return (
            None
            if len(data) == wanted
            else f"a key of the spec {spec} has {wanted} bytes, this has {len(data)}"
        )
    try:
        key = load_private(data)
    except (ValueError, TypeError) as e:
        return f"it is not a DER PKCS #8 private key: {e}"
    if spec in RSA_BITS:
        good = isinstance(key, rsa.RSAPrivateKey) and key.key_size == RSA_BITS[spec]
    elif spec in CURVES:
        good = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == CURVES[spec][0].lower()
    else:
        good = isinstance(key, _newer(spec))
    return None if good else f"it is not a key of the spec {spec}"


def signing_algorithms(spec: str) -> tuple[str, ...]:
    if spec in RSA_BITS:
        return RSA_SIGNING
    if spec in CURVES:
        return (CURVES[spec][1],)
    # `cryptography` does not have Ed25519ph (ED25519_PH_SHA_512).
    return ("ED25519_SHA_512",) if spec == EDWARDS else ("ML_DSA_SHAKE_256",)


def new_id(data: bytes) -> str:
    """A new id for material, from which nothing can be learnt about the material (AWS: 64 hex digits)."""
    return hashlib.sha256(b"nitroctl key material" + os.urandom(16) + data).hexdigest()


def imported_id(key_id: str, data: bytes) -> str:
    """The id of imported material: the same each time it is imported into the same key."""
    return hmac.digest(data, f"nitroctl imported {key_id}".encode(), "sha256").hex()


def _authenticated(head: bytes, context: Mapping[str, str]) -> bytes:
    """The additional data of AES-GCM: the encryption context sorted, so that its order does not matter, each
    name and value with its length."""
    texts = (text.encode() for pair in sorted(context.items()) for text in pair)
    return head + b"".join(struct.pack(">I", len(text)) + text for text in texts)


def encrypt(key_id: str, material_id: str, key: bytes, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    head = _MAGIC + key_id.encode().ljust(_ID_SIZE, b"\0") + bytes.fromhex(material_id)
    nonce = os.urandom(_NONCE)
    return head + nonce + AESGCM(key).encrypt(nonce, plaintext, _authenticated(head, context))


@dataclass(frozen=True)
class Blob:
    key_id: str
    material_id: str
    raw: bytes


def parse(raw: bytes) -> Blob:
    """Split a blob into its parts. None of them is authenticated yet. Raises KmsError."""
    if len(raw) < _HEAD + _NONCE + _TAG or not raw.startswith(_MAGIC):
        raise bad_ciphertext(
            "the ciphertext is not from this local KMS; AWS's ciphertexts cannot be decrypted here"
        )
    try:
        key_id = raw[len(_MAGIC) : len(_MAGIC) + _ID_SIZE].rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as e:
        raise bad_ciphertext("the key id in the ciphertext is damaged") from e
    return Blob(key_id, raw[len(_MAGIC) + _ID_SIZE : _HEAD].hex(), raw)


def decrypt(blob: Blob, key: bytes, context: Mapping[str, str]) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    head, nonce, sealed = blob.raw[:_HEAD], blob.raw[_HEAD : _HEAD + _NONCE], blob.raw[_HEAD + _NONCE :]
    try:
        return AESGCM(key).decrypt(nonce, sealed, _authenticated(head, context))
    except InvalidTag as e:
        raise bad_ciphertext(
            "the ciphertext was altered, or the encryption context is not the one used to encrypt"
        ) from e
