# SPDX-License-Identifier: MIT
"""KMS keys as rows of the store: finding them by the names that requests use, and describing them as AWS
does."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from dataclasses import dataclass
from typing import Any

from nitroctl.kms import material
from nitroctl.kms.errors import KmsError, bad_state, not_found
from nitroctl.kms.evaluate import Grant
from nitroctl.kms.store import Store

ENABLED, DISABLED = "Enabled", "Disabled"
PENDING_IMPORT, PENDING_DELETION = "PendingImport", "PendingDeletion"
AUTOMATIC, ON_DEMAND = "AUTOMATIC", "ON_DEMAND"  # how a key came to be rotated
DAY = 86400.0


@dataclass(frozen=True)
class Place:
    """The account and the region whose KMS a server plays."""

    account: str
    region: str

    def key_arn(self, key_id: str) -> str:
        return f"arn:aws:kms:{self.region}:{self.account}:key/{key_id}"

    def alias_arn(self, name: str) -> str:
        return f"arn:aws:kms:{self.region}:{self.account}:{name}"


@dataclass(frozen=True)
class Key:
    id: str
    arn: str
    account: str
    created: float
    description: str
    spec: str
    usage: str
    origin: str
    state: str
    multi_region: bool
    deletion: float | None
    valid_to: float | None
    expiration: str | None
    policy: str
    material: bytes | None
    material_id: str | None
    aliases: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]

    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "AWSAccountId": self.account, "KeyId": self.id, "Arn": self.arn, "CreationDate": self.created,
            "Enabled": self.state == ENABLED, "Description": self.description, "KeyUsage": self.usage,
            "KeyState": self.state, "Origin": self.origin, "KeyManager": "CUSTOMER", "KeySpec": self.spec,
            "CustomerMasterKeySpec": self.spec, "MultiRegion": self.multi_region,
        }  # fmt: skip
        if self.deletion is not None:
            found["DeletionDate"] = self.deletion
        if self.origin == "EXTERNAL" and self.material is not None:
            found["ExpirationModel"] = self.expiration
            if self.valid_to is not None:
                found["ValidTo"] = self.valid_to
        if self.spec == material.SYMMETRIC:
            found["EncryptionAlgorithms"] = [material.SYMMETRIC]
            if self.material_id:
                found["CurrentKeyMaterialId"] = self.material_id
        elif self.usage == material.ENCRYPT:
            found["EncryptionAlgorithms"] = list(material.OAEP)
        elif self.usage == material.SIGN:
            found["SigningAlgorithms"] = list(material.signing_algorithms(self.spec))
        elif self.usage == material.MAC:
            found["MacAlgorithms"] = [self.spec.replace("HMAC_", "HMAC_SHA_")]
        else:
            found["KeyAgreementAlgorithms"] = ["ECDH"]
        if self.multi_region:
            primary = {"Arn": self.arn, "Region": self.arn.split(":")[3]}
            found["MultiRegionConfiguration"] = {
                "MultiRegionKeyType": "PRIMARY", "PrimaryKey": primary, "ReplicaKeys": [],
            }  # fmt: skip
        return found

    def context(self) -> dict[str, tuple[str, ...]]:
        """The key's properties as policies see them: condition keys in lower case, with their values."""
        found = {
            "kms:keyspec": (self.spec,),
            "kms:customermasterkeyspec": (self.spec,),
            "kms:keyusage": (self.usage,),
            "kms:customermasterkeyusage": (self.usage,),
            "kms:keyorigin": (self.origin,),
            "kms:multiregion": (str(self.multi_region).lower(),),
            **{f"aws:resourcetag/{name.lower()}": (value,) for name, value in self.tags},
        }
        return found | ({"kms:resourcealiases": self.aliases} if self.aliases else {})

    def check_usable(self) -> bytes:
        """The key's material, if the key's state allows its use. Raises KmsError."""
        if self.state == DISABLED:
            raise KmsError("DisabledException", f"{self.arn} is disabled.")
        if self.state != ENABLED:
            raise bad_state(f"{self.arn} is {_WORDS[self.state]}.")
        if self.material is None:
            raise bad_state(f"{self.arn} is pending import.")
        return self.material


_WORDS = {PENDING_DELETION: "pending deletion", PENDING_IMPORT: "pending import"}


def new_id(*, multi_region: bool = False) -> str:
    return f"mrk-{uuid.uuid4().hex}" if multi_region else str(uuid.uuid4())


def sweep(store: Store, place: Place, now: float | None = None) -> None:
    """Do what has become due: delete keys (scheduled deletion), drop expired imported material, rotate."""
    now = time.time() if now is None else now
    due = "SELECT 1 FROM keys WHERE (deletion IS NOT NULL AND deletion <= ?) OR (valid_to IS NOT NULL AND " \
          "valid_to <= ? AND material IS NOT NULL)"  # fmt: skip
    # A disabled key is rotated after it has been enabled again.
    turns = "SELECT key_id, period FROM rotations JOIN keys ON id = key_id WHERE next <= ? AND state = ? " \
            "AND region = ? AND account = ?"  # fmt: skip
    where = now, ENABLED, place.region, place.account
    if store.one(due, now, now) is None and store.one(turns, *where) is None:
        return
    with store.transaction(write=True) as db:
        for row in db.execute("SELECT id FROM keys WHERE deletion <= ?", (now,)).fetchall():
            delete(store, row["id"])
        db.execute(
            "UPDATE keys SET material = NULL, state = CASE state WHEN ? THEN state ELSE ? END "
            "WHERE valid_to <= ? AND material IS NOT NULL",
            (PENDING_DELETION, PENDING_IMPORT, now),
        )
        for row in db.execute(turns, where).fetchall():
            key = get(store, place, row["key_id"])
            assert key is not None
            rotate(store, key, AUTOMATIC, now)
            after = now + row["period"] * DAY
            db.execute("UPDATE rotations SET next = ? WHERE key_id = ?", (after, key.id))


def rotate(store: Store, key: Key, kind: str, now: float) -> None:
    """Give a symmetric key new material; the old material is kept, to decrypt what it has encrypted."""
    made = material.generate(key.spec)
    new_id = material.new_id(made)
    with store.transaction(write=True) as db:
        db.execute(
            "INSERT OR IGNORE INTO materials VALUES (?, ?, ?, NULL, NULL)",
            (key.id, key.material_id, key.material),
        )
        db.execute("INSERT INTO materials VALUES (?, ?, ?, ?, ?)", (key.id, new_id, made, now, kind))
        db.execute("UPDATE keys SET material = ?, material_id = ? WHERE id = ?", (made, new_id, key.id))


def former_material(store: Store, key: Key, material_id: str) -> bytes | None:
    """The material with this id that a key had before a rotation; None if there is none."""
    query = "SELECT material FROM materials WHERE key_id = ? AND material_id = ?"
    row = store.one(query, key.id, material_id)
    return row["material"] if row else None


def delete(store: Store, key_id: str) -> None:
    """Delete a key at once, with its aliases, grants, tags and all else that belongs to it."""
    with store.transaction(write=True) as db:
        db.execute("DELETE FROM keys WHERE id = ?", (key_id,))
        for table in ("aliases", "grants", "tags", "imports", "rotations", "materials"):
            db.execute(f"DELETE FROM {table} WHERE key_id = ?", (key_id,))


def _of_row(store: Store, place: Place, row: sqlite3.Row) -> Key:
    aliases = store.all(
        "SELECT name FROM aliases WHERE key_id = ? AND region = ? AND account = ? ORDER BY name",
        row["id"], place.region, place.account,
    )  # fmt: skip
    tags = store.all("SELECT name, value FROM tags WHERE key_id = ? ORDER BY name", row["id"])
    return Key(
        id=row["id"], arn=place.key_arn(row["id"]), account=row["account"], created=row["created"],
        description=row["description"], spec=row["spec"], usage=row["usage"], origin=row["origin"],
        state=row["state"], multi_region=bool(row["multi_region"]), deletion=row["deletion"],
        valid_to=row["valid_to"], expiration=row["expiration"], policy=row["policy"],
        material=row["material"],
        material_id=row["material_id"], aliases=tuple(alias["name"] for alias in aliases),
        tags=tuple((tag["name"], tag["value"]) for tag in tags),
    )  # fmt: skip


def get(store: Store, place: Place, key_id: str) -> Key | None:
    row = store.one(
        "SELECT * FROM keys WHERE id = ? AND region = ? AND account = ?", key_id, place.region, place.account
    )
    return None if row is None else _of_row(store, place, row)


def all_ids(store: Store, place: Place) -> list[str]:
    rows = store.all(
        "SELECT id FROM keys WHERE region = ? AND account = ? ORDER BY rowid", place.region, place.account
    )
    return [row["id"] for row in rows]


def arn_of(place: Place, name: str) -> str:
    """The ARN of the key or alias that a request names, whether it exists or not."""
    if name.startswith("arn:"):
        return name
    return place.alias_arn(name) if name.startswith("alias/") else place.key_arn(name)


def find(store: Store, place: Place, name: str, *, alias: bool = True) -> tuple[Key, str | None]:
    """The key that a request names by id, ARN, alias or alias ARN; and the alias, if it was named by one.
    Raises KmsError."""
    rest = name
    if name.startswith("arn:"):
        parts = name.split(":", 5)
        if len(parts) != 6 or parts[2] != "kms":
            raise not_found(f"Invalid arn {name}")
        if parts[3] != place.region:
            raise not_found(
                f"Invalid arn {parts[3]}", why=f"the key is in {parts[3]}; this KMS serves {place.region}"
            )
        if parts[4] != place.account:
            raise not_found(
                f"Key '{name}' does not exist",
                why=f"the key belongs to account {parts[4]}; this KMS serves {place.account}",
            )
        rest = parts[5].removeprefix("key/")
    if rest.startswith("alias/"):
        if not alias:
            raise not_found(
                f"Invalid keyId {name}", why="this operation takes the key's id or ARN, not an alias"
            )
        row = store.one(
            "SELECT key_id FROM aliases WHERE name = ? AND region = ? AND account = ?",
            rest, place.region, place.account,
        )  # fmt: skip
        found = get(store, place, row["key_id"]) if row else None
        if found is None:
            raise not_found(f"Alias {place.alias_arn(rest)} is not found.")
        return found, rest
    found = get(store, place, rest)
    if found is None:
        shape = len(rest) == 36 or rest.startswith("mrk-") or name.startswith("arn:")
        raise not_found(f"Key '{place.key_arn(rest)}' does not exist" if shape else f"Invalid keyId '{rest}'")
    return found, None


def grants(store: Store, key: Key) -> list[Grant]:
    found = []
    for row in store.all("SELECT * FROM grants WHERE key_id = ? ORDER BY rowid", key.id):
        constraints = json.loads(row["constraints"] or "{}")
        found.append(
            Grant(
                row["id"], row["grantee"], frozenset(json.loads(row["operations"])),
                constraints.get("EncryptionContextEquals"), constraints.get("EncryptionContextSubset"),
            )
        )  # fmt: skip
    return found


def default_policy(account: str) -> str:
    """AWS's default key policy: the account, that is its IAM policies, decides."""
    statement = {
        "Sid": "Enable IAM User Permissions", "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{account}:root"}, "Action": "kms:*", "Resource": "*",
    }  # fmt: skip
    return json.dumps({"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]}, indent=2)
