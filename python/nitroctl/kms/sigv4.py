# SPDX-License-Identifier: MIT
"""Verifies who signed a request: AWS Signature Version 4. Nothing is authorised here.

The signature is checked over the Host header as the client sent it: the client may come through vsock and
name a server far away. The error texts are AWS's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, quote

from nitroctl.base.instants import UTC
from nitroctl.kms.errors import KmsError

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=5)
_STAMP = "%Y%m%dT%H%M%SZ"
_FIELDS = re.compile(r"\s*(Credential|SignedHeaders|Signature)=([^,\s]*)\s*")


@dataclass(frozen=True)
class Credential:
    access_key: str
    secret: str
    token: str | None
    arn: str
    session: str | None
    expires: float | None


@dataclass(frozen=True)
class Received:
    """An HTTP request as received."""

    method: str
    target: str  # path and query
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The header's value; several values are joined as in a canonical request."""
        found = [value for key, value in self.headers if key.lower() == name]
        return ",".join(found) if found else None


def _bad(kind: str, text: str, why: str | None = None) -> KmsError:
    return KmsError(kind, text, why=why)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _uri(text: str) -> str:
    return quote(text, safe="-_.~")


def canonical(request: Received, signed: Sequence[str]) -> str:
    path, _, query = request.target.partition("?")
    arguments = sorted((_uri(k), _uri(v)) for k, v in parse_qsl(query, keep_blank_values=True))
    lines = [f"{name}:{' '.join((request.header(name) or '').split())}\n" for name in signed]
    digest = hashlib.sha256(request.body).hexdigest()
    return "\n".join(
        [request.method, quote(path or "/", safe="/-_.~%"), "&".join(f"{k}={v}" for k, v in arguments),
         "".join(lines), ";".join(signed), digest]
    )  # fmt: skip


def signature(secret: str, stamp: str, scope: str, text: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    whole = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(text.encode()).hexdigest()])
    return hmac.new(key, whole.encode(), "sha256").hexdigest()


def access_key(request: Received) -> str | None:
    """The access key that a request names; not verified."""
    match = re.search(r"Credential=([^/,\s]+)/", request.header("authorization") or "")
    return match[1] if match else None


def verify(
    request: Received, region: str, find: Callable[[str], Credential | None], now: datetime | None = None
) -> Credential:
    """Verify a request's signature; returns the credential that made it. Raises KmsError."""
    now = now or datetime.now(UTC)
    header = request.header("authorization")
    if header is None:
        raise _bad("MissingAuthenticationTokenException", "Missing Authentication Token",
                   "the request has no Authorization header")  # fmt: skip
    algorithm, _, rest = header.strip().partition(" ")
    if algorithm != ALGORITHM:
        raise _bad("IncompleteSignatureException", f"Unsupported algorithm: only {ALGORITHM} is served")
    fields = {}
    for part in rest.split(","):
        if match := _FIELDS.fullmatch(part):
            fields[match[1]] = match[2]
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not fields.get(name):
            raise _bad("IncompleteSignatureException", f"Authorization header requires '{name}' parameter.")
    key_id, _, scope = fields["Credential"].partition("/")
    signed = fields["SignedHeaders"].split(";")
    stamp = request.header("x-amz-date")
    if stamp is None or not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", stamp):
        raise _bad("IncompleteSignatureException", "Authorization header requires existence of a valid "
                   "'X-Amz-Date' header.")  # fmt: skip
    credential = find(key_id)
    if credential is None:
        raise _bad(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            f"no caller here has the access key {key_id}; `nitroctl kms credentials` makes them",
        )
    token = request.header("x-amz-security-token")
    if not hmac.compare_digest((credential.token or "").encode(), (token or "").encode()):
        raise _bad("UnrecognizedClientException", "The security token included in the request is invalid.",
                   f"the session token does not belong to the access key {key_id}")  # fmt: skip
    if credential.expires is not None and now.timestamp() > credential.expires:
        raise _bad("ExpiredTokenException", "The security token included in the request is expired")
    _check_scope(scope, stamp, region)
    _check_signed(request, signed)
    _check_time(stamp, now)
    declared = request.header("x-amz-content-sha256")
    if declared is not None and declared != hashlib.sha256(request.body).hexdigest():
        raise _bad("InvalidSignatureException", "The value of X-Amz-Content-Sha256 is not the body's hash.")
    wanted = signature(credential.secret, stamp, scope, canonical(request, signed))
    if not hmac.compare_digest(wanted.encode(), fields["Signature"].encode(errors="replace")):
        raise _bad(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS "
            "Secret "
            "Access Key and signing method. Consult the service documentation for details.",
            f"the signature does not match the secret key of {key_id} and the request, with the host "
            f"{request.header('host')}",
        )
    return credential


def _check_scope(scope: str, stamp: str, region: str) -> None:
    parts = scope.split("/")
    if len(parts) != 4 or parts[3] != "aws4_request":
        raise _bad("IncompleteSignatureException", "Credential must have exactly 5 slash-delimited elements")
    if parts[0] != stamp[:8]:
        raise _bad("InvalidSignatureException", "Date in Credential scope does not match YYYYMMDD from "
                                                "ISO-8601 "
                   "version of date from HTTP")  # fmt: skip
    if parts[1] != region:
        raise _bad(
            "InvalidSignatureException",
            f"Credential should be scoped to a valid region, not '{parts[1]}'.",
            f"this KMS serves {region}: give the client that region, or --region {parts[1]} to the server",
        )
    if parts[2] != "kms":
        raise _bad("InvalidSignatureException", "Credential should be scoped to correct service: 'kms'.")


def _check_signed(request: Received, signed: Sequence[str]) -> None:
    if list(signed) != sorted(set(signed)) or any(name != name.lower() for name in signed):
        raise _bad("InvalidSignatureException", "SignedHeaders is not in lower case and order.")
    present = {key.lower() for key, _ in request.headers}
    must = {"host", *(name for name in present if name.startswith("x-amz-"))}
    if missing := sorted(must - set(signed)):
        raise _bad(
            "InvalidSignatureException", f"'{missing[0]}' must be a 'SignedHeader' in the AWS Authorization."
        )
    if absent := sorted(set(signed) - present):
        raise _bad("InvalidSignatureException", f"The signed header '{absent[0]}' is not in the request.")


def _check_time(stamp: str, now: datetime) -> None:
    try:
        at = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError as e:
        raise _bad(
            "IncompleteSignatureException", f"Date must be in ISO-8601 'basic format'. Got '{stamp}'."
        ) from e
    if at < now - SKEW:
        limit = now - SKEW
        raise _bad("InvalidSignatureException", f"Signature expired: {stamp} is now earlier than "
                                                f"{limit:{_STAMP}} "
                   f"({now:{_STAMP}} - 5 min.)", "the client's clock is behind")  # fmt: skip
    if at > now + SKEW:
        limit = now + SKEW
        raise _bad("InvalidSignatureException", f"Signature not yet current: {stamp} is still later than "
                   f"{limit:{_STAMP}} ({now:{_STAMP}} + 5 min.)", "the client's clock is ahead")  # fmt: skip
