# SPDX-License-Identifier: MIT
"""Conditions of policies: the known condition keys, the operators, and whether a test holds for a request.

A request's context maps each condition key, in lower case, to the tuple of its values; a key that the request
does not have is not in the map. The rules are IAM's ("IAM JSON policy elements: Condition operators"):

- The values in a policy are alternatives: one of them must match. With a negated operator none may match.
- If the key is missing, a positive test fails; a negated test, a test with IfExists and Null "true" pass.
- Without any values ForAllValues passes and ForAnyValue fails.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from nitroctl.base import instants
from nitroctl.base.instants import UTC
from nitroctl.kms.names import arn_like, like

Context = Mapping[str, tuple[str, ...]]
Kind = Literal["text", "arn", "bool", "number", "date", "epoch", "ip"]

# --- keys ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    kind: Kind = "text"
    many: bool = False  # may have several values at once
    here: bool = True  # whether a request to this KMS can have the key


_ABSENT = Key(here=False)
RECIPIENT = "kms:recipientattestation:"
CONTEXT = "kms:encryptioncontext:"
_KEYS: dict[str, Key] = {
    "aws:CurrentTime": Key("date"),
    "aws:EpochTime": Key("epoch"),
    "aws:MultiFactorAuthPresent": Key("bool", here=False),
    "aws:PrincipalAccount": Key(),
    "aws:PrincipalArn": Key("arn"),
    "aws:PrincipalIsAWSService": Key("bool"),
    "aws:PrincipalOrgID": _ABSENT,
    "aws:PrincipalType": Key(),
    "aws:RequestedRegion": Key(),
    "aws:SecureTransport": Key("bool"),
    "aws:SourceAccount": _ABSENT,
    "aws:SourceArn": Key("arn", here=False),
    "aws:SourceIp": Key("ip"),
    "aws:SourceVpc": _ABSENT,
    "aws:SourceVpce": _ABSENT,
    "aws:TagKeys": Key(many=True),
    "aws:UserAgent": Key(),
    "aws:ViaAWSService": Key("bool"),
    "aws:username": Key(),
    "kms:BypassPolicyLockoutSafetyCheck": Key("bool"),
    "kms:CallerAccount": Key(),
    "kms:CustomerMasterKeySpec": Key(),
    "kms:CustomerMasterKeyUsage": Key(),
    "kms:DataKeyPairSpec": Key(),
    "kms:EncryptionAlgorithm": Key(),
    "kms:EncryptionContextKeys": Key(many=True),
    "kms:ExpirationModel": Key(),
    "kms:GrantConstraintType": Key(),
    "kms:GrantIsForAWSResource": Key("bool"),
    "kms:GrantOperations": Key(many=True),
    "kms:GranteePrincipal": Key("arn"),
    "kms:KeyAgreementAlgorithm": Key(),
    "kms:KeyOrigin": Key(),
    "kms:KeySpec": Key(),
    "kms:KeyUsage": Key(),
    "kms:MacAlgorithm": Key(),
    "kms:MessageType": Key(),
    "kms:MultiRegion": Key("bool"),
    "kms:MultiRegionKeyType": _ABSENT,
    "kms:PrimaryRegion": _ABSENT,
    "kms:ReEncryptOnSameKey": Key("bool"),
    "kms:ReplicaRegion": _ABSENT,
    "kms:RequestAlias": Key(),
    "kms:ResourceAliases": Key(many=True),
    "kms:RetiringPrincipal": Key("arn"),
    "kms:RotationPeriodInDays": Key("number"),
    "kms:ScheduleKeyDeletionPendingWindowInDays": Key("number"),
    "kms:SigningAlgorithm": Key(),
    "kms:ValidTo": Key("date"),
    "kms:ViaService": _ABSENT,
    "kms:WrappingAlgorithm": Key(),
    "kms:WrappingKeySpec": Key(),
}
_KNOWN = {name.lower(): key for name, key in _KEYS.items()}
_TAGS = ("aws:resourcetag/", "aws:requesttag/")
_PCR = re.compile(r"pcr(0|[1-9]|[12][0-9]|3[01])")


class Unknown(Exception):
    """This KMS cannot interpret the condition; the text says why."""


def known_key(name: str) -> Key:
    """Look up the condition key `name`, in any case. Raises Unknown."""
    key = name.lower()
    if found := _KNOWN.get(key):
        return found
    if key.startswith(RECIPIENT):
        measure = key.removeprefix(RECIPIENT)
        if measure == "imagesha384" or _PCR.fullmatch(measure):
            return Key()
        if measure.startswith("nitrotpm"):
            raise Unknown(f"{name} is for NitroTPM documents, which are not supported here")
        raise Unknown(f"{name} is not a condition key: there are ImageSha384 and PCR0 to PCR31")
    if key == RECIPIENT.rstrip(":"):
        raise Unknown(f"{name} is not a condition key by itself: it lacks :ImageSha384 or :PCR<n>, and AWS "
                      "takes it "
                      "for a key that is never there")  # fmt: skip
    if key.startswith(CONTEXT) and len(key) > len(CONTEXT):
        return Key()
    if any(key.startswith(tag) and len(key) > len(tag) for tag in _TAGS):
        return Key()
    raise Unknown(f"the condition key {name} is unknown")


def is_recipient(name: str) -> bool:
    return name.lower().startswith(RECIPIENT)


def recipient_pcr(name: str) -> int:
    measure = name.lower().removeprefix(RECIPIENT)
    return 0 if measure == "imagesha384" else int(measure.removeprefix("pcr"))


# --- operators -------------------------------------------------------------------------------------------


def _moment(text: str) -> datetime:
    """Parse a time: ISO 8601 in IAM's form, or seconds since 1970. Raises ValueError."""
    if re.fullmatch(r"-?[0-9]{1,12}", text):
        return datetime.fromtimestamp(int(text), UTC)  # ValueError beyond the year 9999
    time = instants.parse(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _number(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation as e:
        raise ValueError(f"{text!r} is not a number") from e
    if not value.is_finite():
        raise ValueError(f"{text!r} is not a number")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _network(text: str) -> Any:
    return ipaddress.ip_network(text, strict=False)


def _arn(text: str) -> str:
    if text != "*" and text.count(":") < 5:
        raise ValueError(f"{text!r} is not an ARN: it has fewer than six parts")
    return text


def _arns(wanted: str, found: str) -> bool:
    return wanted == "*" or arn_like(wanted, found)


@dataclass(frozen=True)
class Operator:
    """`read` checks a policy's text and converts it to the value that is compared; `match` compares that
    value with a request's text. A request's text that cannot be converted matches nothing."""

    match: Callable[[Any, str], bool]
    read: Callable[[str], Any] = str
    negated: bool = False
    kinds: tuple[Kind, ...] | None = None  # the kinds of condition keys that it applies to; None: all


def _pair(name: str, no: str, match: Callable[[Any, str], bool], **more: Any) -> dict[str, Operator]:
    return {name: Operator(match, **more), no: Operator(match, negated=True, **more)}


def _ordered(kind: str, read: Callable[[str], Any], kinds: tuple[Kind, ...]) -> dict[str, Operator]:
    more: dict[str, Any] = {"read": read, "kinds": kinds}
    return {
        **_pair(f"{kind}Equals", f"{kind}NotEquals", lambda w, f: bool(read(f) == w), **more),
        f"{kind}LessThan": Operator(lambda w, f: bool(read(f) < w), **more),
        f"{kind}LessThanEquals": Operator(lambda w, f: bool(read(f) <= w), **more),
        f"{kind}GreaterThan": Operator(lambda w, f: bool(read(f) > w), **more),
        f"{kind}GreaterThanEquals": Operator(lambda w, f: bool(read(f) >= w), **more),
    }


OPERATORS: dict[str, Operator] = {
    **_pair("StringEquals", "StringNotEquals", lambda w, f: w == f),
    **_pair("StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase", lambda w, f: w.lower() == f.lower()),
    **_pair("StringLike", "StringNotLike", like),
    **_pair("ArnEquals", "ArnNotEquals", _arns, read=_arn, kinds=("arn",)),
    **_pair("ArnLike", "ArnNotLike", _arns, read=_arn, kinds=("arn",)),
    "Bool": Operator(lambda w, f: _boolean(f) is w, _boolean, kinds=("bool",)),
    **_ordered("Numeric", _number, ("number", "epoch")),
    **_ordered("Date", _moment, ("date", "epoch")),
    **_pair(
        "IpAddress", "NotIpAddress", lambda w, f: ipaddress.ip_address(f) in w, read=_network, kinds=("ip",)
    ),
}  # fmt: skip
NULL = "Null"
BINARY = "BinaryEquals"  # the only operator of IAM that applies to no condition key of KMS
Scope = Literal["", "ForAllValues", "ForAnyValue"]


@dataclass(frozen=True)
class Test:
    """One key under one operator, with the values that the policy has for it."""

    operator: str  # of OPERATORS, or NULL
    key: str  # as written
    values: tuple[str, ...]
    scope: Scope = ""
    if_exists: bool = False

    @property
    def written(self) -> str:
        scope = f"{self.scope}:" if self.scope else ""
        return f"{scope}{self.operator}{'IfExists' if self.if_exists else ''}"

    def holds(self, context: Context) -> bool:
        found = context.get(self.key.lower())
        if self.operator == NULL:
            return all((found is None) is _boolean(value) for value in self.values)
        operator = OPERATORS[self.operator]
        if not found:
            if self.scope:
                return self.scope == "ForAllValues" or self.if_exists
            return operator.negated or self.if_exists
        wanted = [operator.read(value) for value in self.values]
        results = [self._one(operator, wanted, value) for value in found]
        return any(results) if self.scope == "ForAnyValue" else all(results)

    @staticmethod
    def _one(operator: Operator, wanted: list[Any], found: str) -> bool:
        for value in wanted:
            try:
                if operator.match(value, found):
                    return not operator.negated
            except (ValueError, TypeError):
                continue
        return operator.negated


_NAME = re.compile(r"(?:(ForAllValues|ForAnyValue):)?([A-Za-z]+?)(IfExists)?")


def parse_test(operator: str, key: str, values: tuple[str, ...]) -> Test:
    """Read one test of a Condition. Raises Unknown if it cannot be interpreted, or can never be what the
    author meant."""
    match = _NAME.fullmatch(operator)
    name = match[2] if match else operator
    if name == BINARY:
        raise Unknown(f"the operator {operator} is for keys whose values are bytes, and KMS has none")
    if not match or (name not in OPERATORS and name != NULL):
        raise Unknown(f"the condition operator {operator} is unknown")
    scope: Scope = match[1] or ""  # type: ignore[assignment]
    if_exists = match[3] is not None
    about = known_key(key)
    if not values:
        raise Unknown(f"{operator} {key} has no value, and so could never hold")
    for value in values:
        if "${" in value:
            raise Unknown(f"{operator} {key}: policy variables are not supported here: {value}")
    if name == NULL:
        if scope or if_exists:
            raise Unknown(f"{operator} is not an operator: Null takes neither a scope nor IfExists")
        for value in values:
            _judge(_boolean, operator, key, value)
        return Test(NULL, key, values)
    rule = OPERATORS[name]
    if rule.kinds and about.kind not in rule.kinds:
        raise Unknown(f"{operator} does not apply to {key}, whose values are of the kind {about.kind}")
    if about.many and not scope:
        raise Unknown(f"{operator} {key}: this key can have several values; put ForAllValues: or "
                      "ForAnyValue: "
                      "before the operator")  # fmt: skip
    for value in values:
        _judge(rule.read, operator, key, value)
    return Test(name, key, values, scope, if_exists)


def _judge(read: Callable[[str], Any], operator: str, key: str, value: str) -> None:
    try:
        read(value)
    except (ValueError, TypeError) as e:
        raise Unknown(f"{operator} {key}: {e}") from e
