# SPDX-License-Identifier: MIT
"""Validates the X.509 path from the root to an enclave's certificate: issuers, rights, and dates.

The rules are those of RFC 5280 section 6.1, restricted as in AWS's attestation guide: P-384 with SHA-384
everywhere, the root is identified by its bytes and not by its name, no revocation lists, no extended key
usage. Critical extensions that are not processed here are refused, and so are name constraints. The machine
checks its CA certificates by the same rules (hw/virtio/nsm/nsm-chain-load.c).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from nitroctl.attestation import certificate as der_rules
from nitroctl.attestation.certificate import Certificate
from nitroctl.attestation.errors import CertificateError, CertificateExpired, ChainError, RootMismatch

if TYPE_CHECKING:
    from cryptography import x509


def parse(der: bytes, name: str) -> Certificate:
    """Parse one DER certificate and check its algorithms. `name` is for errors. Raises CertificateError."""
    try:
        certificate = der_rules.parse(der)
    except der_rules.Fault as e:
        raise CertificateError(f"the {name} {e}") from e
    if certificate.algorithms != (der_rules.ECDSA_SHA384, der_rules.ECDSA_SHA384):
        raise CertificateError(f"the {name} is not signed with ecdsa-with-SHA384")
    if len(certificate.key) != der_rules.P384_SIZE or not certificate.key.startswith(der_rules.P384):
        raise CertificateError(f"the {name}'s key is not on P-384")
    return certificate


def load(der: bytes, name: str) -> x509.Certificate:
    """The same certificate as an object of `cryptography`, for its key and its name. Raises
    CertificateError."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.public_key()
        _ = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        return certificate
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as e:
        raise CertificateError(f"the {name} is not an X.509 certificate: {e}") from e


def _check_dates(certificate: Certificate, name: str, at: datetime) -> None:
    begin, end = certificate.begin, certificate.end
    if at < begin:
        raise CertificateExpired(f"the {name} is valid from {begin:%F %T} UTC on; checked for {at:%F %T} UTC")
    if at > end:
        raise CertificateExpired(f"the {name} expired at {end:%F %T} UTC; checked for {at:%F %T} UTC")


def _check_ca(certificate: Certificate, name: str, below: int) -> None:
    """Check that the certificate is a CA's that may have `below` more CA certificates between it and the
    leaf."""
    if certificate.ca is None:
        raise CertificateError(f"the {name} lacks an extension: BasicConstraints")
    if not certificate.ca or not certificate.ca_critical:
        raise CertificateError(f"the {name}'s BasicConstraints are not a critical CA:TRUE")
    if certificate.usage is None:
        raise CertificateError(f"the {name} lacks an extension: KeyUsage")
    length = certificate.path_length
    if length is not None and length < below:
        raise CertificateError(f"the {name} allows {length} CA certificates below it; there are {below}")
    if not certificate.usage & der_rules.KEY_CERT_SIGN:
        raise CertificateError(f"the {name} may not sign certificates (KeyUsage)")


def _check_leaf(certificate: Certificate, name: str) -> None:
    if certificate.ca or certificate.path_length is not None:
        raise CertificateError(f"the {name} is a CA certificate")
    if certificate.usage is None:
        raise CertificateError(f"the {name} lacks an extension: KeyUsage")
    if not certificate.usage & der_rules.DIGITAL_SIGNATURE:
        raise CertificateError(f"the {name} may not sign documents (KeyUsage)")


def check_path(ders: Sequence[bytes], at: datetime, *, leaf: bool = True) -> list[x509.Certificate]:
    """Check a path, root first, at the time `at` (with a time zone), and return it. Without `leaf` all
    certificates must be CAs'.

    Raises ChainError. Whether the root is the trusted one is checked by `check`.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    names = ["root certificate", *(f"certificate cabundle[{i}]" for i in range(1, len(ders)))]
    if leaf:
        names[-1] = "enclave's certificate"
    authorities = len(ders) - leaf
    parsed = [parse(der, name) for der, name in zip(ders, names, strict=True)]
    path = [load(der, name) for der, name in zip(ders, names, strict=True)]
    for i, (certificate, name) in enumerate(zip(parsed, names, strict=True)):
        above = max(i - 1, 0)
        if certificate.issuer != parsed[above].subject:
            raise ChainError(
                f"the {name} was issued by ({path[i].issuer.rfc4514_string()}), but the one above it is "
                f"({path[above].subject.rfc4514_string()})"
            )
        key = path[above].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # parse() has checked it
        try:
            key.verify(certificate.signature, certificate.tbs, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature as e:
            raise ChainError(f"the {name} is not signed by the key of the one above it") from e
        _check_dates(certificate, name, at)
        if i < authorities:
            _check_ca(certificate, name, below=authorities - 1 - i)
        else:
            _check_leaf(certificate, name)
    return path


def _claimed(der: bytes) -> str:
    """The subject of the certificate in the root's place, for a message."""
    try:
        parse(der, "root certificate")
        return load(der, "root certificate").subject.rfc4514_string()
    except CertificateError:
        return "not a valid certificate"


class Remembering:
    """`check` with a memory, for verifying many documents of few enclaves: a path that was found valid is
    valid again while all its certificates are. It is recognised by all their bytes."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._paths: dict[bytes, tuple[datetime, datetime, list[x509.Certificate]]] = {}
        self._lock = threading.Lock()

    def __call__(
        self, leaf: bytes, cabundle: Sequence[bytes], root: x509.Certificate, at: datetime
    ) -> list[x509.Certificate]:
        from cryptography.hazmat.primitives.serialization import Encoding

        ders = (root.public_bytes(Encoding.DER), *cabundle, leaf)
        key = hashlib.sha256(b"".join(hashlib.sha256(der).digest() for der in ders)).digest()
        with self._lock:
            known = self._paths.get(key)
        if known and known[0] <= at <= known[1]:
            return known[2]
        path = check(leaf, cabundle, root, at)
        begin = max(certificate.not_valid_before_utc for certificate in path)
        end = min(certificate.not_valid_after_utc for certificate in path)
        with self._lock:
            while len(self._paths) >= self._most:
                del self._paths[next(iter(self._paths))]  # the oldest
            self._paths[key] = begin, end, path
        return path


def check(
    leaf: bytes, cabundle: Sequence[bytes], root: x509.Certificate, at: datetime
) -> list[x509.Certificate]:
    """Check the path at the time `at` (with a time zone); return it, root first. Raises RootMismatch or
    ChainError."""
    from cryptography.hazmat.primitives.serialization import Encoding

    if cabundle[0] != root.public_bytes(Encoding.DER):
        raise RootMismatch(
            f"the document's chain begins with ({_claimed(cabundle[0])}), which is not the trusted root "
            f"({root.subject.rfc4514_string()})",
            hint="give the root that should have issued it with --root PEM, or --root aws",
        )
    return check_path([*cabundle, leaf], at)
