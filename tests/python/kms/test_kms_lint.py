# SPDX-License-Identifier: MIT
"""`kms policy lint`: each rule by a policy that breaks it alone, and none for a good one."""

from __future__ import annotations

from typing import Any

from kms_world import ADMINISTRATION, IMAGE, ROLE, ROOT, allow, attested, policy
from nitroctl.kms.lint import lint

ZERO = "0" * 96
GUARD = allow(ROOT, ["kms:Put*", "kms:Get*", "kms:Describe*"], Sid="Administration")


def when(
    operator: str, key: str, value: Any, action: Any = "kms:Decrypt", principal: str = ROLE
) -> dict[str, Any]:
    return allow(principal, action, Condition={operator: {f"kms:{key}": value}})


PCR0, PCR3 = "RecipientAttestation:PCR0", "RecipientAttestation:PCR3"

TABLE: list[tuple[dict[str, Any], list[str]]] = [
    # a statement beside a good one -> the rules that it breaks
    (attested(sid="Good"), []),
    (when("StringEquals", PCR3, IMAGE), []),
    (when("StringEqualsIgnoreCase", PCR3, IMAGE.upper()), []),
    (when("StringLike", PCR3, "a*"), []),
    (allow(ROOT, "kms:*"), ["root-statement"]),
    (allow(ROOT, "kms:Decrypt"), ["root-statement"]),
    (allow("*", "kms:Decrypt"), ["everybody"]),
    (allow(ROLE, "kms:Decrypt"), ["without-document"]),
    (allow(ROLE, "kms:Encrypt"), []),
    (when("StringEquals", PCR0, "abc"), ["not-a-pcr"]),
    (when("StringEquals", PCR0, IMAGE[:-1] + "g"), ["not-a-pcr"]),
    (when("StringLike", PCR0, "abc"), ["not-a-pcr"]),
    (when("StringEquals", PCR0, IMAGE.upper()), ["capitals"]),
    (when("StringEquals", PCR0, ZERO), ["all-zeros"]),
    (when("StringEquals", PCR3, ZERO), ["all-zeros"]),
    (when("StringEquals", "RecipientAttestation:PCR5", ZERO), []),
    (when("StringEquals", "RecipientAttestation:PCR5", IMAGE), ["never"]),
    (when("StringEquals", PCR0, IMAGE, ["kms:Decrypt", "kms:Encrypt"]), ["no-recipient"]),
    (when("StringEquals", PCR0, IMAGE, "kms:ReEncrypt*"), ["no-recipient"]),
    (when("StringEquals", PCR0, IMAGE, "kms:*"), []),
    (when("StringNotEquals", PCR0, IMAGE), ["without-document", "holds-without"]),
    (when("StringEqualsIfExists", PCR0, IMAGE), ["without-document", "holds-without"]),
    (when("Null", PCR0, "true"), ["without-document", "holds-without"]),
    (when("Null", PCR0, "false"), []),
    (when("StringEquals", "ViaService", "s3.us-east-1.amazonaws.com"), ["without-document", "via-service"]),
    ({**when("StringNotEquals", PCR0, IMAGE, principal="*"), "Effect": "Deny"}, []),
    (allow(ROLE, "kms:CreateGrant",
    Condition={"ForAllValues:StringEquals": {"kms:GrantOperations": "Encrypt"}}),
     ["for-all-values"]),
]  # fmt: skip


def test_rules() -> None:
    for statement, rules in TABLE:
        found = lint(policy(GUARD, attested(), statement))
        assert [finding.rule for finding in found] == rules, (statement, found)
        assert all(finding.where.startswith("statement 3") for finding in found)


def test_the_pcrs_of_images() -> None:
    own, other = {"app.eif": {0: IMAGE, 1: "1" * 96}}, {"old.eif": {0: "2" * 96}}
    text = policy(ADMINISTRATION, attested())
    assert lint(text, own) == lint(text, own | other) == lint(text) == []
    (found,) = lint(text, other)
    assert found.rule == "no-image" and "belongs to none of old.eif" in found.text
    assert str(found).startswith('statement 2 ("Enclave") of the key policy: ') and str(found).endswith(
        "[no-image]"
    )
    # PCR3 is not the image's to have.
    assert lint(policy(ADMINISTRATION, when("StringEquals", PCR3, "3" * 96)), other) == []


def test_what_zeros_mean_depends_on_the_pcr() -> None:
    for pcr, text in (
        (0, "in debug mode"),
        (8, "for every unsigned image, and in debug mode"),
        (3, "whose parent has no role"),
        (16, "that has not extended it"),
        (4, "in no enclave"),
    ):
        (found,) = lint(
            policy(GUARD, attested(), when("StringEquals", f"RecipientAttestation:PCR{pcr}", ZERO))
        )
        assert found.rule == "all-zeros" and text in found.text
