# SPDX-License-Identifier: MIT
"""The signing certificate: finds it in a PEM text and reads what a signature needs: the bytes that PCR8
measures, the key, and the dates. No path validation: nothing but the certificate itself vouches for the
signer.

No two libraries accept exactly the same PEM and X.509 input, but the machine and this module must reach the
same verdict. So the grammar is written down (docs/eif.md, "The certificate in a signature"), and this module
and hw/core/eif/eif-certificate.c parse it in the same steps; the libraries get only the bare key. What is
only shown to people, such as names, comes from the library.

RFC 7468 (PEM, with its lax whitespace), RFC 5280 section 4.1 (certificate), RFC 5480 section 2.1 (EC keys),
X.690 (DER).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import textwrap
import warnings
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nitroctl.base.errors import EifError
from nitroctl.base.instants import UTC
from nitroctl.eif.pcr import pcr_of

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Curve:
    """A curve that may sign: its name in `cryptography`, its COSE algorithm, and the bytes in each of r and
    s."""

    name: str
    alg: int
    alg_name: str
    half: int
    oid: bytes  # DER content octets, without tag and length

    def hash_algorithm(self) -> hashes.HashAlgorithm:
        from cryptography.hazmat.primitives import hashes

        return {-7: hashes.SHA256(), -35: hashes.SHA384(), -36: hashes.SHA512()}[self.alg]


CURVES = (
    Curve("secp256r1", -7, "ES256", 32, bytes.fromhex("2a8648ce3d030107")),
    Curve("secp384r1", -35, "ES384", 48, bytes.fromhex("2b81040022")),
    Curve("secp521r1", -36, "ES512", 66, bytes.fromhex("2b81040023")),
)
_EC_PUBLIC_KEY = bytes.fromhex("2a8648ce3d0201")


@dataclass(frozen=True)
class Signer:
    """The certificate of a signature, with an EC key on a known curve. `algorithm` (an OID) and `signature`
    are those with which its issuer signed the certificate."""

    der: bytes
    not_before: datetime
    not_after: datetime
    curve: Curve
    key: ec.EllipticCurvePublicKey
    algorithm: str
    signature: bytes

    @property
    def pcr8(self) -> bytes:
        return pcr_of(hashlib.sha384(self.der).digest())

    @property
    def pem(self) -> bytes:
        """The certificate in RFC 7468's strict form, which all tools write; without text around it."""
        lines = textwrap.wrap(base64.b64encode(self.der).decode("ascii"), 64)
        return "\n".join([_BEGIN, *lines, _END, ""]).encode("ascii")

    @property
    def algorithm_name(self) -> str:
        from cryptography import x509

        try:
            return _long_name(x509.ObjectIdentifier(self.algorithm))
        except ValueError:
            return self.algorithm

    @cached_property
    def _certificate(self) -> x509.Certificate | None:
        """The certificate as the library reads it, for what is only shown; None if the library cannot."""
        from cryptography import x509

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of serial numbers, for instance
            try:
                return x509.load_der_x509_certificate(self.der)
            except (ValueError, TypeError, x509.InvalidVersion):
                return None

    @property
    def issuer(self) -> list[tuple[str, str]]:
        """The parts of the issuer's name, each with OpenSSL's name for its type. Empty if the name cannot be
        read: no rule says what a name must contain."""
        try:
            parts = list(self._certificate.issuer) if self._certificate else []
            return [(_long_name(a.oid), str(a.value)) for a in parts]
        except (ValueError, TypeError):
            return []

    @property
    def subject(self) -> str:
        """The subject's name, as RFC 4514 writes it."""
        try:
            if self._certificate:
                return self._certificate.subject.rfc4514_string()
        except (ValueError, TypeError):
            pass
        return "with an unreadable name"


def _long_name(oid: x509.ObjectIdentifier) -> str:
    """OpenSSL's long name of an object identifier; dotted numbers if it has none."""
    name = str(oid._name)
    return oid.dotted_string if name == "Unknown OID" else name


# ---- PEM ----

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_ENDS = {
    _BEGIN.encode(): _END.encode(),
    b"-----BEGIN X509 CERTIFICATE-----": b"-----END X509 CERTIFICATE-----",
}
_WHITE = b" \t\r\v\f"
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")


class _Bad(Exception):
    pass


def holds_private_key(pem: bytes) -> bool:
    """Whether the text contains a private key, whatever else it contains."""
    return bool(_PRIVATE.search(pem))


def _der_of(pem: bytes) -> bytes:
    """The first certificate of a text."""
    lines = iter([line.rstrip(_WHITE) for line in pem.split(b"\n")])
    end = next((_ENDS[line] for line in lines if line in _ENDS), None)
    if end is None:
        raise _Bad(f"is not a PEM certificate: it has no line {_BEGIN}")
    body = []
    for line in lines:
        if line.startswith(b"-----"):
            break
        body.append(line.translate(None, _WHITE))
    else:
        raise _Bad("is incomplete PEM: its END line is missing")
    if line != end:
        raise _Bad("is not PEM: its END line does not match its BEGIN line")
    text = b"".join(body)
    if not _BASE64.fullmatch(text):
        raise _Bad("is not PEM: between its BEGIN and END lines is something other than base64")
    return binascii.a2b_base64(text)  # surplus bits that do not make a byte are ignored


# ---- DER ----

_INTEGER, _BITS, _OID, _UTC_TIME, _TIME, _SEQUENCE = 0x02, 0x03, 0x06, 0x17, 0x18, 0x30
_VERSION, _ISSUER_ID, _SUBJECT_ID, _EXTENSIONS = 0xA0, 0x81, 0x82, 0xA3
_FORM = "cannot be read: it is not an X.509 certificate in DER"


class _Der:
    """The content of a DER value. Reading an element removes it from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, tag: int, problem: str = _FORM) -> _Der:
        """The next element, which must have this tag."""
        data = self.data
        if len(data) < 2 or data[0] != tag:
            raise _Bad(problem)
        size, head = data[1], 2
        if size >= 0x80:
            # DER: in as few bytes as possible; no PEM text here is as long as 16 MB.
            head += size & 0x7F
            if not 3 <= head <= 5 or len(data) < head or data[2] == 0:
                raise _Bad(problem)
            size = int.from_bytes(data[2:head], "big")
            if size < 0x80:
                raise _Bad(problem)
        if size > len(data) - head:
            raise _Bad(problem)
        self.data = data[head + size :]
        return _Der(data[head : head + size])

    def take_optional(self, tag: int) -> _Der | None:
        return self.take(tag) if self.data[:1] == bytes([tag]) else None

    def take_integer(self, problem: str = _FORM) -> bytes:
        """An INTEGER's content; it must have as few bytes as possible."""
        value = self.take(_INTEGER, problem).data
        if not value or (len(value) > 1 and (value[0], value[1] >> 7) in ((0x00, 0), (0xFF, 1))):
            raise _Bad(problem)
        return value

    def take_bytes(self, problem: str = _FORM) -> bytes:
        """The bytes of a BIT STRING, which must be whole bytes, at least one."""
        value = self.take(_BITS, problem).data
        if len(value) < 2 or value[0] != 0:
            raise _Bad(problem)
        return value[1:]

    def take_time(self) -> datetime:
        """A time (RFC 5280, 4.1.2.5): UTCTime or GeneralizedTime, in whole seconds, in UTC."""
        problem = "has unreadable dates"
        short = self.data[:1] == bytes([_UTC_TIME])
        text = self.take(_UTC_TIME if short else _TIME, problem).data
        if not re.fullmatch(rb"\d{12}Z" if short else rb"\d{14}Z", text):
            raise _Bad(problem)
        digits = text.decode("ascii").rstrip("Z")
        if short:
            digits = ("20" if digits < "50" else "19") + digits
        try:
            month, day, hour, minute, second = (int(digits[i : i + 2]) for i in range(4, 14, 2))
            return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            raise _Bad(problem) from None

    def end(self, problem: str = _FORM) -> None:
        if self.data:
            raise _Bad(problem)


def _oid_text(oid: bytes) -> str:
    """An OID in dotted form (1.2.840.10045.2.1), or "unknown" if the bytes are not an OID."""
    arcs, arc = [], 0
    for byte in oid:
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    if not arcs or oid[-1] & 0x80 or any(arc >> 64 for arc in arcs):
        return "unknown"
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def _read_key(spki: _Der) -> tuple[Curve, ec.EllipticCurvePublicKey]:
    from cryptography.hazmat.primitives.asymmetric import ec

    usable = "usable are EC keys on P-256, P-384 and P-521"
    problem = "cannot be read: its key is not in the form of X.509"
    algorithm = spki.take(_SEQUENCE, problem)
    kind = algorithm.take(_OID, problem).data
    point = spki.take_bytes(problem)
    spki.end(problem)
    if kind != _EC_PUBLIC_KEY:
        raise _Bad(f"has a key of type {_known(kind)}, {usable}")
    if algorithm.data[:1] == bytes([_SEQUENCE]):
        raise _Bad(
            "has a key with explicit curve parameters, which X.509 does not allow (RFC 5480); make a new key "
            "with a named curve (openssl: -param_enc named_curve)"
        )
    problem = "cannot be read: its key names no curve"
    name = algorithm.take(_OID, problem).data
    algorithm.end(problem)
    curve = next((c for c in CURVES if c.oid == name), None)
    if curve is None:
        raise _Bad(f"has a key on curve {_known(name)}, {usable}")
    if point[0] in (2, 3):
        raise _Bad(
            "has its key as a compressed point; make it again with an uncompressed point "
            "(openssl: -conv_form uncompressed)"
        )
    problem = "has a key that is not a point on its curve"
    if point[0] != 4 or len(point) != 1 + 2 * curve.half:
        raise _Bad(problem)
    known = {"secp256r1": ec.SECP256R1(), "secp384r1": ec.SECP384R1(), "secp521r1": ec.SECP521R1()}
    try:
        return curve, ec.EllipticCurvePublicKey.from_encoded_point(known[curve.name], point)
    except ValueError:
        raise _Bad(problem) from None


def _known(oid: bytes) -> str:
    """The usual name of an OID if it has one, else its dotted form."""
    text = _oid_text(oid)
    names = {"1.2.840.113549.1.1.1": "RSA", "1.3.101.112": "Ed25519", "1.3.132.0.10": "secp256k1"}
    return names.get(text, text)


def _read_der(der: bytes) -> Signer:
    whole = _Der(der)
    certificate = whole.take(_SEQUENCE)
    whole.end()
    tbs, outer = certificate.take(_SEQUENCE), certificate.take(_SEQUENCE)
    signature = certificate.take_bytes()
    certificate.end()
    if version := tbs.take_optional(_VERSION):
        # v2 and v3 are 1 and 2; v1 is left out (RFC 5280, 4.1.2.1)
        problem = "has an unknown X.509 version"
        if version.take_integer(problem) not in (b"\1", b"\2"):
            raise _Bad(problem)
        version.end(problem)
    tbs.take_integer()
    inner = tbs.take(_SEQUENCE)
    tbs.take(_SEQUENCE)  # issuer
    dates = tbs.take(_SEQUENCE)
    tbs.take(_SEQUENCE)  # subject
    spki = tbs.take(_SEQUENCE)
    tbs.take_optional(_ISSUER_ID)
    tbs.take_optional(_SUBJECT_ID)
    extensions = tbs.take_optional(_EXTENSIONS)
    tbs.end()
    if extensions:
        extensions.take(_SEQUENCE)
        extensions.end()
    if inner.data != outer.data:
        raise _Bad("names two different signature algorithms")
    algorithm = _oid_text(inner.take(_OID).data)
    begin, end = dates.take_time(), dates.take_time()
    dates.end("has unreadable dates")
    curve, key = _read_key(spki)
    return Signer(der, begin, end, curve, key, algorithm, signature)


def read_certificate(pem: bytes, path: Path | None = None) -> Signer:
    """The first certificate of a PEM text. Raises EifError signature-certificate."""

    def refuse(message: str) -> NoReturn:
        raise EifError("signature-certificate", f"the signing certificate {message}", path=path) from None

    try:
        return _read_der(_der_of(pem))
    except _Bad as e:
        refuse(str(e))
