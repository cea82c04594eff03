# SPDX-License-Identifier: MIT
"""May this caller do this with this key? The decision and the reason for it; in doubt it is a denial.

The order is IAM's within one account. A matching Deny wins, in whichever policy it is. Then counts, in turn:
an Allow of the key policy for the caller; an Allow for the caller's account, which leaves the decision to the
caller's IAM policies; a grant. For actions without a key (GenerateRandom, CreateKey, ListKeys) the IAM
policies alone decide. A caller from an account other than the key's needs an Allow of the key policy and an
Allow of its own IAM policies.
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
    """An encryption context as grant constraints compare it: its names without regard to case."""
    return {name.lower(): value for name, value in context.items()}


# The operations to which a grant's constraints do not apply (GrantConstraints, API reference).
_UNCONSTRAINED = frozenset(("CreateGrant", "DescribeKey", "RetireGrant"))


@dataclass(frozen=True)
class Grant:
    id: str
    grantee: str  # ARN
    operations: frozenset[str]
    equals: dict[str, str] | None = None  # the constraint EncryptionContextEquals
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
        """Whether this grant allows everything that `other` allows."""
        if not other.operations <= self.operations:
            return False
        theirs = _folded((other.equals if other.equals is not None else other.subset) or {})
        if self.equals is not None:
            return other.equals is not None and _folded(self.equals) == theirs
        return self.subset is None or _folded(self.subset).items() <= theirs.items()


@dataclass(frozen=True)
class Tested:
    """A test of a condition, the values that the request has for its key, and whether the test held."""

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
            return f"{name} is {has}, the policy wants it to be {wanted}"
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
    "Bool": "", "NumericEquals": "", "DateEquals": "", "StringNotEquals": "anything but ",
    "StringNotEqualsIgnoreCase": "anything but ", "StringNotLike": "anything but ",
    "ArnNotEquals": "anything but ", "ArnNotLike": "anything but ",
}  # fmt: skip


def _listed(values: Iterable[str]) -> str:
    return " or ".join(values)


@dataclass(frozen=True)
class Decision:
    allowed: bool
    because: str  # the end of AWS's sentence for a denial; for the log: what allowed the request
    policy: str | None = None  # the policy whose statement decided, or came nearest to allowing it
    statement: str | None = None
    tests: tuple[Tested, ...] = ()
    lacks: tuple[str, ...] = field(default=())  # in a denial: why the nearest statement did not allow it
    grant: str | None = None

    @property
    def why(self) -> str:
        """The decision and its reason, in one sentence for people."""
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
    """Which parts of one statement match a request."""

    policy: Policy
    statement: Statement
    tests: tuple[Tested, ...]
    action: bool
    resource: bool
    principal: bool  # the statement names the caller itself, or everybody
    account: bool  # it names the caller's account

    @property
    def conditions(self) -> bool:
        return all(test.held for test in self.tests)

    @property
    def applies(self) -> bool:
        """Whether everything but the principal matches."""
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
        # NotPrincipal excepts only a caller all of whose ARNs are named: IAM's rule, and the safe one,
        # because such a statement denies.
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
    """Decide about a request. `key_policy` is None for an action without a key."""
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
        return Decision(
            True, "allowed", policy="the account itself, which may do everything that needs no key"
        )
    if delegated:
        for match in allows:
            if match.policy.source == "iam" and match.applies:
                return _decided(True, match, "allowed")
    if found := _granted(request, grants):
        return Decision(True, "allowed", grant=found.id)
    # The statement that came nearest, among the policies that could have allowed the request.
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


EXACT_CONTEXT = "\0context"  # entry of Request.context: names and values in turn, in their original case


def encryption_context(context: Context) -> dict[str, str]:
    pairs = context.get(EXACT_CONTEXT, ())
    return dict(zip(pairs[::2], pairs[1::2], strict=True))
