# SPDX-License-Identifier: MIT
"""May this caller do this with this key? The decision and why; whatever is in doubt is a denial.

The order is IAM's for one account: a Deny that matches wins, wherever it stands; then an Allow of the key
policy for the caller himself; then one for his account, which hands the decision to his IAM policies; then a
grant. Without a key (GenerateRandom, CreateKey, ListKeys) the IAM policies decide alone; a caller of another
account than the key's needs both, an Allow of the key policy and one of his own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nitroctl.kms.conditions import NULL, Context, Test
from nitroctl.kms.names import Caller
from nitroctl.kms.policy import Policy, Statement


@dataclass(frozen=True)
class Request:
    caller: Caller
    action: str  # "kms:Decrypt"
    resource: str  # the key's ARN, or "*"
    context: Context


def _folded(context: Mapping[str, str]) -> dict[str, str]:
    """Names of an encryption context as constraints of grants compare them: without their case."""
    return {name.lower(): value for name, value in context.items()}


# Operations of a grant that its constraint is not about (GrantConstraints, API reference).
_UNCONSTRAINED = frozenset(("CreateGrant", "DescribeKey", "RetireGrant"))


@dataclass(frozen=True)
class Grant:
    id: str
    grantee: str  # ARN
    operations: frozenset[str]
    equals: dict[str, str] | None = None  # the encryption context
    subset: dict[str, str] | None = None

    def allows(self, operation: str, context: Mapping[str, str]) -> bool:
        if operation not in self.operations:
            return False
        found = _folded(context)
        return operation in _UNCONSTRAINED or (
            (self.equals is None or _folded(self.equals) == found)
            and (self.subset is None or _folded(self.subset).items() <= found.items())
        )

    def covers(self, other: Grant) -> bool:
        """Whether all that `other` allows is allowed by this one."""
        if not other.operations <= self.operations:
            return False
        theirs = _folded((other.equals if other.equals is not None else other.subset) or {})
        if self.equals is not None:
            return other.equals is not None and _folded(self.equals) == theirs
        return self.subset is None or _folded(self.subset).items() <= theirs.items()


@dataclass(frozen=True)
class Tested:
    """A condition beside what the request has."""

    test: Test
    found: tuple[str, ...] | None
    held: bool

    def __str__(self) -> str:
        has = "absent" if self.found is None else _listed(self.found) or "empty"
        name = (
            self.test.key.rpartition(":")[2]
            if self.test.key.lower().startswith("kms:recip")
            else self.test.key
        )
        if self.test.operator == NULL:
            wanted = "absent" if self.test.values == ("true",) else "present"
            return f"{name} is {has}, the policy wants it {wanted}"
        return f"{name} is {has}, the policy wants {_WORDS.get(self.test.operator, self.test.written)}" \
               f"{_listed(self.test.values)}"  # fmt: skip

    def json(self) -> dict[str, Any]:
        return {
            "operator": self.test.written,
            "key": self.test.key,
            "wanted": list(self.test.values),
            "found": None if self.found is None else list(self.found),
            "held": self.held,
        }


_WORDS = {
    "StringEquals": "", "StringEqualsIgnoreCase": "", "StringLike": "", "ArnEquals": "", "ArnLike": "",
    "Bool": "", "NumericEquals": "", "DateEquals": "", "StringNotEquals": "another than ",
    "StringNotEqualsIgnoreCase": "another than ", "StringNotLike": "another than ",
    "ArnNotEquals": "another than ", "ArnNotLike": "another than ",
}  # fmt: skip


def _listed(values: Iterable[str]) -> str:
    return " or ".join(values)


@dataclass(frozen=True)
class Decision:
    allowed: bool
    because: str  # the end of AWS's sentence for a denial; for the log, what allowed it
    policy: str | None = None  # whose statement decided, or came nearest
    statement: str | None = None
    tests: tuple[Tested, ...] = ()
    lacks: tuple[str, ...] = field(default=())  # of the nearest statement, in a denial
    grant: str | None = None

    @property
    def why(self) -> str:
        """One sentence for people."""
        where = f"{self.statement} of {self.policy}" if self.statement else self.policy
        if self.grant:
            return f"allowed by the grant {self.grant}"
        if self.allowed:
            held = "; ".join(str(test) for test in self.tests)
            return f"allowed by {where}" + (f": {held}" if held else "")
        if self.lacks:
            return f"{self.because}; the nearest is {where}, but: {'; '.join(self.lacks)}"
        return f"{self.because}: {where}" if where else self.because

    def json(self) -> dict[str, Any]:
        return {
            "allowed": self.allowed, "text": self.why, "policy": self.policy, "statement": self.statement,
            "conditions": [test.json() for test in self.tests], "grant": self.grant,
            "lacks": list(self.lacks),
        }  # fmt: skip


@dataclass(frozen=True)
class _Match:
    """How one statement meets a request."""

    policy: Policy
    statement: Statement
    tests: tuple[Tested, ...]
    action: bool
    resource: bool
    principal: bool  # the caller himself, or everybody
    account: bool  # his account

    @property
    def conditions(self) -> bool:
        return all(test.held for test in self.tests)

    @property
    def applies(self) -> bool:
        """But for the principal."""
        return self.action and self.resource and self.conditions

    def lacks(self, request: Request) -> tuple[str, ...]:
        found = []
        if not (self.principal or self.account):
            found.append(f"it is not for {request.caller.full_arn}")
        if not self.action:
            found.append(f"it is not about {request.action}")
        if not self.resource:
            found.append(f"it is not about {request.resource}")
        return (*found, *(str(test) for test in self.tests if not test.held))


def _match(policy: Policy, statement: Statement, request: Request) -> _Match:
    caller = request.caller
    if policy.source == "iam":
        principal, account = True, False
    elif statement.not_principal:
        # Everybody but those who are named by all their names: IAM's rule, and the safe one, for it denies.
        named = {caller.root_arn, *caller.principals} <= set(statement.principals)
        principal, account = not ("*" in statement.principals or named), False
    else:
        principal = "*" in statement.principals or not set(caller.principals).isdisjoint(statement.principals)
        account = caller.root_arn in statement.principals
    tests = tuple(
        Tested(test, request.context.get(test.key.lower()), test.holds(request.context))
        for test in statement.tests
    )
    action, resource = statement.takes_action(request.action), statement.takes_resource(request.resource)
    return _Match(policy, statement, tests, action, resource, principal, account)


def evaluate(
    request: Request, key_policy: Policy | None, iam: Sequence[Policy] = (), grants: Sequence[Grant] = ()
) -> Decision:
    """Decide. `key_policy` is None for what has no key."""
    matches = [
        _match(policy, statement, request)
        for policy in ((key_policy,) if key_policy else ()) + tuple(iam)
        for statement in policy.statements
    ]
    for match in matches:
        if not match.statement.allow and (match.principal or match.account) and match.applies:
            return _decided(False, match, f"with an explicit deny in {_article(match.policy)}")
    allows = [match for match in matches if match.statement.allow]
    delegated = key_policy is None
    stranger = key_policy is not None and request.caller.account != request.resource.split(":")[4]
    for match in allows:
        if match.policy.source == "key" and match.applies:
            if match.principal and not stranger:
                return _decided(True, match, "allowed")
            delegated = delegated or match.principal or match.account
    if request.caller.is_root and key_policy is None:
        return Decision(True, "allowed", policy="the account itself, which may do all without a key")
    if delegated:
        for match in allows:
            if match.policy.source == "iam" and match.applies:
                return _decided(True, match, "allowed")
    if found := _granted(request, grants):
        return Decision(True, "allowed", grant=found.id)
    # What came nearest: of the policies that could have allowed it.
    action = request.action
    if delegated and not request.caller.is_root:
        because = f"because no identity-based policy allows the {action} action"
    else:
        because = f"because no resource-based policy allows the {action} action"
    candidates = [m for m in allows if m.policy.source == ("iam" if delegated else "key")] or allows
    nearest = min(candidates, key=lambda m: _distance(m, request), default=None)
    if nearest is None:
        return Decision(False, because)
    return Decision(False, because, nearest.policy.name, nearest.statement.label, nearest.tests,
                    nearest.lacks(request))  # fmt: skip


def _distance(match: _Match, request: Request) -> tuple[bool, bool, bool, bool, int]:
    missing = sum(not test.held for test in match.tests)
    # A statement for the account alone is further away than one for the caller.
    return (
        not match.action,
        not (match.principal or match.account),
        not match.resource,
        not match.principal,
        missing,
    )


def _decided(allowed: bool, match: _Match, because: str) -> Decision:
    return Decision(allowed, because, match.policy.name, match.statement.label, match.tests)


def _article(policy: Policy) -> str:
    return "a resource-based policy" if policy.source == "key" else "an identity-based policy"


def _granted(request: Request, grants: Sequence[Grant]) -> Grant | None:
    operation = request.action.removeprefix("kms:")
    context = encryption_context(request.context)
    for grant in grants:
        if grant.grantee in request.caller.principals and grant.allows(operation, context):
            return grant
    return None


EXACT_CONTEXT = "\0context"  # of Request.context: names and values in turn, in their own case


def encryption_context(context: Context) -> dict[str, str]:
    pairs = context.get(EXACT_CONTEXT, ())
    return dict(zip(pairs[::2], pairs[1::2], strict=True))
