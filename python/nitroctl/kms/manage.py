# SPDX-License-Identifier: MIT
"""The operations that manage keys: create, describe, enable and disable, import material, delete; aliases,
policies and tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nitroctl.kms import keys, material, policy
from nitroctl.kms.call import Call
from nitroctl.kms.errors import KmsError, bad_state, invalid, not_found
from nitroctl.kms.keys import DAY, DISABLED, ENABLED, PENDING_DELETION, PENDING_IMPORT, Key

Answer = dict[str, Any]
IMPORT_SECONDS = 24 * 3600.0  # AWS: how long an import token is valid


def write(call: Call, query: str, *values: Any) -> None:
    with call.store.transaction(write=True) as db:
        db.execute(query, values)


def _checked_policy(call: Call, key: Key, text: str) -> str:
    """Check that a key policy can be parsed and, unless the request says otherwise, that the caller could
    still change it. Raises KmsError."""
    try:
        policy.parse(text)
    except policy.KmsPolicyError as e:
        raise KmsError("MalformedPolicyDocumentException", str(e)) from e
    bypass = call.get("BypassPolicyLockoutSafetyCheck")
    if not bypass and not call.decide("PutKeyPolicy", key, text, {}).allowed:
        raise KmsError(
            "MalformedPolicyDocumentException",
            "The new key policy will not allow you to update the key policy in the future.",
            why=f"the new key policy would not allow {call.caller.full_arn} kms:PutKeyPolicy",
        )
    return text


# --- keys ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """The key that CreateKey shall make."""

    spec: str
    usage: str
    origin: str
    multi_region: bool
    tags: dict[str, str]


def _wanted(call: Call) -> _Wanted:
    """Check the parameters of CreateKey, and authorise the caller. Raises KmsError."""
    spec = call.get("KeySpec") or call.get("CustomerMasterKeySpec") or material.SYMMETRIC
    usage = call.get("KeyUsage") or (material.MAC if spec in material.MACS else material.ENCRYPT)
    if usage not in material.USAGES[spec]:
        raise invalid(
            f"KeyUsage {usage} is not compatible with KeySpec {spec}: {', '.join(material.USAGES[spec])}"
        )
    origin, multi = call.get("Origin") or "AWS_KMS", bool(call.get("MultiRegion"))
    tags = {tag["TagKey"]: tag.get("TagValue", "") for tag in call.get("Tags") or ()}
    bypass = str(bool(call.get("BypassPolicyLockoutSafetyCheck"))).lower()
    call.authorise(None, {
        "kms:keyspec": (spec,), "kms:keyusage": (usage,), "kms:keyorigin": (origin,),
        "kms:multiregion": (str(multi).lower(),), "kms:bypasspolicylockoutsafetycheck": (bypass,),
        **{f"aws:requesttag/{name.lower()}": (value,) for name, value in tags.items()},
        **({"aws:tagkeys": tuple(tags)} if tags else {}),
    })  # fmt: skip
    return _Wanted(spec, usage, origin, multi, tags)


def prepare_key(call: Call) -> bytes | None:
    wanted = _wanted(call)
    return None if wanted.origin == "EXTERNAL" else material.generate(wanted.spec)


def create_key(call: Call) -> Answer:
    wanted, made = _wanted(call), call.made
    key_id = keys.new_id(multi_region=wanted.multi_region)
    with call.store.transaction(write=True) as db:
        db.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, ?, ?, ?)",
            (key_id, call.place.region, call.place.account, call.now.timestamp(),
            call.get("Description") or "",
             wanted.spec, wanted.usage, wanted.origin, ENABLED if made else PENDING_IMPORT,
             int(wanted.multi_region),
             keys.default_policy(call.place.account), made, material.new_id(made) if made else None),
        )  # fmt: skip
        db.executemany(
            "INSERT INTO tags VALUES (?, ?, ?)",
            [(key_id, name, value) for name, value in wanted.tags.items()],
        )
        key = again(call, key_id)
        if call.get("Policy"):
            text = _checked_policy(call, key, call.get("Policy"))
            db.execute("UPDATE keys SET policy = ? WHERE id = ?", (text, key_id))
    call.resources.append(key)
    return {"KeyMetadata": key.metadata()}


def again(call: Call, key_id: str) -> Key:
    key = keys.get(call.store, call.place, key_id)
    assert key is not None
    return key


def managed(call: Call, more: dict[str, tuple[str, ...]] | None = None, *, alias: bool = False) -> Key:
    """The key that the operation is about, once the caller is authorised. Raises KmsError."""
    key, named = call.key(alias=alias)
    call.authorise(key, {**(more or {}), **named})
    return key


def check_lives(key: Key) -> None:
    if key.state == PENDING_DELETION:
        raise bad_state(f"{key.arn} is pending deletion.")


def describe_key(call: Call) -> Answer:
    call.tokens()
    return {"KeyMetadata": managed(call, alias=True).metadata()}


def list_keys(call: Call) -> Answer:
    call.authorise(None)
    ids = keys.all_ids(call.store, call.place)
    return call.page([{"KeyId": i, "KeyArn": call.place.key_arn(i)} for i in ids], "Keys")


def _switch(call: Call, state: str) -> Answer:
    key = managed(call)
    check_lives(key)
    if key.state == PENDING_IMPORT:
        raise bad_state(f"{key.arn} is pending import.")
    write(call, "UPDATE keys SET state = ? WHERE id = ?", state, key.id)
    return {}


def enable_key(call: Call) -> Answer:
    return _switch(call, ENABLED)


def disable_key(call: Call) -> Answer:
    return _switch(call, DISABLED)


def schedule_key_deletion(call: Call) -> Answer:
    days = call.get("PendingWindowInDays") or 30
    key = managed(call, {"kms:schedulekeydeletionpendingwindowindays": (str(days),)})
    check_lives(key)
    at = call.now.timestamp() + days * DAY
    write(call, "UPDATE keys SET state = ?, deletion = ? WHERE id = ?", PENDING_DELETION, at, key.id)
    return {"KeyId": key.arn, "DeletionDate": at, "KeyState": PENDING_DELETION, "PendingWindowInDays": days}


def cancel_key_deletion(call: Call) -> Answer:
    key = managed(call)
    if key.state != PENDING_DELETION:
        raise bad_state(f"{key.arn} is not pending deletion.")
    state = DISABLED if key.material is not None else PENDING_IMPORT
    write(call, "UPDATE keys SET state = ?, deletion = NULL WHERE id = ?", state, key.id)
    return {"KeyId": key.arn}


def update_key_description(call: Call) -> Answer:
    key = managed(call)
    check_lives(key)
    write(call, "UPDATE keys SET description = ? WHERE id = ?", call.get("Description"), key.id)
    return {}


# --- aliases ---------------------------------------------------------------------------------------------


def _alias(call: Call) -> str:
    name: str = call.get("AliasName")
    if name.startswith("alias/aws/"):
        raise KmsError("NotAuthorizedException", "Aliases that begin with alias/aws/ are reserved for AWS.")
    return name


def _alias_row(call: Call, name: str) -> Key | None:
    row = call.store.one(
        "SELECT key_id FROM aliases WHERE name = ? AND region = ? AND account = ?",
        name, call.place.region, call.place.account,
    )  # fmt: skip
    return keys.get(call.store, call.place, row["key_id"]) if row else None


def _existing_alias(call: Call, name: str) -> Key:
    key = _alias_row(call, name)
    if key is None:
        raise not_found(f"Alias {call.place.alias_arn(name)} is not found.")
    return key


def _authorise_alias(call: Call, name: str) -> None:
    """An alias has no policy: the IAM policies decide about it, before the caller learns anything of it. The
    key policies then decide about the keys."""
    call.authorise(None, resource=call.place.alias_arn(name))


def create_alias(call: Call) -> Answer:
    name = _alias(call)
    _authorise_alias(call, name)
    key, _ = call.key("TargetKeyId", alias=False)
    call.authorise(key)
    check_lives(key)
    if _alias_row(call, name):
        raise KmsError(
            "AlreadyExistsException", f"An alias with the name {call.place.alias_arn(name)} already exists"
        )
    now = call.now.timestamp()
    write(call, "INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?, ?, ?)",
           call.place.region, call.place.account, name, key.id, now, now)  # fmt: skip
    return {}


def update_alias(call: Call) -> Answer:
    name = _alias(call)
    _authorise_alias(call, name)
    key, _ = call.key("TargetKeyId", alias=False)
    call.authorise(key)
    old = _existing_alias(call, name)
    call.authorise(old)
    check_lives(key)
    if (old.spec == material.SYMMETRIC, old.usage) != (key.spec == material.SYMMETRIC, key.usage):
        raise invalid(
            "The old and the new key of an alias must have the same usage, and both be symmetric or both not."
        )
    write(call, "UPDATE aliases SET key_id = ?, updated = ? WHERE name = ? AND region = ? AND account = ?",
           key.id, call.now.timestamp(), name, call.place.region, call.place.account)  # fmt: skip
    return {}


def delete_alias(call: Call) -> Answer:
    name = _alias(call)
    _authorise_alias(call, name)
    call.authorise(_existing_alias(call, name))
    write(call, "DELETE FROM aliases WHERE name = ? AND region = ? AND account = ?",
           name, call.place.region, call.place.account)  # fmt: skip
    return {}


def list_aliases(call: Call) -> Answer:
    call.authorise(None)
    only = call.key(alias=False)[0].id if call.get("KeyId") else None
    rows = call.store.all(
        "SELECT * FROM aliases WHERE region = ? AND account = ? ORDER BY name",
        call.place.region,
        call.place.account,
    )
    found = [
        {"AliasName": row["name"], "AliasArn": call.place.alias_arn(row["name"]),
        "TargetKeyId": row["key_id"],
         "CreationDate": row["created"], "LastUpdatedDate": row["updated"]}
        for row in rows
        if only in (None, row["key_id"])
    ]  # fmt: skip
    return call.page(found, "Aliases", 50)


# --- policies and tags -----------------------------------------------------------------------------------


def _policy_name(call: Call) -> None:
    if call.get("PolicyName") not in (None, "default"):
        raise not_found("No such policy exists", why='a key has one policy, "default"')


def put_key_policy(call: Call) -> Answer:
    bypass = str(bool(call.get("BypassPolicyLockoutSafetyCheck"))).lower()
    key = managed(call, {"kms:bypasspolicylockoutsafetycheck": (bypass,)})
    _policy_name(call)
    check_lives(key)
    text = _checked_policy(call, key, call.get("Policy"))
    write(call, "UPDATE keys SET policy = ? WHERE id = ?", text, key.id)
    return {}


def get_key_policy(call: Call) -> Answer:
    key = managed(call)
    _policy_name(call)
    return {"Policy": key.policy, "PolicyName": "default"}


def list_key_policies(call: Call) -> Answer:
    managed(call)
    return call.page(["default"], "PolicyNames")


def tag_resource(call: Call) -> Answer:
    tags = {tag["TagKey"]: tag.get("TagValue", "") for tag in call.get("Tags")}
    facts = {f"aws:requesttag/{name.lower()}": (value,) for name, value in tags.items()}
    key = managed(call, {**facts, "aws:tagkeys": tuple(tags)})
    check_lives(key)
    with call.store.transaction(write=True) as db:
        db.executemany(
            "INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", [(key.id, n, v) for n, v in tags.items()]
        )
    return {}


def untag_resource(call: Call) -> Answer:
    names = call.get("TagKeys")
    key = managed(call, {"aws:tagkeys": tuple(names)})
    check_lives(key)
    with call.store.transaction(write=True) as db:
        db.executemany("DELETE FROM tags WHERE key_id = ? AND name = ?", [(key.id, name) for name in names])
    return {}


def list_resource_tags(call: Call) -> Answer:
    key = managed(call)
    return call.page([{"TagKey": name, "TagValue": value} for name, value in key.tags], "Tags", 50)


# --- imported material -----------------------------------------------------------------------------------


def _to_import(call: Call) -> Key:
    """The key to import material into, once the caller is authorised. Raises KmsError."""
    algorithm, spec = call.get("WrappingAlgorithm"), call.get("WrappingKeySpec")
    key = managed(call, {"kms:wrappingalgorithm": (algorithm,), "kms:wrappingkeyspec": (spec,)})
    _importable(key)
    return key


def prepare_import(call: Call) -> bytes:
    _to_import(call)
    return material.generate(call.get("WrappingKeySpec"))


def get_parameters_for_import(call: Call) -> Answer:
    key, private, algorithm = _to_import(call), call.made, call.get("WrappingAlgorithm")
    assert private is not None
    token = b"NKMI" + material.generate(material.SYMMETRIC)
    expires = call.now.timestamp() + IMPORT_SECONDS
    with call.store.transaction(write=True) as db:
        db.execute("DELETE FROM imports WHERE expires < ? OR key_id = ?", (call.now.timestamp(), key.id))
        db.execute("INSERT INTO imports VALUES (?, ?, ?, ?, ?)", (token, key.id, private, algorithm, expires))
    public = material.public_der(material.load_private(private).public_key())
    return {"KeyId": key.arn, "ImportToken": token, "PublicKey": public, "ParametersValidTo": expires}


def _importable(key: Key) -> None:
    if key.origin != "EXTERNAL":
        raise KmsError("UnsupportedOperationException", f"{key.arn} origin is {key.origin} which is not "
                                                        "valid for this "
                       "operation.")  # fmt: skip
    check_lives(key)


def import_key_material(call: Call) -> Answer:
    model = call.get("ExpirationModel") or "KEY_MATERIAL_EXPIRES"
    until = call.get("ValidTo")
    facts: dict[str, tuple[str, ...]] = {
        "kms:expirationmodel": (model,),
        **({"kms:validto": (str(int(until)),)} if until else {}),
    }
    key = managed(call, facts)
    _importable(key)
    if (until is None) is (model == "KEY_MATERIAL_EXPIRES"):
        raise invalid(
            "ValidTo is required with the expiration model KEY_MATERIAL_EXPIRES, and not allowed without."
        )
    if until is not None and until <= call.now.timestamp():
        raise invalid("ValidTo must be in the future.")
    row = call.store.one(
        "SELECT * FROM imports WHERE token = ? AND key_id = ?", call.get("ImportToken"), key.id
    )
    if row is None:
        raise KmsError(
            "InvalidImportTokenException", None, why="the import token is not the latest one for this key"
        )
    if row["expires"] < call.now.timestamp():
        raise KmsError("ExpiredImportTokenException", None, why="the import token is older than 24 hours")
    data = _unwrap(row["private_key"], row["algorithm"], call.get("EncryptedKeyMaterial"))
    if wrong := material.fits(key.spec, data):
        raise KmsError("IncorrectKeyMaterialException", None, why=wrong)
    # AWS: once material has been imported, only the same material can be imported again.
    known = material.imported_id(key.id, data)
    if key.material_id not in (None, known):
        raise KmsError(
            "IncorrectKeyMaterialException", None, why="other material was imported into this key before"
        )
    write(
        call, "UPDATE keys SET material = ?, material_id = ?, state = ?, valid_to = ?, expiration = ? WHERE "
              "id = ?",
        data, known, DISABLED if key.state == DISABLED else ENABLED, until, model, key.id,
    )  # fmt: skip
    return {"KeyId": key.arn, "KeyMaterialId": known}


def _unwrap(private: bytes, algorithm: str, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding

    digest = material.hash_of(algorithm)
    key = material.load_private(private)
    oaep = padding.OAEP(padding.MGF1(digest), digest, label=None)
    try:
        if algorithm in material.OAEP:
            found: bytes = key.decrypt(data, oaep)
            return found
        size = key.key_size // 8
        return aes_key_unwrap_with_padding(key.decrypt(data[:size], oaep), data[size:])
    except (ValueError, InvalidUnwrap) as e:
        raise invalid("The encrypted key material is not valid.",
                      why=f"the key material cannot be opened by {algorithm}") from e  # fmt: skip


def delete_imported_key_material(call: Call) -> Answer:
    key = managed(call)
    _importable(key)
    write(
        call,
        "UPDATE keys SET material = NULL, valid_to = NULL, state = ? WHERE id = ?",
        PENDING_IMPORT,
        key.id,
    )
    return {"KeyId": key.arn}


def wrap_for_import(public: bytes, data: bytes) -> bytes:
    """Wrap material of any size for its import, as a client does: RSA_AES_KEY_WRAP_SHA_256."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    key = load_der_public_key(public)
    assert isinstance(key, rsa.RSAPublicKey)
    wrapping = material.generate(material.SYMMETRIC)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
    return key.encrypt(wrapping, oaep) + aes_key_wrap_with_padding(wrapping, data)
