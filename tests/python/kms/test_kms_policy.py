# SPDX-License-Identifier: MIT
"""Policies: what is refused when they are read, and what is decided by them. The rules are IAM's ("Policy
evaluation logic") and KMS's ("Key policies"); a tiny evaluator of another making must agree."""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_world import ACCOUNT, ADMINISTRATION, IMAGE, ROLE, ROOT, USER, allow, attested, policy
from nitroctl.kms.conditions import Context
from nitroctl.kms.evaluate import EXACT_CONTEXT, Decision, Grant, Request, evaluate
from nitroctl.kms.keys import default_policy
from nitroctl.kms.names import Caller, like, parse_caller
from nitroctl.kms.policy import KmsPolicyError, parse

KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/0a1b"
APP = Caller(ROLE, "worker")
SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/app/worker"
PCR0 = "kms:recipientattestation:imagesha384"
FROM_IMAGE = {PCR0: (IMAGE,)}
OTHER = "arn:aws:iam::111122223333:role/theirs"


def deny(principal: str, action: str, **more: Any) -> dict[str, Any]:
    return allow(principal, action, **more) | {"Effect": "Deny"}


def all_but(*principals: str) -> dict[str, Any]:
    return {"Effect": "Deny", "NotPrincipal": {"AWS": list(principals)}, "Action": "kms:*", "Resource": "*"}


def decide(
    *statements: dict[str, Any],
    caller: Caller = APP,
    action: str = "kms:Decrypt",
    context: Context | None = None,
    iam: Sequence[dict[str, Any]] = (),
    grants: Sequence[Grant] = (),
) -> Decision:
    own = [{k: v for k, v in s.items() if k != "Principal"} for s in iam]
    policies = [parse(policy(*own), "iam", "the IAM policy")] if own else []
    return evaluate(Request(caller, action, KEY, context or {}), parse(policy(*statements)), policies, grants)


# --- what decides ----------------------------------------------------------------------------------------

DELEGATED = allow(ROOT, "kms:*", Sid="Enable IAM User Permissions")
OWN = allow(ROLE, "kms:Decrypt")
NO_RESOURCE = "because no resource-based policy allows the kms:Decrypt action"
NO_IDENTITY = "because no identity-based policy allows the kms:Decrypt action"

RULES: dict[str, tuple[Decision, bool, str]] = {
    "an Allow for the role": (decide(OWN), True, "allowed"),
    "for its session": (decide(allow(SESSION, "kms:Decrypt")), True, "allowed"),
    "for another session of it": (decide(allow(SESSION[:-1], "kms:Decrypt")), False, NO_RESOURCE),
    "for everybody": (decide(allow("*", "kms:Decrypt")), True, "allowed"),
    "for another role": (decide(allow(f"{ROLE}2", "kms:Decrypt")), False, NO_RESOURCE),
    "for the account, and IAM silent": (decide(DELEGATED), False, NO_IDENTITY),
    "for the account by its number": (decide(allow(ACCOUNT, "kms:*"), iam=[OWN]), True, "allowed"),
    "for the account, and IAM allows": (decide(DELEGATED, iam=[OWN]), True, "allowed"),
    "IAM alone": (decide(ADMINISTRATION, iam=[OWN]), False, NO_RESOURCE),
    "for the account, under a condition that fails": (
        decide(allow(ROOT, "kms:*", Condition={"StringEquals": {PCR0: "x"}}), iam=[OWN]), False, NO_RESOURCE),
    "the root user himself": (decide(DELEGATED, caller=Caller(ROOT)), True, "allowed"),
    "the root user, whom no statement names": (decide(OWN, caller=Caller(ROOT)), False, NO_RESOURCE),
    "a Deny beats an Allow": (
        decide(OWN, deny("*", "kms:*")), False, "with an explicit deny in a resource-based policy"),
    "a Deny for the account": (
        decide(OWN, deny(ROOT, "kms:Dec*")), False, "with an explicit deny in a resource-based policy"),
    "a Deny in IAM beats the key policy": (
        decide(OWN, iam=[deny(ROLE, "kms:Decrypt")]), False, "with an explicit deny in an identity-based "
                                                             "policy"),
    "a Deny whose condition fails": (
        decide(OWN, deny("*", "*", Condition={"StringEquals": {PCR0: "x"}})), True, "allowed"),
    "a Deny unless measured, no document": (
        decide(OWN, deny("*", "kms:Decrypt", Condition={"StringNotEquals": {PCR0: IMAGE}})), False,
        "with an explicit deny in a resource-based policy"),
    "a Deny unless measured, the right one": (
        decide(OWN, deny("*", "kms:Decrypt", Condition={"StringNotEquals": {PCR0: IMAGE}}),
        context=FROM_IMAGE),
        True, "allowed"),
    "actions have no case": (decide(allow(ROLE, "KMS:decrypt")), True, "allowed"),
    "wildcards": (decide(allow(ROLE, ["kms:Describe*", "kms:De?rypt"])), True, "allowed"),
    "another action": (decide(allow(ROLE, "kms:Encrypt")), False, NO_RESOURCE),
    "NotAction with another": (
        decide({"Effect": "Allow", "Principal": "*", "NotAction": "kms:Encrypt", "Resource": "*"}), True,
        "allowed"),
    "NotAction with this": (
        decide({"Effect": "Allow", "Principal": "*", "NotAction": "kms:D*", "Resource": "*"}), False,
        NO_RESOURCE),
    "this key by its ARN": (decide({**OWN, "Resource": KEY}), True, "allowed"),
    "another key's ARN": (decide({**OWN, "Resource": f"{KEY}x"}), False, NO_RESOURCE),
    "NotResource": (
        decide({"Effect": "Allow", "Principal": "*", "Action": "kms:*", "NotResource": f"{KEY}x"}), True,
        "allowed"),
    "IAM for another key": (
        decide(DELEGATED, iam=[{**OWN, "Resource": f"{KEY}x"}]), False, NO_IDENTITY),
    "a service as principal": (
        decide({**OWN, "Principal": {"Service": "cloudtrail.amazonaws.com"}}), False, NO_RESOURCE),
    "NotPrincipal names all of him": (decide(OWN, all_but(ROOT, ROLE, SESSION)), True, "allowed"),
    "NotPrincipal forgets the account": (
        decide(OWN, all_but(ROLE, SESSION)), False, "with an explicit deny in a resource-based policy"),
    "all conditions hold": (
        decide(allow(ROLE, "kms:*", Condition={"StringEquals": {PCR0: IMAGE},
        "Null": {"aws:SourceIp": "true"}}),
               context=FROM_IMAGE), True, "allowed"),
    "one of two does not": (
        decide(allow(ROLE, "kms:*", Condition={"StringEquals": {PCR0: IMAGE},
        "Null": {"aws:SourceIp": "false"}}),
               context=FROM_IMAGE), False, NO_RESOURCE),
    "another account, key policy alone": (
        decide(allow(OTHER, "kms:Decrypt"), caller=Caller(OTHER, "s1")), False, NO_IDENTITY),
    "another account, both": (
        decide(allow(OTHER, "kms:Decrypt"), caller=Caller(OTHER, "s1"), iam=[OWN]), True, "allowed"),
    "another account, its IAM alone": (
        decide(DELEGATED, caller=Caller(OTHER, "s1"), iam=[OWN]), False, NO_RESOURCE),
    "a grant": (
        decide(ADMINISTRATION, grants=[Grant("g", ROLE, frozenset({"Decrypt"}))]), True, "allowed"),
    "a grant for another operation": (
        decide(ADMINISTRATION, grants=[Grant("g", ROLE, frozenset({"Encrypt"}))]), False, NO_RESOURCE),
    "a grant for another": (
        decide(ADMINISTRATION, grants=[Grant("g", USER, frozenset({"Decrypt"}))]), False, NO_RESOURCE),
    "a Deny beats a grant": (
        decide(deny("*", "kms:*"), grants=[Grant("g", ROLE, frozenset({"Decrypt"}))]), False,
        "with an explicit deny in a resource-based policy"),
    "a grant's exact context": (
        decide(ADMINISTRATION, grants=[Grant("g", ROLE, frozenset({"Decrypt"}), equals={"a": "1"})],
               context={EXACT_CONTEXT: ("a", "1")}), True, "allowed"),
    "a grant's exact context, and more": (
        decide(ADMINISTRATION, grants=[Grant("g", ROLE, frozenset({"Decrypt"}), equals={"a": "1"})],
               context={EXACT_CONTEXT: ("a", "1", "b", "2")}), False, NO_RESOURCE),
    "a grant's subset": (
        decide(ADMINISTRATION, grants=[Grant("g", ROLE, frozenset({"Decrypt"}), subset={"a": "1"})],
               context={EXACT_CONTEXT: ("a", "1", "b", "2")}), True, "allowed"),
    "a grant's subset, missing": (
        decide(ADMINISTRATION, grants=[Grant("g", ROLE, frozenset({"Decrypt"}), subset={"a": "1"})]), False,
        NO_RESOURCE),
}  # fmt: skip


def test_rules() -> None:
    for rule, (decision, allowed, because) in RULES.items():
        assert (decision.allowed, decision.because) == (allowed, because), (rule, decision.why)


def test_without_a_key_iam_decides_alone() -> None:
    request = Request(APP, "kms:GenerateRandom", "*", {})
    own = {"Effect": "Allow", "Action": "kms:GenerateRandom", "Resource": "*"}
    assert not evaluate(request, None).allowed
    assert evaluate(request, None, [parse(policy(own), "iam")]).allowed
    assert evaluate(Request(Caller(ROOT), "kms:GenerateRandom", "*", {}), None).allowed


def test_the_default_policy_is_aws_s() -> None:
    """It hands all to the account; the guide's name for its statement."""
    read = parse(default_policy(ACCOUNT))
    assert [s.sid for s in read.statements] == ["Enable IAM User Permissions"]
    assert evaluate(Request(Caller(ROOT), "kms:Decrypt", KEY, {}), read).allowed
    assert not evaluate(Request(APP, "kms:Decrypt", KEY, {}), read).allowed


# --- why -------------------------------------------------------------------------------------------------


def test_an_allow_says_by_which_statement_and_condition() -> None:
    why = decide(ADMINISTRATION, attested(), context=FROM_IMAGE).why
    assert why == f'allowed by statement 2 ("Enclave") of the key policy: ImageSha384 is {IMAGE}, ' \
                  f"the policy wants {IMAGE}"  # fmt: skip


def test_a_denial_names_the_nearest_statement_and_what_it_lacked() -> None:
    decision = decide(ADMINISTRATION, allow(USER, "kms:Decrypt"), attested("a1" * 48), context=FROM_IMAGE)
    assert decision.statement == 'statement 3 ("Enclave")'
    assert decision.lacks == (f"ImageSha384 is {IMAGE}, the policy wants {'a1' * 48}",)
    missing = decide(ADMINISTRATION, attested("a1" * 48))
    assert missing.lacks == (f"ImageSha384 is absent, the policy wants {'a1' * 48}",)
    stranger = decide(allow(USER, "kms:Decrypt", Sid="Alice"))
    assert stranger.lacks == (f"it is not for {SESSION}",)


# --- what is refused -------------------------------------------------------------------------------------

ANY = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
BROKEN: list[tuple[Any, str]] = [
    ("{", "is not JSON"),
    ("[" * 30000, "nested too deeply"),
    ("[]", "is not a JSON object"),
    ("{}", "has no Statement"),
    ('{"Statement": []}', "has no Statement"),
    ('{"Statement": ["x"]}', "one that is not an object"),
    ('{"Version": "2012-10-17", "Version": "2012-10-17", "Statement": {}}', '"Version" occurs twice'),
    ('{"Statement": NaN}', "NaN is not a JSON value"),
    ({"Version": "2020-01-01", "Statement": [ANY]}, "has the unknown version '2020-01-01'"),
    ({"Statements": [ANY]}, "has an unknown element: Statements"),
    ({"Id": 5, "Statement": [ANY]}, "the Id of the key policy is not a string"),
    ({**ANY, "Conditions": {}}, "the element Conditions is unknown"),
    ({**ANY, "effect": "Deny"}, "the element effect is unknown"),
    ({**ANY, "Effect": "allow"}, "neither Allow nor Deny"),
    ({**ANY, "Sid": 1}, "its Sid is not a string"),
    ({**ANY, "NotAction": "kms:*"}, "it has both Action and NotAction"),
    ({"Effect": "Allow", "Principal": "*", "Resource": "*"}, "it has neither Action nor NotAction"),
    ({"Effect": "Allow", "Principal": "*", "Action": "kms:*"}, "it has neither Resource nor NotResource"),
    ({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}, "it has no Principal"),
    ({**ANY, "Action": []}, "its Action is neither"),
    ({**ANY, "Action": "Decrypt"}, "neither * nor SERVICE:NAME"),
    ({**ANY, "Action": "s3:GetObject"}, "is not an action of KMS"),
    ({**ANY, "Action": "kms:Decrpyt"}, "kms:Decrpyt is not an action of KMS"),
    ({**ANY, "Action": "kms:Frob*"}, "is not an action of KMS"),
    ({**ANY, "Resource": "key/1"}, "neither * nor an ARN"),
    ({**ANY, "Resource": "arn:aws:kms:*:*:key/${x}"}, "policy variables"),
    ({**ANY, "Principal": ROLE}, 'neither "*" nor an object'),
    ({**ANY, "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/*"}}, "wildcards are for conditions"),
    ({**ANY, "Principal": {"AWS": "alice"}}, "the principal alice is neither"),
    ({**ANY, "Principal": {"Federated": "x"}}, "of the kind Federated"),
    ({**ANY, "Principal": {}}, 'neither "*" nor an object'),
    ({"Effect": "Allow", "NotPrincipal": {"AWS": ROLE}, "Action": "kms:*", "Resource": "*"}, "NotPrincipal "
                                                                                             "with Allow"),
    ({**ANY, "Condition": []}, "its Condition is not an object"),
    ({**ANY, "Condition": {"StringEquals": {}}}, "is not an object with condition keys"),
    ({**ANY, "Condition": {"StringEquals": {PCR0: None}}}, "is not a string, a number"),
    ({**ANY, "Condition": {"StringEquals": {PCR0: []}}}, "has no value"),
    ({**ANY, "Condition": {"StringEquals": {PCR0: "x", PCR0.upper(): "y"}}}, "occurs twice"),
    ({**ANY, "Condition": {"StringEquals": {"kms:RecipientAttestation": "x"}}}, "lacks :ImageSha384"),
    ({**ANY, "Sid": "x" * 40000}, "longer than 32768 bytes"),
]  # fmt: skip


def test_what_is_not_understood_is_refused() -> None:
    for given_, text in BROKEN:
        whole = isinstance(given_, dict) and given_.keys() & {"Statement", "Statements"}
        document = (
            given_ if isinstance(given_, str) else json.dumps(given_ if whole else {"Statement": [given_]})
        )
        with pytest.raises(KmsPolicyError) as caught:
            parse(document)
        assert text in str(caught.value)


def test_an_iam_policy_may_be_about_other_services_too() -> None:
    """What concerns them is not judged: their keys and variables are not ours to know."""
    s3 = {"Effect": "Allow", "Action": ["s3:Get*", "sts:AssumeRole"],
    "Resource": "arn:aws:s3:::b/${aws:username}",
          "Condition": {"StringLike": {"s3:prefix": "x"}}}  # fmt: skip
    read = parse(policy(s3, {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}), "iam")
    assert [s.takes_action("kms:Decrypt") for s in read.statements] == [False, True]
    with pytest.raises(KmsPolicyError, match="must not have a Principal"):
        parse(policy(ANY), "iam")


def test_callers() -> None:
    assert parse_caller(SESSION) == APP and APP.full_arn == SESSION
    assert parse_caller(ROOT) == Caller(ROOT) and Caller(ROOT).is_root
    assert parse_caller(f"arn:aws:iam::{ACCOUNT}:role/deep/path/app") is not None
    for text in ("", "*", ACCOUNT, f"arn:aws:iam::{ACCOUNT}:group/x", "arn:aws:iam::1:role/x", f"{ROLE}\n"):
        assert parse_caller(text) is None, text


# --- against another evaluator ---------------------------------------------------------------------------


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_wildcards_are_fnmatch_s(pattern: str, text: str) -> None:
    assert like(pattern, text) is fnmatch.fnmatchcase(text, pattern)


ACTIONS = ("kms:Decrypt", "kms:Encrypt", "kms:*", "kms:D*")
PRINCIPALS: tuple[Any, ...] = (
    "*",
    {"AWS": ROLE},
    {"AWS": SESSION},
    {"AWS": ROOT},
    {"AWS": USER},
    {"AWS": [USER, ROLE]},
)
CALLERS = (APP, Caller(USER), Caller(ROOT), Caller(ROLE, "other"))
CONDITIONS: tuple[dict[str, Any], ...] = (
    {}, {"StringEquals": {PCR0: "aa"}}, {"StringNotEquals": {PCR0: ["aa", "bb"]}}, {"Null": {PCR0: "true"}},
    {"Null": {PCR0: "false"}, "StringLike": {PCR0: "a*"}}, {"StringEqualsIfExists": {PCR0: "bb"}},
)  # fmt: skip
statements = st.fixed_dictionaries(
    {"Effect": st.sampled_from(["Allow", "Allow", "Deny"]), "Principal": st.sampled_from(PRINCIPALS),
     "Action": st.sampled_from(ACTIONS), "Resource": st.sampled_from(["*", KEY, f"{KEY}x"]),
     "Condition": st.sampled_from(CONDITIONS)}
)  # fmt: skip


def small(
    caller: Caller, action: str, pcr0: str | None, key_policy: list[dict[str, Any]], iam: list[dict[str, Any]]
) -> bool:
    """IAM's rules in as few words as they can be said in, over plain JSON."""

    def condition(block: dict[str, Any]) -> bool:
        results = []
        for operator, wanted in ((o, v) for o, b in block.items() for v in b.values()):
            options = wanted if isinstance(wanted, list) else [wanted]
            if operator == "Null":
                results.append((pcr0 is None) == (wanted == "true"))
            elif pcr0 is None:
                results.append(operator in ("StringNotEquals", "StringEqualsIfExists"))
            elif operator == "StringNotEquals":
                results.append(pcr0 not in options)
            else:
                results.append(any(fnmatch.fnmatchcase(pcr0, o) for o in options))
        return all(results)

    def about(s: dict[str, Any]) -> bool:
        return (fnmatch.fnmatchcase(action, s["Action"]) and fnmatch.fnmatchcase(KEY, s["Resource"])
                and condition(s["Condition"]))  # fmt: skip

    def named(s: dict[str, Any]) -> set[str]:
        if s["Principal"] == "*":
            return {"me"}
        listed = s["Principal"]["AWS"]
        listed = [listed] if isinstance(listed, str) else listed
        me = {caller.arn, caller.full_arn}
        return {"me" for p in listed if p in me} | {"account" for p in listed if p == ROOT}

    mine = [s for s in key_policy if about(s)]
    own = [s for s in iam if about(s)]
    if any(s["Effect"] == "Deny" and named(s) for s in mine) or any(s["Effect"] == "Deny" for s in own):
        return False
    if any(s["Effect"] == "Allow" and "me" in named(s) for s in mine):
        return True
    trusted = any(s["Effect"] == "Allow" and "account" in named(s) for s in mine)
    return trusted and any(s["Effect"] == "Allow" for s in own)


@given(
    st.lists(statements, min_size=1, max_size=4), st.lists(statements, max_size=3), st.sampled_from(CALLERS),
    st.sampled_from(["kms:Decrypt", "kms:Encrypt"]), st.sampled_from([None, "aa", "bb", "cc"]),
)  # fmt: skip
def test_a_tiny_evaluator_agrees(
    key_policy: list[dict[str, Any]], iam: list[dict[str, Any]], caller: Caller, action: str, pcr0: str | None
) -> None:
    context = {} if pcr0 is None else {PCR0: (pcr0,)}
    found = decide(*key_policy, caller=caller, action=action, context=context, iam=iam)
    assert found.allowed is small(caller, action, pcr0, key_policy, iam), found.why


def test_every_pair_of_principal_and_caller() -> None:
    for principal, caller in itertools.product(PRINCIPALS, CALLERS):
        statement = {**ANY, "Principal": principal, "Action": "kms:Decrypt", "Condition": {}}
        for iam in ([], [statement]):
            found = decide(statement, caller=caller, iam=iam).allowed
            assert found is small(caller, "kms:Decrypt", None, [statement], iam), (principal, caller, iam)
