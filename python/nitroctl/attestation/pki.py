# SPDX-License-Identifier: MIT
"""The user's local CA, and the certificate chain minted from it for one enclave. Verifies nothing.

There is one root per user, made on first use and kept in the data folder. For each enclave three CA
certificates are minted under it, like AWS's (regional, zonal, instance). QEMU gets the instance CA's key and
makes the enclave's own certificate and key itself. All keys are P-384, all signatures ecdsa-with-SHA384.

The root's name says that it is local and not AWS's, so that nobody mistakes one for the other.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from nitroctl.base import atomic, config
from nitroctl.base.errors import NitroError
from nitroctl.base.instants import UTC

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

ROOT_YEARS = 30
DEFAULT_DAYS = 30  # of a minted chain
MAX_DAYS = 3650
BACKDATE = timedelta(hours=1)  # for verifiers whose clock is slow; AWS's chains are backdated, too
SERIAL_BYTES = 16
INSTANCE_SERIAL_BYTES = 20
# Dates before this are UTCTime (RFC 5280, section 4.1.2.5), like all of AWS's.
UTC_TIME_ENDS = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
# The forms of AWS's documents: since July 2024 the instance's certificate has key identifiers; since April
# 2025 the payload is a map of indefinite length.
DocumentForm = Literal["2025", "2023"]
DOCUMENT_FORMS: tuple[DocumentForm, ...] = ("2025", "2023")
COMMON_NAME_MAX = 64  # RFC 5280, appendix A: ub-common-name
AREA = "local.nitro-enclaves"  # where AWS has us-east-1.aws.nitro-enclaves
ROOT_FILE = "root.pem"
KEY_FILE = "root.key"


class Authority(NamedTuple):
    """A root certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)


class Chain(NamedTuple):
    """What QEMU needs for one enclave: four certificates, root first, and the key of the last one."""

    certificates: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificates in PEM, root first: QEMU's `cert-chain=`."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return b"".join(c.public_bytes(Encoding.PEM) for c in self.certificates)

    @property
    def key_pem(self) -> bytes:
        """The instance CA's key in PEM (PKCS #8, not encrypted): QEMU's `cert-key=`."""
        return _key_pem(self.key)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(*parts: tuple[str, str]) -> x509.Name:
    """A distinguished name: countryName is a PrintableString, the rest are UTF8Strings, as in AWS's
    chains."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    oids = {
        "CN": NameOID.COMMON_NAME,
        "C": NameOID.COUNTRY_NAME,
        "O": NameOID.ORGANIZATION_NAME,
        "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
        "ST": NameOID.STATE_OR_PROVINCE_NAME,
        "L": NameOID.LOCALITY_NAME,
    }
    return x509.Name([x509.NameAttribute(oids[key], value) for key, value in parts])


# In the name of the instance CA of an enclave that runs code which its PCRs do not measure. `verify` and the
# machine look for the word "unmeasured".
UNMEASURED = "Local, not AWS, unmeasured"
_ORGANISATION = (("O", "nitroctl"), ("OU", "Local, not AWS"))
# ISO 3166-1 reserves XX for users: a local chain belongs to no country.
_COUNTRY = ("C", "XX")


def _issue(
    subject: x509.Name,
    issuer: Authority | None,
    *,
    begin: datetime,
    end: datetime,
    path_length: int | None,
    signs_documents: bool = True,
    identifiers: bool = True,
    serial_bytes: int = SERIAL_BYTES,
) -> Authority:
    """One CA certificate with a new key, signed by `issuer`, or self-signed if that is None."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    # A positive serial number without a leading zero byte (RFC 5280, section 4.1.2.2).
    serial = int.from_bytes(os.urandom(serial_bytes), "big") >> 1 | 1 << (8 * serial_bytes - 2)
    usage = x509.KeyUsage(
        digital_signature=signs_documents,
        key_cert_sign=True,
        crl_sign=signs_documents,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    )
    if identifiers and issuer:
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(above, critical=False)
    if identifiers:
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(own, critical=False)
    builder = builder.add_extension(usage, critical=True)
    return Authority(builder.sign(issuer.key if issuer else key, hashes.SHA384()), key)


def make_root(now: datetime | None = None) -> Authority:
    """Make a new root, in memory only."""
    begin = (now or datetime.now(UTC)).replace(microsecond=0) - BACKDATE
    subject = _name(_COUNTRY, *_ORGANISATION, ("CN", AREA))
    end = min(begin + timedelta(days=365 * ROOT_YEARS), UTC_TIME_ENDS)
    return _issue(subject, None, begin=begin, end=end, path_length=None)


def mint(
    root: Authority,
    instance_id: str,
    *,
    days: int = DEFAULT_DAYS,
    now: datetime | None = None,
    form: DocumentForm = "2025",
    unmeasured: bool = False,
) -> Chain:
    """Mint the three CA levels of one enclave under `root`, valid for `days` days from now.

    For an `unmeasured` enclave the instance CA's name says so. Raises NitroError if the root expires before
    they would, or if an argument is out of range.
    """
    if not 1 <= days <= MAX_DAYS:
        raise NitroError(f"a chain cannot be valid for {days} days: give 1 to {MAX_DAYS}")
    if len(f"{instance_id}.{AREA}") > COMMON_NAME_MAX:
        raise NitroError(
            f"the instance id {instance_id!r} is too long for a certificate: {len(instance_id)} characters, "
            f"at most {COMMON_NAME_MAX - len(AREA) - 1}"
        )
    issued = (now or datetime.now(UTC)).replace(microsecond=0)
    begin, end = issued - BACKDATE, issued + timedelta(days=days)
    last = root.certificate.not_valid_after_utc
    if end > last:
        raise NitroError(
            f"the local CA's root expires at {last:%F %T} UTC, before a chain of {days} days would",
            hint="make a new one with `nitroctl attest ca init --force`",
        )
    place = (("ST", "Local"), ("L", "Local"))
    name = _name(_COUNTRY, *_ORGANISATION, ("CN", f"{os.urandom(8).hex()}.{AREA}"))
    regional = _issue(name, root, begin=begin, end=end, path_length=2)
    name = _name(("CN", f"{os.urandom(8).hex()}.zonal.{AREA}"), *reversed(_ORGANISATION), _COUNTRY, *place)
    zonal = _issue(name, regional, begin=begin, end=end, path_length=1)
    organisation = (_ORGANISATION[0], ("OU", UNMEASURED)) if unmeasured else _ORGANISATION
    name = _name(_COUNTRY, *place, *organisation, ("CN", f"{instance_id}.{AREA}"))
    instance = _issue(
        name,
        zonal,
        begin=begin,
        end=end,
        path_length=0,
        signs_documents=False,
        identifiers=form != "2023",
        serial_bytes=INSTANCE_SERIAL_BYTES,
    )
    chain = (root.certificate, regional.certificate, zonal.certificate, instance.certificate)
    return Chain(chain, instance.key)


def ca_dir() -> Path:
    return config.data_dir() / "ca"


def load() -> Authority | None:
    """The user's CA, or None if there is none yet. Raises NitroError if its files are damaged."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = ca_dir()
    if not folder.exists():
        return None
    hint = "restore it from a copy, or make a new one: `nitroctl attest ca init --force` (keeps the old)"
    try:
        pem, key_pem = (folder / ROOT_FILE).read_bytes(), (folder / KEY_FILE).read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
    except OSError as e:
        raise NitroError(f"cannot read the local CA: {e.filename}: {e.strerror}", hint=hint) from e
    except (ValueError, TypeError, x509.InvalidVersion) as e:
        raise NitroError(f"the local CA in {folder} is damaged: {e}", hint=hint) from e
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise NitroError(f"in the local CA in {folder}, {KEY_FILE} is not the key of {ROOT_FILE}", hint=hint)
    return Authority(certificate, key)


def init(*, force: bool = False) -> Authority:
    """Make the user's CA. An existing one is an error; with `force` it is moved aside, never deleted."""
    folder = ca_dir()
    if folder.exists() and not force:
        raise NitroError(
            f"there is already a local CA in {folder}",
            hint="use it, or replace it with --force: documents issued under it then no longer verify",
        )
    return _make(folder, force=force)


def _make(folder: Path, *, force: bool) -> Authority:
    """Make a CA in `folder`; without `force`, if another process has made one meanwhile, that one."""
    root = make_root()
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Fails if another process was first: then its CA is used.
        with atomic.folder(folder, mode=0o700, sync=True) as aside:
            for name, data, mode in ((KEY_FILE, _key_pem(root.key), 0o600), (ROOT_FILE, root.pem, 0o644)):
                write_private(aside / name, data, mode)
            if force and folder.exists():
                folder.rename(folder.with_name(f"ca.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))
    except OSError as e:
        with contextlib.suppress(NitroError):
            if not force and (other := load()):
                return other
        raise NitroError(
            f"cannot make the local CA in {folder}: {e.strerror}",
            hint="set XDG_DATA_HOME to a folder that you can write to",
        ) from e
    return root


def load_or_init() -> Authority:
    """The user's CA; it is made if there is none."""
    return load() or _make(ca_dir(), force=False)


def write_private(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a new file that has the mode `mode` from the moment it is created."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        os.fchmod(f.fileno(), mode)
        f.write(data)
