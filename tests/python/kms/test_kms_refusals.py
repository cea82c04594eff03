# SPDX-License-Identifier: MIT
"""What an operation refuses once the request has its shape: keys, algorithms and states that do not go
together. Kinds of errors are those of AWS's API reference and its table of key states."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from kms_world import ADMINISTRATION, DER, ROLE, World, attested, policy, refused, the_enclave
from nitroctl.kms import images, material

ENCLAVE = the_enclave()


# --- cryptography ----------------------------------------------------------------------------------------


def test_algorithms_that_a_key_does_not_have(world: World) -> None:
    symmetric, mac = world.key(), world.key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
    agreement = world.key(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    refused("InvalidKeyUsageException", world, "GenerateMac", KeyId=mac, Message=b"m",
            MacAlgorithm="HMAC_SHA_512")  # fmt: skip
    for key in (symmetric, mac):
        refused("UnsupportedOperationException", world, "GetPublicKey", KeyId=key)
    pair = world.key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")
    text = refused("ValidationException", world, "Encrypt", KeyId=pair, Plaintext=b"x",
                   EncryptionAlgorithm="RSAES_OAEP_SHA_256", EncryptionContext={"a": "b"})  # fmt: skip
    assert "Only symmetric keys take an encryption context" in text

    given: dict[str, Any] = {"KeyId": agreement, "KeyAgreementAlgorithm": "ECDH"}
    other = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*DER)
    for public, text in (
        (b"x", "not a DER SubjectPublicKeyInfo"),
        (other, "not on the curve of ECC_NIST_P256"),
        (x25519.X25519PrivateKey.generate().public_key().public_bytes(*DER), "not on the curve"),
    ):
        assert text in refused("ValidationException", world, "DeriveSharedSecret", **given, PublicKey=public)


def test_a_damaged_blob_tells_the_client_nothing(world: World) -> None:
    """As AWS does; the event says which part."""
    blob = bytearray(world.secret(world.key()))
    at = blob.index(b"-") - 1  # within the key's id
    blob[at] = 0xFF
    assert refused("InvalidCiphertextException", world, "Decrypt", CiphertextBlob=bytes(blob)) == ""
    assert world.why == "the key id in the ciphertext is damaged"


# --- states and names ------------------------------------------------------------------------------------


def test_keys_without_material_and_of_other_places(world: World) -> None:
    key = world.key(Origin="EXTERNAL")
    for operation in ("EnableKey", "DisableKey"):
        refused("KMSInvalidStateException", world, operation, KeyId=key)
    doomed = world.key()
    told = world.call("ScheduleKeyDeletion", KeyId=doomed, PendingWindowInDays=7)["DeletionDate"]
    shown = world.call("DescribeKey", KeyId=doomed)["KeyMetadata"]
    assert (shown["KeyState"], shown["DeletionDate"]) == ("PendingDeletion", told)

    arn = world.call("DescribeKey", KeyId=key)["KeyMetadata"]["Arn"]
    account = arn.split(":")[4]
    for name in ("arn:aws:s3:::bucket", "arn:aws:kms", arn.replace(f":{account}:", ":999999999999:")):
        refused("NotFoundException", world, "DescribeKey", KeyId=name)
    assert "the key belongs to account 999999999999; this KMS serves 000000000000" in world.why

    refused("NotFoundException", world, "GetKeyPolicy", KeyId=key, PolicyName="other")
    refused("NotFoundException", world, "PutKeyPolicy", KeyId=key, PolicyName="other", Policy=policy())


def test_an_alias_stays_with_one_kind_of_key(world: World) -> None:
    """UpdateAlias: both symmetric or both asymmetric or both HMAC, with one usage."""
    symmetric, signing = world.key(), world.key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    mac = world.key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
    agreement = world.key(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    for number, (old, new) in enumerate(((symmetric, signing), (signing, agreement), (mac, symmetric))):
        world.call("CreateAlias", AliasName=f"alias/{number}", TargetKeyId=old)
        refused("ValidationException", world, "UpdateAlias", AliasName=f"alias/{number}", TargetKeyId=new)


def test_grants_that_cannot_be(world: World) -> None:
    key = world.key()
    both = {"EncryptionContextSubset": {"a": "1"}, "EncryptionContextEquals": {"a": "1"}}
    given: dict[str, Any] = {"KeyId": key, "GranteePrincipal": ROLE, "Operations": ["Encrypt"]}
    refused("ValidationException", world, "CreateGrant", **given, Constraints=both)
    halves: tuple[dict[str, Any], ...] = ({}, {"KeyId": key}, {"GrantId": "0" * 64})
    for half in halves:
        refused("ValidationException", world, "RetireGrant", **half)
    refused("InvalidGrantTokenException", world, "RetireGrant", GrantToken="none")

    # Who has a constraint on the whole context hands on that one alone.
    whole: dict[str, Any] = {"Constraints": {"EncryptionContextEquals": {"a": "1"}}}
    world.call("CreateGrant", **{**given, "Operations": ["CreateGrant", "Encrypt"]}, **whole)
    world.call("CreateGrant", world.role, **given, **whole)
    more: tuple[dict[str, Any], ...] = (
        {},
        {"Constraints": {"EncryptionContextSubset": {"a": "1"}}},
        {"Constraints": {"EncryptionContextEquals": {"a": "1", "b": "2"}}},
    )
    for constraints in more:
        refused("AccessDeniedException", world, "CreateGrant", world.role, **given, **constraints)


# --- imported material -----------------------------------------------------------------------------------


class Import:
    """One key's parameters, and material wrapped for them by `cryptography`."""

    def __init__(self, world: World, **spec: str) -> None:
        self.world, self.key = world, world.key(Origin="EXTERNAL", **spec)
        self.given = world.call("GetParametersForImport", KeyId=self.key, WrappingKeySpec="RSA_2048",
                                WrappingAlgorithm="RSA_AES_KEY_WRAP_SHA_256")  # fmt: skip

    def parameters(self, data: bytes, **more: Any) -> dict[str, Any]:
        public: Any = load_der_public_key(self.given["PublicKey"])
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        sealed = public.encrypt(b"w" * 32, oaep) + aes_key_wrap_with_padding(b"w" * 32, data)
        last = more or {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
        return {"KeyId": self.key, "ImportToken": self.given["ImportToken"],
                "EncryptedKeyMaterial": sealed, **last}  # fmt: skip

    def refused(self, kind: str, data: bytes, **more: Any) -> str:
        refused(kind, self.world, "ImportKeyMaterial", **self.parameters(data, **more))
        return self.world.why


def _pkcs8(key: Any) -> bytes:
    data: bytes = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return data


def test_until_when_imported_material_lasts(world: World) -> None:
    asked, data = Import(world), b"k" * 32
    now = int(time.time())
    for wrong in (
        {"ExpirationModel": "KEY_MATERIAL_EXPIRES"},
        {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", "ValidTo": now + 600},
        {"ValidTo": now - 600},
    ):
        asked.refused("ValidationException", data, **wrong)
    world.call("ImportKeyMaterial", **asked.parameters(data, ValidTo=now + 600))
    shown = world.call("DescribeKey", KeyId=asked.key)["KeyMetadata"]
    assert (shown["ExpirationModel"], shown["ValidTo"]) == ("KEY_MATERIAL_EXPIRES", now + 600)
    with world.store.transaction(write=True) as db:  # its 24 hours are over
        db.execute("UPDATE imports SET expires = ?", (now - 1,))
    asked.refused("ExpiredImportTokenException", data, ValidTo=now + 600)


def test_material_has_to_be_of_the_key_s_spec(world: World) -> None:
    point = _pkcs8(ec.generate_private_key(ec.SECP256R1()))
    small = _pkcs8(rsa.generate_private_key(65537, 2048))
    for spec, data in (
        ("RSA_3072", small),
        ("RSA_2048", point),
        ("ECC_NIST_P384", point),
        ("ECC_NIST_EDWARDS25519", point),
    ):
        assert material.fits(spec, data) == f"it is not a key of the spec {spec}"
    assert "not a DER PKCS #8 private key" in (material.fits("RSA_2048", b"x") or "")
    assert material.fits("RSA_2048", small) is None and material.fits("ECC_NIST_P256", point) is None

    own = ed25519.Ed25519PrivateKey.generate()
    asked = Import(world, KeySpec="ECC_NIST_EDWARDS25519", KeyUsage="SIGN_VERIFY")
    asked.refused("IncorrectKeyMaterialException", point)
    world.call("ImportKeyMaterial", **asked.parameters(_pkcs8(own)))
    signed = world.call("Sign", KeyId=asked.key, Message=b"m", SigningAlgorithm="ED25519_SHA_512")
    own.public_key().verify(signed["Signature"], b"m")


# --- why -------------------------------------------------------------------------------------------------


def test_a_denial_names_the_images_that_are_known(world: World, tmp_path: Path) -> None:
    old, new = "a" * 96, "b" * 96
    for value in (old, new):
        images.remember(world.store, tmp_path / "app.eif", {0: value})
    blob = world.secret(world.key(ADMINISTRATION, attested(old.upper())))
    pcrs = {**{i: bytes(48) for i in range(16)}, 0: bytes.fromhex(new)}

    def denied(**changes: Any) -> str:
        refused("AccessDeniedException", world, "Decrypt", world.role, CiphertextBlob=blob,
                Recipient=ENCLAVE.recipient(**changes))  # fmt: skip
        return world.why

    why = denied(pcrs=pcrs)
    assert "AAAAAAAA... is the PCR0 of app.eif before it was rebuilt" in why
    assert "the document's bbbbbbbb... is the PCR0 of app.eif" in why
    assert not why.endswith("rebuilt")
    assert "the document's 00000000... is the PCR0 of debug mode" in denied(pcrs={**pcrs, 0: bytes(48)})


def test_zeros_are_debug_mode_s_only_where_an_image_has_others(world: World) -> None:
    """PCR3 is zero without a role, PCR8 of an unsigned image: neither is a sign of debug mode."""
    zero = "0" * 96
    assert images.tell(world.store, 2, zero) == "the PCR2 of debug mode"
    assert images.tell(world.store, 3, zero) == "the PCR3 of a parent without a role, or of debug mode"
    assert images.tell(world.store, 8, zero) == "the PCR8 of an unsigned image, or of debug mode"
    assert images.tell(world.store, 16, zero) is None
