# SPDX-License-Identifier: MIT
"""A stand-in for the parent instance's metadata service (IMDSv2): the instance's id, its region, and
credentials of its role that the local KMS accepts. It serves nothing else.

An ordinary user cannot listen on 169.254.169.254. So vsock-preload.so redirects connections to that address
to a port of ours, and SDKs and the AWS CLI take another address from AWS_EC2_METADATA_SERVICE_ENDPOINT. As at
AWS a client must get a token first, and a request through a proxy gets none. Other users of this host get
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nitroctl.base.arch import host
from nitroctl.base.errors import UsageError
from nitroctl.base.instants import UTC
from nitroctl.kms import callers, names
from nitroctl.kms.sigv4 import Credential
from nitroctl.kms.store import Store

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
TOKEN_SECONDS = 21600  # the longest life of a token, as at AWS
SESSION_SECONDS = 6 * 3600.0
FRESH_SECONDS = 900.0  # a new session is made when the current one has less than this left
TOKENS = 1024
_TTL, _TOKEN = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"


@dataclass(frozen=True)
class Instance:
    role: str | None  # its ARN, which PCR3 measures
    instance_id: str  # which PCR4 measures
    region: str
    account: str

    def __post_init__(self) -> None:
        found = names.parse_caller(self.role) if self.role else None
        if self.role and (found is None or ":role/" not in self.role):
            raise UsageError(f"{self.role} is not the ARN of a role")

    @property
    def role_name(self) -> str:
        return (self.role or "").rpartition("/")[2]


class Metadata:
    """The metadata, and the tokens that give access to it. Thread-safe."""

    def __init__(self, instance: Instance, store: Store) -> None:
        self._instance, self._store = instance, store
        self._tokens: dict[str, float] = {}
        self._credential: Credential | None = None
        self._lock = threading.Lock()

    def new_token(self, seconds: int) -> str:
        token = secrets.token_urlsafe(40)
        with self._lock:
            now = time.monotonic()
            self._tokens = {t: end for t, end in self._tokens.items() if end > now}
            while len(self._tokens) >= TOKENS:
                del self._tokens[next(iter(self._tokens))]
            self._tokens[token] = now + seconds
        return token

    def knows(self, token: str) -> bool:
        with self._lock:
            return self._tokens.get(token, 0.0) > time.monotonic()

    def get(self, path: str) -> str | None:
        """The text at a path; None if there is none."""
        instance = self._instance
        document = {
            "accountId": instance.account, "architecture": "arm64" if host() == "aarch64" else "x86_64",
            "availabilityZone": f"{instance.region}a",
            "instanceId": instance.instance_id, "region": instance.region, "version": "2017-09-30",
        }  # fmt: skip
        known = {
            "/latest/meta-data": "iam/\ninstance-id\nplacement/"
            if instance.role
            else "instance-id\nplacement/",
            "/latest/meta-data/instance-id": instance.instance_id,
            "/latest/meta-data/placement": "availability-zone\nregion",
            "/latest/meta-data/placement/region": instance.region,
            "/latest/meta-data/placement/availability-zone": f"{instance.region}a",
            "/latest/dynamic/instance-identity/document": json.dumps(document, indent=2),
        }
        path = path.rstrip("/")
        if instance.role and path.startswith("/latest/meta-data/iam"):
            known |= {
                "/latest/meta-data/iam": "info\nsecurity-credentials/",
                "/latest/meta-data/iam/info": json.dumps(self._info(), indent=2),
                "/latest/meta-data/iam/security-credentials": instance.role_name,
                f"/latest/meta-data/iam/security-credentials/{instance.role_name}": json.dumps(
                    self._credentials(), indent=2
                ),
            }
        return known.get(path)

    def _info(self) -> dict[str, str]:
        assert self._instance.role
        profile = self._instance.role.replace(":role/", ":instance-profile/")
        return {"Code": "Success", "LastUpdated": _stamp(time.time()), "InstanceProfileArn": profile}

    def _credentials(self) -> dict[str, str | None]:
        assert self._instance.role
        with self._lock:
            now = time.time()
            found = self._credential
            if found is None or (found.expires or 0) - now < FRESH_SECONDS:
                # AWS names an instance's session after the instance.
                found = callers.issue(
                    self._store, self._instance.role, self._instance.instance_id, SESSION_SECONDS
                )
                self._credential = found
        assert found.expires
        return {
            "Code": "Success", "LastUpdated": _stamp(found.expires - SESSION_SECONDS), "Type": "AWS-HMAC",
            "AccessKeyId": found.access_key, "SecretAccessKey": found.secret, "Token": found.token,
            "Expiration": _stamp(found.expires),
        }  # fmt: skip


def _stamp(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "EC2ws", ""
    timeout = 30.0
    metadata: Metadata

    def log_message(self, format: str, *args: Any) -> None:
        """No log: nobody would read it."""

    def _answer(self, status: int, text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:  # tell the client, or it might send its next request on this connection
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        seconds = self.headers.get(_TTL, "")
        self.close_connection = True  # a body, if there is one, is not read
        if self.headers.get("X-Forwarded-For"):
            self._answer(403)
        elif self.path != "/latest/api/token":
            self._answer(404)
        elif not (seconds.isascii() and seconds.isdecimal() and 1 <= int(seconds[:9]) <= TOKEN_SECONDS):
            self._answer(400)
        else:
            self._answer(200, self.metadata.new_token(int(seconds)))

    def do_GET(self) -> None:
        if not self.metadata.knows(self.headers.get(_TOKEN, "")):
            self._answer(401)
        elif (found := self.metadata.get(self.path)) is None:
            self._answer(404)
        else:
            self._answer(200, found)


def owner_of(table: str, client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The uid that owns the socket `client`, which is connected to `server`. `table` is the text of
    /proc/net/tcp (proc(5)) or of /proc/net/tcp6, where an IPv4 address is in the last 32 bits. None if the
    socket is not in it: a closed one has no owner any more."""

    def shown(end: tuple[str, int]) -> str:
        return f"{int.from_bytes(socket.inet_aton(end[0]), sys.byteorder):08X}:{end[1]:04X}"

    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[9] == "0":
            continue
        if fields[1].endswith(shown(client)) and fields[2].endswith(shown(server)):
            return int(fields[7])
    return None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, metadata: Metadata) -> None:
        handler = type("Handler", (_Handler,), {"metadata": metadata})
        super().__init__(("127.0.0.1", 0), handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Every user of the host can connect to loopback, but the credentials belong to one user."""
        for file in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(OSError):
                uid = owner_of(Path(file).read_text(), client_address, ("127.0.0.1", self.server_port))
                if uid is not None:
                    return uid in (0, os.getuid())
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def beside(instance: Instance, folder: Path | None = None) -> tuple[int, int]:
    """Start a daemon that serves the metadata until the calling process ends, even if that one calls exec().

    Returns two ports of 127.0.0.1: the first for AWS_EC2_METADATA_SERVICE_ENDPOINT, the second for
    vsock-preload.so, which makes it look like 169.254.169.254 to the program. Raises NitroError."""
    Store(folder).close()  # raise here, in the caller, if the store cannot be opened
    metadata = _Later(instance, folder)
    with Server(metadata) as named, Server(metadata) as redirected:
        us = os.pidfd_open(os.getpid())
        try:
            child = os.fork()
            if child == 0:
                _serve_until(metadata, (named, redirected), us)
            os.waitpid(child, 0)
        finally:
            os.close(us)
        return named.server_port, redirected.server_port


class _Later(Metadata):
    """Metadata that opens its store after the fork: SQLite connections must not be used across one."""

    def __init__(self, instance: Instance, folder: Path | None) -> None:
        self._place = instance, folder

    def open(self) -> None:
        instance, folder = self._place
        super().__init__(instance, Store(folder))


def _serve_until(metadata: _Later, servers: Sequence[Server], process: int) -> None:
    """What the child does; it never returns."""
    try:
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            metadata.open()
            for server in servers:
                threading.Thread(target=server.serve_forever, daemon=True).start()
            select.select([process], [], [])
    finally:
        os._exit(0)
