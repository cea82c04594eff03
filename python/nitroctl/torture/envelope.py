# SPDX-License-Identifier: MIT
"""Cases of the envelope: a COSE_Sign1 of four parts, its headers, its signature. The payload is good."""

from __future__ import annotations

import hashlib
import hmac

from nitroctl.torture import cbor, keys
from nitroctl.torture.bench import ES384, PROTECTED, Bench, to_be_signed
from nitroctl.torture.cbor import integer, octets, text
from nitroctl.torture.certificates import ENCLAVE, INSTANCE, encoded
from nitroctl.torture.keys import ORDER
from nitroctl.torture.rows import (
    AWS,
    CBOR,
    COSE,
    COSE_ALGORITHMS,
    ECDSA,
    Row,
    accept,
    either,
    forged,
    refuse,
)

AWS_HEADERS = f"{AWS} 3.1: {{1: -35}}"
ALGORITHM, CRITICAL, KEY_ID = integer(1), integer(2), integer(4)
NOBODYS = integer(-70001)
CERTIFICATES = integer(33)  # x5chain (RFC 9360, section 2)


def _header(*pairs: cbor.Pair) -> bytes:
    return cbor.mapping(pairs)


def _es384(*more: cbor.Pair) -> bytes:
    """A protected header that has the algorithm and more."""
    return _header((ALGORITHM, integer(ES384)), *more)


def _signed(b: Bench, pair: keys.Pair) -> bytes:
    return b.replaced(3, octets(b.chain[ENCLAVE].key.raw(pair)))


def _signature_over(b: Bench, data: bytes, digest: str = "sha384") -> bytes:
    """A good document whose signature is over other bytes, or by another digest."""
    return _signed(b, b.chain[ENCLAVE].key.sign(data, digest))


def _good(b: Bench) -> keys.Pair:
    return b.chain[ENCLAVE].key.sign(to_be_signed(PROTECTED, b.payload()))


def _half(b: Bench, *, high: bool) -> bytes:
    """s and n - s are equally good; one of them is in the upper half."""
    r, s = _good(b)
    return _signed(b, (r, max(s, ORDER - s) if high else min(s, ORDER - s)))


def _short_r(b: Bench) -> bytes:
    payload = b.payload()
    pair = b.chain[ENCLAVE].key.sign(to_be_signed(PROTECTED, payload), nonce=keys.SHORT)
    return b.envelope(payload, signature=b.chain[ENCLAVE].key.raw(pair))


def _short_s(b: Bench) -> bytes:
    """Other user data until s begins with a zero byte: one try of 256."""
    key = b.chain[ENCLAVE].key
    r, _ = key.sign(b"", nonce=keys.SHORT + 1)
    for number in range(100_000):
        payload = b.payload(user_data=octets(number.to_bytes(4, "big")))
        s = key.close(hashlib.sha384(to_be_signed(PROTECTED, payload)).digest(), r, keys.SHORT + 1)
        if s >> 376 == 0:
            return b.envelope(payload, signature=key.raw((r, s)))
    raise AssertionError("no s is that short")


def _without_zeros(b: Bench) -> bytes:
    payload = b.payload()
    pair = b.chain[ENCLAVE].key.sign(to_be_signed(PROTECTED, payload), nonce=keys.SHORT)
    return b.envelope(payload, signature=b.chain[ENCLAVE].key.raw(pair).lstrip(b"\0"))


def _flipped(b: Bench) -> bytes:
    """One bit of a PCR, after signing."""
    payload = bytearray(b.payload())
    payload[payload.index(b.pcr0)] ^= 1
    return b.replaced(2, octets(bytes(payload)))


def _by_hmac(b: Bench) -> bytes:
    """HMAC 384/384, keyed with the public key: what a verifier computes that lets the header choose."""
    protected, payload, key = _header((ALGORITHM, integer(6))), b.payload(), b.chain[ENCLAVE].key
    mac = hmac.digest(key.info, to_be_signed(protected, payload), "sha384")
    return b.envelope(payload, protected=protected, signature=mac)


def _by_header_certificate(b: Bench) -> bytes:
    """A stranger's chain in the header, his signature, and our chain in the payload."""
    chain = octets(encoded(b.strangers)[ENCLAVE])
    return b.envelope(unprotected=_header((CERTIFICATES, chain)), key=b.strangers[ENCLAVE].key)


def _long_lengths(b: Bench) -> bytes:
    signature = b.chain[ENCLAVE].key.raw(_good(b))
    strings = (octets(value, 8) for value in (b.payload(), signature))
    return cbor.head(cbor.ARRAY, 4, 8) + octets(PROTECTED, 8) + cbor.EMPTY_MAP + b"".join(strings)


def _nested(depth: int) -> bytes:
    return b"\x81" * depth + cbor.NULL


SHAPES = (
    accept("cose-tag", "the tag 18 stands in front", "tagged or untagged, as the context has it",
           f"{AWS} 3.1; {COSE} 4.2", lambda b: cbor.tag(18, b.document())),
    accept("cose-endless-array", "the array is of indefinite length", "well-formed, and not signed",
           f"{CBOR} 3.2.2", lambda b: cbor.endless(cbor.ARRAY, *b.parts())),
    accept("cose-chunked-payload", "the payload comes in chunks",
           "one byte string; what is signed is its content", f"{CBOR} 3.2.3; {COSE} 4.4",
           lambda b: b.replaced(2, cbor.chunked(cbor.BYTES, b.payload(), 1000))),
    accept("cose-chunked-header", "the protected header comes in chunks",
           "one byte string; what is signed is its content", f"{CBOR} 3.2.3; {COSE} 4.4",
           lambda b: b.replaced(0, cbor.chunked(cbor.BYTES, PROTECTED, 2))),
    accept("cose-long-lengths", "all lengths of the envelope take eight bytes",
           "the shortest form is a preference", f"{CBOR} 3, 4.1", _long_lengths),
    either("cose-self-described", "the tag 55799 stands in front", "it says that this is CBOR, and no more",
           f"{CBOR} 3.4.6", lambda b: cbor.tag(55799, b.document())),
    either("cose-trailing-byte", "a byte follows", "it matters only to who expects one item and nothing else",
           f"{CBOR} 5.1", lambda b: b.document() + b"\0"),
    either("cose-two-documents", "another document follows", "as long as what is verified is what is used",
           f"{CBOR} 5.1", lambda b: b.document() + b.under(b.strangers)),
    either("cose-deep-header", "10 000 arrays in each other in the unprotected header",
           "well-formed, and nothing that anybody makes; it must not end the verifier", f"{CBOR} 10",
           lambda b: b.replaced(1, _header((text("x"), _nested(10_000))))),
    refuse("cose-empty", "no bytes at all", "no item", f"{CBOR} 5.3.1", lambda b: b""),
    refuse("cose-cut", "the last byte is missing", "not well-formed", f"{CBOR} 5.3.1",
           lambda b: b.document()[:-1]),
    refuse("cose-break-alone", "a break in place of the array", "not well-formed", f"{CBOR} 3.2.1",
           lambda b: b"\xff"),
    refuse("cose-no-break", "an array of indefinite length without its end", "not well-formed",
           f"{CBOR} 3.2.2", lambda b: b"\x9f" + b"".join(b.parts())),
    refuse("cose-reserved-length", "the payload's head has the reserved value 28", "not well-formed",
           f"{CBOR} 3", lambda b: b.replaced(2, b"\x5c" + b.payload())),
    refuse("cose-huge-payload", "the payload claims 2^63 bytes",
           "not well-formed; allocate nothing on its word", f"{CBOR} 5.3.1, 10",
           lambda b: b.replaced(2, cbor.head(cbor.BYTES, 2**63) + b.payload())),
    refuse("cose-huge-array", "the array claims 2^32 elements",
           "not well-formed; allocate nothing on its word", f"{CBOR} 5.3.1, 10",
           lambda b: cbor.head(cbor.ARRAY, 2**32) + b"".join(b.parts())),
    refuse("cose-map", "the four parts are in a map", "COSE_Sign1 is an array", f"{COSE} 4.2",
           lambda b: cbor.mapping((integer(number), part) for number, part in enumerate(b.parts()))),
    refuse("cose-three-parts", "the signature is left out", "an array of four", f"{COSE} 4.2",
           lambda b: cbor.array(*b.parts()[:3])),
    refuse("cose-five-parts", "a fifth part", "an array of four", f"{COSE} 4.2",
           lambda b: cbor.array(*b.parts(), cbor.NULL)),
    refuse("cose-in-bytes", "the whole is wrapped in a byte string", "COSE_Sign1 is an array", f"{COSE} 4.2",
           lambda b: octets(b.document())),
    refuse("cose-tag-mac0", "the tag 17, of COSE_Mac0", "it is said to be something else", f"{COSE} 2",
           lambda b: cbor.tag(17, b.document())),
    refuse("cose-tag-sign", "the tag 98, of COSE_Sign", "it is said to be something else", f"{COSE} 2",
           lambda b: cbor.tag(98, b.document())),
    refuse("cose-tag-twice", "the tag 18 twice", "18 tags a COSE_Sign1, not a tagged one", f"{COSE} 4.2",
           lambda b: cbor.tag(18, cbor.tag(18, b.document()))),
    refuse("cose-payload-null", "the payload is null", "detached content is not with it", f"{COSE} 4.1",
           lambda b: b.replaced(2, cbor.NULL)),
    refuse("cose-payload-empty", "the payload has no bytes", "1 to 16384 bytes", f"{AWS} 3.1",
           lambda b: b.envelope(b"")),
    refuse("cose-payload-text", "the payload is a text", "a byte string", f"{COSE} 4.1; {AWS} 3.1",
           lambda b: b.replaced(2, text(b.payload()))),
    refuse("cose-payload-bare", "the payload is the map itself", "a byte string", f"{COSE} 4.1; {AWS} 3.1",
           lambda b: b.replaced(2, b.payload())),
    refuse("cose-payload-twice", "the payload is a byte string in a byte string", "the payload is a map",
           f"{AWS} 2.2", lambda b: b.envelope(octets(b.payload()))),
)  # fmt: skip

HEADERS = (
    either("header-key-id", "a key id in the unprotected header",
           "no key but the certificate's is meant; AWS has none there", f"{COSE} 3.1; {AWS} 3.1",
           lambda b: b.envelope(unprotected=_header((KEY_ID, octets(b"key"))))),
    either("header-more", "a content type in the protected header",
           "allowed, but AWS's header is always the same", f"{COSE} 3.1; {AWS_HEADERS}",
           lambda b: b.envelope(protected=_es384((integer(3), integer(60))))),
    either("header-long-integers", "1 and -35 take more bytes than they need",
           "the shortest form is a preference, but AWS's header is always the same",
           f"{CBOR} 4.1; {AWS_HEADERS}",
           lambda b: b.envelope(protected=_header((integer(1, 1), integer(ES384, 2))))),
    either("header-endless", "the protected header is a map of indefinite length",
           "well-formed, but AWS's header is always the same", f"{CBOR} 3.2.2; {AWS_HEADERS}",
           lambda b: b.envelope(protected=cbor.endless_map([(ALGORITHM, integer(ES384))]))),
    either("header-critical-known", "crit names the algorithm", "every verifier knows it, and need not look",
           f"{COSE} 3.1", lambda b: b.envelope(protected=_es384((CRITICAL, cbor.array(ALGORITHM))))),
    either("header-algorithm-text", "the algorithm is the text ES384",
           "not registered, but some take its name", f"{COSE} 3.1",
           lambda b: b.envelope(protected=_header((ALGORITHM, text("ES384"))))),
    refuse("header-es256", "the algorithm is -7, ES256", "ES384 alone", AWS_HEADERS,
           lambda b: b.envelope(protected=_header((ALGORITHM, integer(-7))))),
    refuse("header-es512", "the algorithm is -36, ES512", "ES384 alone", AWS_HEADERS,
           lambda b: b.envelope(protected=_header((ALGORITHM, integer(-36))))),
    forged("header-hmac", "the algorithm is 6, and the signature an HMAC keyed with the public key",
           "ES384 alone", AWS_HEADERS, _by_hmac),
    refuse("header-no-algorithm", "an empty protected header", "who signs says how",
           f"{COSE} 3.1; {AWS_HEADERS}", lambda b: b.envelope(protected=cbor.EMPTY_MAP)),
    refuse("header-nothing", "the protected header has no bytes", "who signs says how",
           f"{COSE} 3.1; {AWS_HEADERS}", lambda b: b.envelope(protected=b"")),
    refuse("header-algorithm-null", "the algorithm is null", "ES384 alone", AWS_HEADERS,
           lambda b: b.envelope(protected=_header((ALGORITHM, cbor.NULL)))),
    refuse("header-algorithm-unprotected", "the algorithm stands in the unprotected header alone",
           "where anybody can change it", f"{COSE} 3; {AWS_HEADERS}",
           lambda b: b.envelope(protected=b"", unprotected=_es384())),
    refuse("header-algorithm-both", "the algorithm stands in both headers", "a label occurs once in the two",
           f"{COSE} 3", lambda b: b.envelope(unprotected=_header((ALGORITHM, integer(-7))))),
    refuse("header-algorithm-twice", "the protected header has the label 1 twice", "a label occurs once",
           f"{COSE} 3; {CBOR} 5.6", lambda b: b.envelope(protected=_es384((ALGORITHM, integer(-7))))),
    refuse("header-critical-unknown", "crit names what nobody knows",
           "what is critical is processed, or fatal", f"{COSE} 3.1",
           lambda b: b.envelope(protected=_es384((CRITICAL, cbor.array(NOBODYS)), (NOBODYS, integer(1))))),
    refuse("header-critical-absent", "crit names a parameter that is not there",
           "what is critical is in the protected header", f"{COSE} 3.1",
           lambda b: b.envelope(protected=_es384((CRITICAL, cbor.array(NOBODYS))))),
    refuse("header-critical-empty", "crit is an empty array", "one label at least", f"{COSE} 3.1",
           lambda b: b.envelope(protected=_es384((CRITICAL, cbor.array())))),
    refuse("header-critical-unprotected", "crit stands in the unprotected header", "it must be protected",
           f"{COSE} 3.1", lambda b: b.envelope(unprotected=_header((CRITICAL, cbor.array(NOBODYS))))),
    refuse("header-bare", "the protected header is the map itself", "a byte string", f"{COSE} 3",
           lambda b: b.replaced(0, PROTECTED)),
    refuse("header-text", "the protected header is a text", "a byte string", f"{COSE} 3",
           lambda b: b.replaced(0, text(PROTECTED))),
    refuse("header-array", "the protected header holds an array", "a map", f"{COSE} 3",
           lambda b: b.envelope(protected=cbor.array(ALGORITHM, integer(ES384)))),
    refuse("header-unprotected-null", "the unprotected header is null", "a map", f"{COSE} 3",
           lambda b: b.replaced(1, cbor.NULL)),
    refuse("header-unprotected-bytes", "the unprotected header is a byte string", "a map", f"{COSE} 3",
           lambda b: b.replaced(1, octets(cbor.EMPTY_MAP))),
    forged("header-strangers-certificate", "signed with the key of a certificate in the unprotected header",
           "the payload's certificate signs", f"{AWS} 2.2, 3.2.1", _by_header_certificate),
)  # fmt: skip

SIGNATURES = (
    accept("signature-high-s", "s is in the upper half", "ECDSA has no lower half to keep to", ECDSA,
           lambda b: _half(b, high=True)),
    accept("signature-low-s", "s is in the lower half", "as good as the other one", ECDSA,
           lambda b: _half(b, high=False)),
    accept("signature-short-r", "r begins with a zero byte", "numbers are padded to 48 bytes",
           f"{COSE_ALGORITHMS} 2.1", _short_r),
    accept("signature-short-s", "s begins with a zero byte", "numbers are padded to 48 bytes",
           f"{COSE_ALGORITHMS} 2.1", _short_s),
    accept("signature-chunked", "the signature comes in chunks", "one byte string", f"{CBOR} 3.2.3",
           lambda b: b.replaced(3, cbor.chunked(cbor.BYTES, b.chain[ENCLAVE].key.raw(_good(b)), 40))),
    refuse("signature-without-zeros", "r begins with a zero byte, which is left out", "96 bytes",
           f"{COSE_ALGORITHMS} 2.1", _without_zeros),
    refuse("signature-cut", "its last byte is missing", "96 bytes", f"{COSE_ALGORITHMS} 2.1",
           lambda b: b.replaced(3, octets(b.chain[ENCLAVE].key.raw(_good(b))[:-1]))),
    refuse("signature-longer", "a zero byte follows it", "96 bytes", f"{COSE_ALGORITHMS} 2.1",
           lambda b: b.replaced(3, octets(b.chain[ENCLAVE].key.raw(_good(b)) + b"\0"))),
    refuse("signature-der", "it is in DER, as certificates have it", "r and s as 48 bytes each",
           f"{COSE_ALGORITHMS} 2.1", lambda b: b.replaced(3, octets(keys.in_der(_good(b))))),
    refuse("signature-swapped", "s stands before r", "r first", f"{COSE_ALGORITHMS} 2.1",
           lambda b: _signed(b, (_good(b)[1], _good(b)[0]))),
    forged("signature-empty", "it has no bytes", "nothing is signed", f"{COSE} 4.2",
           lambda b: b.replaced(3, octets(b""))),
    forged("signature-null", "it is null", "nothing is signed", f"{COSE} 4.2",
           lambda b: b.replaced(3, cbor.NULL)),
    forged("signature-text", "it is a text of 96 characters", "a byte string", f"{COSE} 4.2",
           lambda b: b.replaced(3, text("1" * 96))),
    forged("signature-zeros", "r and s are zero", "1 to n-1 each, or everything verifies (CVE-2022-21449)",
           ECDSA, lambda b: b.replaced(3, octets(bytes(96)))),
    forged("signature-order", "r and s are n, which is zero modulo n", "1 to n-1 each", ECDSA,
           lambda b: _signed(b, (ORDER, ORDER))),
    forged("signature-ones", "r and s are 2^384-1", "1 to n-1 each", ECDSA,
           lambda b: b.replaced(3, octets(b"\xff" * 96))),
    forged("signature-bit", "its last bit is another", "not over this content", ECDSA,
           lambda b: _signed(b, (_good(b)[0], _good(b)[1] ^ 1))),
    forged("signature-content-bit", "one bit of PCR0 is another", "not over this content", f"{COSE} 4.4",
           _flipped),
    forged("signature-stranger", "signed with a key that has no part in it", "the certificate's key signs",
           f"{AWS} 2.2, 3.2.1", lambda b: b.envelope(key=b.key("nobody"))),
    refuse("signature-instance", "signed with the key of the instance's certificate, its issuer",
           "the enclave's certificate signs", f"{AWS} 2.2, 3.2.1",
           lambda b: b.envelope(key=b.chain[INSTANCE].key)),
    refuse("signature-sha256", "over SHA-256", "ES384 is with SHA-384", f"{COSE_ALGORITHMS} 2.1",
           lambda b: _signature_over(b, to_be_signed(PROTECTED, b.payload()), "sha256")),
    refuse("signature-sha512", "over SHA-512", "ES384 is with SHA-384", f"{COSE_ALGORITHMS} 2.1",
           lambda b: _signature_over(b, to_be_signed(PROTECTED, b.payload()), "sha512")),
    refuse("signature-payload-alone", "over the payload alone", "over the Sig_structure", f"{COSE} 4.4",
           lambda b: _signature_over(b, b.payload())),
    refuse("signature-context", "its context is that of COSE_Sign", "Signature1", f"{COSE} 4.4",
           lambda b: _signature_over(b, to_be_signed(PROTECTED, b.payload(), context="Signature"))),
    refuse("signature-external", "over external data as well", "there are none", f"{COSE} 4.4",
           lambda b: _signature_over(b, to_be_signed(PROTECTED, b.payload(), external=b"more"))),
    refuse("signature-other-header", "over another protected header", "the one that is sent is signed",
           f"{COSE} 4.4",
           lambda b: _signature_over(b, to_be_signed(_es384((KEY_ID, octets(b"key"))), b.payload()))),
    refuse("signature-no-header", "over an empty protected header", "the one that is sent is signed",
           f"{COSE} 4.4", lambda b: _signature_over(b, to_be_signed(b"", b.payload()))),
    forged("signature-other-payload", "of another good document", "not over this content", f"{COSE} 4.4",
           lambda b: b.replaced(2, octets(b.payload(user_data=octets(b"other"))))),
)  # fmt: skip

ROWS: tuple[Row, ...] = SHAPES + HEADERS + SIGNATURES
