# SPDX-License-Identifier: MIT
"""Parses one X.509 certificate of a document's chain, by rules that leave no room for interpretation.

Libraries differ in what they tolerate: impossible dates, strings with characters that their type does not
allow, lengths that are not the shortest. The machine uses gnutls and this package uses cryptography. To reach
the same verdict on a chain, both first apply these rules, which are written down in docs/attestation.md; the
machine's code is in hw/virtio/nsm/nsm-cert.c. Only what path validation needs is read. Extensions that are
not critical are ignored, so that none of them can cause a refusal.

RFC 5280, section 4; X.690, section 10 (DER). `chain` checks who issued which certificate.
"""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime
from typing import NoReturn

from nitroctl.base.instants import UTC

INTEGER, BIT_STRING, OCTET_STRING, OID = 0x02, 0x03, 0x04, 0x06
UTF8, PRINTABLE, IA5, UTC_TIME, GENERALIZED_TIME = 0x0C, 0x13, 0x16, 0x17, 0x18
BOOLEAN, SEQUENCE, SET, CONTEXT_0, CONTEXT_3 = 0x01, 0x30, 0x31, 0xA0, 0xA3

SERIAL_MAX = 20  # bytes (RFC 5280, section 4.1.2.2); AWS has such serial numbers, with a leading zero byte
OID_MAX = 32
EXTENSIONS_MAX = 32
# AlgorithmIdentifier of ecdsa-with-SHA384 (RFC 5758, section 3.2), without its head
ECDSA_SHA384 = bytes.fromhex("06082a8648ce3d040303")
# SubjectPublicKeyInfo of P-384 (RFC 5480, section 2), up to the two coordinates
P384 = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
P384_SIZE = len(P384) + 96

ORGANIZATIONAL_UNIT = bytes.fromhex("55040b")  # 2.5.4.11
BASIC_CONSTRAINTS, KEY_USAGE, NAME_CONSTRAINTS = "2.5.29.19", "2.5.29.15", "2.5.29.30"
DIGITAL_SIGNATURE, KEY_CERT_SIGN = 0x80, 0x04  # bits in the first byte of KeyUsage


class Fault(ValueError):
    """What is wrong with the certificate, worded so that it completes "the root certificate {fault}"."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    tbs: bytes  # the TBSCertificate, which is what is signed
    signature: bytes  # DER of ECDSA-Sig-Value
    algorithms: tuple[bytes, bytes]  # the signature algorithm, as given inside and outside of `tbs`
    issuer: bytes  # Name in DER
    subject: bytes
    begin: datetime
    end: datetime
    key: bytes  # SubjectPublicKeyInfo in DER
    ca: bool | None  # None: no BasicConstraints
    ca_critical: bool
    path_length: int | None
    usage: int | None  # None: no KeyUsage


class _Reader:
    """The part of a constructed value's content that has not been read yet."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def tag(self) -> int | None:
        return self.data[self.at] if self.at < len(self.data) else None

    def take(self, tag: int, what: str, *, whole: bool = False) -> bytes:
        """The content of the next element, or all of it with `whole`."""
        data, begin = self.data, self.at
        if len(data) - begin < 2 or data[begin] != tag:
            raise Fault(f"is no X.509 certificate in DER: {what} is not where it must be")
        size, at = data[begin + 1], begin + 2
        if size & 0x80:
            bytes_ = size & 0x7F
            if not 1 <= bytes_ <= 2 or bytes_ > len(data) - at:
                raise Fault(f"is no X.509 certificate in DER: {what} has a bad length")
            size = int.from_bytes(data[at : at + bytes_], "big")
            at += bytes_
            if size < (0x80 if bytes_ == 1 else 0x100):
                raise Fault(f"is no X.509 certificate in DER: {what} has a length that is not the shortest")
        if size > len(data) - at:
            raise Fault(f"is no X.509 certificate in DER: {what} is longer than what it is in")
        self.at = at + size
        return data[begin if whole else at : self.at]

    def inside(self, tag: int, what: str) -> _Reader:
        return _Reader(self.take(tag, what))

    def end(self, what: str) -> None:
        if self.at != len(self.data):
            raise Fault(f"is no X.509 certificate in DER: {what} has something behind it")


def _integer(reader: _Reader, what: str) -> int:
    """An integer of any length; it must not be negative."""
    content = reader.take(INTEGER, what)
    if not content or (len(content) > 1 and content[0] == 0 and content[1] < 0x80):
        raise Fault(f"is no X.509 certificate in DER: {what} is no integer in DER")
    if content[0] & 0x80:
        raise Fault(f"has a negative {what}")
    return int.from_bytes(content, "big")


def _oid(content: bytes, what: str) -> str:
    """An object identifier in dotted form; each arc may have at most nine bytes."""
    arcs, arc, size = [], 0, 0
    if not 1 <= len(content) <= OID_MAX or content[-1] & 0x80:
        raise Fault(f"is no X.509 certificate in DER: {what} has no object identifier")
    for byte in content:
        size += 1
        if (size == 1 and byte == 0x80) or size > 9:
            raise Fault(f"is no X.509 certificate in DER: {what} has no object identifier")
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc, size = 0, 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


_PRINTABLE = re.compile(rb"[A-Za-z0-9 '()+,./:=?-]*")


def _check_string(tag: int | None, reader: _Reader, what: str) -> None:
    if tag not in (UTF8, PRINTABLE, IA5):
        raise Fault(f"has a string in its {what} that is no UTF8String, PrintableString or IA5String")
    content = reader.take(tag, what)
    good = b"\0" not in content
    if tag == UTF8:
        try:
            content.decode()
        except UnicodeDecodeError:
            good = False
    elif tag == PRINTABLE:
        good = good and _PRINTABLE.fullmatch(content) is not None
    else:
        good = good and content.isascii()
    if not good or not content:
        raise Fault(f"has a string in its {what} whose characters are not of its type")


def _name(reader: _Reader, what: str) -> bytes:
    name = reader.take(SEQUENCE, what, whole=True)
    parts = _Reader(name).inside(SEQUENCE, what)
    if parts.tag() is None:
        raise Fault(f"has an empty {what}")
    while parts.tag() is not None:
        values = parts.inside(SET, what)
        if values.tag() is None:
            raise Fault(f"is no X.509 certificate in DER: its {what} has an empty part")
        while values.tag() is not None:
            pair = values.inside(SEQUENCE, what)
            _oid(pair.take(OID, what), what)
            _check_string(pair.tag(), pair, what)
            pair.end(what)
    return name


_TIME = {UTC_TIME: re.compile(rb"[0-9]{12}Z"), GENERALIZED_TIME: re.compile(rb"[0-9]{14}Z")}


def _time(reader: _Reader, what: str) -> datetime:
    tag = reader.tag()
    if tag not in _TIME:
        raise Fault(f"is no X.509 certificate in DER: {what} is no time")
    content = reader.take(tag, what)
    if not _TIME[tag].fullmatch(content):
        raise Fault(f"has a {what} that is not written as RFC 5280 has it")
    digits = content[:-1].decode()
    if tag == UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    try:
        month, day, hour, minute, second = (int(digits[i : i + 2]) for i in range(4, 14, 2))
        return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as e:
        raise Fault(f"has a {what} that no calendar has: {digits}") from e


def _bits(content: bytes, what: str) -> tuple[int, bytes]:
    """A BIT STRING: (number of unused bits at the end, which must be zero, and the bytes)."""
    if not content or content[0] > 7 or (content[0] and len(content) < 2):
        raise Fault(f"is no X.509 certificate in DER: {what} is no bit string")
    if content[0] and content[-1] & ((1 << content[0]) - 1):
        raise Fault(f"is no X.509 certificate in DER: {what} is no bit string in DER")
    return content[0], content[1:]


def _basic_constraints(value: bytes) -> tuple[bool, int | None]:
    what = "BasicConstraints"
    outer = _Reader(value)
    inner = outer.inside(SEQUENCE, what)
    outer.end(what)
    ca, length = False, None
    if inner.tag() == BOOLEAN:
        if inner.take(BOOLEAN, what) != b"\xff":
            raise Fault(f"is no X.509 certificate in DER: {what} is not in DER")
        ca = True
    if inner.tag() is not None:
        length = _integer(inner, "path length")
    inner.end(what)
    return ca, length


def _key_usage(value: bytes) -> int:
    reader = _Reader(value)
    _, usage = _bits(reader.take(BIT_STRING, "KeyUsage"), "KeyUsage")
    reader.end("KeyUsage")
    if len(usage) > 2:
        raise Fault("is no X.509 certificate in DER: KeyUsage has too many bits")
    return usage[0] if usage else 0


def _extensions(reader: _Reader) -> dict[str, tuple[bool, bytes]]:
    """The extensions by their OIDs: (critical, value). Unknown critical extensions are refused."""
    found: dict[str, tuple[bool, bytes]] = {}
    while reader.tag() is not None:
        extension = reader.inside(SEQUENCE, "an extension")
        oid = _oid(extension.take(OID, "an extension"), "an extension")
        critical = extension.tag() == BOOLEAN
        if critical and extension.take(BOOLEAN, "an extension") != b"\xff":
            raise Fault("is no X.509 certificate in DER: an extension is not in DER")
        value = extension.take(OCTET_STRING, "an extension")
        extension.end("an extension")
        if len(found) == EXTENSIONS_MAX:
            raise Fault(f"has more than {EXTENSIONS_MAX} extensions")
        if oid in found:
            raise Fault(f"has the extension {oid} twice")
        if oid == NAME_CONSTRAINTS:
            raise Fault("has name constraints (2.5.29.30), which are not supported in these chains")
        if critical and oid not in (BASIC_CONSTRAINTS, KEY_USAGE):
            raise Fault(f"has a critical extension that is not known here: {oid}")
        found[oid] = critical, value
    if not found:
        raise Fault("is no X.509 certificate in DER: it has no extension in the list of them")
    return found


def units_of(der: bytes) -> list[str]:
    """The organizational units in a certificate's subject name; empty if `parse` refuses the certificate."""
    try:
        subject = parse(der).subject
    except Fault:
        return []
    found = []
    parts = _Reader(subject).inside(SEQUENCE, "subject")
    while parts.tag() is not None:
        values = parts.inside(SET, "subject")
        while values.tag() is not None:
            pair = values.inside(SEQUENCE, "subject")
            unit = pair.take(OID, "subject") == ORGANIZATIONAL_UNIT
            tag = pair.tag()
            assert tag is not None  # `parse` has checked it
            text = pair.take(tag, "subject").decode()
            found += [text] if unit else []
    return found


def _malformed(what: str) -> NoReturn:
    raise Fault(f"is no X.509 certificate in DER: {what}")


def parse(der: bytes) -> Certificate:
    """Parse a certificate; raises Fault. The key and the signature are not checked."""
    outer = _Reader(der)
    whole = outer.inside(SEQUENCE, "the certificate")
    outer.end("the certificate")
    tbs = whole.take(SEQUENCE, "the signed part", whole=True)
    outside = whole.take(SEQUENCE, "the signature's algorithm")
    unused, signature = _bits(whole.take(BIT_STRING, "the signature"), "the signature")
    if unused:
        _malformed("the signature has no whole bytes")
    whole.end("the signature")

    fields = _Reader(tbs).inside(SEQUENCE, "the signed part")
    if fields.tag() != CONTEXT_0:
        raise Fault("is of version 1, not 3")
    version = fields.inside(CONTEXT_0, "the version")
    number = _integer(version, "version")
    version.end("the version")
    if number != 2:
        raise Fault(f"is of version {number + 1 if number < 256 else 'unknown'}, not 3")
    serial = _integer(fields, "serial number")
    if serial == 0:
        raise Fault("has a serial number of zero")
    if serial.bit_length() > 8 * SERIAL_MAX:
        raise Fault(f"has a serial number of more than {SERIAL_MAX} bytes")
    inside = fields.take(SEQUENCE, "the signature's algorithm")
    issuer = _name(fields, "issuer")
    validity = fields.inside(SEQUENCE, "the validity")
    begin, end = _time(validity, "first date"), _time(validity, "last date")
    validity.end("the validity")
    subject = _name(fields, "subject")
    key = fields.take(SEQUENCE, "the public key", whole=True)
    found: dict[str, tuple[bool, bytes]] = {}
    if fields.tag() == CONTEXT_3:
        explicit = fields.inside(CONTEXT_3, "the extensions")
        found = _extensions(explicit.inside(SEQUENCE, "the extensions"))
        explicit.end("the extensions")
    fields.end("the extensions")

    ca, length, ca_critical = None, None, False
    if BASIC_CONSTRAINTS in found:
        ca_critical, value = found[BASIC_CONSTRAINTS]
        ca, length = _basic_constraints(value)
    return Certificate(
        tbs=tbs,
        signature=signature,
        algorithms=(inside, outside),
        issuer=issuer,
        subject=subject,
        begin=begin,
        end=end,
        key=key,
        ca=ca,
        ca_critical=ca_critical,
        path_length=length,
        usage=_key_usage(found[KEY_USAGE][1]) if KEY_USAGE in found else None,
    )
