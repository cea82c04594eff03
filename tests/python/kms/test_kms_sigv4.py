# SPDX-License-Identifier: MIT
"""Signatures in one process, signed by botocore: headers that were changed afterwards, or were signed as
Signature Version 4 forbids. The texts are AWS's."""

from __future__ import annotations

import hashlib

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kms_world import ROLE
from nitroctl.kms import sigv4
from nitroctl.kms.errors import KmsError
from nitroctl.kms.sigv4 import Received

REGION = "eu-central-1"
HOST = "kms.eu-central-1.amazonaws.com"
CREDENTIAL = sigv4.Credential("AKIA", "secret", None, ROLE, None, None)


def signed(target: str = "/", body: bytes = b"{}", **headers: str) -> dict[str, str]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = AWSRequest("POST", f"https://{HOST}{target}", data=body, headers={"Host": HOST} | given)
    SigV4Auth(Credentials("AKIA", "secret"), "kms", REGION).add_auth(request)
    return dict(request.headers.items())


def verify(headers: dict[str, str], target: str = "/", body: bytes = b"{}") -> sigv4.Credential:
    request = Received("POST", target, list(headers.items()), body)
    return sigv4.verify(request, REGION, lambda _: CREDENTIAL)


def refused(kind: str, text: str, headers: dict[str, str], body: bytes = b"{}") -> None:
    with pytest.raises(KmsError) as caught:
        verify(headers, body=body)
    assert caught.value.kind == kind and text in (caught.value.text or ""), caught.value


def changed(headers: dict[str, str], old: str, new: str) -> dict[str, str]:
    assert old in headers["Authorization"]
    return headers | {"Authorization": headers["Authorization"].replace(old, new)}


@pytest.mark.parametrize("target", ["/", "/?a=1&b=2", "/?b=2&a=%20%2F&empty="])
def test_what_botocore_signs_is_good(target: str) -> None:
    assert verify(signed(target), target) == CREDENTIAL


def test_the_body_s_hash_is_held_to() -> None:
    digest = hashlib.sha256(b"{}").hexdigest()
    assert verify(signed(X_Amz_Content_SHA256=digest)) == CREDENTIAL
    wrong = signed(X_Amz_Content_SHA256=hashlib.sha256(b"x").hexdigest())
    refused("InvalidSignatureException", "Content-Sha256 is not the body's hash", wrong)


def test_dates() -> None:
    good = signed()
    incomplete = "IncompleteSignatureException"
    for stamp in ("20260101", "2026-01-01T00:00:00Z"):
        refused(incomplete, "existence of a valid 'X-Amz-Date' header", good | {"X-Amz-Date": stamp})
    without = {name: value for name, value in good.items() if name != "X-Amz-Date"}
    refused(incomplete, "existence of a valid 'X-Amz-Date' header", without)
    # A date of the right form that is none.
    day = good["X-Amz-Date"][:8]
    none = changed(good, f"/{day}/", "/20261301/") | {"X-Amz-Date": "20261301T000000Z"}
    refused(incomplete, "Date must be in ISO-8601 'basic format'. Got '20261301T000000Z'.", none)
    refused(
        "InvalidSignatureException",
        "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP",
        changed(good, f"/{day}/", "/20200101/"),
    )


def test_scopes_and_signed_headers() -> None:
    good = signed()
    five = "Credential must have exactly 5 slash-delimited elements"
    refused("IncompleteSignatureException", five, changed(good, "/aws4_request", ""))
    refused("IncompleteSignatureException", five, changed(good, "/aws4_request", "/aws3_request"))
    invalid = "InvalidSignatureException"
    order = "SignedHeaders is not in lower case and order"
    for names in ("x-amz-date;host", "Host;x-amz-date", "host;host;x-amz-date"):
        refused(invalid, order, changed(good, "SignedHeaders=host;x-amz-date", f"SignedHeaders={names}"))
    absent = changed(good, "SignedHeaders=host;x-amz-date", "SignedHeaders=host;range;x-amz-date")
    refused(invalid, "The signed header 'range' is not in the request", absent)
    unsigned = changed(good, "SignedHeaders=host;x-amz-date", "SignedHeaders=x-amz-date")
    refused(invalid, "'host' must be a 'SignedHeader'", unsigned)
