# SPDX-License-Identifier: MIT
"""A KMS for tests, in a folder of its own, and an enclave that shows it documents: made by cbor2,
cryptography and openssl, not by the machine."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import subprocess
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from documents import Level, Maker
from nitroctl.base.instants import UTC
from nitroctl.kms import callers
from nitroctl.kms.errors import KmsError
from nitroctl.kms.events import Log
from nitroctl.kms.keys import Place
from nitroctl.kms.names import Caller
from nitroctl.kms.recipient import Verifier
from nitroctl.kms.service import Service
from nitroctl.kms.store import Store

ACCOUNT = "000000000000"
PLACE = Place(ACCOUNT, "eu-central-1")
ROLE = f"arn:aws:iam::{ACCOUNT}:role/app"
USER = f"arn:aws:iam::{ACCOUNT}:user/alice"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
ALICE = Caller(USER)
DER = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
IMAGE = hashlib.sha384(b"image").hexdigest()  # PCR0 of Maker's documents


def lasting(levels: list[Level]) -> None:
    """Certificates that are valid now."""
    now = datetime.now(UTC).replace(microsecond=0)
    for level in levels:
        level.begin, level.end = now - timedelta(hours=1), now + timedelta(hours=3)


@functools.cache
def private_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def spki(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(*DER)


class Enclave:
    """What an enclave does: a key pair, a document that names it, an answer opened with it."""

    def __init__(self, maker: Maker | None = None, bits: int = 2048) -> None:
        self.maker = maker or Maker(lasting)
        self.key = private_key(bits)

    def document(self, **changes: Any) -> bytes:
        fresh = {"public_key": spki(self.key), "timestamp": int(datetime.now(UTC).timestamp() * 1000)}
        return self.maker.document(**{**fresh, **changes})

    def recipient(self, **changes: Any) -> dict[str, str]:
        """The parameter, as JSON has it."""
        return {
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": base64.b64encode(self.document(**changes)).decode(),
        }

    def open(self, folder: Path, sealed: bytes) -> bytes:
        """By openssl."""
        return openssl_open(folder, self.key, sealed)


@functools.cache
def the_enclave() -> Enclave:
    """One for all tests of a process, where it does not matter whose documents they are."""
    return Enclave()


def openssl_open(folder: Path, key: rsa.RSAPrivateKey, sealed: bytes) -> bytes:
    pem = folder / "recipient.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    argv = ["openssl", "cms", "-decrypt", "-inform", "DER", "-binary", "-inkey", str(pem)]
    return subprocess.run(argv, input=sealed, check=True, capture_output=True).stdout


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(principal: str | Sequence[str], action: str | Sequence[str], **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": {"AWS": principal}, "Action": action, "Resource": "*", **more}


ADMINISTRATION = allow(ROOT, ["kms:Put*", "kms:Get*", "kms:Describe*", "kms:Encrypt"], Sid="Administration")


def attested(
    pcr0: str = IMAGE, action: str | Sequence[str] = "kms:Decrypt", sid: str = "Enclave"
) -> dict[str, Any]:
    condition = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": pcr0}}
    return allow(ROLE, action, Sid=sid, Condition=condition)


class World:
    """A service, its events, and its callers."""

    def __init__(
        self, folder: Path, enclave: Enclave | None = None, *, allow_unmeasured: bool = False, **options: Any
    ) -> None:
        self.store = Store(folder / "kms")
        self.events: list[dict[str, Any]] = []
        self.enclave = enclave or Enclave()
        log = Log(self.store.folder, self.events.append)
        verifier = Verifier(self.enclave.maker.root, allow_unmeasured=allow_unmeasured)
        self.service = Service(self.store, PLACE, verifier, log, **options)
        self.role = Caller(ROLE, "session")
        self.arn = PLACE.key_arn("")  # of a key, without its id

    def call(self, operation: str, caller: Caller | None = None, **parameters: Any) -> dict[str, Any]:
        """Bytes are given as they are; the answer has bytes too."""
        return self.service.call(operation, json.loads(json.dumps(parameters, default=_base64)), caller)

    def key(self, *statements: dict[str, Any], **more: Any) -> str:
        if statements:
            more["Policy"] = policy(*statements)
        key_id: str = self.call("CreateKey", **more)["KeyMetadata"]["KeyId"]
        return key_id

    def secret(self, key_id: str, text: bytes = b"secret", **more: Any) -> bytes:
        blob: bytes = self.call("Encrypt", KeyId=key_id, Plaintext=text, **more)["CiphertextBlob"]
        return blob

    def iam(self, arn: str, *statements: dict[str, Any]) -> None:
        bare = [{k: v for k, v in s.items() if k != "Principal"} for s in statements]
        callers.put_policies(self.store, arn, {"test": policy(*bare)})

    @property
    def why(self) -> str:
        """Of the newest event."""
        text: str = self.events[-1]["why"]["text"]
        return text


def refused(kind: str, world: World, operation: str, caller: Caller | None = None, **parameters: Any) -> str:
    """Its text for the client; why is in the event."""
    with pytest.raises(KmsError) as caught:
        world.call(operation, caller, **parameters)
    assert caught.value.kind == kind, caught.value.why
    return caught.value.text or ""


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
