# SPDX-License-Identifier: MIT
"""The operations on keys: states, names, policies, grants, imported material, rotation, tags. Rules and texts
are those of AWS's API reference."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_world import ACCOUNT, ADMINISTRATION, ALICE, ROLE, USER, World, allow, attested, policy, refused
from nitroctl.kms.names import Caller


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_states(world: World) -> None:
    key = world.key()
    blob = world.secret(key)
    assert world.call("DisableKey", KeyId=key) == {}
    assert refused("DisabledException", world, "Decrypt", CiphertextBlob=blob).endswith(f"{key} is disabled.")
    world.call("EnableKey", KeyId=key)
    gone = world.call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    assert gone["DeletionDate"] == pytest.approx(time.time() + 7 * 86400, abs=60)
    refused("KMSInvalidStateException", world, "Decrypt", CiphertextBlob=blob)
    refused("KMSInvalidStateException", world, "EnableKey", KeyId=key)
    world.call("CancelKeyDeletion", KeyId=key)
    assert world.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    refused("KMSInvalidStateException", world, "CancelKeyDeletion", KeyId=key)
    world.call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    with world.store.transaction(write=True) as db:
        db.execute("UPDATE keys SET deletion = ?", (time.time() - 1,))
    refused("NotFoundException", world, "DescribeKey", KeyId=key)
    refused("ValidationException", world, "ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=6)


def test_names(world: World) -> None:
    key = world.key()
    arn = world.call("DescribeKey", KeyId=key)["KeyMetadata"]["Arn"]
    world.call("CreateAlias", AliasName="alias/app", TargetKeyId=key)
    alias = f"arn:aws:kms:eu-central-1:{ACCOUNT}:alias/app"
    for name in (key, arn, "alias/app", alias):
        assert world.call("DescribeKey", KeyId=name)["KeyMetadata"]["KeyId"] == key
    assert "alias/no is not found" in refused("NotFoundException", world, "DescribeKey", KeyId="alias/no")
    assert "does not exist" in refused("NotFoundException", world, "DescribeKey", KeyId=key[:-1] + "g")
    refused("NotFoundException", world, "DescribeKey", KeyId=arn.replace("eu-central-1", "us-east-1"))
    refused("NotFoundException", world, "GetKeyPolicy", KeyId="alias/app")  # as with AWS: no alias there
    refused("AlreadyExistsException", world, "CreateAlias", AliasName="alias/app", TargetKeyId=key)
    refused("ValidationException", world, "CreateAlias", AliasName="app", TargetKeyId=key)
    refused("NotAuthorizedException", world, "CreateAlias", AliasName="alias/aws/x", TargetKeyId=key)
    other = world.key()
    world.call("UpdateAlias", AliasName="alias/app", TargetKeyId=other)
    assert [a["TargetKeyId"] for a in world.call("ListAliases")["Aliases"]] == [other]
    world.call("DeleteAlias", AliasName="alias/app")
    assert world.call("ListAliases") == {"Aliases": [], "Truncated": False}
    first = world.call("ListKeys", Limit=1)
    assert first["Truncated"] and [k["KeyId"] for k in first["Keys"]] == [key]
    assert [k["KeyId"] for k in world.call("ListKeys", Marker=first["NextMarker"])["Keys"]] == [other]
    refused("InvalidMarkerException", world, "ListKeys", Marker="x")


def test_the_request_s_alias_in_policies(world: World) -> None:
    key = world.key(
        ADMINISTRATION,
        allow(ROLE, "kms:Encrypt", Condition={"StringEquals": {"kms:RequestAlias": "alias/a"}}),
    )
    world.call("CreateAlias", AliasName="alias/a", TargetKeyId=key)
    world.call("Encrypt", world.role, KeyId="alias/a", Plaintext=b"x")
    refused("AccessDeniedException", world, "Encrypt", world.role, KeyId=key, Plaintext=b"x")


def test_policies_are_put_only_if_understood_and_never_lock_out(world: World) -> None:
    key = world.key()
    world.iam(USER, allow(USER, "kms:*"))
    for text in ("{", policy(attested() | {"Action": "kms:Decrpyt"})):
        refused("MalformedPolicyDocumentException", world, "PutKeyPolicy", ALICE, KeyId=key, Policy=text)
    refused(
        "MalformedPolicyDocumentException", world, "PutKeyPolicy", ALICE, KeyId=key, Policy=policy(attested())
    )
    assert "would not allow" in world.why
    world.call(
        "PutKeyPolicy", ALICE, KeyId=key, Policy=policy(attested()), BypassPolicyLockoutSafetyCheck=True
    )
    refused("AccessDeniedException", world, "GetKeyPolicy", ALICE, KeyId=key)
    # The store's owner stays master in his house.
    assert json.loads(world.call("GetKeyPolicy", KeyId=key)["Policy"])["Statement"][0]["Sid"] == "Enclave"
    refused("MalformedPolicyDocumentException", world, "CreateKey", ALICE, Policy=policy(attested()))
    assert len(world.call("ListKeys")["Keys"]) == 1


def test_grants(world: World) -> None:
    key = world.key(ADMINISTRATION, allow(USER, "kms:CreateGrant"))
    blob = world.secret(key, EncryptionContext={"a": "1"})
    given = {"KeyId": key, "GranteePrincipal": ROLE, "Operations": ["Decrypt", "RetireGrant"], "Name": "n",
             "Constraints": {"EncryptionContextSubset": {"a": "1"}}}  # fmt: skip
    decrypt = {"CiphertextBlob": blob, "EncryptionContext": {"a": "1"}}
    refused("AccessDeniedException", world, "Decrypt", world.role, **decrypt)
    made = world.call("CreateGrant", ALICE, **given)
    assert world.call("CreateGrant", ALICE, **given) == made
    assert (
        world.call("Decrypt", world.role, **decrypt, GrantTokens=[made["GrantToken"]])["Plaintext"]
        == b"secret"
    )
    assert world.why == f"allowed by the grant {made['GrantId']}"
    refused("InvalidGrantTokenException", world, "Decrypt", world.role, **decrypt, GrantTokens=["x"])
    assert world.call("ListGrants", KeyId=key)["Grants"][0]["GranteePrincipal"] == ROLE
    world.call("RetireGrant", world.role, GrantToken=made["GrantToken"])
    refused("AccessDeniedException", world, "Decrypt", world.role, **decrypt)
    grant = world.call("CreateGrant", ALICE, **given, RetiringPrincipal=ROLE)["GrantId"]
    retirable = world.call("ListRetirableGrants", RetiringPrincipal=ROLE)["Grants"]
    assert [entry["GrantId"] for entry in retirable] == [grant]
    assert world.call("ListRetirableGrants", RetiringPrincipal=USER)["Grants"] == []
    refused("AccessDeniedException", world, "RevokeGrant", ALICE, KeyId=key, GrantId=grant)
    world.call("RevokeGrant", KeyId=key, GrantId=grant)
    refused("NotFoundException", world, "RevokeGrant", KeyId=key, GrantId=grant)
    refused(
        "InvalidArnException", world, "CreateGrant", KeyId=key, GranteePrincipal="x", Operations=["Decrypt"]
    )


def test_what_grants_hand_on(world: World) -> None:
    """Who may make grants by a grant alone: what that one allows, under its constraint or a stricter one."""
    key = world.key(ADMINISTRATION)
    bob = f"arn:aws:iam::{ACCOUNT}:user/bob"
    subset: dict[str, Any] = {"Constraints": {"EncryptionContextSubset": {"App": "a"}}}
    world.call("CreateGrant", KeyId=key, GranteePrincipal=ROLE, **subset,
               Operations=["CreateGrant", "Encrypt", "DescribeKey"])  # fmt: skip

    def handed(operations: list[str], **more: Any) -> dict[str, Any]:
        return {"KeyId": key, "GranteePrincipal": bob, "Operations": operations, **more}

    for wrong in (
        handed(["Decrypt"], **subset),  # another operation
        handed(["Encrypt"]),  # no constraint
        handed(["Encrypt"], Constraints={"EncryptionContextSubset": {"App": "b"}}),
    ):
        refused("AccessDeniedException", world, "CreateGrant", world.role, **wrong)
        assert "would allow more than that" in world.why
    stricter = {"EncryptionContextEquals": {"App": "a", "x": "y"}}
    world.call("CreateGrant", world.role, **handed(["Encrypt", "DescribeKey"], Constraints=stricter))
    # A constraint is not about DescribeKey, and minds no case of names.
    world.call("DescribeKey", Caller(bob), KeyId=key)
    for context, good in (
        ({"app": "a", "X": "y"}, True),
        ({"App": "a"}, False),
        ({"App": "A", "x": "y"}, False),
    ):
        given: dict[str, Any] = {"KeyId": key, "Plaintext": b"x", "EncryptionContext": context}
        if good:
            world.call("Encrypt", Caller(bob), **given)
        else:
            refused("AccessDeniedException", world, "Encrypt", Caller(bob), **given)
    # By policy, more may be handed on than one has oneself.
    world.call("PutKeyPolicy", KeyId=key, Policy=policy(ADMINISTRATION, allow(ROLE, "kms:CreateGrant")))
    world.call("CreateGrant", world.role, **handed(["Decrypt"]))
    signing = world.key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    wrong_ones: tuple[tuple[str, dict[str, Any]], ...] = (
        (key, {"Operations": ["Sign"]}), (signing, {"Operations": ["GenerateDataKey"]}),
        (signing, {"Operations": ["Sign"], **subset}),
        (key, {"Operations": ["Decrypt"], "Constraints": {"SourceArn": "arn:aws:s3:::x"}}),
    )  # fmt: skip
    for other, given in wrong_ones:
        refused("ValidationException", world, "CreateGrant", KeyId=other, GranteePrincipal=bob, **given)


def test_rotation(world: World) -> None:
    """New secrets are of new material, and old ones can still be read."""
    key = world.key()
    blobs = [world.secret(key)]

    def rotations(**more: Any) -> list[tuple[str | None, str]]:
        listed = world.call("ListKeyRotations", KeyId=key, **more)["Rotations"]
        return [(entry.get("RotationType"), entry["KeyMaterialState"]) for entry in listed]

    every: dict[str, Any] = {"IncludeKeyMaterial": "ALL_KEY_MATERIAL"}
    assert (rotations(), rotations(**every)) == ([], [(None, "CURRENT")])
    assert world.call("RotateKeyOnDemand", KeyId=key)["KeyId"].endswith(key)
    blobs.append(world.secret(key))
    assert rotations() == [("ON_DEMAND", "CURRENT")]
    assert rotations(**every) == [(None, "NON_CURRENT"), ("ON_DEMAND", "CURRENT")]
    assert world.call("GetKeyRotationStatus", KeyId=key)["KeyRotationEnabled"] is False
    world.call("EnableKeyRotation", KeyId=key, RotationPeriodInDays=90)
    status = world.call("GetKeyRotationStatus", KeyId=key)
    assert status["KeyRotationEnabled"] is True and status["RotationPeriodInDays"] == 90
    assert status["NextRotationDate"] == pytest.approx(time.time() + 90 * 86400, abs=60)
    # One that is due while its key is disabled waits until it is enabled.
    world.call("DisableKey", KeyId=key)
    with world.store.transaction(write=True) as db:
        db.execute("UPDATE rotations SET next = ?", (time.time() - 1,))
    for _ in range(2):
        assert rotations() == [("ON_DEMAND", "CURRENT")]
    refused("DisabledException", world, "RotateKeyOnDemand", KeyId=key)
    world.call("EnableKey", KeyId=key)
    for _ in range(2):
        assert rotations() == [("ON_DEMAND", "NON_CURRENT"), ("AUTOMATIC", "CURRENT")]
    blobs.append(world.secret(key))
    answers = [world.call("Decrypt", CiphertextBlob=blob) for blob in blobs]
    assert [answer["Plaintext"] for answer in answers] == [b"secret"] * 3
    materials = [answer["KeyMaterialId"] for answer in answers]
    assert len(set(materials)) == 3
    current = world.call("DescribeKey", KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"]
    assert materials[2] == current
    moved = world.call("ReEncrypt", CiphertextBlob=blobs[0], DestinationKeyId=key)
    assert (moved["SourceKeyMaterialId"], moved["DestinationKeyMaterialId"]) == (materials[0], current)
    world.call("DisableKeyRotation", KeyId=key)
    assert "NextRotationDate" not in world.call("GetKeyRotationStatus", KeyId=key)
    for _ in range(24):
        world.call("RotateKeyOnDemand", KeyId=key)
    refused("LimitExceededException", world, "RotateKeyOnDemand", KeyId=key)
    assert world.call("Decrypt", CiphertextBlob=blobs[0])["Plaintext"] == b"secret"
    refused("ValidationException", world, "EnableKeyRotation", KeyId=key, RotationPeriodInDays=89)
    for other in (world.key(KeySpec="HMAC_256"), world.key(Origin="EXTERNAL")):
        for operation in ("EnableKeyRotation", "RotateKeyOnDemand"):
            refused("UnsupportedOperationException", world, operation, KeyId=other)


def test_import(world: World) -> None:
    key = world.key(Origin="EXTERNAL")
    refused("KMSInvalidStateException", world, "Encrypt", KeyId=key, Plaintext=b"x")
    parameters = world.call(
        "GetParametersForImport",
        KeyId=key,
        WrappingAlgorithm="RSAES_OAEP_SHA_256",
        WrappingKeySpec="RSA_2048",
    )
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    public: Any = load_der_public_key(parameters["PublicKey"])
    given = {
        "KeyId": key,
        "ImportToken": parameters["ImportToken"],
        "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
    }
    short = public.encrypt(bytes(16), oaep)
    refused("IncorrectKeyMaterialException", world, "ImportKeyMaterial", **given, EncryptedKeyMaterial=short)
    sealed = public.encrypt(b"k" * 32, oaep)
    refused("ValidationException", world, "ImportKeyMaterial", **given, EncryptedKeyMaterial=b"x" * 256)
    refused("InvalidImportTokenException", world, "ImportKeyMaterial",
            **{**given, "ImportToken": b"x"}, EncryptedKeyMaterial=sealed)  # fmt: skip
    world.call("ImportKeyMaterial", **given, EncryptedKeyMaterial=sealed)
    blob = world.secret(key)
    world.call("DeleteImportedKeyMaterial", KeyId=key)
    refused("KMSInvalidStateException", world, "Decrypt", CiphertextBlob=blob)
    # The same again, by the other algorithm and until a time; another one never.
    parameters = world.call(
        "GetParametersForImport",
        KeyId=key,
        WrappingAlgorithm="RSA_AES_KEY_WRAP_SHA_256",
        WrappingKeySpec="RSA_2048",
    )
    public = load_der_public_key(parameters["PublicKey"])

    def wrapped(material: bytes) -> bytes:
        sealed: bytes = public.encrypt(b"w" * 32, oaep)
        return sealed + aes_key_wrap_with_padding(b"w" * 32, material)

    given = {"KeyId": key, "ImportToken": parameters["ImportToken"], "ValidTo": int(time.time()) + 60}
    refused(
        "IncorrectKeyMaterialException",
        world,
        "ImportKeyMaterial",
        **given,
        EncryptedKeyMaterial=wrapped(b"x" * 32),
    )
    world.call("ImportKeyMaterial", **given, EncryptedKeyMaterial=wrapped(b"k" * 32))
    assert world.call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"secret"
    with world.store.transaction(write=True) as db:
        db.execute("UPDATE keys SET valid_to = ?", (time.time() - 1,))
    refused("KMSInvalidStateException", world, "Decrypt", CiphertextBlob=blob)
    refused("UnsupportedOperationException", world, "ImportKeyMaterial",
            **{**given, "KeyId": world.key()}, EncryptedKeyMaterial=sealed)  # fmt: skip


def test_tags_and_small_things(world: World) -> None:
    key = world.key(Tags=[{"TagKey": "Team", "TagValue": "a"}], Description="one")
    world.call("UpdateKeyDescription", KeyId=key, Description="two")
    assert world.call("DescribeKey", KeyId=key)["KeyMetadata"]["Description"] == "two"
    world.call("TagResource", KeyId=key, Tags=[{"TagKey": "x", "TagValue": "y"}])
    world.call("UntagResource", KeyId=key, TagKeys=["x"])
    assert world.call("ListResourceTags", KeyId=key)["Tags"] == [{"TagKey": "Team", "TagValue": "a"}]
    assert world.call("ListKeyPolicies", KeyId=key)["PolicyNames"] == ["default"]
    world.call(
        "PutKeyPolicy",
        KeyId=key,
        Policy=policy(
            ADMINISTRATION,
            allow(ROLE, "kms:DescribeKey", Condition={"StringEquals": {"aws:ResourceTag/Team": "a"}}),
        ),
    )
    world.call("DescribeKey", world.role, KeyId=key)
    refused("ValidationException", world, "CreateKey", KeySpec="SM2")
    # What AWS has and this KMS has not is refused, lest something else be done.
    assert "CustomKeyStoreId" in refused("ValidationException", world, "CreateKey", CustomKeyStoreId="cks-1")
    refused("ValidationException", world, "CreateKey", KeySpec="HMAC_256", KeyUsage="SIGN_VERIFY")
    assert world.call("CreateKey", MultiRegion=True)["KeyMetadata"]["KeyId"].startswith("mrk-")
