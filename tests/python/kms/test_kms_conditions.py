# SPDX-License-Identifier: MIT
"""Every condition operator against a table. The expected values are those of AWS's IAM reference ("Condition
operators", "Multivalued context keys"), not of our code."""

from __future__ import annotations

import pytest

from nitroctl.kms.conditions import OPERATORS, Context, Unknown, is_recipient, parse_test, recipient_pcr

PCR = "kms:RecipientAttestation:PCR3"
ABC = {PCR.lower(): ("abc",)}
NONE: Context = {}


def one(key: str, value: str) -> Context:
    return {key.lower(): (value,)}


def many(*values: str) -> Context:
    return {"kms:encryptioncontextkeys": values}


ARN = "arn:aws:iam::000000000000:role/app"
WHO = one("aws:PrincipalArn", ARN)
DAYS = one("kms:ScheduleKeyDeletionPendingWindowInDays", "7")
NOW = one("aws:CurrentTime", "2026-05-04T12:00:00+00:00")
EPOCH = one("aws:EpochTime", "1777896000")
IP = one("aws:SourceIp", "10.1.2.3")
TLS = one("aws:SecureTransport", "true")
WINDOW, CONTEXT_KEYS = "kms:ScheduleKeyDeletionPendingWindowInDays", "kms:EncryptionContextKeys"

TABLE: list[tuple[str, str, tuple[str, ...], Context, bool]] = [
    # operator, key, the policy's values, the request's context, whether it holds
    ("StringEquals", PCR, ("abc",), ABC, True),
    ("StringEquals", PCR, ("ABC",), ABC, False),
    ("StringEquals", PCR, ("x", "abc"), ABC, True),  # values are alternatives
    ("StringEquals", PCR, ("abc*",), ABC, False),  # no wildcards
    ("StringEquals", PCR, ("abc",), NONE, False),
    ("StringEqualsIfExists", PCR, ("abc",), NONE, True),
    ("StringEqualsIfExists", PCR, ("x",), ABC, False),
    ("StringEquals", PCR.upper(), ("abc",), ABC, True),  # names of keys have no case
    ("StringNotEquals", PCR, ("abc",), ABC, False),
    ("StringNotEquals", PCR, ("x", "abc"), ABC, False),  # none of them may match
    ("StringNotEquals", PCR, ("x", "y"), ABC, True),
    ("StringNotEquals", PCR, ("abc",), NONE, True),
    ("StringNotEqualsIfExists", PCR, ("abc",), NONE, True),
    ("StringEqualsIgnoreCase", PCR, ("ABC",), ABC, True),
    ("StringEqualsIgnoreCase", PCR, ("ABC",), NONE, False),
    ("StringNotEqualsIgnoreCase", PCR, ("ABC",), ABC, False),
    ("StringNotEqualsIgnoreCase", PCR, ("ABC",), NONE, True),
    ("StringLike", PCR, ("a*",), ABC, True),
    ("StringLike", PCR, ("a?c",), ABC, True),
    ("StringLike", PCR, ("a?",), ABC, False),
    ("StringLike", PCR, ("A*",), ABC, False),
    ("StringLike", PCR, ("*",), NONE, False),
    ("StringNotLike", PCR, ("a*",), ABC, False),
    ("StringNotLike", PCR, ("b*",), ABC, True),
    ("StringNotLike", PCR, ("a*",), NONE, True),
    ("Null", PCR, ("true",), NONE, True),
    ("Null", PCR, ("true",), ABC, False),
    ("Null", PCR, ("false",), ABC, True),
    ("Null", PCR, ("false",), NONE, False),
    ("ArnEquals", "aws:PrincipalArn", (ARN,), WHO, True),
    ("ArnEquals", "aws:PrincipalArn", ("arn:aws:iam::*:role/*",), WHO, True),
    ("ArnLike", "aws:PrincipalArn", ("arn:aws:iam::000000000000:role/a??",), WHO, True),
    ("ArnLike", "aws:PrincipalArn", ("arn:aws:sts::*:role/app",), WHO, False),
    ("ArnNotEquals", "aws:PrincipalArn", (ARN,), WHO, False),
    ("ArnNotLike", "aws:PrincipalArn", ("arn:aws:iam::*:user/*",), WHO, True),
    ("ArnNotLike", "aws:PrincipalArn", (ARN,), NONE, True),
    ("Bool", "aws:SecureTransport", ("true",), TLS, True),
    ("Bool", "aws:SecureTransport", ("false",), TLS, False),
    ("Bool", "aws:SecureTransport", ("false",), NONE, False),
    ("BoolIfExists", "aws:MultiFactorAuthPresent", ("true",), NONE, True),
    ("NumericEquals", WINDOW, ("7.0",), DAYS, True),
    ("NumericNotEquals", WINDOW, ("7",), DAYS, False),
    ("NumericLessThan", WINDOW, ("8",), DAYS, True),
    ("NumericLessThan", WINDOW, ("10",), DAYS, True),  # numbers, not texts
    ("NumericLessThanEquals", WINDOW, ("7",), DAYS, True),
    ("NumericGreaterThan", WINDOW, ("7",), DAYS, False),
    ("NumericGreaterThanEquals", WINDOW, ("7",), DAYS, True),
    ("NumericGreaterThan", WINDOW, ("1",), NONE, False),
    ("NumericNotEquals", WINDOW, ("1",), NONE, True),
    ("DateLessThan", "aws:CurrentTime", ("2026-05-05T00:00:00Z",), NOW, True),
    ("DateGreaterThan", "aws:CurrentTime", ("2026-05-04T14:00:00+02:00",), NOW, False),
    ("DateGreaterThanEquals", "aws:CurrentTime", ("2026-05-04T14:00:00+02:00",), NOW, True),
    ("DateEquals", "aws:CurrentTime", ("1777896000",), NOW, True),  # date -u -d 2026-05-04T12:00Z +%s
    ("DateNotEquals", "aws:CurrentTime", ("1777896000",), NOW, False),
    ("DateLessThanEquals", "aws:CurrentTime", ("2026-05-04",), NOW, False),
    ("NumericLessThan", "aws:EpochTime", ("1777896001",), EPOCH, True),  # of both kinds
    ("DateGreaterThan", "aws:EpochTime", ("2026-05-04T11:59:59Z",), EPOCH, True),
    ("IpAddress", "aws:SourceIp", ("10.0.0.0/8",), IP, True),
    ("IpAddress", "aws:SourceIp", ("10.1.2.4", "2001:db8::/32"), IP, False),
    ("IpAddress", "aws:SourceIp", ("0.0.0.0/0",), NONE, False),  # as over vsock
    ("NotIpAddress", "aws:SourceIp", ("10.0.0.0/8",), IP, False),
    ("NotIpAddress", "aws:SourceIp", ("10.0.0.0/8",), NONE, True),
    ("ForAllValues:StringEquals", CONTEXT_KEYS, ("a", "b"), many("a"), True),
    ("ForAllValues:StringEquals", CONTEXT_KEYS, ("a", "b"), many("a", "c"), False),
    ("ForAllValues:StringEquals", CONTEXT_KEYS, ("a",), NONE, True),  # AWS warns of it, and so do we
    ("ForAnyValue:StringEquals", CONTEXT_KEYS, ("a", "b"), many("c", "a"), True),
    ("ForAnyValue:StringEquals", CONTEXT_KEYS, ("a",), many("c"), False),
    ("ForAnyValue:StringEquals", CONTEXT_KEYS, ("a",), NONE, False),
    ("ForAnyValue:StringEqualsIfExists", CONTEXT_KEYS, ("a",), NONE, True),
    ("ForAllValues:StringNotEquals", CONTEXT_KEYS, ("a",), many("b", "c"), True),
    ("ForAllValues:StringNotEquals", CONTEXT_KEYS, ("a",), many("a", "c"), False),
    ("ForAnyValue:StringNotEquals", CONTEXT_KEYS, ("a",), many("a", "c"), True),
    ("ForAnyValue:StringNotEquals", CONTEXT_KEYS, ("a",), NONE, False),
    ("ForAnyValue:StringLike", "kms:ResourceAliases", ("alias/app-*",),
    {"kms:resourcealiases": ("alias/app-1",)}, True),
    ("StringEquals", "kms:EncryptionContext:App", ("x",), {"kms:encryptioncontext:app": ("x",)}, True),
    ("StringEquals", "aws:ResourceTag/Team", ("x",), {"aws:resourcetag/team": ("x",)}, True),
]  # fmt: skip


def test_every_operator_against_the_table() -> None:
    for operator, key, values, context, expected in TABLE:
        found = parse_test(operator, key, values).holds(context)
        assert found is expected, (operator, key, values, context)


def test_the_table_has_every_operator() -> None:
    assert {row[0].rpartition(":")[2].removesuffix("IfExists") for row in TABLE} == {*OPERATORS, "Null"}


REFUSED = [
    ("StringEqual", PCR, ("x",), "the condition operator StringEqual is unknown"),
    # The reference has this one operator for bytes, and no key of KMS's or of all services' has such values.
    ("BinaryEquals", PCR, ("eA==",), "BinaryEquals is for keys whose values are bytes, and KMS has none"),
    ("BinaryEqualsIfExists", "kms:EncryptionContext:App", ("eA==",), "for keys whose values are bytes"),
    ("ForAnyValue:BinaryEquals", CONTEXT_KEYS, ("eA==",), "for keys whose values are bytes"),
    ("BinaryNotEquals", PCR, ("eA==",), "the condition operator BinaryNotEquals is unknown"),
    ("ForAllValue:StringEquals", PCR, ("x",), "is unknown"),
    ("NullIfExists", PCR, ("true",), "takes neither a scope nor IfExists"),
    ("Null", PCR, ("yes",), "'yes' is neither true nor false"),
    ("StringEquals", "kms:RecipientAttestation", ("x",), "lacks :ImageSha384 or :PCR<n>"),
    ("Null", "kms:RecipientAttestation:", ("true",), "is not a condition key"),
    ("StringEquals", "kms:RecipientAttestation:PCR32", ("x",), "ImageSha384 and PCR0 to PCR31"),
    ("StringEquals", "kms:RecipientAttestation:PCR01", ("x",), "ImageSha384 and PCR0 to PCR31"),
    ("StringEquals", "kms:RecipientAttestation:ImageSha256", ("x",), "ImageSha384 and PCR0 to PCR31"),
    ("StringEquals", "kms:RecipientAttestation:NitroTPMPCR4", ("x",), "NitroTPM documents"),
    ("StringEquals", "kms:EncryptionContext:", ("x",), "is unknown"),
    ("StringEquals", "aws:Nonsense", ("x",), "is unknown"),
    ("StringEquals", "s3:prefix", ("x",), "is unknown"),
    ("StringEquals", CONTEXT_KEYS, ("x",), "ForAllValues: or ForAnyValue:"),
    ("StringEquals", PCR, (), "has no value"),
    ("StringEquals", PCR, ("${aws:username}",), "policy variables are not supported"),
    ("NumericEquals", PCR, ("1",), "does not apply to kms:RecipientAttestation:PCR3"),
    ("NumericEquals", WINDOW, ("seven",), "'seven' is not a number"),
    ("NumericEquals", WINDOW, ("NaN",), "is not a number"),
    ("ArnLike", "aws:PrincipalArn", ("role/app",), "is not an ARN"),
    ("IpAddress", "aws:SourceIp", ("10.0.0/33",), "does not appear to be"),
    ("DateLessThan", "aws:CurrentTime", ("tomorrow",), "Invalid isoformat"),
    ("DateLessThan", "aws:CurrentTime", ("999999999999",), "out of range"),
]


def test_what_is_not_understood_is_refused() -> None:
    for operator, key, values, text in REFUSED:
        with pytest.raises(Unknown) as caught:
            parse_test(operator, key, values)
        assert text in str(caught.value)


def test_a_request_s_value_that_cannot_be_read_matches_nothing() -> None:
    broken = one("aws:SourceIp", "vsock")
    assert not parse_test("IpAddress", "aws:SourceIp", ("0.0.0.0/0",)).holds(broken)


def test_image_sha384_is_pcr0() -> None:
    assert is_recipient("KMS:recipientattestation:pcr4") and not is_recipient("kms:KeySpec")
    assert recipient_pcr("kms:RecipientAttestation:ImageSha384") == 0
    assert recipient_pcr("kms:RecipientAttestation:PCR31") == 31
