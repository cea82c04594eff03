# SPDX-License-Identifier: MIT
"""Who may call: users and roles with their IAM policies, and the credentials made for them. All of them are
local: AWS does not know these access keys."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from nitroctl.base.errors import UsageError
from nitroctl.kms import names, policy
from nitroctl.kms.names import Caller
from nitroctl.kms.sigv4 import Credential
from nitroctl.kms.store import Store

ADMIN = "admin"
SESSION = "nitroctl"
SESSION_SECONDS = 12 * 3600
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
# The IAM policy of the user "admin": all of KMS, on every key whose policy leaves the decision to the
# account.
EVERYTHING = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
)


def _access_key(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_BASE32) for _ in range(16))


def caller_of(arn: str, session: str | None = None) -> Caller:
    found = names.parse_caller(arn, session)
    if found is None:
        raise UsageError(
            f"{arn} is not the ARN of a user or a role",
            hint="arn:aws:iam::000000000000:role/NAME, arn:aws:iam::000000000000:user/NAME, or "
            "arn:aws:sts::000000000000:assumed-role/NAME/SESSION",
        )
    return found


def put_policies(store: Store, arn: str, policies: Mapping[str, str]) -> None:
    """Replace the IAM policies of a user or a role. Raises KmsPolicyError."""
    caller = caller_of(arn)
    for name, text in policies.items():
        policy.parse(text, "iam", f"the IAM policy {name}")
    with store.transaction(write=True) as db:
        db.execute(
            "INSERT OR REPLACE INTO identities VALUES (?, ?)", (caller.arn, json.dumps(dict(policies)))
        )


def policies_of(store: Store, caller: Caller) -> list[policy.Policy]:
    row = store.one("SELECT policies FROM identities WHERE arn = ?", caller.arn)
    found: dict[str, str] = json.loads(row["policies"]) if row else {}
    kind = caller.arn.split(":", 5)[5]
    return [policy.parse(text, "iam", f"the IAM policy {name} of {kind}") for name, text in found.items()]


def issue(store: Store, arn: str, session: str | None = None, seconds: float = SESSION_SECONDS) -> Credential:
    """Make credentials: of a user, without expiry; of a role, for a session of the given name, which ends
    after `seconds`. Raises UsageError."""
    caller = caller_of(arn, session)
    if ":role/" in caller.arn:
        session = caller.session or SESSION
        if not names.SESSION_NAME.fullmatch(session):
            raise UsageError(f"{session!r} is not a session name: use 2 to 64 letters, digits and _+=,.@-")
        made = Credential(
            _access_key("ASIA"), secrets.token_urlsafe(30), secrets.token_urlsafe(120), caller.arn, session,
            time.time() + seconds,
        )  # fmt: skip
    else:
        made = Credential(_access_key("AKIA"), secrets.token_urlsafe(30), None, caller.arn, None, None)
    with store.transaction(write=True) as db:
        db.execute("DELETE FROM credentials WHERE expires < ?", (time.time() - 86400,))
        db.execute(
            "INSERT INTO credentials VALUES (?, ?, ?, ?, ?, ?)",
            (made.access_key, made.secret, made.token, made.arn, made.session, made.expires),
        )
        db.execute("INSERT OR IGNORE INTO identities VALUES (?, '{}')", (caller.arn,))
    return made


def find(store: Store, access_key: str) -> Credential | None:
    row = store.one("SELECT * FROM credentials WHERE access_key = ?", access_key)
    return Credential(*row) if row else None


def admin(store: Store, account: str) -> Credential:
    """The account's administrator, made on first use."""
    arn = f"arn:aws:iam::{account}:user/{ADMIN}"
    with store.transaction(write=True):
        row = store.one("SELECT * FROM credentials WHERE arn = ? ORDER BY rowid", arn)
        if row:
            return Credential(*row)
        put_policies(store, arn, {"everything": EVERYTHING})
        return issue(store, arn)


def environment(credential: Credential, region: str) -> dict[str, str]:
    """The environment variables from which every AWS SDK takes credentials, region and endpoint."""
    found = {
        "AWS_ACCESS_KEY_ID": credential.access_key,
        "AWS_SECRET_ACCESS_KEY": credential.secret,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
    }
    return found | ({"AWS_SESSION_TOKEN": credential.token} if credential.token else {})


def identity(caller: Caller, access_key: str | None) -> dict[str, Any]:
    """The userIdentity of a CloudTrail event."""
    kind = "Root" if caller.is_root else "AssumedRole" if caller.session else "IAMUser"
    found: dict[str, Any] = {"type": kind, "arn": caller.full_arn, "accountId": caller.account}
    if access_key:
        found["accessKeyId"] = access_key
    if caller.session:
        issuer = {"type": "Role", "arn": caller.arn, "accountId": caller.account, "userName": caller.name}
        found["sessionContext"] = {"sessionIssuer": issuer}
    else:
        found["userName"] = caller.name
    return found
