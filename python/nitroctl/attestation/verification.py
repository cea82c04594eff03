# SPDX-License-Identifier: MIT
"""Verifies an attestation document, from its bytes to what the caller expects in it.

`verify` returns the document or raises one of `errors`; it has no boolean result that a caller could forget
to check. The steps are those of AWS's attestation guide: structure, path to a pinned root, COSE signature,
and then the caller's policy.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from nitroctl.attestation import chain
from nitroctl.attestation.document import FIELD_MAX, SIGNATURE_SIZE, Document, decode
from nitroctl.attestation.errors import (
    DebugEnclave,
    FieldError,
    NonceMismatch,
    PcrMismatch,
    PublicKeyMismatch,
    SignatureMismatch,
    StaleDocument,
    UnmeasuredEnclave,
    UserDataMismatch,
)
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.base.instants import UTC

if TYPE_CHECKING:
    from cryptography import x509

# How far a document's timestamp may be ahead of our clock.
CLOCK_SKEW = timedelta(minutes=1)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a caller expects in a genuine document; None leaves a field unchecked.

    `at` is the time at which the certificates must be valid: a datetime with a time zone, "document" for the
    document's own timestamp (for archived documents), or None for now. `max_age` is counted from the
    timestamp to `at`, so it cannot be combined with "document". `field_max` is the most bytes that public
    key, user data and nonce may each have; AWS's guide says 1024. Raises UsageError for values that make no
    sense.
    """

    at: datetime | Literal["document"] | None = None
    pcrs: Mapping[int, bytes] = dataclasses.field(default_factory=dict)
    nonce: bytes | None = None
    user_data: bytes | None = None
    public_key: bytes | None = None
    max_age: timedelta | None = None
    allow_debug: bool = False
    allow_unmeasured: bool = False
    field_max: int = FIELD_MAX

    def __post_init__(self) -> None:
        if isinstance(self.at, datetime):
            if self.at.utcoffset() is None:
                raise UsageError(
                    f"the time {self.at} has no time zone", hint="for UTC: at.replace(tzinfo=datetime.UTC)"
                )
            try:
                object.__setattr__(self, "at", self.at.astimezone(UTC))
            except OverflowError as e:
                raise UsageError(f"the time {self.at} is not in the years 1 to 9999 of UTC") from e
        elif self.at not in (None, "document"):
            raise UsageError(f'the time {self.at!r} is not a datetime, "document" or None')
        if self.max_age is not None:
            if self.max_age < timedelta():
                raise UsageError(
                    f"the greatest age must not be negative: {self.max_age.total_seconds():.0f} s"
                )
            if self.at == "document":
                raise UsageError(
                    "a document has no age at its own time: the two options contradict each other",
                    hint="for a fresh document leave the time out; for an archived one leave the age out",
                )


def load_root(source: str | Path | bytes) -> x509.Certificate:
    """The trusted root: "aws" for AWS's public root G1, else a PEM file's path or PEM bytes."""
    from cryptography import x509

    if source == "aws":
        data, name = resources.files(__package__).joinpath("aws-root-g1.pem").read_bytes(), "AWS root G1"
    elif isinstance(source, bytes):
        data, name = source, "the root"
    else:
        name = str(source)
        try:
            data = Path(source).read_bytes()
        except OSError as e:
            raise NitroError(f"cannot read the root certificate {source}: {e.strerror}") from e
    try:
        with warnings.catch_warnings():
            # What the library only warns about, such as a negative serial number, is refused with the
            # document.
            warnings.simplefilter("ignore")
            root = x509.load_pem_x509_certificate(data)
        _ = root.subject.rfc4514_string()  # the library parses the name only now
        return root
    except (ValueError, TypeError, x509.InvalidVersion) as e:
        raise NitroError(f"{name} is not a PEM certificate: {e}") from e


def _check_signature(document: Document, leaf: x509.Certificate) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # chain.load has checked it
    half = SIGNATURE_SIZE // 2
    r, s = (int.from_bytes(part, "big") for part in (document.signature[:half], document.signature[half:]))
    try:
        key.verify(utils.encode_dss_signature(r, s), document.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as e:
        raise SignatureMismatch("the signature was not made over this content with the enclave's key") from e


def _check_time(document: Document, leaf: x509.Certificate) -> None:
    """Check that the enclave's certificate was valid when the document was signed; in whole seconds, as in
    certificates."""
    time = document.time.replace(microsecond=0)
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if not begin <= time <= end:
        raise FieldError(
            "timestamp",
            f"is {time:%F %T} UTC; the enclave's certificate is valid from {begin:%F %T} to {end:%F %T} UTC",
        )


def _check_policy(document: Document, policy: Policy, at: datetime) -> None:
    if document.debug and not policy.allow_debug:
        raise DebugEnclave(
            "PCR0 is all zeros: the enclave runs in debug mode, or unmeasured, and its code is not attested",
            hint="--allow-debug accepts such documents",
        )
    if document.unmeasured and not policy.allow_unmeasured:
        raise UnmeasuredEnclave(
            "the enclave is unmeasured, as its issuer's name says: it runs code that its PCRs do not cover",
            hint="--allow-unmeasured accepts such documents",
        )
    for index, expected in sorted(policy.pcrs.items()):
        if document.pcrs.get(index) != expected:
            raise PcrMismatch(index, expected, document.pcrs.get(index))
    for name, wanted, found, error in (
        ("nonce", policy.nonce, document.nonce, NonceMismatch),
        ("user data", policy.user_data, document.user_data, UserDataMismatch),
        ("public key", policy.public_key, document.public_key, PublicKeyMismatch),
    ):
        if wanted is not None and wanted != found:
            has = "none" if found is None else found.hex() or "an empty one"
            raise error(f"the document's {name} is not {wanted.hex() or 'empty'}: it has {has}")
    if policy.max_age is not None:
        age = at - document.time
        if age > policy.max_age:
            raise StaleDocument(
                f"the document was issued at {document.time:%F %T} UTC, {age.total_seconds():.0f} s ago; "
                f"at most {policy.max_age.total_seconds():.0f} s are allowed"
            )
        if age < -CLOCK_SKEW:
            raise StaleDocument(f"the document is from the future: issued at {document.time:%F %T} UTC")


class CheckPath(Protocol):
    """`chain.check`, or a `Remembering`."""

    def __call__(
        self, leaf: bytes, cabundle: Sequence[bytes], root: x509.Certificate, at: datetime
    ) -> list[x509.Certificate]: ...


def verify_chain(
    data: bytes,
    root: x509.Certificate | str | Path | bytes,
    policy: Policy = Policy(),
    check_path: CheckPath = chain.check,
) -> tuple[Document, list[x509.Certificate]]:
    """Like `verify`, but also return the certificates of the path, root first."""
    from cryptography import x509

    if not isinstance(root, x509.Certificate):
        root = load_root(root)
    document = decode(data, policy.field_max)
    at = policy.at if isinstance(policy.at, datetime) else document.time if policy.at else datetime.now(UTC)
    path = check_path(document.certificate, document.cabundle, root, at)
    _check_signature(document, path[-1])
    _check_time(document, path[-1])
    _check_policy(document, policy, at)
    return document, path


def verify(data: bytes, root: x509.Certificate | str | Path | bytes, policy: Policy = Policy()) -> Document:
    """Verify the attestation document `data` against the trusted `root` and return it decoded.

    `root` is a certificate, PEM bytes, a PEM file's path, or "aws". Raises an AttestationError, whose class
    names the step that failed.
    """
    return verify_chain(data, root, policy)[0]
