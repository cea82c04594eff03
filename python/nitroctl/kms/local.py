# SPDX-License-Identifier: MIT
"""A KMS in this process: what `nitroctl kms serve` runs, and what a test has as `nitroctl.Kms`.

    with nitroctl.Kms() as kms:
        key = kms.create_key(policy=text, alias="alias/app")
        secret = kms.encrypt(key, b"secret")
        enclave = nitroctl.Enclave("app.eif", listen_port=[kms.parent_port])

Without a folder its keys last as long as it does.
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
EVENTS = 10000  # that are kept in memory
VSOCK_PORT = 8000  # where AWS's vsock-proxy serves KMS, and kmstool looks for it
StrPath = str | os.PathLike[str]


def default_region() -> str:
    """The client's own variables, so that both mean one region."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def place(region: str | None, account: str) -> Place:
    if not names.ACCOUNT.fullmatch(account):
        raise UsageError(f"the account {account!r} is not of 12 digits")
    region = region or default_region()
    if not 3 <= len(region) <= 32 or not region.replace("-", "").isalnum() or not region.isascii():
        raise UsageError(f"{region!r} is no name of a region")
    return Place(account, region)


def root_of(source: StrPath | bytes | None) -> x509.Certificate:
    """The root under which documents are verified: the user's own CA, unless another is named."""
    from nitroctl.attestation import pki
    from nitroctl.attestation.verification import load_root

    if source is None:
        return pki.load_or_init().certificate
    return load_root(source if isinstance(source, bytes) else os.fspath(source))


class Kms:
    """A local KMS that lives as long as this object's `with` block (or from `start` to `close`).

    `url` takes clients from `start` on, HTTP and, with `tls`, TLS; `socket` is the same for enclaves. Methods
    act as the store's owner, whom no policy binds; clients are `environment`'s callers.
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
            raise UsageError(f"the form {form!r} is none of {', '.join(FORMS)}")
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

    # ---- its life ----

    def start(self) -> Self:
        """Raises NitroError."""
        if self._service:
            raise UsageError("a Kms object starts once; make another one")
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
            raise UsageError("the Kms has not been started")
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
            raise UsageError("this Kms has no TCP port: listen is None")
        return self._url

    @property
    def socket(self) -> Path:
        """A unix socket that serves the same."""
        _ = self.service
        if self._socket is None:
            folder = Path(tempfile.mkdtemp(prefix="kms-", dir=config.runtime_dir()))
            self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
            self.serve_socket(sockets.serve(folder / "kms", backlog=server.BACKLOG))
            self._socket = folder / "kms"
        return self._socket

    @property
    def parent_port(self) -> str:
        """For an enclave's `listen_port`: it finds this KMS on the parent's port 8000, as with AWS's
        proxy."""
        return f"{VSOCK_PORT}={self.socket}"

    @property
    def ca(self) -> Path:
        """The CA of its TLS certificate, in PEM."""
        return tls.ca_file(self.service.store.folder, self.region)

    def serve_socket(self, listener: sockets.Listener) -> None:
        """Serve on a unix socket, too, which is removed in the end."""
        assert self._server is not None
        self._resources.callback(listener.close)
        self._server.serve(listener.socket)

    def serve_descriptor(self, listener: socketlib.socket) -> None:
        """Serve on a listening socket that somebody else has made."""
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
        """The variables with which an SDK calls here as a user or a role (default: the administrator, whom
        IAM allows all), whose IAM policy becomes `policy` if there is one."""
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
        """Any operation by its name at AWS; bytes as bytes. Raises NitroError where AWS would refuse."""
        if operation not in SHAPES:
            raise UsageError(f"{operation} is none of the operations served here")
        given = json.loads(json.dumps(parameters, default=_encoded))
        try:
            return self.service.call(operation, given)
        except KmsError as e:
            raise NitroError(f"{operation}: {e.kind.removesuffix('Exception')}: {e.why}") from e

    def create_key(self, *, policy: str | None = None, alias: str | None = None, **more: Any) -> str:
        """A new key; its ARN. `more` are CreateKey's parameters."""
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
        """Measure an image, so that explanations can name it; its PCRs."""
        pcrs = images.pcrs_of(Path(eif))
        images.remember(self.service.store, Path(eif), pcrs)
        return pcrs

    # ---- what happens ----

    def _heard(self, happened: dict[str, Any]) -> None:
        with self._news:
            self._events.append(happened)
            self._news.notify_all()
        if self._on_event:
            self._on_event(happened)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was asked since `start`, oldest first: CloudTrail's events, and why."""
        with self._news:
            return list(self._events)

    def wait_event(self, operation: str, timeout: float = 60.0) -> dict[str, Any]:
        """The first event of an operation, also of one to come. Raises TimeoutError."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self._events if event["eventName"] == operation), None)

        with self._news:
            event = self._news.wait_for(found, timeout)
        if event is None:
            raise TimeoutError(f"no {operation} within {timeout:g} s")
        return event

    def inject(self, *texts: str) -> None:
        """Faults from now on: "throttle*2", "slow=1.5@Decrypt", "internal", "expired"."""
        for text in texts:
            self._faults.add(faults.parse(text))

    def clear_faults(self) -> None:
        self._faults.clear()


def _encoded(value: Any) -> str:
    import base64

    if not isinstance(value, bytes | bytearray):
        raise UsageError(f"{value!r} is neither JSON nor bytes")
    return base64.b64encode(value).decode()
