# SPDX-License-Identifier: MIT
"""What the operations of the local KMS compute: blobs, data keys, asymmetric encryption, signatures, MACs,
shared secrets. cryptography checks them with the public key alone. Who may ask is test_kms_service's."""

from __future__ import annotations

import hashlib
import importlib
import sys
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
)

from kms_world import (
    ADMINISTRATION,
    DER,
    ROLE,
    World,
    allow,
    refused,
    the_enclave,
)

ENCLAVE = the_enclave()


def test_blobs(world: World) -> None:
    key, other = world.key(), world.key()
    context = {"App": "payments", "stage": "test"}
    blob = world.secret(key, EncryptionContext=context)
    assert (
        world.call(
            "Decrypt", CiphertextBlob=blob, EncryptionContext=dict(reversed(context.items())), KeyId=key
        )["Plaintext"]
        == b"secret"
    )
    refused("InvalidCiphertextException", world, "Decrypt", CiphertextBlob=blob)
    refused(
        "InvalidCiphertextException", world, "Decrypt", CiphertextBlob=blob, EncryptionContext={"App": "x"}
    )
    refused(
        "IncorrectKeyException", world, "Decrypt", CiphertextBlob=blob, EncryptionContext=context, KeyId=other
    )
    for at in (0, 10, 50, 80, len(blob) - 1):
        broken = bytearray(blob)
        broken[at] ^= 1
        refused(
            "InvalidCiphertextException",
            world,
            "Decrypt",
            CiphertextBlob=bytes(broken),
            EncryptionContext=context,
        )
    refused("InvalidCiphertextException", world, "Decrypt", CiphertextBlob=b"x" * 200)
    refused("ValidationException", world, "Decrypt", CiphertextBlob=b"x" * 6145)
    refused("ValidationException", world, "Encrypt", KeyId=key, Plaintext=b"x" * 4097)
    refused("ValidationException", world, "Encrypt", KeyId=key, Plaintext=b"")
    refused(
        "ValidationException",
        world,
        "Encrypt",
        KeyId=key,
        Plaintext=b"x",
        EncryptionContext={"a": "1", "A": "2"},
    )
    # Names and values cannot run into each other.
    blob = world.secret(key, EncryptionContext={"a": "bc"})
    refused(
        "InvalidCiphertextException", world, "Decrypt", CiphertextBlob=blob, EncryptionContext={"ab": "c"}
    )
    assert len(world.secret(key, bytes(4096))) <= 6144


def test_encryption_context_in_policies(world: World) -> None:
    bound = allow(ROLE, "kms:Decrypt", Condition={
        "StringEquals": {"kms:EncryptionContext:App": "payments"},
        "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["App"]},
    })  # fmt: skip
    key = world.key(ADMINISTRATION, bound)
    for context, good in (({"App": "payments"}, True), ({"App": "x"}, False), ({}, False),
                          ({"App": "payments", "more": "1"}, False)):  # fmt: skip
        parameters = {
            "CiphertextBlob": world.secret(key, EncryptionContext=context),
            "EncryptionContext": context,
        }
        if good:
            world.call("Decrypt", world.role, **parameters)
        else:
            refused("AccessDeniedException", world, "Decrypt", world.role, **parameters)


def test_data_keys(world: World) -> None:
    key = world.key()
    for given, size in (
        ({"KeySpec": "AES_256"}, 32),
        ({"KeySpec": "AES_128"}, 16),
        ({"NumberOfBytes": 1024}, 1024),
    ):
        answer = world.call("GenerateDataKey", KeyId=key, **given)
        assert len(answer["Plaintext"]) == size
        assert (
            world.call("Decrypt", CiphertextBlob=answer["CiphertextBlob"])["Plaintext"] == answer["Plaintext"]
        )
    assert "Plaintext" not in world.call("GenerateDataKeyWithoutPlaintext", KeyId=key, KeySpec="AES_256")
    answer = world.call("GenerateDataKeyPairWithoutPlaintext", KeyId=key, KeyPairSpec="RSA_2048")
    assert "PrivateKeyPlaintext" not in answer
    private = world.call("Decrypt", CiphertextBlob=answer["PrivateKeyCiphertextBlob"])["Plaintext"]
    assert load_der_private_key(private, None).public_key().public_bytes(*DER) == answer["PublicKey"]
    refused("ValidationException", world, "GenerateDataKey", KeyId=key)
    refused("ValidationException", world, "GenerateDataKey", KeyId=key, KeySpec="AES_256", NumberOfBytes=1)
    refused("ValidationException", world, "GenerateDataKeyPair", KeyId=key, KeyPairSpec="SM2")
    refused("ValidationException", world, "GenerateRandom")
    refused("ValidationException", world, "GenerateRandom", NumberOfBytes=1025)


def test_asymmetric_encryption(world: World) -> None:
    key = world.key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")
    public = load_der_public_key(world.call("GetPublicKey", KeyId=key)["PublicKey"])
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    blob = public.encrypt(b"by the public key", oaep)  # type: ignore[union-attr]
    algorithm: dict[str, Any] = {"EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    answer = world.call("Decrypt", KeyId=key, CiphertextBlob=blob, **algorithm)
    assert answer["Plaintext"] == b"by the public key" and "KeyMaterialId" not in answer
    refused("InvalidCiphertextException", world, "Decrypt", KeyId=key, CiphertextBlob=blob,
            EncryptionAlgorithm="RSAES_OAEP_SHA_1")  # fmt: skip
    refused("ValidationException", world, "Decrypt", CiphertextBlob=blob, **algorithm)
    refused("InvalidKeyUsageException", world, "Encrypt", KeyId=key, Plaintext=b"x")  # SYMMETRIC_DEFAULT
    refused("ValidationException", world, "Encrypt", KeyId=key, Plaintext=b"x" * 400, **algorithm)
    refused("InvalidKeyUsageException", world, "GenerateDataKey", KeyId=key, KeySpec="AES_256")


def test_signatures_and_macs(world: World) -> None:
    def pss(key: Any, signature: bytes) -> None:
        fill = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        key.verify(signature, b"hello", fill, hashes.SHA256())

    def pkcs1(key: Any, signature: bytes) -> None:
        key.verify(signature, b"hello", padding.PKCS1v15(), hashes.SHA384())

    def ecdsa512(key: Any, signature: bytes) -> None:
        key.verify(signature, b"hello", ec.ECDSA(hashes.SHA512()))

    def ecdsa256(key: Any, signature: bytes) -> None:
        key.verify(signature, b"hello", ec.ECDSA(hashes.SHA256()))

    for spec, algorithm, check in (
        ("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_384", pkcs1),
        ("RSA_2048", "RSASSA_PSS_SHA_256", pss),
        ("ECC_NIST_P521", "ECDSA_SHA_512", ecdsa512),
        ("ECC_SECG_P256K1", "ECDSA_SHA_256", ecdsa256),
    ):
        key = world.key(KeySpec=spec, KeyUsage="SIGN_VERIFY")
        public = load_der_public_key(world.call("GetPublicKey", KeyId=key)["PublicKey"])
        given: dict[str, Any] = {"KeyId": key, "SigningAlgorithm": algorithm}
        signature = world.call("Sign", Message=b"hello", **given)["Signature"]
        check(public, signature)
        assert world.call("Verify", Message=b"hello", Signature=signature, **given)["SignatureValid"] is True
        digest = hashlib.new(f"sha{algorithm[-3:]}", b"hello").digest()
        assert world.call("Verify", Message=digest, MessageType="DIGEST", Signature=signature, **given)
        refused("KMSInvalidSignatureException", world, "Verify", Message=b"x", Signature=signature, **given)
        refused("ValidationException", world, "Sign", Message=b"x", MessageType="DIGEST", **given)
    refused(
        "InvalidKeyUsageException",
        world,
        "Sign",
        KeyId=key,
        Message=b"x",
        SigningAlgorithm="RSASSA_PSS_SHA_256",
    )
    key = world.key(KeySpec="HMAC_384")
    given = {"KeyId": key, "MacAlgorithm": "HMAC_SHA_384", "Message": b"hello"}
    mac = world.call("GenerateMac", **given)["Mac"]
    assert len(mac) == 48 and world.call("VerifyMac", Mac=mac, **given)["MacValid"] is True
    refused("KMSInvalidMacException", world, "VerifyMac", Mac=mac[:-1] + b"x", **given)
    refused("InvalidKeyUsageException", world, "Encrypt", KeyId=key, Plaintext=b"x")


def has(module: str, name: str) -> bool:
    """Whether this `cryptography`, which may be an older one or on an older OpenSSL, has a class of keys."""
    try:
        found = importlib.import_module(f"cryptography.hazmat.primitives.asymmetric.{module}")
        getattr(found, name).generate()
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        return False
    return True


def test_ed25519_and_ml_dsa(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public key alone verifies them. Where `cryptography` is too old for one it is refused by name."""
    for spec, algorithm in (("ECC_NIST_EDWARDS25519", "ED25519_SHA_512"), ("ML_DSA_44", "ML_DSA_SHAKE_256")):
        asked: dict[str, Any] = {"KeySpec": spec, "KeyUsage": "SIGN_VERIFY"}
        if spec == "ML_DSA_44" and not has("mldsa", "MLDSA44PrivateKey"):
            assert spec in refused("UnsupportedOperationException", world, "CreateKey", **asked)
            continue
        key = world.key(**asked)
        given: dict[str, Any] = {"KeyId": key, "SigningAlgorithm": algorithm}
        assert world.call("DescribeKey", KeyId=key)["KeyMetadata"]["SigningAlgorithms"] == [algorithm]
        public: Any = load_der_public_key(world.call("GetPublicKey", KeyId=key)["PublicKey"])
        signature = world.call("Sign", Message=b"hello", **given)["Signature"]
        public.verify(signature, b"hello")
        assert world.call("Verify", Message=b"hello", Signature=signature, **given)["SignatureValid"] is True
        refused("KMSInvalidSignatureException", world, "Verify", Message=b"x", Signature=signature, **given)
        refused("ValidationException", world, "Sign", Message=bytes(64), MessageType="DIGEST", **given)
        external = {"Message": bytes(64), "MessageType": "EXTERNAL_MU", **given}
        if spec == "ML_DSA_44" and not hasattr(public, "verify_mu"):
            refused("UnsupportedOperationException", world, "Sign", **external)
        elif spec == "ML_DSA_44":
            public.verify_mu(signature := world.call("Sign", **external)["Signature"], bytes(64))
            assert world.call("Verify", Signature=signature, **external)["SignatureValid"] is True
            refused("ValidationException", world, "Sign", **{**external, "Message": bytes(63)})
        else:
            refused("ValidationException", world, "Sign", **external)
    refused("InvalidKeyUsageException", world, "Sign", KeyId=key, Message=b"x",
            SigningAlgorithm="ED25519_PH_SHA_512")  # fmt: skip
    symmetric = world.key()
    answer = world.call("GenerateDataKeyPair", KeyId=symmetric, KeyPairSpec="ECC_NIST_EDWARDS25519")
    private = load_der_private_key(answer["PrivateKeyPlaintext"], None)
    assert private.public_key().public_bytes(*DER) == answer["PublicKey"]
    asked = {"KeyId": symmetric, "KeyPairSpec": "ML_KEM_768"}
    if has("mlkem", "MLKEM768PrivateKey"):
        answer = world.call("GenerateDataKeyPair", **asked)
        opener: Any = load_der_private_key(answer["PrivateKeyPlaintext"], None)
        public = load_der_public_key(answer["PublicKey"])
        shared, sealed = public.encapsulate()
        assert opener.decapsulate(sealed) == shared
    else:
        refused("UnsupportedOperationException", world, "GenerateDataKeyPair", **asked)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    assert "ML_DSA_87 is not served" in refused(
        "UnsupportedOperationException", world, "CreateKey", KeySpec="ML_DSA_87", KeyUsage="SIGN_VERIFY"
    )
    assert "cryptography" in world.why


def test_a_dry_run_does_nothing(world: World) -> None:
    key = world.key(ADMINISTRATION, allow(ROLE, "kms:Encrypt"))
    refused("DryRunOperationException", world, "Encrypt", world.role, KeyId=key, Plaintext=b"x", DryRun=True)
    refused(
        "AccessDeniedException",
        world,
        "GenerateDataKey",
        world.role,
        KeyId=key,
        KeySpec="AES_256",
        DryRun=True,
    )
