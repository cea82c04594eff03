# SPDX-License-Identifier: MIT
"""A local KMS in this process: `nitroctl kms serve` runs it, and tests use it as `nitroctl.Kms`.

    with nitroctl.Kms() as kms:
        key = kms.create_key(policy=text, alias="alias/app")
        secret = kms.encrypt(key, b"secret")
        enclave = nitroctl.Enclave("app.eif", listen_port=[kms.parent_port])

Without a folder the keys exist only as long as the Kms does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket as socketlib
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nitroctl.base import config
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.kms import callers, events, faults, images, names, server, tls
from nitroctl.kms.call import Answer
from nitroctl.kms.envelope import FORMS, Form
from nitroctl.kms.errors import KmsError
from nitroctl.kms.keys import Place
from nitroctl.kms.recipient import Verifier
from nitroctl.kms.service import Service
from nitroctl.kms.shapes import SHAPES
from nitroctl.kms.store import Store
from nitroctl.kms.upstream import Upstream
from nitroctl.vsock import sockets

if TYPE_CHECKING:
    from cryptography import x509
    from typing_extensions import Self

DEFAULT_ACCOUNT = "000000000000"
EVENTS = 10000  # how many are kept in memory
VSOCK_PORT = 8000  # where AWS's vsock-proxy serves KMS, and where kmstool expects it
StrPath = str | os.PathLike[str]


def default_region() -> str:
    """The region from the variables that clients read too, so that server and clients agree."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def place(region: str | None, account: str) -> Place:
    if not names.ACCOUNT.fullmatch(account):
        raise UsageError(f"the account {account!r} is not an account id: it must have 12 digits")
    region = region or default_region()
    if not 3 <= len(region) <= 32 or not region.replace("-", "").isalnum() or not region.isascii():
        raise UsageError(f"{region!r} is not the name of a region, such as us-east-1")
    return Place(account, region)


def root_of(source: StrPath | bytes | None) -> x509.Certificate:
    """The root certificate under which documents are verified: the user's own CA, unless `source` is
    given."""
    from nitroctl.attestation import pki
    from nitroctl.attestation.verification import load_root

    if source is None:
        return pki.load_or_init().certificate
    return load_root(source if isinstance(source, bytes) else os.fspath(source))


class Kms:
    """A local KMS that runs during this object's `with` block (or from `start` to `close`).

    From `start` on clients reach it at `url` (HTTP and, with `tls`, also TLS), and enclaves through the unix
    socket `socket`. The methods act as the store's owner, to whom no policy applies; a client acts as the
    user or role whose credentials it has from `environment`.
    """

    def __init__(
        self,
        folder: StrPath | None = None,
        *,
        region: str | None = None,
        account: str = DEFAULT_ACCOUNT,
        listen: str | None = "127.0.0.1:0",
        root: StrPath | bytes | None = None,
        tls: bool = True,
        authenticate: bool = True,
        form: Form = "segmented",
        max_age: float | None = None,
        allow_unmeasured: bool = False,
        eifs: Sequence[StrPath] = (),
        inject: Sequence[str] = (),
        upstream: str | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if form not in FORMS:
            raise UsageError(f"the form {form!r} is unknown; use one of: {', '.join(FORMS)}")
        self._place = place(region, account)
        self._faults = faults.Faults(*map(faults.parse, inject))
        self._upstream = Upstream(upstream) if upstream else None
        self._options = {"authenticate": authenticate, "form": form}
        self._max_age = None if max_age is None else timedelta(seconds=max_age)
        self._allow_unmeasured = allow_unmeasured
        self._folder = None if folder is None else Path(folder)
        self._listen, self._tls, self._root, self._eifs = listen, tls, root, [Path(eif) for eif in eifs]
        self._on_event = on_event
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._news = threading.Condition()
        self._resources = contextlib.ExitStack()
        self._service: Service | None = None
        self._server: server.Server | None = None
        self._url: str | None = None
        self._socket: Path | None = None

    # ---- start and end ----

    def start(self) -> Self:
        """Raises NitroError."""
        if self._service:
            raise UsageError("a Kms object can be started only once; make another one")
        try:
            folder = self._folder
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="nitroctl-kms-"))
                self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
            store = Store(folder)
            self._resources.callback(store.close)
            verifier = Verifier(root_of(self._root), self._max_age, allow_unmeasured=self._allow_unmeasured)
            log = events.Log(store.folder, self._heard)
            self._service = Service(store, self._place, verifier, log, faults=self._faults, **self._options)  # type: ignore[arg-type]
            context = tls.context(store.folder, self.region) if self._tls else None
            for eif in self._eifs:
                self.remember(eif)
            self._server = server.Server(self._service, context, self._upstream)
            self._resources.callback(self._server.close)
            if self._listen is not None:
                listener = server.listen_tcp(self._listen)
                self._server.serve(listener)
                self._url = server.url_of(listener)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self if self._service else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def service(self) -> Service:
        if self._service is None:
            raise UsageError("the Kms has not been started; use it in a `with` block or call start()")
        return self._service

    # ---- where it is ----

    @property
    def region(self) -> str:
        return self._place.region

    @property
    def account(self) -> str:
        return self._place.account

    @property
    def url(self) -> str:
        """For AWS_ENDPOINT_URL_KMS."""
        _ = self.service
        if self._url is None:
            raise UsageError("this Kms has no TCP port, because its `listen` is None")
        return self._url

    @property
    def socket(self) -> Path:
        """The unix socket on which it serves the same."""
        _ = self.service
        if self._socket is None:
            folder = Path(tempfile.mkdtemp(prefix="kms-", dir=config.runtime_dir()))
            self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
            self.serve_socket(sockets.serve(folder / "kms", backlog=server.BACKLOG))
            self._socket = folder / "kms"
        return self._socket

    @property
    def parent_port(self) -> str:
        """A value for an enclave's `listen_port`: the enclave then finds this KMS at the parent's vsock port
        8000, where AWS's vsock-proxy would be."""
        return f"{VSOCK_PORT}={self.socket}"

    @property
    def ca(self) -> Path:
        """The PEM file of the CA that signed its TLS certificate."""
        return tls.ca_file(self.service.store.folder, self.region)

    def serve_socket(self, listener: sockets.Listener) -> None:
        """Serve also on a unix socket, which is removed in the end."""
        assert self._server is not None
        self._resources.callback(listener.close)
        self._server.serve(listener.socket)

    def serve_descriptor(self, listener: socketlib.socket) -> None:
        """Serve also on a socket that already listens."""
        assert self._server is not None
        self._server.serve(listener)

    # ---- callers ----

    def environment(
        self,
        arn: str | None = None,
        *,
        session: str | None = None,
        policy: str | None = None,
        seconds: float = 43200,
    ) -> dict[str, str]:
        """The environment variables with which an AWS SDK calls this KMS as a user or a role (default: the
        administrator, whose IAM policy allows everything). `policy`, if given, replaces the IAM policies of
        that user or role."""
        store = self.service.store
        if arn is None:
            credential = callers.admin(store, self.account)
        else:
            if policy is not None:
                callers.put_policies(store, arn, {"policy": policy})
            credential = callers.issue(store, arn, session, seconds)
        found = callers.environment(credential, self.region)
        return found | ({"AWS_ENDPOINT_URL_KMS": self._url} if self._url else {})

    # ---- keys, by their owner ----

    def call(self, operation: str, **parameters: Any) -> Answer:
        """Do any operation, by its AWS name; binary parameters are given as bytes. Raises NitroError where
        AWS would refuse."""
        if operation not in SHAPES:
            raise UsageError(f"{operation} is not an operation of this local KMS")
        given = json.loads(json.dumps(parameters, default=_encoded))
        try:
            return self.service.call(operation, given)
        except KmsError as e:
            raise NitroError(f"{operation}: {e.kind.removesuffix('Exception')}: {e.why}") from e

    def create_key(self, *, policy: str | None = None, alias: str | None = None, **more: Any) -> str:
        """Make a key and return its ARN. `more` are parameters of CreateKey."""
        if policy is not None:
            more["Policy"] = policy
        made = self.call("CreateKey", **more)["KeyMetadata"]
        if alias is not None:
            self.call("CreateAlias", AliasName=alias, TargetKeyId=made["KeyId"])
        arn: str = made["Arn"]
        return arn

    def put_policy(self, key: str, policy: str) -> None:
        self.call("PutKeyPolicy", KeyId=key, Policy=policy)

    def encrypt(self, key: str, plaintext: bytes, context: Mapping[str, str] | None = None) -> bytes:
        more = {"EncryptionContext": dict(context)} if context else {}
        blob: bytes = self.call("Encrypt", KeyId=key, Plaintext=plaintext, **more)["CiphertextBlob"]
        return blob

    def decrypt(self, blob: bytes, context: Mapping[str, str] | None = None) -> bytes:
        more = {"EncryptionContext": dict(context)} if context else {}
        plaintext: bytes = self.call("Decrypt", CiphertextBlob=blob, **more)["Plaintext"]
        return plaintext

    def remember(self, eif: StrPath) -> dict[int, str]:
        """Measure an EIF, so that explanations can name it; returns its PCRs."""
        pcrs = images.pcrs_of(Path(eif))
        images.remember(self.service.store, Path(eif), pcrs)
        return pcrs

    # ---- events and faults ----

    def _heard(self, happened: dict[str, Any]) -> None:
        with self._news:
            self._events.append(happened)
            self._news.notify_all()
        if self._on_event:
            self._on_event(happened)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The requests since `start`, oldest first: CloudTrail events with the reason for each decision."""
        with self._news:
            return list(self._events)

    def wait_event(self, operation: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait for the first event of an operation, which may already have happened. Raises TimeoutError."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self._events if event["eventName"] == operation), None)

        with self._news:
            event = self._news.wait_for(found, timeout)
        if event is None:
            raise TimeoutError(f"no request for {operation} came within {timeout:g} s")
        return event

    def inject(self, *texts: str) -> None:
        """Make requests fail from now on: "throttle*2", "slow=1.5@Decrypt", "internal", "expired"."""
        for text in texts:
            self._faults.add(faults.parse(text))

    def clear_faults(self) -> None:
        self._faults.clear()


def _encoded(value: Any) -> str:
    import base64

    if not isinstance(value, bytes | bytearray):
        raise UsageError(f"{value!r} is neither JSON nor bytes")
    return base64.b64encode(value).decode()
