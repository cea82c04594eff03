# SPDX-License-Identifier: MIT
"""Decodes and verifies the signature section. PCR0 is what is signed; `certificate` reads the signer's
certificate.

The section is CBOR (RFC 8949), an array whose first element is a map of two arrays of integers below 256:
"signing_certificate", the bytes of a PEM text, and "signature", those of a COSE_Sign1 (RFC 9052) whose
payload is the map {"register_index": 0, "register_value": [48 integers]} (AWS's EIF specification,
"Signature section"). The keys are EC keys on P-256, P-384 and P-521 (RFC 9053, section 2.1).

The input is not trusted: lengths must be definite and are checked against what is left, counts are never
trusted, nothing recurses. The rules, checked in this order, are those of the machine's loader:
signature-malformed, signature-certificate, signature-invalid, signature-index, signature-pcr0,
signature-not-yet-valid, signature-expired. The verdict must be the loader's for every input. That is why CBOR
is read here item by item and not with `nitroctl.base.cbor`, which accepts other inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from nitroctl.base.errors import EifError
from nitroctl.base.instants import UTC
from nitroctl.eif.certificate import CURVES, Signer, read_certificate
from nitroctl.eif.pcr import DIGEST_SIZE, Measurements

# CBOR's major types (RFC 8949, section 3.1).
UINT, NEGINT, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE = range(8)
_KINDS = (
    "an integer", "a negative integer", "a byte string", "a text string", "an array", "a map", "a tag",
    "a simple value or float",
)  # fmt: skip

COSE_SIGN1_TAG = 18
ALG = 1  # label of the algorithm in a COSE header


@dataclass(frozen=True)
class Signature:
    """A decoded section. `protected`, `payload` and `raw` (r || s) are the bytes exactly as in the file."""

    pem: bytes
    protected: bytes
    payload: bytes
    raw: bytes
    alg: int
    register_index: int
    register_value: bytes

    @property
    def signed_bytes(self) -> bytes:
        """The Sig_structure of RFC 9052, section 4.4, with no external data."""
        parts = (self.protected, b"", self.payload)
        return b"\x84" + head(TEXT, 10) + b"Signature1" + b"".join(head(BYTES, len(p)) + p for p in parts)


def head(major: int, value: int) -> bytes:
    """The shortest CBOR head of an item."""
    for size, info in ((1, 24), (2, 25), (4, 26)):
        if value < 24:
            return bytes([major << 5 | value])
        if value < 1 << 8 * size:
            return bytes([major << 5 | info]) + value.to_bytes(size, "big")
    return bytes([major << 5 | 27]) + value.to_bytes(8, "big")


class Reader:
    """Reads a CBOR document item by item. Raises EifError signature-malformed for what is not well-formed."""

    def __init__(self, data: bytes, what: str, path: Path | None) -> None:
        self.data = data
        self.what = what
        self.path = path
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        where = self.at if at is None else at
        raise EifError(
            "signature-malformed",
            f"{self.what}, byte {where} of {len(self.data)}: {message}",
            path=self.path,
        )

    def item(self) -> tuple[int, int, bytes]:
        """The next item's head: (major type, value, content). `value` is the number, the length, or the count
        of an array or map; `content` are a string's bytes."""
        start = self.at
        if start == len(self.data):
            self.fail("it ends too early")
        major, info = self.data[start] >> 5, self.data[start] & 31
        self.at += 1
        value = info
        if 24 <= info < 28:
            size = 1 << (info - 24)
            raw = self.data[self.at : self.at + size]
            if len(raw) < size:
                self.fail("it ends within an item", start)
            value = int.from_bytes(raw, "big")
            self.at += size
        elif info == 31 and major in (BYTES, TEXT, ARRAY, MAP, SIMPLE):
            self.fail("indefinite lengths are not allowed", start)
        elif info >= 28:
            self.fail("this is not CBOR", start)
        left = len(self.data) - self.at
        if major == SIMPLE and info == 24 and value < 32:
            self.fail("a simple value below 32 in two bytes", start)  # RFC 8949, section 3.3
        if major in (BYTES, TEXT):
            if value > left:
                self.fail(f"a string of {value} bytes, but only {left} are left", start)
            self.at += value
            return major, value, self.data[self.at - value : self.at]
        if major in (ARRAY, MAP) and value > left:
            self.fail(f"{value} elements, but only {left} bytes are left", start)
        return major, value, b""

    def expect(self, major: int) -> tuple[int, bytes]:
        start = self.at
        found, value, content = self.item()
        if found != major:
            self.fail(f"{_KINDS[found]} instead of {_KINDS[major]}", start)
        return value, content

    def skip(self) -> None:
        """Skip one whole item, however deeply nested: it counts the items to come and does not recurse."""
        todo = 1
        while todo:
            major, value, _ = self.item()
            todo += {ARRAY: value, MAP: 2 * value, TAG: 1}.get(major, 0) - 1

    def end(self) -> None:
        if self.at != len(self.data):
            self.fail("there are bytes after its end")

    def byte_array(self) -> bytes:
        """An array of integers below 256, which is how these documents write bytes."""
        start = self.at
        count, _ = self.expect(ARRAY)
        result = bytearray()
        for _ in range(count):
            value, _ = self.expect(UINT)
            if value > 255:
                self.fail(f"{value} in an array of bytes", start)
            result.append(value)
        return bytes(result)


def _fields(reader: Reader, readers: dict[tuple[int, bytes | int], str]) -> dict[str, int]:
    """Walk the map that comes next. `readers` maps (major type, key) to a field's name; returns where each
    field's value begins. Other pairs are skipped; a field that is missing or occurs twice is refused."""
    count, _ = reader.expect(MAP)
    found: dict[str, int] = {}
    for _ in range(count):
        start = reader.at
        major, value, content = reader.item()
        field = readers.get((major, content if major in (BYTES, TEXT) else value))
        if field is None:
            reader.at = start
            reader.skip()
        elif field in found:
            reader.fail(f"{field} occurs twice", start)
        else:
            found[field] = reader.at
        reader.skip()
    for field in readers.values():
        if field not in found:
            reader.fail(f"there is no {field}")
    return found


def _text_keys(*names: str) -> dict[tuple[int, bytes | int], str]:
    return {(TEXT, name.encode()): name for name in names}


def decode(section: bytes, path: Path | None = None) -> Signature:
    """Decode the data of a signature section. Raises EifError signature-malformed."""
    reader = Reader(section, "the signature section", path)
    count, _ = reader.expect(ARRAY)
    if count == 0:
        reader.fail("the array is empty")
    fields = _fields(reader, _text_keys("signing_certificate", "signature"))
    for _ in range(count - 1):
        reader.skip()
    reader.end()
    reader.at = fields["signing_certificate"]
    pem = reader.byte_array()
    reader.at = fields["signature"]
    cose = Reader(reader.byte_array(), "the COSE_Sign1 of the signature section", path)

    major, value, _ = cose.item()
    if major == TAG:
        if value != COSE_SIGN1_TAG:
            cose.fail(f"tag {value} is not that of COSE_Sign1 ({COSE_SIGN1_TAG})")
    else:
        cose.at = 0
    count, _ = cose.expect(ARRAY)
    if count != 4:
        cose.fail(f"the array has {count} elements, not 4")
    _, protected = cose.expect(BYTES)
    start = cose.at
    cose.expect(MAP)
    cose.at = start
    cose.skip()
    _, payload = cose.expect(BYTES)
    _, raw = cose.expect(BYTES)
    cose.end()

    header = Reader(protected, "the protected header of the COSE_Sign1", path)
    at = _fields(header, {(UINT, ALG): "algorithm"})
    header.end()
    header.at = at["algorithm"]
    alg = -1 - header.expect(NEGINT)[0]
    if alg not in {c.alg for c in CURVES}:
        header.fail(f"the algorithm {alg} is none of " + ", ".join(f"{c.alg_name} ({c.alg})" for c in CURVES))

    body = Reader(payload, "the payload of the COSE_Sign1", path)
    at = _fields(body, _text_keys("register_index", "register_value"))
    body.end()
    body.at = at["register_index"]
    index, _ = body.expect(UINT)
    body.at = at["register_value"]
    register = body.byte_array()
    if len(register) != DIGEST_SIZE:
        body.fail(f"the register's value has {len(register)} bytes, not {DIGEST_SIZE}")
    return Signature(pem, protected, payload, raw, alg, index, register)


def check_cose(signature: Signature, signer: Signer, path: Path | None = None) -> None:
    """Check that the signature was made with this certificate's key. Raises EifError signature-invalid."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    def refuse(message: str) -> EifError:
        return EifError("signature-invalid", message, path=path)

    curve = signer.curve
    if signature.alg != curve.alg:
        raise refuse(
            f"the signature has algorithm {signature.alg}, but the certificate's key on {curve.name} is for "
            f"{curve.alg_name} ({curve.alg})"
        )
    if len(signature.raw) != 2 * curve.half:
        raise refuse(f"the {curve.alg_name} signature has {len(signature.raw)} bytes, not {2 * curve.half}")
    r = int.from_bytes(signature.raw[: curve.half], "big")
    s = int.from_bytes(signature.raw[curve.half :], "big")
    algorithm = curve.hash_algorithm()
    try:
        signer.key.verify(encode_dss_signature(r, s), signature.signed_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        raise refuse("the signature was not made with the certificate's key over these bytes") from None


def check(signature: Signature, pcr0: bytes | None, now: datetime, path: Path | None = None) -> Signer:
    """Check everything that the loader checks in a signature. `pcr0` is that of the file, or None if it is
    not known yet; `now` must have a time zone."""
    signer = read_certificate(signature.pem, path)
    check_cose(signature, signer, path)
    if signature.register_index != 0:
        raise EifError(
            "signature-index",
            f"the signature is over PCR{signature.register_index}, not over PCR0",
            path=path,
        )
    if pcr0 is not None and signature.register_value != pcr0:
        raise EifError(
            "signature-pcr0",
            f"the signature is over PCR0 {signature.register_value.hex()}, but this image has {pcr0.hex()}",
            path=path,
            hint="the image was changed after it was signed; sign it again",
        )
    begin, end = signer.not_before, signer.not_after
    at = now.astimezone(UTC).replace(microsecond=0)
    if at < begin:
        message = f"the signing certificate is valid only from {begin}; now it is {at}"
        raise EifError("signature-not-yet-valid", message, path=path)
    if at > end:
        message = f"the signing certificate expired at {end}; now it is {at}"
        raise EifError("signature-expired", message, path=path)
    return signer


def with_pcr8(measurements: Measurements, signature: Signature, path: Path | None = None) -> Measurements:
    """The measurements of a signed file, from those of its content."""
    return replace(measurements, pcr8=read_certificate(signature.pem, path).pcr8)
