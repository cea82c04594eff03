# SPDX-License-Identifier: MIT
"""The TLS certificate for clients that insist on https://kms.REGION.amazonaws.com, and the CA that signs it.

The CA is made once, signs one certificate, and its private key is thrown away: to trust the CA is to trust
that one certificate. Critical name constraints limit the CA all the same. It has nothing to do with the CA of
attestation documents.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nitroctl.attestation.pki import write_private
from nitroctl.base import atomic
from nitroctl.base.errors import NitroError
from nitroctl.base.instants import UTC

if TYPE_CHECKING:
    from cryptography import x509

FOLDER = "tls"
CA, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"
YEARS = 10
# One certificate for all regions: an image that trusts the CA need not be rebuilt when the region changes.
REGIONS = (
    *(f"{area}-{number}" for area in ("us-east", "us-west", "ca-central", "eu-central", "eu-north",
    "eu-south",
      "ap-south", "ap-northeast", "ap-southeast", "ap-east", "me-south", "me-central", "af-south",
      "il-central",
      "sa-east", "mx-central", "ca-west") for number in (1, 2)),
    "eu-west-1", "eu-west-2", "eu-west-3", "ap-northeast-3", "ap-southeast-3", "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6", "ap-southeast-7",
)  # fmt: skip
DOMAIN = "amazonaws.com"


def _names(region: str) -> list[x509.GeneralName]:
    from cryptography import x509

    hosts = [f"kms.{name}.{DOMAIN}" for name in dict.fromkeys((region, *REGIONS))] + ["localhost"]
    loopback = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    return [*map(x509.DNSName, hosts), *map(x509.IPAddress, loopback)]


def _make(folder: Path, region: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nitroctl, local, not AWS")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, text)])

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    end = begin + timedelta(days=365 * YEARS)

    def builder(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool
    ) -> x509.CertificateBuilder:
        rights = dict.fromkeys(
            ("content_commitment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
             "decipher_only", "key_encipherment"), False,
        )  # fmt: skip
        usage = x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **rights)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name("nitroctl local KMS TLS CA"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
        )

    only: list[x509.GeneralName] = [
        x509.DNSName(DOMAIN), x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_network("127.0.0.0/8")), x509.IPAddress(ipaddress.ip_network("::1/128")),
    ]  # fmt: skip
    ca = builder(name("nitroctl local KMS TLS CA"), ca_key.public_key(), ca=True).add_extension(
        x509.NameConstraints(only, None), critical=True
    )
    server = (
        builder(name(f"kms.{region}.{DOMAIN}"), key.public_key(), ca=False)
        .add_extension(x509.SubjectAlternativeName(_names(region)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with atomic.folder(folder, mode=0o700, sync=True) as aside:
        for file, certificate in ((CA, ca), (CERTIFICATE, server)):
            write_private(
                aside / file, certificate.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM), 0o644
            )
        write_private(aside / KEY, pem)


def ca_file(store: Path, region: str) -> Path:
    """The PEM file of the CA that clients must trust; it is made if there is none yet. Raises NitroError."""
    folder = store / FOLDER
    if not folder.exists():
        try:
            _make(folder, region)
        except OSError as e:
            if not (folder / CA).exists():  # if it does, another process has made it meanwhile
                raise NitroError(f"cannot make the TLS certificate in {folder}: {e.strerror}") from e
    return folder / CA


def context(store: Path, region: str) -> ssl.SSLContext:
    """The TLS context of a server. Raises NitroError."""
    from cryptography import x509

    folder = ca_file(store, region).parent
    hint = f"remove {folder} to get a new one; images that trust the old CA must then be rebuilt"
    try:
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.load_cert_chain(folder / CERTIFICATE, folder / KEY)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError) as e:
        raise NitroError(f"the TLS certificate in {folder} cannot be used: {e}", hint=hint) from e
    with contextlib.suppress(NotImplementedError):
        made.set_alpn_protocols(["http/1.1"])
    host = f"kms.{region}.{DOMAIN}"
    if host not in names.get_values_for_type(x509.DNSName):
        raise NitroError(f"the TLS certificate in {folder} is not for {host}", hint=hint)
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise NitroError(f"the TLS certificate in {folder} has expired", hint=hint)
    return made
