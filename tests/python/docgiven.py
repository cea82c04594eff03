# SPDX-License-Identifier: MIT
"""What a page of the documentation says that its reader has, made for a block that wants it: by the name that
stands in the block's mark `given` (docpage.py). No test is here.

These need no kernel and no guest; tests/boot/test_docs.py has those that do, and better ones of some.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import imagemodel as im
from enclave_fakes import write_eif

# Each makes it in a folder, and returns what shall be in the environment.
Maker = Callable[[Path], Mapping[str, str] | None]


def certificate(folder: Path) -> None:
    """And its key, key.pem; valid today."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA384())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(pem)


def image(folder: Path) -> None:
    im.docker(folder / "app.tar", [im.layer(im.entry("app", b"\x7fELF", mode=0o755))], run={"Cmd": ["/app"]})


def root(folder: Path) -> None:
    (folder / "root").mkdir(exist_ok=True)
    (folder / "root/app").write_bytes(b"\x7fELF")
    (folder / "root/app").chmod(0o755)


def verify(folder: Path) -> None:
    """A verifier with the options that pages give it."""
    (folder / "verify").write_text('#!/bin/sh\nexec nitroctl attest verify "$@"\n')
    (folder / "verify").chmod(0o755)


def eif(name: str) -> Maker:
    def make(folder: Path) -> None:
        write_eif(folder / name)

    return make


MAKERS: dict[str, Maker] = {
    "app.eif": eif("app.eif"),
    "old.eif": eif("old.eif"),
    "new.eif": eif("new.eif"),
    "app.tar": image,
    "cert.pem": certificate,
    "root": root,
    "verify": verify,
    "C": lambda _: {"C": "reboot=k panic=1"},
}
