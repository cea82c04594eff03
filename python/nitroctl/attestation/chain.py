# SPDX-License-Identifier: MIT
"""The X.509 path from an enclave's certificate to the root: who issued whom, with which rights, valid when.

Path rules are RFC 5280 section 6.1 as AWS's attestation guide narrows them: P-384 with SHA-384 everywhere,
the root by its bytes and not by its name, no revocation lists, no extended key usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from nitroctl.attestation.errors import CertificateError, CertificateExpired, ChainError, RootMismatch

if TYPE_CHECKING:
    from cryptography import x509


def load(der: bytes, name: str) -> x509.Certificate:
    """Parse one DER certificate, extensions and key included; raises CertificateError."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        _ = certificate.extensions
        _ = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        oid = certificate.signature_algorithm_oid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as e:
        raise CertificateError(f"the {name} is no X.509 certificate: {e}") from e
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise CertificateError(f"the {name}'s key is not on P-384")
    if oid != x509.SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise CertificateError(f"the {name} is signed with {oid.dotted_string}, not with ecdsa-with-SHA384")
    return certificate


def _check_dates(certificate: x509.Certificate, name: str, at: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at < begin:
        raise CertificateExpired(f"the {name} is valid from {begin:%F %T} UTC on; checked for {at:%F %T} UTC")
    if at > end:
        raise CertificateExpired(f"the {name} expired at {end:%F %T} UTC; checked for {at:%F %T} UTC")


def _check_ca(certificate: x509.Certificate, name: str, below: int) -> None:
    """A CA with `below` further CA certificates between it and the leaf."""
    from cryptography import x509

    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as e:
        raise CertificateError(f"the {name} lacks an extension: {e}") from e
    if not constraints.value.ca or not constraints.critical:
        raise CertificateError(f"the {name}'s BasicConstraints are not a critical CA:TRUE")
    length = constraints.value.path_length
    if length is not None and length < below:
        raise CertificateError(f"the {name} allows {length} CA certificates below it; there are {below}")
    if not usage.key_cert_sign:
        raise CertificateError(f"the {name} may not sign certificates (KeyUsage)")


def _check_leaf(certificate: x509.Certificate, name: str) -> None:
    from cryptography import x509

    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        if constraints.ca or constraints.path_length is not None:
            raise CertificateError(f"the {name} is a CA certificate")
    except x509.ExtensionNotFound:
        pass
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as e:
        raise CertificateError(f"the {name} lacks an extension: {e}") from e
    if not usage.digital_signature:
        raise CertificateError(f"the {name} may not sign documents (KeyUsage)")


def check(
    leaf: bytes, cabundle: Sequence[bytes], root: x509.Certificate, at: datetime
) -> list[x509.Certificate]:
    """Check the path at the time `at` (aware); return it, root first. Raises RootMismatch or ChainError."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import Encoding

    if cabundle[0] != root.public_bytes(Encoding.DER):
        try:
            claimed = x509.load_der_x509_certificate(cabundle[0]).subject.rfc4514_string()
        except (ValueError, TypeError, x509.InvalidVersion):
            claimed = "no certificate"
        raise RootMismatch(
            f"the document's chain begins with ({claimed}), which is not the trusted root "
            f"({root.subject.rfc4514_string()})",
            hint="name the root that should have issued it with --root PEM, or --root aws",
        )
    names = ["root certificate", *(f"certificate cabundle[{i}]" for i in range(1, len(cabundle)))]
    names.append("enclave's certificate")
    path = [load(der, name) for der, name in zip([*cabundle, leaf], names, strict=True)]
    for i, (certificate, name) in enumerate(zip(path, names, strict=True)):
        issuer = path[max(i - 1, 0)]
        if certificate.issuer != issuer.subject:
            raise ChainError(
                f"the {name} was issued by ({certificate.issuer.rfc4514_string()}), but the one above it is "
                f"({issuer.subject.rfc4514_string()})"
            )
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as e:
            raise ChainError(f"the {name} is not signed by the key of the one above it") from e
        _check_dates(certificate, name, at)
        if i < len(path) - 1:
            _check_ca(certificate, name, below=len(path) - 2 - i)
        else:
            _check_leaf(certificate, name)
    return path
