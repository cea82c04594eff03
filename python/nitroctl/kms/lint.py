# SPDX-License-Identifier: MIT
"""Is a key policy wise? Finds what it allows and its author may not have meant, and what can never hold.

Nothing here decides about requests. A policy that cannot be parsed is refused by `policy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nitroctl.kms import names
from nitroctl.kms.actions import ACTIONS, WITH_RECIPIENT
from nitroctl.kms.conditions import NULL, OPERATORS, Test, is_recipient, recipient_pcr
from nitroctl.kms.policy import Policy, Statement, parse

_HEX = re.compile(r"[0-9a-f]{96}")
_ZERO = "0" * 96
_ALWAYS_ZERO = frozenset((5, 6, 7, *range(9, 16)))


@dataclass(frozen=True)
class Finding:
    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text} [{self.rule}]"


def lint(text: str, images: Mapping[str, Mapping[int, str]] | None = None) -> list[Finding]:
    """The findings about a key policy. `images` maps names of EIFs to their PCRs (number to hexadecimal).
    Raises KmsPolicyError."""
    policy = parse(text)
    found = []
    for statement in policy.statements:
        for rule, what in (*_open(policy, statement), *_conditions(statement, images or {})):
            found.append(Finding(rule, f"{statement.label} of {policy.name}", what))
    return found


def _attests(statement: Statement) -> bool:
    """Whether the statement demands a document: no request without one can match it."""
    return any(is_recipient(test.key) and not test.holds({}) for test in statement.tests)


def _recipient_actions(statement: Statement) -> list[str]:
    return sorted(name for name in WITH_RECIPIENT if statement.takes_action(f"kms:{name}"))


def _open(policy: Policy, statement: Statement) -> Iterator[tuple[str, str]]:
    """Ways in which a secret can be read outside an enclave."""
    secrets = [name for name in _recipient_actions(statement) if name != "GenerateRandom"]
    if not statement.allow or _attests(statement) or not secrets:
        return
    which = "everything" if "*" in statement.actions or "kms:*" in statement.actions else ", ".join(secrets)
    if any(principal.endswith(":root") for principal in statement.principals):
        yield (
            "root-statement",
            f"it hands {which} to the account's IAM policies: whoever has kms:Decrypt there reads the secret "
            "outside any enclave; leave only administrative actions to the account",
        )
    elif "*" in statement.principals:
        yield "everybody", f"it allows everybody {which}, without a document"
    elif any(_attests(other) for other in policy.statements if other.allow):
        yield (
            "without-document",
            f"it allows {which} without a document, although other statements demand one",
        )


def _conditions(statement: Statement, images: Mapping[str, Mapping[int, str]]) -> Iterator[tuple[str, str]]:
    attested = [test for test in statement.tests if is_recipient(test.key)]
    if attested and statement.allow:
        yield from _no_recipient(statement)
    for test in attested:
        yield from _passes_without(test, statement)
        if test.operator != NULL:
            yield from _values(test, images)
    for test in statement.tests:
        if test.key.lower() == "kms:viaservice" and statement.allow and not test.holds({}):
            yield (
                "via-service",
                "kms:ViaService is absent from every request of an enclave, so the condition never holds",
            )
        if test.scope == "ForAllValues" and statement.allow:
            yield (
                "for-all-values",
                f"{test.written} {test.key} also holds if the request does not have this key at all",
            )


def _no_recipient(statement: Statement) -> Iterator[tuple[str, str]]:
    if not _attests(statement) or statement.not_action:
        return
    for pattern in statement.actions:
        taken = {name for name in ACTIONS if names.like(pattern.lower(), f"kms:{name}".lower())}
        if taken and not taken & WITH_RECIPIENT:
            yield (
                "no-recipient",
                f"{pattern} takes no Recipient, so a condition on a document never holds; those that "
                "have "
                f"one: {', '.join(sorted(WITH_RECIPIENT))}",
            )


def _passes_without(test: Test, statement: Statement) -> Iterator[tuple[str, str]]:
    if statement.allow and test.holds({}):
        yield "holds-without", f"{test.written} {test.key} also holds without any document"


def _values(test: Test, images: Mapping[str, Mapping[int, str]]) -> Iterator[tuple[str, str]]:
    pcr = recipient_pcr(test.key)
    exact = test.operator in ("StringEquals", "StringNotEquals")
    folded = test.operator.endswith("IgnoreCase")
    for value in test.values:
        plain = value.lower() if folded else value
        if not (exact or folded):
            if not set(value) & set("*?") and not _HEX.fullmatch(value):
                yield "not-a-pcr", f"{test.key} is never {_short(value)}: a PCR is 96 digits of 0-9 and a-f"
        elif not _HEX.fullmatch(plain):
            if _HEX.fullmatch(value.lower()):
                yield (
                    "capitals",
                    f"{test.key} is never {_short(value)}: KMS writes it in lower case; "
                    f"{test.operator} is case-sensitive, StringEqualsIgnoreCase is not",
                )
            else:
                yield (
                    "not-a-pcr",
                    f"{test.key} is never {_short(value)}: a PCR is 96 digits of 0-9 and a-f, this has "
                    f"{len(value)} "
                    "characters",
                )
        elif plain == _ZERO and pcr not in _ALWAYS_ZERO and not OPERATORS[test.operator].negated:
            yield "all-zeros", f"{test.key} is all zeros {_zeros(pcr)}"
        elif plain != _ZERO and pcr in _ALWAYS_ZERO:
            yield "never", f"PCR{pcr} is zero in every enclave: it is never {_short(value)}"
        elif images and plain != _ZERO and pcr in (0, 1, 2, 8):
            if plain not in {pcrs.get(pcr) for pcrs in images.values()}:
                yield "no-image", f"{test.key} {_short(value)} belongs to none of {', '.join(images)}"


def _zeros(pcr: int) -> str:
    if pcr in (0, 1, 2):
        return "in debug mode: every debug enclave passes, whatever runs in it"
    if pcr == 8:
        return "for every unsigned image, and in debug mode"
    if pcr == 3:
        return "for every enclave whose parent has no role"
    return "for every enclave that has not extended it" if pcr >= 16 else "in no enclave"


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:16]}...{value[-4:]}"
