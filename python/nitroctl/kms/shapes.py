# SPDX-License-Identifier: MIT
"""The shapes of requests: the parameters of each operation, and their types and limits. Nothing is done here.

The limits are those of AWS's model (botocore, kms/2014-11-01). An unknown parameter is ignored, as AWS does,
but noted in the log: a misspelt Recipient would otherwise go unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nitroctl.kms import material, recipient
from nitroctl.kms.actions import GRANTABLE, WITH_RECIPIENT
from nitroctl.kms.errors import KmsError, invalid

Read = Callable[[str, Any], Any]  # (the parameter's name, its JSON value) -> the value; raises KmsError


def _constraint(name: str, value: object, text: str) -> KmsError:
    shown = str(value) if len(str(value)) <= 100 else f"{str(value)[:100]}..."
    where = name[:1].lower() + name[1:]
    return invalid(
        f"1 validation error detected: Value '{shown}' at '{where}' failed to satisfy constraint: {text}"
    )


def _wrong(name: str, wanted: str) -> KmsError:
    return KmsError("SerializationException", f"{name} is not {wanted}")


def text(low: int = 0, high: int = 8192, pattern: str | None = None) -> Read:
    form = re.compile(pattern) if pattern else None

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(name, "a string")
        if len(value) < low:
            raise _constraint(name, value, f"Member must have length greater than or equal to {low}")
        if len(value) > high:
            raise _constraint(name, value, f"Member must have length less than or equal to {high}")
        if form and not form.fullmatch(value):
            raise _constraint(name, value, f"Member must satisfy regular expression pattern: {form.pattern}")
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise _wrong(name, "text in Unicode") from e
        return value

    return read


def blob(low: int, high: int) -> Read:
    def read(name: str, value: Any) -> bytes:
        if not isinstance(value, str):
            raise _wrong(name, "a string in base64")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as e:
            raise _wrong(name, "in base64") from e
        if not low <= len(data) <= high:
            bound = f"greater than or equal to {low}" if len(data) < low else f"less than or equal to {high}"
            raise _constraint(name, f"{len(data)} bytes", f"Member must have length {bound}")
        return data

    return read


def choice(*allowed: str) -> Read:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(name, "a string")
        if value not in allowed:
            raise _constraint(name, value, f"Member must satisfy enum value set: [{', '.join(allowed)}]")
        return value

    return read


def number(low: int, high: int) -> Read:
    def read(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, "an integer")
        if not low <= value <= high:
            bound = f"greater than or equal to {low}" if value < low else f"less than or equal to {high}"
            raise _constraint(name, value, f"Member must have value {bound}")
        return value

    return read


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false")
    return value


def moment(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 253402300800:
        raise _wrong(name, "seconds since 1970")
    return float(value)


def listed(read_one: Read, low: int, high: int) -> Read:
    def read(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(name, "a list")
        if not low <= len(value) <= high:
            raise _constraint(name, f"{len(value)} members", f"Member must have length from {low} to {high}")
        return [read_one(name, item) for item in value]

    return read


def pairs(name: str, value: Any) -> dict[str, str]:
    """Read an encryption context. Raises KmsError."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _wrong(name, "a map of strings to strings")
    found = {key: _FREE(name, item) for key, item in value.items() if _FREE(name, key) == key}
    if sum(len(key) + len(item) for key, item in found.items()) > 8192:
        raise invalid("The encryption context is longer than 8192 characters.")
    if len({key.lower() for key in found}) != len(found):
        raise invalid("Two names in the encryption context differ only in case.",
                      why="policies cannot tell two such names apart")  # fmt: skip
    return found


_FREE = text()


def unserved(name: str, value: Any) -> Any:
    """Refuse a parameter of AWS's that is not supported here: ignoring it would do something that was not
    asked for."""
    raise invalid(f"This local KMS does not support {name}.")


def structure(**members: Read) -> Read:
    def read(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(name, "a structure")
        return {
            key: members[key](f"{name}.{key}", v)
            for key, v in value.items()
            if key in members and v is not None
        }

    return read


@dataclass(frozen=True)
class Shape:
    parameters: Mapping[str, Read]
    required: frozenset[str]

    def read(self, given: Any) -> tuple[dict[str, Any], list[str]]:
        """(the parameters, the names of unknown ones). Raises KmsError."""
        if not isinstance(given, dict):
            raise KmsError("SerializationException", "the request is not a JSON object")
        found = {
            name: self.parameters[name](name, value)
            for name, value in given.items()
            if name in self.parameters and value is not None
        }
        for name in sorted(self.required - found.keys()):
            raise _constraint(name, "null", "Member must not be null")
        return found, sorted(name for name in given if name not in self.parameters)


KEY_ID = text(1, 2048)
_ALIAS = text(1, 256, r"alias/[a-zA-Z0-9/_-]+")
_POLICY = text(1, 131072)
_NAME = text(1, 128, r"[\w]+")
_TOKENS = listed(text(1, 8192), 0, 10)
_ENCRYPTION = choice("SYMMETRIC_DEFAULT", *material.OAEP, "SM2PKE")
_SIGNING = choice(*material.RSA_SIGNING, "ECDSA_SHA_256", "ECDSA_SHA_384", "ECDSA_SHA_512", "SM2DSA",
                  "ML_DSA_SHAKE_256", "ED25519_SHA_512", "ED25519_PH_SHA_512")  # fmt: skip
_MAC = choice(*(f"HMAC_SHA_{bits}" for bits in (224, 256, 384, 512)))
_PAIR = choice(*material.PAIRS)
_SPEC = choice("AES_256", "AES_128")
_BYTES = number(1, 1024)
_PLAIN, _BLOB = blob(1, 4096), blob(1, 6144)
_LIMIT, _MARKER = number(1, 1000), text(1, 1024)
_PRINCIPAL = text(1, 256)
_RECIPIENT = structure(
    AttestationDocument=blob(1, recipient.MOST_BYTES), KeyEncryptionAlgorithm=choice(recipient.ALGORITHM)
)
_CONSTRAINTS = structure(EncryptionContextSubset=pairs, EncryptionContextEquals=pairs, SourceArn=unserved)
_TAG = structure(TagKey=text(1, 128), TagValue=text(0, 256))


def _shape(required: str, *, tokens: bool = False, dry: bool = False, **parameters: Read) -> Shape:
    if tokens:
        parameters["GrantTokens"] = _TOKENS
    if dry:
        parameters["DryRun"] = boolean
    return Shape(parameters, frozenset(required.split()))


_USE: dict[str, Any] = {"tokens": True, "dry": True, "KeyId": KEY_ID}
_PAGES: dict[str, Any] = {"Limit": _LIMIT, "Marker": _MARKER}
_DATA_KEY: dict[str, Any] = {"EncryptionContext": pairs, "KeySpec": _SPEC, "NumberOfBytes": _BYTES}
_DATA_PAIR: dict[str, Any] = {"EncryptionContext": pairs, "KeyPairSpec": _PAIR}
_MESSAGE: dict[str, Any] = {"Message": _PLAIN, "MessageType": choice("RAW", "DIGEST", "EXTERNAL_MU"),
                             "SigningAlgorithm": _SIGNING}  # fmt: skip

SHAPES: dict[str, Shape] = {
    "CancelKeyDeletion": _shape("KeyId", KeyId=KEY_ID),
    "CreateAlias": _shape("AliasName TargetKeyId", AliasName=_ALIAS, TargetKeyId=KEY_ID),
    "CreateGrant": _shape(
        "KeyId GranteePrincipal Operations", **_USE, GranteePrincipal=_PRINCIPAL,
        RetiringPrincipal=_PRINCIPAL,
        Operations=listed(choice(*sorted(GRANTABLE)), 1, 50), Constraints=_CONSTRAINTS,
        Name=text(1, 256, r"[a-zA-Z0-9:/_-]+"), GranteeServicePrincipal=unserved,
        RetiringServicePrincipal=unserved,
    ),
    "CreateKey": _shape(
        "", Policy=_POLICY, Description=text(0, 8192), KeyUsage=choice(material.ENCRYPT, material.SIGN,
        material.MAC, material.AGREE), KeySpec=choice(*material.USAGES), CustomerMasterKeySpec=choice(
        *material.USAGES), Origin=choice("AWS_KMS", "EXTERNAL"), MultiRegion=boolean,
        BypassPolicyLockoutSafetyCheck=boolean, Tags=listed(_TAG, 0, 50), CustomKeyStoreId=unserved,
        XksKeyId=unserved,
    ),
    "Decrypt": _shape(
        "CiphertextBlob", **_USE, CiphertextBlob=_BLOB, EncryptionContext=pairs,
        EncryptionAlgorithm=_ENCRYPTION, DryRunModifiers=unserved,
    ),
    "DeleteAlias": _shape("AliasName", AliasName=_ALIAS),
    "DeleteImportedKeyMaterial": _shape("KeyId", KeyId=KEY_ID, KeyMaterialId=unserved),
    "DeriveSharedSecret": _shape(
        "KeyId KeyAgreementAlgorithm PublicKey", **_USE, KeyAgreementAlgorithm=choice("ECDH"),
        PublicKey=blob(1, 8192),
    ),
    "DescribeKey": _shape("KeyId", KeyId=KEY_ID, tokens=True),
    "DisableKey": _shape("KeyId", KeyId=KEY_ID),
    "DisableKeyRotation": _shape("KeyId", KeyId=KEY_ID),
    "EnableKey": _shape("KeyId", KeyId=KEY_ID),
    "EnableKeyRotation": _shape("KeyId", KeyId=KEY_ID, RotationPeriodInDays=number(90, 2560)),
    "Encrypt": _shape(
        "KeyId Plaintext", **_USE, Plaintext=_PLAIN, EncryptionContext=pairs, EncryptionAlgorithm=_ENCRYPTION
    ),
    "GenerateDataKey": _shape("KeyId", **_USE, **_DATA_KEY),
    "GenerateDataKeyPair": _shape("KeyId KeyPairSpec", **_USE, **_DATA_PAIR),
    "GenerateDataKeyPairWithoutPlaintext": _shape("KeyId KeyPairSpec", **_USE, **_DATA_PAIR),
    "GenerateDataKeyWithoutPlaintext": _shape("KeyId", **_USE, **_DATA_KEY),
    "GenerateMac": _shape("KeyId Message MacAlgorithm", **_USE, Message=_PLAIN, MacAlgorithm=_MAC),
    "GenerateRandom": _shape("", NumberOfBytes=_BYTES, CustomKeyStoreId=unserved),
    "GetKeyPolicy": _shape("KeyId", KeyId=KEY_ID, PolicyName=_NAME),
    "GetKeyRotationStatus": _shape("KeyId", KeyId=KEY_ID),
    "GetParametersForImport": _shape(
        "KeyId WrappingAlgorithm WrappingKeySpec", KeyId=KEY_ID, WrappingAlgorithm=choice(
        *material.OAEP, "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"),
        WrappingKeySpec=choice(*material.RSA_BITS),
    ),
    "GetPublicKey": _shape("KeyId", KeyId=KEY_ID, tokens=True),
    "ImportKeyMaterial": _shape(
        "KeyId ImportToken EncryptedKeyMaterial", KeyId=KEY_ID, ImportToken=_BLOB, EncryptedKeyMaterial=_BLOB,
        ValidTo=moment, ExpirationModel=choice("KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"),
        ImportType=choice("NEW_KEY_MATERIAL", "EXISTING_KEY_MATERIAL"), KeyMaterialDescription=unserved,
        KeyMaterialId=unserved,
    ),
    "ListAliases": _shape("", KeyId=KEY_ID, **_PAGES),
    "ListGrants": _shape("KeyId", KeyId=KEY_ID, GrantId=text(1, 128), GranteePrincipal=_PRINCIPAL,
    GranteeServicePrincipal=unserved, **_PAGES),
    "ListKeyPolicies": _shape("KeyId", KeyId=KEY_ID, **_PAGES),
    "ListKeyRotations": _shape(
        "KeyId", KeyId=KEY_ID, IncludeKeyMaterial=choice("ALL_KEY_MATERIAL", "ROTATIONS_ONLY"), **_PAGES
    ),
    "ListKeys": _shape("", ResourceOwners=unserved, **_PAGES),
    "ListRetirableGrants": _shape(
        "RetiringPrincipal", RetiringPrincipal=_PRINCIPAL, RetiringServicePrincipal=unserved, **_PAGES
    ),
    "ListResourceTags": _shape("KeyId", KeyId=KEY_ID, **_PAGES),
    "PutKeyPolicy": _shape(
        "KeyId Policy", KeyId=KEY_ID, Policy=_POLICY, PolicyName=_NAME, BypassPolicyLockoutSafetyCheck=boolean
    ),
    "ReEncrypt": _shape(
        "CiphertextBlob DestinationKeyId", tokens=True, dry=True, CiphertextBlob=_BLOB, SourceKeyId=KEY_ID,
        DestinationKeyId=KEY_ID, SourceEncryptionContext=pairs, DestinationEncryptionContext=pairs,
        SourceEncryptionAlgorithm=_ENCRYPTION, DestinationEncryptionAlgorithm=_ENCRYPTION,
        DryRunModifiers=unserved,
    ),
    "RetireGrant": _shape("", GrantToken=text(1, 8192), KeyId=KEY_ID, GrantId=text(1, 128), dry=True),
    "RevokeGrant": _shape("KeyId GrantId", KeyId=KEY_ID, GrantId=text(1, 128), dry=True),
    "RotateKeyOnDemand": _shape("KeyId", KeyId=KEY_ID),
    "ScheduleKeyDeletion": _shape("KeyId", KeyId=KEY_ID, PendingWindowInDays=number(7, 30)),
    "Sign": _shape("KeyId Message SigningAlgorithm", **_USE, **_MESSAGE),
    "TagResource": _shape("KeyId Tags", KeyId=KEY_ID, Tags=listed(_TAG, 1, 50)),
    "UntagResource": _shape("KeyId TagKeys", KeyId=KEY_ID, TagKeys=listed(text(1, 128), 1, 50)),
    "UpdateAlias": _shape("AliasName TargetKeyId", AliasName=_ALIAS, TargetKeyId=KEY_ID),
    "UpdateKeyDescription": _shape("KeyId Description", KeyId=KEY_ID, Description=text(0, 8192)),
    "Verify": _shape("KeyId Message Signature SigningAlgorithm", **_USE, **_MESSAGE, Signature=_BLOB),
    "VerifyMac": _shape("KeyId Message MacAlgorithm Mac", **_USE, Message=_PLAIN, MacAlgorithm=_MAC,
    Mac=_BLOB),
}  # fmt: skip
for _name in WITH_RECIPIENT:
    SHAPES[_name] = Shape({**SHAPES[_name].parameters, "Recipient": _RECIPIENT}, SHAPES[_name].required)
