# SPDX-License-Identifier: MIT
"""The operations, and that each one asks first. Envelopes are opened by openssl. What is computed with keys
is test_kms_encryption's."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
)

from documents import Level, Maker
from kms_world import (
    ACCOUNT,
    ADMINISTRATION,
    DER,
    IMAGE,
    ROLE,
    USER,
    Enclave,
    World,
    allow,
    attested,
    lasting,
    policy,
    refused,
    spki,
    the_enclave,
)
from nitroctl.kms import keys as nitro_keys
from nitroctl.kms.actions import WITH_RECIPIENT
from nitroctl.kms.errors import KmsError
from nitroctl.kms.names import Caller
from nitroctl.kms.service import _HANDLERS, OPERATIONS
from nitroctl.kms.shapes import SHAPES

ENCLAVE = the_enclave()


# --- Recipient -------------------------------------------------------------------------------------------


def test_only_the_right_enclave_reads_the_secret(world: World, tmp_path: Path) -> None:
    key = world.key(ADMINISTRATION, attested())
    blob = world.secret(key)
    answer = world.call("Decrypt", world.role, CiphertextBlob=blob, Recipient=ENCLAVE.recipient())
    assert answer.keys() == {"KeyId", "EncryptionAlgorithm", "KeyMaterialId", "CiphertextForRecipient"}
    assert ENCLAVE.open(tmp_path, answer["CiphertextForRecipient"]) == b"secret"
    assert 'statement 2 ("Enclave") of the key policy' in world.why and IMAGE in world.why

    arn = world.call("DescribeKey", KeyId=key)["KeyMetadata"]["Arn"]
    text = (
        f"User: arn:aws:sts::{ACCOUNT}:assumed-role/app/session is not authorized to perform: kms:Decrypt "
        f"on resource: {arn} because no resource-based policy allows the kms:Decrypt action"
    )
    wrong = hashlib.sha384(b"another image").digest()
    pcrs = {**{i: bytes(48) for i in range(16)}, 0: wrong}
    # No document and a wrong one: one text for the client, two reasons in the event.
    assert refused("AccessDeniedException", world, "Decrypt", world.role, CiphertextBlob=blob) == text
    assert f"ImageSha384 is absent, the policy wants {IMAGE}" in world.why
    assert text == refused(
        "AccessDeniedException", world, "Decrypt", world.role, CiphertextBlob=blob,
        Recipient=ENCLAVE.recipient(pcrs=pcrs),
    )  # fmt: skip
    assert f"ImageSha384 is {wrong.hex()}, the policy wants {IMAGE}" in world.why


def test_every_operation_with_a_recipient_tells_its_enclave_alone(world: World, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    point = other.public_key().public_bytes(*DER)
    symmetric = world.key(ADMINISTRATION, attested(action=["kms:Decrypt", "kms:GenerateDataKey*"]))
    agreement = world.key(
        ADMINISTRATION,
        attested(action="kms:DeriveSharedSecret"),
        KeySpec="ECC_NIST_P256",
        KeyUsage="KEY_AGREEMENT",
    )
    world.iam(ROLE, attested(action="kms:GenerateRandom"))
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "Decrypt": ("Plaintext", {"CiphertextBlob": world.secret(symmetric)}),
        "GenerateDataKey": ("Plaintext", {"KeyId": symmetric, "KeySpec": "AES_256"}),
        "GenerateDataKeyPair": ("PrivateKeyPlaintext", {"KeyId": symmetric, "KeyPairSpec": "ECC_NIST_P256"}),
        "GenerateRandom": ("Plaintext", {"NumberOfBytes": 1024}),
        "DeriveSharedSecret": (
            "SharedSecret", {"KeyId": agreement, "KeyAgreementAlgorithm": "ECDH", "PublicKey": point}),
    }  # fmt: skip
    assert asked.keys() == WITH_RECIPIENT
    for operation, (secret, parameters) in asked.items():
        refused("AccessDeniedException", world, operation, world.role, **parameters)
        answer = world.call(operation, world.role, **parameters, Recipient=ENCLAVE.recipient())
        assert secret not in answer
        opened = ENCLAVE.open(tmp_path, answer["CiphertextForRecipient"])
        blob = answer.get("CiphertextBlob") or answer.get("PrivateKeyCiphertextBlob")
        if blob:
            assert world.call("Decrypt", CiphertextBlob=blob)["Plaintext"] == opened
        if operation == "GenerateDataKeyPair":
            private = load_der_private_key(opened, None)
            assert private.public_key().public_bytes(*DER) == answer["PublicKey"]
        if operation == "GenerateRandom":
            assert len(opened) == 1024
        if operation == "DeriveSharedSecret":
            public = load_der_public_key(world.call("GetPublicKey", KeyId=agreement)["PublicKey"])
            assert isinstance(public, ec.EllipticCurvePublicKey)
            assert opened == other.exchange(ec.ECDH(), public)


def expired(levels: list[Level]) -> None:
    lasting(levels)
    levels[-1].end = levels[-1].begin + timedelta(minutes=1)


def test_bad_documents(world: World, tmp_path: Path) -> None:
    """Each ends in a ValidationException, and the event says what was wrong."""
    blob = world.secret(world.key(ADMINISTRATION, attested()))
    flipped = bytearray(ENCLAVE.document())
    flipped[len(flipped) // 2] ^= 1
    stranger, small = Enclave(), Enclave(ENCLAVE.maker, bits=1024)
    old = Enclave(Maker(expired))
    point = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*DER)
    even = bytearray(spki(ENCLAVE.key))
    even[-6] ^= 1  # the modulus' last byte, before the exponent, 02 03 01 00 01
    for document, why in (
        (bytes(flipped), "does not verify"),
        (b"\xff" * 262144, "does not verify: 262144 bytes are too many for an attestation document"),
        (b"random", "does not verify"),
        (stranger.document(), "which is not the trusted root"),
        (small.document(), "has 1024 bits, not 2048, 3072 or 4096"),
        (ENCLAVE.document(public_key=None), "has no public_key"),
        (ENCLAVE.document(public_key=b"x"), "is not a DER SubjectPublicKeyInfo"),
        (ENCLAVE.document(public_key=point), "is not an RSA key"),
        (ENCLAVE.document(public_key=bytes(even)), "its modulus is even"),
    ):
        recipient = {"AttestationDocument": document, "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
        refused("ValidationException", world, "Decrypt", world.role, CiphertextBlob=blob, Recipient=recipient)
        assert why in world.why
        assert "recipient" not in str(world.events[-1].get("additionalEventData"))
    good = ENCLAVE.document()
    for at in range(0, len(good), 53):  # headers, payload, certificates, signature
        changed = bytearray(good)
        changed[at] ^= 1 << at % 8
        with pytest.raises(KmsError, match="ValidationException"):
            world.service.verifier.verify({**recipient, "AttestationDocument": bytes(changed)})
    aged = World(tmp_path / "old", old)
    blob = aged.secret(aged.key(ADMINISTRATION, attested()))
    refused("ValidationException", aged, "Decrypt", aged.role, CiphertextBlob=blob, Recipient=old.recipient())
    assert "expired at" in aged.why
    for misshapen in ({}, {"AttestationDocument": b"x"}, {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_1"},
                      {"AttestationDocument": b"x" * 262145}):  # fmt: skip
        refused("ValidationException", world, "Decrypt", world.role, CiphertextBlob=blob, Recipient=misshapen)


def test_a_document_can_be_sent_again_and_opens_nothing_for_others(world: World, tmp_path: Path) -> None:
    """As with AWS: who replays another enclave's document gets what only that enclave can open."""
    blob = world.secret(world.key(ADMINISTRATION, attested()))
    recipient = ENCLAVE.recipient()
    for _ in range(2):
        answer = world.call("Decrypt", world.role, CiphertextBlob=blob, Recipient=recipient)
        assert ENCLAVE.open(tmp_path, answer["CiphertextForRecipient"]) == b"secret"
    other = Enclave(ENCLAVE.maker, bits=3072)
    with pytest.raises(Exception, match="openssl"):
        other.open(tmp_path, answer["CiphertextForRecipient"])


def test_longer_keys_and_debug_enclaves_are_told(world: World) -> None:
    zeros = "0" * 96
    blob = world.secret(world.key(ADMINISTRATION, attested(zeros)))
    big = Enclave(ENCLAVE.maker, bits=4096)
    recipient = big.recipient(pcrs={i: bytes(48) for i in range(16)})
    world.call("Decrypt", world.role, CiphertextBlob=blob, Recipient=recipient)
    notes = world.events[-1]["why"]["notes"]
    assert any("4096 bits" in note for note in notes) and any("debug mode" in note for note in notes)


def test_an_unmeasured_enclave_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    """Although its PCRs are those that the policy wants; every event says what it is."""

    def unmeasured(levels: list[Level]) -> None:
        lasting(levels)
        levels[3].unit = "Local, not AWS, unmeasured"

    enclave = Enclave(Maker(unmeasured))
    for allowed in (False, True):
        world = World(tmp_path / str(allowed), enclave, allow_unmeasured=allowed)
        blob = world.secret(world.key(ADMINISTRATION, attested()))
        given = {"CiphertextBlob": blob, "Recipient": enclave.recipient()}
        if allowed:
            answer = world.call("Decrypt", world.role, **given)
            assert enclave.open(tmp_path, answer["CiphertextForRecipient"]) == b"secret"
            assert world.events[-1]["why"]["document"]["unmeasured"] is True
            assert any("the enclave is unmeasured" in note for note in world.events[-1]["why"]["notes"])
        else:
            refused("ValidationException", world, "Decrypt", world.role, **given)
            assert "the enclave is unmeasured" in world.why and "--kms-allow-unmeasured" in world.why


# --- no way around ---------------------------------------------------------------------------------------


def test_every_operation_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whom nothing allows anything gets nothing: no operation has another answer for him."""
    assert OPERATIONS == SHAPES.keys()
    keys = {
        "symmetric": world.key(ADMINISTRATION),
        "rsa": world.key(ADMINISTRATION, KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY"),
        "mac": world.key(ADMINISTRATION, KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC"),
        "agree": world.key(ADMINISTRATION, KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT"),
    }
    world.call("CreateAlias", AliasName="alias/a", TargetKeyId=keys["symmetric"])
    grant = world.call("CreateGrant", KeyId=keys["symmetric"], GranteePrincipal=USER, Operations=["Encrypt"])
    blob = world.secret(keys["symmetric"])
    common: dict[str, Any] = {
        "KeyId": keys["symmetric"], "CiphertextBlob": blob, "DestinationKeyId": keys["symmetric"],
        "AliasName": "alias/a", "TargetKeyId": keys["symmetric"], "Plaintext": b"x", "NumberOfBytes": 16,
        "KeyPairSpec": "ECC_NIST_P256", "GranteePrincipal": ROLE, "RetiringPrincipal": ROLE,
        "Operations": ["Decrypt"], "Message": b"x",
        "Description": "x", "Policy": policy(ADMINISTRATION), "WrappingAlgorithm": "RSAES_OAEP_SHA_256",
        "WrappingKeySpec": "RSA_2048", "ImportToken": b"x", "EncryptedKeyMaterial": b"x", "Tags": [],
        "TagKeys": ["x"],
        "GrantId": grant["GrantId"], "Signature": b"x", "Mac": b"x", "KeyAgreementAlgorithm": "ECDH",
        "PublicKey": b"x",
        "SigningAlgorithm": "RSASSA_PSS_SHA_256", "MacAlgorithm": "HMAC_SHA_256",
    }  # fmt: skip
    special = {"Sign": "rsa", "Verify": "rsa", "GetPublicKey": "rsa", "GenerateMac": "mac",
    "VerifyMac": "mac",
               "DeriveSharedSecret": "agree"}  # fmt: skip
    common["Tags"] = [{"TagKey": "x", "TagValue": "y"}]
    for operation, shape in SHAPES.items():
        given = {name: common[name] for name in shape.parameters if name in shape.required}
        if operation in ("GenerateRandom", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext"):
            given["NumberOfBytes"] = 16
        if operation == "RetireGrant":
            given |= {"KeyId": keys["symmetric"], "GrantId": grant["GrantId"]}
        if operation in special:
            given["KeyId"] = keys[special[operation]]
        refused("AccessDeniedException", world, operation, world.role, **given)
        assert world.events[-1]["eventName"] == operation
    # And an operation that forgot to ask would be stopped, with all that it did.
    monkeypatch.setitem(_HANDLERS, "DisableKey", lambda call: _forgetful(call))
    refused("KMSInternalException", world, "DisableKey", world.role, KeyId=keys["symmetric"])
    assert world.call("DescribeKey", KeyId=keys["symmetric"])["KeyMetadata"]["KeyState"] == "Enabled"


def _forgetful(call: Any) -> dict[str, Any]:
    with call.store.transaction(write=True) as db:
        db.execute("UPDATE keys SET state = 'Disabled'")
    return {}


def test_what_is_not_there_is_denied_as_what_is(world: World) -> None:
    """Whom nothing allows anything cannot tell a key, an alias, a grant or a ciphertext's key that is there
    from one that is not: he reads what he would of a key with AWS's own policy. Who may ask is told."""
    key, gone = world.key(), world.key()
    world.call("CreateAlias", AliasName="alias/a", TargetKeyId=key)
    grant = world.call("CreateGrant", KeyId=key, GranteePrincipal=USER, Operations=["Encrypt"])["GrantId"]
    blobs = world.secret(key), world.secret(gone)
    nitro_keys.delete(world.store, gone)
    for operation, present, absent in (
        ("DescribeKey", {"KeyId": key}, {"KeyId": gone}),
        ("PutKeyPolicy", {"KeyId": key, "Policy": "{", "PolicyName": "other"},
         {"KeyId": gone, "Policy": "{", "PolicyName": "other"}),
        ("ScheduleKeyDeletion", {"KeyId": f"{world.arn}{key}"}, {"KeyId": f"{world.arn}{gone}"}),
        ("Encrypt", {"KeyId": key, "Plaintext": b"x", "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
         {"KeyId": gone, "Plaintext": b"x", "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
        ("Decrypt", {"CiphertextBlob": blobs[0]}, {"CiphertextBlob": blobs[1]}),
        ("Decrypt", {"CiphertextBlob": blobs[0], "KeyId": key}, {"CiphertextBlob": blobs[1], "KeyId": key}),
        ("ReEncrypt", {"CiphertextBlob": blobs[0], "DestinationKeyId": key},
         {"CiphertextBlob": blobs[1], "DestinationKeyId": gone}),
        ("CreateAlias", {"AliasName": "alias/a", "TargetKeyId": key},
         {"AliasName": "alias/b", "TargetKeyId": gone}),
        ("UpdateAlias", {"AliasName": "alias/a", "TargetKeyId": key},
         {"AliasName": "alias/b", "TargetKeyId": gone}),
        ("DeleteAlias", {"AliasName": "alias/a"}, {"AliasName": "alias/b"}),
        ("RetireGrant", {"KeyId": key, "GrantId": grant}, {"KeyId": gone, "GrantId": "f" * 64}),
        ("RevokeGrant", {"KeyId": key, "GrantId": grant}, {"KeyId": key, "GrantId": "f" * 64}),
    ):  # fmt: skip
        told = refused("AccessDeniedException", world, operation, world.role, **present)
        same = refused("AccessDeniedException", world, operation, world.role, **absent)
        assert same.replace(gone, key).replace("alias/b", "alias/a") == told
    assert "alias/none" in refused(
        "AccessDeniedException", world, "DescribeKey", world.role, KeyId="alias/none"
    )
    world.iam(ROLE, allow(ROLE, "kms:*"))
    refused("NotFoundException", world, "DescribeKey", world.role, KeyId=gone)
    refused("NotFoundException", world, "DeleteAlias", world.role, AliasName="alias/b")
    refused("NotFoundException", world, "RetireGrant", world.role, KeyId=key, GrantId="f" * 64)
    refused("InvalidCiphertextException", world, "Decrypt", world.role, CiphertextBlob=blobs[1])
    refused("IncorrectKeyException", world, "Decrypt", world.role, CiphertextBlob=blobs[1], KeyId=key)


def test_unknown_operations_are_refused_by_name(world: World) -> None:
    for operation, kind in (("Frobnicate", "UnknownOperationException"), ("", "UnknownOperationException"),
                            ("ReplicateKey", "UnsupportedOperationException")):  # fmt: skip
        assert operation in refused(kind, world, operation)


def test_reencrypt_needs_both_keys(world: World) -> None:
    """A ReEncrypt to an open key would go around a policy on PCRs."""
    guarded, opened = world.key(ADMINISTRATION, attested()), world.key(ADMINISTRATION, allow(ROLE, "kms:*"))
    blob = world.secret(guarded)
    parameters = {"CiphertextBlob": blob, "DestinationKeyId": opened}
    text = refused("AccessDeniedException", world, "ReEncrypt", world.role, **parameters)
    assert "kms:ReEncryptFrom" in text
    # An attestation condition never holds there: ReEncrypt has no Recipient.
    world.call("PutKeyPolicy", KeyId=guarded, Policy=policy(ADMINISTRATION, attested(action="kms:*")))
    refused(
        "AccessDeniedException", world, "ReEncrypt", world.role, **parameters, Recipient=ENCLAVE.recipient()
    )
    world.call("PutKeyPolicy", KeyId=guarded, Policy=policy(ADMINISTRATION, allow(ROLE, "kms:ReEncrypt*")))
    moved = world.call("ReEncrypt", world.role, **parameters)["CiphertextBlob"]
    assert world.call("Decrypt", world.role, CiphertextBlob=moved)["Plaintext"] == b"secret"


def test_another_account_sees_no_keys(world: World) -> None:
    """Not even its root user, who may do all in his own."""
    world.key()
    theirs = "arn:aws:iam::111122223333"
    world.iam(f"{theirs}:user/eve", allow(USER, "kms:*"))
    for caller in (Caller(f"{theirs}:root"), Caller(f"{theirs}:user/eve")):
        for operation in ("ListKeys", "ListAliases", "CreateKey"):
            refused("AccessDeniedException", world, operation, caller)
    assert "the keys are of account 000000000000" in world.why


def test_recipient_where_there_is_none_counts_for_nothing(world: World) -> None:
    key = world.key(ADMINISTRATION, attested(action="kms:Encrypt"))
    refused("AccessDeniedException", world, "Encrypt", world.role, KeyId=key, Plaintext=b"x",
            Recipient=ENCLAVE.recipient())  # fmt: skip
    assert world.events[-1]["why"]["notes"] == ["Recipient: ignored, as by AWS, for Encrypt"]


# --- shapes ----------------------------------------------------------------------------------------------


def test_misshapen_requests(world: World) -> None:
    for given, kind in (
        ([], "SerializationException"), (None, "SerializationException"), ({"KeyId": 5},
        "SerializationException"),
        ({"KeyId": "x", "Plaintext": "not base64!"}, "SerializationException"), ({"KeyId": "x"},
        "ValidationException"),
        ({"KeyId": "x" * 3000, "Plaintext": "eA=="}, "ValidationException"),
        ({"KeyId": "\ud800", "Plaintext": "eA=="}, "SerializationException"),
        ({"KeyId": "x", "Plaintext": "eA==", "EncryptionContext": {"a": 1}}, "SerializationException"),
    ):  # fmt: skip
        with pytest.raises(KmsError) as caught:
            world.service.call("Encrypt", given)
        assert caught.value.kind == kind, given


# --- events ----------------------------------------------------------------------------------------------


def test_events_have_cloudtrail_s_shape(world: World) -> None:
    key = world.key(ADMINISTRATION, attested())
    blob = world.secret(key)
    world.call("Decrypt", world.role, CiphertextBlob=blob, Recipient=ENCLAVE.recipient())
    found = world.events[-1]
    recipient = found["additionalEventData"]["recipient"]
    assert recipient["attestationDocumentModuleId"] == "i-1234567890abcdef0-enc0123456789abcdef"
    assert recipient["attestationDocumentEnclaveImageDigest"] == _base64(bytes.fromhex(IMAGE))
    assert recipient["attestationDocumentEnclavePCR8"] == "A" * 64  # a zero one in real events
    assert recipient.keys() == {"attestationDocumentModuleId", "attestationDocumentEnclaveImageDigest", *(
        f"attestationDocumentEnclavePCR{n}" for n in (1, 2, 3, 4, 8))}  # fmt: skip
    assert (found["eventSource"], found["eventName"], found["readOnly"]) == (
        "kms.amazonaws.com",
        "Decrypt",
        True,
    )
    assert found["requestParameters"] is None and found["responseElements"] is None
    assert found["resources"] == [
        {
            "accountId": ACCOUNT,
            "type": "AWS::KMS::Key",
            "ARN": f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/{key}",
        }
    ]
    assert found["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"] == ROLE
    assert found["why"]["decisions"][0]["conditions"] == [
        {"operator": "StringEqualsIgnoreCase", "key": "kms:RecipientAttestation:ImageSha384",
        "wanted": [IMAGE],
         "found": [IMAGE], "held": True}
    ]  # fmt: skip
    text = (world.store.folder / "events.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == world.events
    assert (world.store.folder / "events.jsonl").stat().st_mode & 0o777 == 0o600
    for secret in (b"secret", blob, ENCLAVE.document()[:30]):
        assert _base64(secret) not in text


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
