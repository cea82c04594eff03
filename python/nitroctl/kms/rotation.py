# SPDX-License-Identifier: MIT
"""The operations on rotation: new material for a symmetric key, now or every so many days. `keys.sweep`
rotates the keys that are due. Keys with imported material are not rotated here."""

from __future__ import annotations

from typing import Any

from nitroctl.kms import keys, material
from nitroctl.kms.call import Call
from nitroctl.kms.errors import KmsError
from nitroctl.kms.keys import DAY, ON_DEMAND, PENDING_DELETION, Key
from nitroctl.kms.manage import managed, write

Answer = dict[str, Any]
PERIOD_DAYS = 365  # AWS's default
MOST_ON_DEMAND = 25  # AWS: how many times in a key's life


def _symmetric(key: Key) -> None:
    if key.spec != material.SYMMETRIC:
        text = f"{key.arn} has the spec {key.spec}: only symmetric encryption keys can be rotated."
        raise KmsError("UnsupportedOperationException", text)


def _rotatable(key: Key) -> None:
    _symmetric(key)
    if key.origin != "AWS_KMS":
        raise KmsError(
            "UnsupportedOperationException",
            f"{key.arn} origin is {key.origin} which is not valid for this operation.",
        )
    key.check_usable()


def enable_key_rotation(call: Call) -> Answer:
    days = call.get("RotationPeriodInDays") or PERIOD_DAYS
    key = managed(call, {"kms:rotationperiodindays": (str(days),)})
    _rotatable(key)
    after = call.now.timestamp() + days * DAY
    write(call, "INSERT OR REPLACE INTO rotations VALUES (?, ?, ?)", key.id, days, after)
    return {}


def disable_key_rotation(call: Call) -> Answer:
    key = managed(call)
    _rotatable(key)
    write(call, "DELETE FROM rotations WHERE key_id = ?", key.id)
    return {}


def get_key_rotation_status(call: Call) -> Answer:
    key = managed(call)
    _symmetric(key)
    row = call.store.one("SELECT * FROM rotations WHERE key_id = ?", key.id)
    if row is None or key.state == PENDING_DELETION:
        return {"KeyId": key.arn, "KeyRotationEnabled": False}
    return {"KeyId": key.arn, "KeyRotationEnabled": True, "RotationPeriodInDays": row["period"],
            "NextRotationDate": row["next"]}  # fmt: skip


def rotate_key_on_demand(call: Call) -> Answer:
    key = managed(call)
    _rotatable(key)
    query = "SELECT count(*) AS times FROM materials WHERE key_id = ? AND kind = ?"
    before = call.store.one(query, key.id, ON_DEMAND)
    if before and before["times"] >= MOST_ON_DEMAND:
        raise KmsError(
            "LimitExceededException",
            f"{key.arn} has been rotated on demand {MOST_ON_DEMAND} times, the most that is allowed.",
        )
    keys.rotate(call.store, key, ON_DEMAND, call.now.timestamp())
    return {"KeyId": key.arn}


def list_key_rotations(call: Call) -> Answer:
    """The rotations, oldest first. The key's first material is left out: no rotation made it."""
    key = managed(call)
    _symmetric(key)
    rows = call.store.all("SELECT * FROM materials WHERE key_id = ? ORDER BY rowid", key.id)
    found = [
        {
            "KeyId": key.arn, "KeyMaterialId": row["material_id"],
            "KeyMaterialState": "CURRENT" if row["material_id"] == key.material_id else "NON_CURRENT",
            **({"RotationDate": row["since"], "RotationType": row["kind"]} if row["kind"] else {}),
        }
        for row in rows
    ]  # fmt: skip
    if call.get("IncludeKeyMaterial") != "ALL_KEY_MATERIAL":
        found = [entry for entry in found if "RotationType" in entry]
    elif not found and key.material_id:
        found = [{"KeyId": key.arn, "KeyMaterialId": key.material_id, "KeyMaterialState": "CURRENT"}]
    return call.page(found, "Rotations")
