# SPDX-License-Identifier: MIT
"""The operations that use a key: encryption, decryption, data keys, random bytes, signatures, MACs and shared
secrets."""

from __future__ import annotations

import hmac
import os
from typing import Any

from nitroctl.kms import material
from nitroctl.kms.call import Call, encryption_context
from nitroctl.kms.errors import KmsError, bad_ciphertext, bad_usage, invalid
from nitroctl.kms.keys import Key, former_material, get

Answer = dict[str, Any]
MU_BYTES = 64  # FIPS 204: the message representative


def _check_algorithm(call: Call, key: Key, name: str = "EncryptionAlgorithm") -> None:
    """Refuse an algorithm that the key does not have. The error lists the key's algorithms, so only a caller
    who may use the key gets here. Raises KmsError."""
    algorithm: str = call.get(name) or material.SYMMETRIC
    allowed = (material.SYMMETRIC,) if key.spec == material.SYMMETRIC else material.OAEP
    if key.usage == material.ENCRYPT and algorithm not in allowed:
        raise bad_usage(
            f"The key spec {key.spec} does not support the algorithm {algorithm}: use {' or '.join(allowed)}."
        )


def _oaep(algorithm: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric import padding

    digest = material.hash_of(algorithm)
    return padding.OAEP(padding.MGF1(digest), digest, label=None)


def _context(call: Call, algorithm: str, name: str = "EncryptionContext") -> dict[str, str]:
    given: dict[str, str] = call.get(name) or {}
    if given and algorithm != material.SYMMETRIC:
        raise invalid("Only symmetric keys take an encryption context.")
    return given


def _seal(key: Key, secret: bytes, algorithm: str, plaintext: bytes, context: dict[str, str]) -> bytes:
    if algorithm == material.SYMMETRIC:
        assert key.material_id is not None
        return material.encrypt(key.id, key.material_id, secret, plaintext, context)
    sealed = material.load_private(secret).public_key()
    try:
        data: bytes = sealed.encrypt(plaintext, _oaep(algorithm))
    except ValueError as e:
        raise invalid(
            f"{len(plaintext)} bytes are too many for {algorithm} with the key spec {key.spec}."
        ) from e
    return data


def encrypt(call: Call) -> Answer:
    key, named = call.key()
    algorithm: str = call.get("EncryptionAlgorithm") or material.SYMMETRIC
    context = _context(call, algorithm)
    facts = {"kms:encryptionalgorithm": (algorithm,), **encryption_context(context), **named}
    secret = call.use(key, material.ENCRYPT, facts)
    _check_algorithm(call, key)
    call.dry_run()
    sealed = _seal(key, secret, algorithm, call.get("Plaintext"), context)
    return {"CiphertextBlob": sealed, "KeyId": key.arn, "EncryptionAlgorithm": algorithm}


def _source(
    call: Call, raw: bytes, name: str, algorithm: str, action: str
) -> tuple[Key, Any, material.Blob | None]:
    """The key that decrypts a ciphertext: the one that the request names, or else the one that the ciphertext
    names."""
    blob = material.parse(raw) if algorithm == material.SYMMETRIC else None
    if call.get(name):
        return *call.key(name, action=action), blob
    if blob is None:
        raise invalid(f"{name} is required: {algorithm} ciphertext does not name its key.")
    key = get(call.store, call.place, blob.key_id)
    if key is None:
        call.authorise(None, action=action, resource=call.place.key_arn(blob.key_id))
        raise bad_ciphertext(
            f"the ciphertext was made with the key {blob.key_id}, which is not in this store"
        )
    return key, {}, blob


def _open(call: Call, key: Key, secret: bytes, algorithm: str, raw: bytes, blob: material.Blob | None,
          context: dict[str, str]) -> bytes:  # fmt: skip
    if blob is not None:
        if key.id != blob.key_id:
            raise KmsError(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
                why=f"the ciphertext was made with the key {blob.key_id}",
            )
        if key.material_id != blob.material_id:
            former = former_material(call.store, key, blob.material_id)
            if former is None:
                raise bad_ciphertext("the ciphertext was made with key material that the key no longer has")
            secret = former
        return material.decrypt(blob, secret, context)
    try:
        data: bytes = material.load_private(secret).decrypt(raw, _oaep(algorithm))
    except ValueError as e:
        raise bad_ciphertext(f"it is not {algorithm} ciphertext of this key") from e
    return data


def decrypt(call: Call) -> Answer:
    raw, algorithm = call.get("CiphertextBlob"), call.get("EncryptionAlgorithm") or material.SYMMETRIC
    context = _context(call, algorithm)
    key, named, blob = _source(call, raw, "KeyId", algorithm, "Decrypt")
    facts = {"kms:encryptionalgorithm": (algorithm,), **encryption_context(context), **named}
    secret = call.use(key, material.ENCRYPT, facts)
    _check_algorithm(call, key)
    plaintext = _open(call, key, secret, algorithm, raw, blob, context)
    call.dry_run()
    fields: Answer = {"KeyId": key.arn, "EncryptionAlgorithm": algorithm}
    if blob:
        fields["KeyMaterialId"] = blob.material_id
    return call.answer("Plaintext", plaintext, fields)


def re_encrypt(call: Call) -> Answer:
    raw, before = call.get("CiphertextBlob"), call.get("SourceEncryptionAlgorithm") or material.SYMMETRIC
    source, named, blob = _source(call, raw, "SourceKeyId", before, "ReEncryptFrom")
    target, target_named = call.key("DestinationKeyId", action="ReEncryptTo")
    after: str = call.get("DestinationEncryptionAlgorithm") or material.SYMMETRIC
    old = _context(call, before, "SourceEncryptionContext")
    new = _context(call, after, "DestinationEncryptionContext")
    same = {"kms:reencryptonsamekey": (str(source.id == target.id).lower(),)}
    from_facts = {"kms:encryptionalgorithm": (before,), **same, **encryption_context(old), **named}
    to_facts = {"kms:encryptionalgorithm": (after,), **same, **encryption_context(new), **target_named}
    secret = call.use(source, material.ENCRYPT, from_facts, "ReEncryptFrom")
    target_secret = call.use(target, material.ENCRYPT, to_facts, "ReEncryptTo")
    _check_algorithm(call, source, "SourceEncryptionAlgorithm")
    _check_algorithm(call, target, "DestinationEncryptionAlgorithm")
    plaintext = _open(call, source, secret, before, raw, blob, old)
    call.dry_run()
    materials = {
        "SourceKeyMaterialId": blob.material_id if blob else None,
        "DestinationKeyMaterialId": target.material_id if after == material.SYMMETRIC else None,
    }
    return {
        "CiphertextBlob": _seal(target, target_secret, after, plaintext, new),
        "SourceKeyId": source.arn, "KeyId": target.arn,
        "SourceEncryptionAlgorithm": before, "DestinationEncryptionAlgorithm": after,
        **{name: value for name, value in materials.items() if value},
    }  # fmt: skip


# --- data keys -------------------------------------------------------------------------------------------


def _symmetric(call: Call, more: dict[str, tuple[str, ...]]) -> tuple[Key, bytes, dict[str, str]]:
    key, named = call.key()
    context: dict[str, str] = call.get("EncryptionContext") or {}
    facts = {"kms:encryptionalgorithm": (material.SYMMETRIC,), **encryption_context(context), **named, **more}
    secret = call.use(key, material.ENCRYPT, facts)
    if key.spec != material.SYMMETRIC:
        raise bad_usage(f"{key.arn} is asymmetric: only a symmetric key can encrypt data keys.")
    return key, secret, context


def _data_key(call: Call) -> tuple[Answer, bytes]:
    size, spec = call.get("NumberOfBytes"), call.get("KeySpec")
    if (size is None) is (spec is None):
        raise invalid("Please specify either number of bytes or key spec.")
    key, secret, context = _symmetric(call, {})
    call.dry_run()
    plaintext = os.urandom(size or {"AES_256": 32, "AES_128": 16}[spec])
    sealed = _seal(key, secret, material.SYMMETRIC, plaintext, context)
    return {"CiphertextBlob": sealed, "KeyId": key.arn, "KeyMaterialId": key.material_id}, plaintext


def generate_data_key(call: Call) -> Answer:
    fields, plaintext = _data_key(call)
    return call.answer("Plaintext", plaintext, fields)


def generate_data_key_without_plaintext(call: Call) -> Answer:
    return _data_key(call)[0]


def _data_pair(call: Call) -> tuple[Answer, bytes]:
    spec = call.get("KeyPairSpec")
    key, secret, context = _symmetric(call, {"kms:datakeypairspec": (spec,)})
    call.dry_run()
    private = material.generate(spec)
    public = material.public_der(material.load_private(private).public_key())
    sealed = _seal(key, secret, material.SYMMETRIC, private, context)
    return {
        "PrivateKeyCiphertextBlob": sealed, "PublicKey": public, "KeyId": key.arn, "KeyPairSpec": spec,
        "KeyMaterialId": key.material_id,
    }, private  # fmt: skip


def generate_data_key_pair(call: Call) -> Answer:
    fields, private = _data_pair(call)
    return call.answer("PrivateKeyPlaintext", private, fields)


def generate_data_key_pair_without_plaintext(call: Call) -> Answer:
    return _data_pair(call)[0]


def generate_random(call: Call) -> Answer:
    call.authorise(None)
    size = call.get("NumberOfBytes")
    if size is None:
        raise invalid("NumberOfBytes is required.")
    return call.answer("Plaintext", os.urandom(size), {})


def derive_shared_secret(call: Call) -> Answer:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    key, named = call.key()
    algorithm = call.get("KeyAgreementAlgorithm")
    secret = call.use(key, material.AGREE, {"kms:keyagreementalgorithm": (algorithm,), **named})
    own = material.load_private(secret)
    try:
        other = load_der_public_key(call.get("PublicKey"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise invalid(f"The public key is not a DER SubjectPublicKeyInfo: {e}") from e
    if not isinstance(other, ec.EllipticCurvePublicKey) or other.curve.name != own.curve.name:
        raise invalid(f"The public key is not on the curve of {key.spec}.")
    call.dry_run()
    fields = {"KeyId": key.arn, "KeyAgreementAlgorithm": algorithm, "KeyOrigin": key.origin}
    return call.answer("SharedSecret", own.exchange(ec.ECDH(), other), fields)


# --- signatures and MACs ---------------------------------------------------------------------------------


def _signing(call: Call) -> tuple[Key, Any, tuple[Any, ...]]:
    """(the key, its private key, the arguments that sign() and verify() of `cryptography` take after the
    message)."""
    from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

    key, named = call.key()
    algorithm, kind = call.get("SigningAlgorithm"), call.get("MessageType") or "RAW"
    facts = {"kms:signingalgorithm": (algorithm,), "kms:messagetype": (kind,), **named}
    secret = call.use(key, material.SIGN, facts)
    if algorithm not in material.signing_algorithms(key.spec):
        raise bad_usage(f"Algorithm {algorithm} is incompatible with key spec {key.spec}.")
    if kind == "EXTERNAL_MU" and key.spec not in material.ML_DSA:
        raise invalid("The message type EXTERNAL_MU is for ML-DSA keys only.")
    if key.spec in material.ML_DSA or key.spec == material.EDWARDS:
        if kind == "DIGEST":
            raise invalid(f"The message type DIGEST cannot be used with {algorithm}.")
        if kind == "EXTERNAL_MU" and len(call.get("Message")) != MU_BYTES:
            raise invalid(f"A message of the type EXTERNAL_MU must have {MU_BYTES} bytes.")
        private = material.load_private(secret)
        if kind == "EXTERNAL_MU" and not hasattr(private, "sign_mu"):
            raise material.too_old(kind)
        return key, private, ()
    digest: Any = material.hash_of(algorithm)
    if kind == "DIGEST":
        if len(call.get("Message")) != digest.digest_size:
            raise invalid(f"Digest is invalid length for algorithm {algorithm}.")
        digest = utils.Prehashed(digest)
    if key.spec in material.CURVES:
        return key, material.load_private(secret), (ec.ECDSA(digest),)
    plain = material.hash_of(algorithm)
    fill: Any = padding.PKCS1v15()
    if "_PSS_" in algorithm:
        fill = padding.PSS(padding.MGF1(plain), plain.digest_size)  # AWS: the salt is as long as the hash
    return key, material.load_private(secret), (fill, digest)


def sign(call: Call) -> Answer:
    key, private, how = _signing(call)
    call.dry_run()
    make = private.sign_mu if call.get("MessageType") == "EXTERNAL_MU" else private.sign
    signature = make(call.get("Message"), *how)
    return {"KeyId": key.arn, "Signature": signature, "SigningAlgorithm": call.get("SigningAlgorithm")}


def verify(call: Call) -> Answer:
    from cryptography.exceptions import InvalidSignature

    key, private, how = _signing(call)
    call.dry_run()
    public = private.public_key()
    check = public.verify_mu if call.get("MessageType") == "EXTERNAL_MU" else public.verify
    try:
        check(call.get("Signature"), call.get("Message"), *how)
    except InvalidSignature as e:
        raise KmsError(
            "KMSInvalidSignatureException", None, why="the signature does not match the message and the key"
        ) from e
    return {"KeyId": key.arn, "SignatureValid": True, "SigningAlgorithm": call.get("SigningAlgorithm")}


def _mac(call: Call) -> tuple[Key, bytes]:
    key, named = call.key()
    algorithm: str = call.get("MacAlgorithm")
    secret = call.use(key, material.MAC, {"kms:macalgorithm": (algorithm,), **named})
    if algorithm.replace("_SHA", "") != key.spec:
        raise bad_usage(f"Algorithm {algorithm} is incompatible with key spec {key.spec}.")
    call.dry_run()
    return key, hmac.digest(secret, call.get("Message"), "sha" + algorithm.rpartition("_")[2])


def generate_mac(call: Call) -> Answer:
    key, mac = _mac(call)
    return {"KeyId": key.arn, "Mac": mac, "MacAlgorithm": call.get("MacAlgorithm")}


def verify_mac(call: Call) -> Answer:
    key, mac = _mac(call)
    if not hmac.compare_digest(mac, call.get("Mac")):
        raise KmsError("KMSInvalidMacException", None, why="the MAC does not match the message and the key")
    return {"KeyId": key.arn, "MacValid": True, "MacAlgorithm": call.get("MacAlgorithm")}


def get_public_key(call: Call) -> Answer:
    key, named = call.key()
    call.tokens()
    call.authorise(key, named)
    if key.spec == material.SYMMETRIC or key.spec in material.MACS:
        raise KmsError("UnsupportedOperationException", f"{key.arn} is symmetric: it has no public key.")
    public = material.load_private(key.check_usable()).public_key()
    shown = key.metadata()
    kinds = ("KeyUsage", "KeySpec", "CustomerMasterKeySpec", "EncryptionAlgorithms", "SigningAlgorithms",
             "KeyAgreementAlgorithms")  # fmt: skip
    return {
        "KeyId": key.arn,
        "PublicKey": material.public_der(public),
        **{k: shown[k] for k in kinds if k in shown},
    }
