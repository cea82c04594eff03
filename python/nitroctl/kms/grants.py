# SPDX-License-Identifier: MIT
"""The operations on grants. Here a grant takes effect at once; at AWS that takes up to five minutes, unless
the request carries the grant token."""

from __future__ import annotations

import json
import secrets
import sqlite3
from typing import Any

from nitroctl.kms import keys, material, names
from nitroctl.kms.call import Call
from nitroctl.kms.errors import KmsError, invalid, not_found
from nitroctl.kms.evaluate import Decision, Grant
from nitroctl.kms.keys import Key

Answer = dict[str, Any]

# Which operations grants can allow on which keys ("Grant operations", developer guide).
_OF_ALL = frozenset(("CreateGrant", "DescribeKey", "RetireGrant"))
_OF_PAIR = frozenset(("GetPublicKey",))
_OF_SYMMETRIC = frozenset(
    """
    GenerateDataKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext
    """.split()
)
_OF_USAGE = {
    material.ENCRYPT: frozenset(("Decrypt", "Encrypt", "ReEncryptFrom", "ReEncryptTo")),
    material.SIGN: frozenset(("Sign", "Verify")),
    material.MAC: frozenset(("GenerateMac", "VerifyMac")),
    material.AGREE: frozenset(("DeriveSharedSecret",)),
}


def create_grant(call: Call) -> Answer:
    key, _ = call.key(alias=False)
    operations = list(dict.fromkeys(call.get("Operations")))
    constraints: dict[str, dict[str, str]] = call.get("Constraints") or {}
    facts = {
        "kms:granteeprincipal": (call.get("GranteePrincipal"),),
        "kms:grantoperations": tuple(operations),
        "kms:grantisforawsresource": ("false",),
        **({"kms:grantconstrainttype": tuple(constraints)} if constraints else {}),
    }
    retiring = call.get("RetiringPrincipal")
    if retiring:
        facts["kms:retiringprincipal"] = (retiring,)
    call.tokens()
    call.authorise(key, facts)
    for arn in filter(None, (call.get("GranteePrincipal"), retiring)):
        if names.parse_caller(arn) is None:
            raise KmsError("InvalidArnException", f"ARN does not refer to a valid principal: {arn}")
    if len(constraints) > 1:
        raise invalid("A grant takes EncryptionContextEquals or EncryptionContextSubset, not both.")
    if constraints and key.spec != material.SYMMETRIC:
        raise invalid(f"{key.arn} takes no encryption context, so a grant on it cannot have constraints.")
    if odd := sorted(set(operations) - _grantable(key)):
        raise invalid(
            f"A key of the spec {key.spec} and usage {key.usage} does not support: {', '.join(odd)}."
        )
    _check_within(call, key, frozenset(operations), constraints)
    key.check_usable()
    call.dry_run()
    same = call.store.one(
        "SELECT id, token FROM grants WHERE key_id = ? AND name = ? AND grantee = ? AND operations = ? AND "
        "constraints IS ? AND retiring IS ?",
        key.id, call.get("Name"), call.get("GranteePrincipal"), json.dumps(operations),
        json.dumps(constraints) if constraints else None, retiring,
    )  # fmt: skip
    if same:  # AWS: a second grant with the same name and content is the first one
        return {"GrantId": same["id"], "GrantToken": same["token"]}
    grant_id, token = secrets.token_hex(32), secrets.token_urlsafe(96)
    with call.store.transaction(write=True) as db:
        db.execute(
            "INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (grant_id, token, key.id, call.get("GranteePrincipal"), retiring, json.dumps(operations),
             json.dumps(constraints) if constraints else None, call.get("Name"), call.caller.full_arn,
             call.now.timestamp()),
        )  # fmt: skip
    return {"GrantId": grant_id, "GrantToken": token}


def _grantable(key: Key) -> frozenset[str]:
    """The operations that a grant on this key can allow."""
    of_spec = _OF_SYMMETRIC if key.spec == material.SYMMETRIC else _OF_PAIR
    return _OF_ALL | _OF_USAGE[key.usage] | (frozenset() if key.usage == material.MAC else of_spec)


def _check_within(
    call: Call, key: Key, operations: frozenset[str], constraints: dict[str, dict[str, str]]
) -> None:
    """If only a grant allows the caller CreateGrant, the new grant must not allow more than that one does.
    Raises KmsError."""
    if call.decisions[-1].grant is None:
        return
    wanted = Grant("", "", operations, constraints.get("EncryptionContextEquals"),
                   constraints.get("EncryptionContextSubset"))  # fmt: skip
    own = [g for g in keys.grants(call.store, key) if g.grantee in call.caller.principals]
    if not any("CreateGrant" in grant.operations and grant.covers(wanted) for grant in own):
        raise KmsError(
            "AccessDeniedException",
            f"User: {call.caller.full_arn} is not authorized to perform: kms:CreateGrant on resource: "
            f"{key.arn}",
            why="only a grant allows this caller to make grants, and the new one would allow more than that "
            "grant, or have fewer constraints",
        )


def _shown(key: Key, row: sqlite3.Row) -> dict[str, Any]:
    found = {
        "KeyId": key.arn, "GrantId": row["id"], "Name": row["name"] or "", "CreationDate": row["created"],
        "GranteePrincipal": row["grantee"], "IssuingAccount": f"arn:aws:iam::{key.account}:root",
        "Operations": json.loads(row["operations"]),
    }  # fmt: skip
    if row["retiring"]:
        found["RetiringPrincipal"] = row["retiring"]
    if row["constraints"]:
        found["Constraints"] = json.loads(row["constraints"])
    return found


def list_grants(call: Call) -> Answer:
    key, _ = call.key(alias=False)
    call.authorise(key)
    only, grantee = call.get("GrantId"), call.get("GranteePrincipal")
    rows = call.store.all("SELECT * FROM grants WHERE key_id = ? ORDER BY rowid", key.id)
    found = [_shown(key, r) for r in rows if only in (None, r["id"]) and grantee in (None, r["grantee"])]
    return call.page(found, "Grants", 50)


def list_retirable_grants(call: Call) -> Answer:
    """The grants on all keys of this store. IAM policies alone decide: no key policy is involved."""
    call.authorise(None)
    query = "SELECT * FROM grants WHERE retiring = ? ORDER BY rowid"
    rows = call.store.all(query, call.get("RetiringPrincipal"))
    found = [_shown(key, r) for r in rows if (key := keys.get(call.store, call.place, r["key_id"]))]
    return call.page(found, "Grants", 50)


def _row(call: Call) -> sqlite3.Row | None:
    if token := call.get("GrantToken"):
        return call.store.one("SELECT * FROM grants WHERE token = ?", token)
    if not call.get("GrantId") or not call.get("KeyId"):
        raise invalid("Please specify either a grant token or a key id and a grant id.")
    key, _ = call.key(alias=False)
    row = call.store.one("SELECT * FROM grants WHERE id = ? AND key_id = ?", call.get("GrantId"), key.id)
    if row is None:
        call.authorise(key)  # only an authorised caller learns that there is no such grant
        raise not_found(f"Grant ID {call.get('GrantId')} not found")
    return row


def retire_grant(call: Call) -> Answer:
    """Allowed for the grant's retiring principal, for its grantee if the grant allows RetireGrant, and by
    policy."""
    row = _row(call)
    if row is None:
        raise KmsError("InvalidGrantTokenException", "The grant does not exist.")
    key = keys.get(call.store, call.place, row["key_id"])
    if key is None:
        raise not_found("The grant's key does not exist.")
    theirs = row["retiring"] in call.caller.principals or (
        "RetireGrant" in json.loads(row["operations"]) and row["grantee"] in call.caller.principals
    )
    if theirs:
        call.decisions.append(Decision(True, "allowed", grant=row["id"]))
    else:
        call.authorise(key)
    call.dry_run()
    return _remove(call, row["id"])


def revoke_grant(call: Call) -> Answer:
    key, _ = call.key(alias=False)
    call.authorise(key)
    _row(call)
    call.dry_run()
    return _remove(call, call.get("GrantId"))


def _remove(call: Call, grant_id: str) -> Answer:
    with call.store.transaction(write=True) as db:
        db.execute("DELETE FROM grants WHERE id = ?", (grant_id,))
    return {}
