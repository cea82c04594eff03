# SPDX-License-Identifier: MIT
"""Parses key policies and IAM policies, strictly: unknown parts are refused, never ignored.

Only the text is checked here. `evaluate` says whether a policy allows something, `lint` whether it is wise.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Literal

from nitroctl.base.errors import NitroError
from nitroctl.kms import conditions, names
from nitroctl.kms.actions import ACTIONS
from nitroctl.kms.conditions import Test

MOST_BYTES = 32768  # AWS: length of a key policy
VERSIONS = ("2012-10-17", "2008-10-17")
_ELEMENTS = {
    "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource",
    "Condition",
}  # fmt: skip

Source = Literal["key", "iam"]


class KmsPolicyError(NitroError):
    """A policy that cannot be parsed, or has a part that this KMS does not know."""


@dataclass(frozen=True)
class Statement:
    number: int  # from 1
    sid: str | None
    allow: bool
    principals: tuple[str, ...]  # ARNs and "*"; empty in IAM policies
    not_principal: bool
    actions: tuple[str, ...]
    not_action: bool
    resources: tuple[str, ...]
    not_resource: bool
    tests: tuple[Test, ...]
    services: tuple[str, ...] = ()  # AWS services named as principals; none of them ever calls this KMS

    @property
    def label(self) -> str:
        return f'statement {self.number} ("{self.sid}")' if self.sid else f"statement {self.number}"

    def takes_action(self, action: str) -> bool:
        found = any(names.like(pattern.lower(), action.lower()) for pattern in self.actions)
        return found is not self.not_action

    def takes_resource(self, resource: str) -> bool:
        return any(names.like(pattern, resource) for pattern in self.resources) is not self.not_resource


@dataclass(frozen=True)
class Policy:
    source: Source
    name: str  # "the key policy", "the policy read-only of role/app"
    statements: tuple[Statement, ...]


# Cached, because every request parses the same policy until PutKeyPolicy replaces it.
@functools.lru_cache(256)
def parse(text: str, source: Source = "key", name: str = "the key policy") -> Policy:
    """Parse a policy; `name` is for errors. Raises KmsPolicyError, which names the statement."""
    if len(text.encode(errors="surrogatepass")) > MOST_BYTES:
        raise KmsPolicyError(f"{name} is longer than {MOST_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as e:
        reason = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise KmsPolicyError(f"{name} is not JSON: {reason}") from e
    if not isinstance(document, dict):
        raise KmsPolicyError(f"{name} is not a JSON object")
    if odd := document.keys() - {"Version", "Id", "Statement"}:
        raise KmsPolicyError(f"{name} has an unknown element: {min(odd)}")
    if "Version" in document and document["Version"] not in VERSIONS:
        raise KmsPolicyError(
            f"{name} has the unknown version {document['Version']!r}; use {' or '.join(VERSIONS)}"
        )
    if not isinstance(document.get("Id", ""), str):
        raise KmsPolicyError(f"the Id of {name} is not a string")
    listed = document.get("Statement")
    statements = listed if isinstance(listed, list) else [listed]
    if not listed or not all(isinstance(statement, dict) for statement in statements):
        raise KmsPolicyError(f"{name} has no Statement, or one that is not an object")
    return Policy(
        source, name, tuple(_Reader(name, source, number, s).read() for number, s in enumerate(statements, 1))
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f'the name "{key}" occurs twice in one object')
            seen.add(key)
    return found


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


def _of_another_service(action: str) -> bool:
    service = action.partition(":")[0]
    return service.lower() != "kms" and not set(service) & set("*?")


class _Reader:
    """One statement."""

    def __init__(self, policy: str, source: Source, number: int, found: dict[str, Any]) -> None:
        self._source = source
        self._number = number
        self._found = found
        sid = found.get("Sid")
        shown = f' ("{sid}")' if isinstance(sid, str) and sid else ""
        self._place = f"statement {number}{shown} of {policy}"

    def _error(self, text: str) -> KmsPolicyError:
        return KmsPolicyError(f"{self._place}: {text}")

    def read(self) -> Statement:
        found = self._found
        if odd := found.keys() - _ELEMENTS:
            raise self._error(f"the element {min(odd)} is unknown")
        sid = found.get("Sid")
        if sid is not None and not isinstance(sid, str):
            raise self._error("its Sid is not a string")
        if found.get("Effect") not in ("Allow", "Deny"):
            raise self._error(f"its Effect is {found.get('Effect')!r}, neither Allow nor Deny")
        allow = found["Effect"] == "Allow"
        not_action, actions = self._either("Action")
        not_resource, resources = self._either("Resource")
        principals, services, not_principal = self._principals(allow)
        for action in actions:
            self._check_action(action)
        for resource in resources:
            if resource != "*" and resource.count(":") < 5:
                raise self._error(f"the resource {resource} is neither * nor an ARN")
        elsewhere = self._source == "iam" and not not_action and all(map(_of_another_service, actions))
        for text in () if elsewhere else (*actions, *resources):
            if "${" in text:
                raise self._error(f"policy variables are not supported here: {text}")
        tests = () if elsewhere else self._tests()
        return Statement(
            self._number, sid or None, allow, principals, not_principal, actions, not_action, resources,
            not_resource, tests, services,
        )  # fmt: skip

    def _either(self, name: str) -> tuple[bool, tuple[str, ...]]:
        """Read NAME or NotNAME: (whether it is NotNAME, its values)."""
        given = [key for key in (name, f"Not{name}") if key in self._found]
        if len(given) != 1:
            raise self._error(
                f"it has {'both' if given else 'neither'} {name} {'and' if given else 'nor'} Not{name}"
            )
        return given[0] != name, self._texts(given[0], self._found[given[0]])

    def _texts(self, name: str, value: Any) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(isinstance(text, str) and text for text in listed):
            raise self._error(f"its {name} is neither a string nor a list of strings")
        return tuple(listed)

    def _check_action(self, action: str) -> None:
        if action == "*":
            return
        service, colon, name = action.partition(":")
        if not colon or not service or not name:
            raise self._error(f"the action {action} is neither * nor SERVICE:NAME")
        if self._source == "key" and service.lower() != "kms":
            raise self._error(f"{action} is not an action of KMS")
        if service.lower() == "kms" and not any(
            names.like(action.lower(), f"kms:{n}".lower()) for n in ACTIONS
        ):
            raise self._error(f"{action} is not an action of KMS")

    def _principals(self, allow: bool) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        given = [key for key in ("Principal", "NotPrincipal") if key in self._found]
        if self._source == "iam":
            if given:
                raise self._error(
                    f"an IAM policy must not have a {given[0]}: it is for the user or role that has it"
                )
            return (), (), False
        if len(given) != 1:
            raise self._error(
                "it has no Principal" if not given else "it has both Principal and NotPrincipal"
            )
        negated = given[0] == "NotPrincipal"
        if negated and allow:
            raise self._error("NotPrincipal with Allow would allow everybody else, unknown ones included: "
                              "name who is allowed")  # fmt: skip
        value = self._found[given[0]]
        if value == "*":
            return ("*",), (), negated
        if not isinstance(value, dict) or not value:
            raise self._error(f'its {given[0]} is neither "*" nor an object')
        if odd := value.keys() - {"AWS", "Service"}:
            raise self._error(f"principals of the kind {min(odd)} are not supported here")
        found = []
        for text in self._texts("principal", value["AWS"]) if "AWS" in value else ():
            principal = names.principal(text)
            if principal is None:
                raise self._error(
                    f"the principal {text} is neither *, an account, nor the ARN of a user, a "
                    "role or "
                    "a role's session; wildcards are for conditions on aws:PrincipalArn"
                )
            found.append(principal)
        services = self._texts("principal", value["Service"]) if "Service" in value else ()
        return tuple(found), services, negated

    def _tests(self) -> tuple[Test, ...]:
        condition = self._found.get("Condition", {})
        if not isinstance(condition, dict):
            raise self._error("its Condition is not an object")
        tests = []
        for operator, block in condition.items():
            if not isinstance(block, dict) or not block:
                raise self._error(
                    f"the value of the operator {operator} is not an object with condition keys"
                )
            folded = [key.lower() for key in block]
            for key, value in block.items():
                if folded.count(key.lower()) > 1:
                    raise self._error(f"the condition key {key} occurs twice under {operator}")
                try:
                    tests.append(conditions.parse_test(operator, key, self._values(operator, key, value)))
                except conditions.Unknown as e:
                    raise self._error(str(e)) from e
        return tuple(tests)

    def _values(self, operator: str, key: str, value: Any) -> tuple[str, ...]:
        found = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                found.append(str(item).lower())
            elif isinstance(item, str | int | float):
                found.append(str(item))
            else:
                raise self._error(f"a value of {operator} {key} is not a string, a number, true or false")
        return tuple(found)
