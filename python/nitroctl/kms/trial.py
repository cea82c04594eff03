# SPDX-License-Identifier: MIT
"""`kms policy test`: what a policy would decide for an enclave that runs a given image, without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from nitroctl.base.instants import UTC
from nitroctl.kms import callers, policy
from nitroctl.kms.call import encryption_context
from nitroctl.kms.conditions import Context
from nitroctl.kms.evaluate import Decision, Request, evaluate
from nitroctl.kms.names import Caller
from nitroctl.kms.policy import Policy

ZERO = "0" * 96


def _extended(text: str) -> str:
    return hashlib.sha384(bytes(48) + text.encode()).hexdigest()


@dataclass(frozen=True)
class Enclave:
    """An enclave, by what its attestation document would say."""

    pcrs: Mapping[int, str]  # as measured from the EIF
    role: str | None = None
    instance_id: str | None = None
    debug: bool = False
    more: Mapping[int, str] | None = None  # given by the user; these override all others

    def document(self) -> dict[int, str]:
        found = dict.fromkeys(range(16), ZERO)
        if not self.debug:
            found |= dict(self.pcrs)
        if self.role:
            found[3] = _extended(self.role)
        if self.instance_id:
            found[4] = _extended(self.instance_id)
        return found | dict(self.more or {})


def caller_for(read: Policy, role: str | None, principal: str | None) -> tuple[Caller, bool]:
    """(the caller, whether it was guessed). The caller is the principal, if given; else a session of the
    role; else a guess: the first user or role that the policy allows something, or else a user of the account
    whom IAM allows everything."""
    if principal or role:
        return callers.caller_of(principal or role or "", callers.SESSION), False
    for statement in read.statements:
        for named in statement.principals if statement.allow else ():
            found = (
                Caller(named)
                if named.endswith(":root") or named == "*"
                else callers.caller_of(named, "nitroctl")
            )
            if named != "*" and not found.is_root:
                return found, True
    account = next(
        (p.split(":")[4] for s in read.statements for p in s.principals if p != "*"), "000000000000"
    )
    return Caller(f"arn:aws:iam::{account}:role/anybody", callers.SESSION), True


def decide(
    read: Policy,
    caller: Caller,
    *,
    document: Mapping[int, str] | None,
    action: str,
    iam: Sequence[Policy] | None = None,
    context: Mapping[str, str] | None = None,
    region: str = "us-east-1",
) -> Decision:
    """Decide about one request. `document` is None for a request without one; `iam` is None for a caller whom
    IAM allows all of KMS."""
    if iam is None:
        iam = [policy.parse(callers.EVERYTHING, "iam", "an IAM policy that allows kms:*")]
    now = datetime.now(UTC)
    facts: dict[str, tuple[str, ...]] = {
        "aws:currenttime": (now.isoformat(),),
        "aws:epochtime": (str(int(now.timestamp())),),
        "aws:principalaccount": (caller.account,),
        "aws:principalarn": (caller.arn,),
        "aws:requestedregion": (region,),
        "aws:viaawsservice": ("false",),
        "aws:principalisawsservice": ("false",),
        "kms:calleraccount": (caller.account,),
        "kms:encryptionalgorithm": ("SYMMETRIC_DEFAULT",),
        "kms:keyspec": ("SYMMETRIC_DEFAULT",),
        "kms:keyusage": ("ENCRYPT_DECRYPT",),
        "kms:keyorigin": ("AWS_KMS",),
        **encryption_context(dict(context or {})),
    }
    if document is not None:
        facts |= {f"kms:recipientattestation:pcr{n}": (value,) for n, value in document.items()}
        facts["kms:recipientattestation:imagesha384"] = (document[0],)
    named = [r for s in read.statements for r in s.resources if r != "*" and not set(r) & set("*?")]
    resource = named[0] if named else f"arn:aws:kms:{region}:{caller.account}:key/any"
    found: Context = facts
    return evaluate(Request(caller, action, resource, found), read, iam)
