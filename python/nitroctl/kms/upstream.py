# SPDX-License-Identifier: MIT
"""Passes requests for other services on to an emulator (--upstream), but none for KMS: the emulator's own KMS
would hand out what ours protects."""

from __future__ import annotations

import http.client
import posixpath
import re
from urllib.parse import unquote, urlsplit

from nitroctl.base.errors import UsageError
from nitroctl.kms.sigv4 import Received

SECONDS = 60.0
# Headers that are not passed on: those of one connection (RFC 9110, section 7.6.1), and those that are set
# anew.
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
        "transfer-encoding", "upgrade", "content-length", "expect"}  # fmt: skip
_SCOPE = re.compile(r"Credential=[^/,\s]+/[^/]*/[^/]*/([^/,\s]+)/", re.IGNORECASE)


def is_kms(request: Received) -> bool:
    """Whether a request is for KMS, by any of the ways in which emulators recognise a service."""
    target, host = request.header("x-amz-target") or "", request.header("host") or ""
    path = unquote(request.target)
    scope = _SCOPE.search(f"{request.header('authorization') or ''} {path}")
    return (
        "trentservice" in f"{target} {path}".lower()
        or host.lower().startswith("kms.")
        or bool(scope and scope[1].lower() == "kms")
    )


def is_blocked(request: Received) -> bool:
    """Whether a request is for the emulator's own API, which could reset the emulator or read its state."""
    path = posixpath.normpath("/" + unquote(request.target.partition("?")[0]).lower()).lstrip("/")
    return path.startswith(("moto-api", "_localstack", "_aws"))


class Upstream:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or port == -1
            or parts.path not in ("", "/")
        ):
            raise UsageError(f"{url} is not of the form http://HOST:PORT")
        self._host, self._port, self._tls = parts.hostname, port, parts.scheme == "https"

    def forward(self, request: Received) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send a request on; returns (status, headers, body). Raises OSError and
        http.client.HTTPException."""
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=SECONDS)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP], body
        finally:
            connection.close()
