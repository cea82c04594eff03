# SPDX-License-Identifier: MIT
"""Cases of the payload: the map and its fields. Envelope and chain are good, and what is wrong was signed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import timedelta

from nitroctl.torture import cbor, der
from nitroctl.torture.bench import Bench, Made, pairs, pcr_map
from nitroctl.torture.cbor import integer, octets, text
from nitroctl.torture.certificates import ENCLAVE, INSTANCE, UNKNOWN, encoded
from nitroctl.torture.rows import AWS, CBOR, Row, accept, either, refuse

CONTENT = f"{AWS} 3.2.2.2"
MANDATORY = f"{AWS} 3.2.2.1"
SEEN = "AWS's documents"
ONCE = f"{CBOR} 5.6"
NEEDED = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
LONG = 1025


def _ordered(b: Bench, order: Callable[[dict[str, bytes]], list[str]]) -> bytes:
    fields = b.fields()
    return b.envelope(cbor.endless_map(pairs({name: fields[name] for name in order(fields)})))


def _pcrs(b: Bench, pcrs: Mapping[int, bytes]) -> bytes:
    return b.document(pcrs=pcr_map(pcrs))


def _pcr_pairs(b: Bench, *more: cbor.Pair) -> bytes:
    """With entries that no map of Python's can have, behind the good ones."""
    good = [(integer(number), octets(value)) for number, value in b.pcrs().items()]
    return b.document(pcrs=cbor.mapping([*good, *more]))


def _sized(b: Bench, size: int) -> bytes:
    """All PCRs cut or filled to that size."""
    return _pcrs(b, {number: (value * 2)[:size] for number, value in b.pcrs().items()})


def _with_nonce(b: Bench, nonce: bytes) -> Made:
    return Made(b.document(nonce=octets(nonce)), nonce=nonce)


def _behind(b: Bench, *more: cbor.Pair) -> bytes:
    """More pairs behind AWS's nine."""
    return b.envelope(cbor.endless_map([*pairs(b.fields()), *more]))


def _twice(b: Bench, name: str, value: bytes, *, first: bool) -> bytes:
    """A key twice: the good value, and another one before or behind it."""
    good, other = pairs(b.fields()), (text(name), value)
    return b.envelope(cbor.endless_map([other, *good] if first else [*good, other]))


def _large(level: int) -> Callable[[Bench], bytes]:
    """A certificate of more than 1024 bytes."""

    def make(b: Bench) -> bytes:
        filler = der.extension(UNKNOWN, bytes(700))
        return b.under(b.with_extensions(level, filler=filler))

    return make


def _bundle(b: Bench, *items: bytes) -> bytes:
    return b.document(cabundle=cbor.array(*items))


def _certificates(b: Bench) -> list[bytes]:
    return [octets(one) for one in encoded(b.chain)[:ENCLAVE]]


def _long_keys(b: Bench) -> bytes:
    fields = ((name.encode(), value) for name, value in b.fields().items())
    return b.envelope(
        cbor.endless_map((cbor.head(cbor.TEXT, len(name), 4) + name, value) for name, value in fields)
    )


def _chunks(b: Bench) -> bytes:
    return b.document(
        module_id=cbor.chunked(cbor.TEXT, b"i-0123456789abcdef0-enc0123456789abcdef", 10),
        certificate=cbor.chunked(cbor.BYTES, encoded(b.chain)[ENCLAVE], 255),
        nonce=cbor.chunked(cbor.BYTES, b.nonce, 7),
    )


def _endless_inside(b: Bench) -> bytes:
    return b.document(
        pcrs=cbor.endless_map((integer(index), octets(value)) for index, value in b.pcrs().items()),
        cabundle=cbor.endless(cbor.ARRAY, *_certificates(b)),
    )


def _null(name: str) -> Callable[[Bench], bytes]:
    return lambda b: b.document(**{name: cbor.NULL})


def _missing(name: str) -> Callable[[Bench], bytes]:
    return lambda b: b.document(**{name: None})


def _bytes_for_keys(b: Bench) -> bytes:
    return b.envelope(cbor.endless_map((octets(name.encode()), value) for name, value in b.fields().items()))


FORMS = (
    accept("map-definite", "a map of nine, as AWS's documents until April 2025", "archived ones have it",
           SEEN, lambda b: b.envelope(cbor.mapping(pairs(b.fields())))),
    accept("map-reversed", "the fields in reverse order", "maps have no order", f"{CBOR} 5.6; {AWS} 2.2",
           lambda b: _ordered(b, lambda fields: list(reversed(fields)))),
    accept("map-sorted", "the fields in the order of deterministic CBOR", "maps have no order",
           f"{CBOR} 4.2.1",
           lambda b: _ordered(b, lambda fields: sorted(fields, key=lambda name: (len(name), name)))),
    accept("map-long-lengths", "the keys take more bytes than they need", "the shortest form is a preference",
           f"{CBOR} 4.1", _long_keys),
    accept("map-chunks", "module id, certificate and nonce come in chunks", "one string each",
           f"{CBOR} 3.2.3", _chunks),
    accept("map-endless-inside", "PCRs and bundle are of indefinite length", "well-formed", f"{CBOR} 3.2.2",
           _endless_inside),
    either("map-unknown-key", "a tenth key",
           "some refuse what AWS does not name, AWS's own library ignores it", MANDATORY,
           lambda b: _behind(b, (text("comment"), text("unknown")))),
    either("map-unknown-integer", "a tenth key, which is an integer", "some refuse what AWS does not name",
           MANDATORY, lambda b: _behind(b, (integer(99), cbor.NULL))),
    either("map-trailing-byte", "a byte follows the map, within what is signed", "who signed it put it there",
           f"{CBOR} 5.1", lambda b: b.envelope(b.payload() + b"\0")),
    either("map-large", "a payload of 16385 bytes and more", "1 to 16384 bytes, but harmless; few look",
           f"{AWS} 3.1", lambda b: _behind(b, (text("filler"), octets(bytes(16384))))),
    refuse("map-array", "keys and values in an array", "a map", f"{AWS} 2.2",
           lambda b: b.envelope(cbor.array(*(item for pair in pairs(b.fields()) for item in pair)))),
    refuse("map-empty", "a map without entries", "six fields are mandatory", MANDATORY,
           lambda b: b.envelope(cbor.EMPTY_MAP)),
    refuse("map-no-break", "a map of indefinite length without its end", "not well-formed", f"{CBOR} 3.2.2",
           lambda b: b.envelope(b.payload()[:-1])),
    refuse("map-odd", "a map of indefinite length that ends behind a key", "not well-formed", f"{CBOR} 3.2.2",
           lambda b: b.envelope(b.payload()[:-1] + text("key") + cbor.BREAK)),
    refuse("map-too-few", "a map of ten that has nine entries", "not well-formed", f"{CBOR} 3",
           lambda b: b.envelope(cbor.head(cbor.MAP, 10) + b.payload()[1:-1])),
    refuse("map-keys-bytes", "the keys are byte strings", "texts; none of the fields is there", MANDATORY,
           _bytes_for_keys),
    refuse("map-pcrs-twice", "the key pcrs twice, the first with another PCR0",
           "keys occur once: one reader, one value", ONCE,
           lambda b: _twice(b, "pcrs", pcr_map(b.pcrs(b"\1" * 48)), first=True)),
    refuse("map-pcrs-twice-last", "the key pcrs twice, the last with another PCR0",
           "keys occur once: one reader, one value", ONCE,
           lambda b: _twice(b, "pcrs", pcr_map(b.pcrs(b"\1" * 48)), first=False)),
    refuse("map-nonce-twice", "the key nonce twice", "keys occur once: one reader, one value", ONCE,
           lambda b: _twice(b, "nonce", octets(b"other"), first=True)),
    refuse("map-certificate-twice", "the key certificate twice, the last a stranger's",
           "keys occur once: one reader, one value", ONCE,
           lambda b: _twice(b, "certificate", octets(encoded(b.strangers)[ENCLAVE]), first=False)),
)  # fmt: skip

FIELDS = (
    *(refuse(f"no-{name.replace('_', '-')}", f"{name} is missing", "mandatory", MANDATORY,
                 _missing(name))
      for name in NEEDED),
    *(refuse(f"null-{name.replace('_', '-')}", f"{name} is null", "mandatory, and never null", MANDATORY,
                 _null(name))
      for name in NEEDED),
    accept("optional-missing", "public_key and user_data are left out", "optional", MANDATORY,
           lambda b: b.document(public_key=None, user_data=None)),
    accept("optional-all", "public_key and user_data are there", "optional", MANDATORY,
           lambda b: b.document(public_key=octets(b.key("application").info), user_data=octets(b"data"))),
    accept("optional-1024", "public_key and user_data have 1024 bytes each", "AWS's longest", f"{AWS} 2.2",
           lambda b: b.document(public_key=octets(bytes(1024)), user_data=octets(bytes(1024)))),
    accept("optional-nonce-1025", f"the nonce has {LONG} bytes",
           "AWS's hypervisor gives such, whatever its guide says", SEEN,
           lambda b: _with_nonce(b, (b.nonce * 33)[:LONG])),
    accept("optional-data-1025", f"user_data has {LONG} bytes",
           "AWS's hypervisor gives such, whatever its guide says", SEEN,
           lambda b: b.document(user_data=octets(bytes(LONG)))),
    accept("optional-key-1568", "public_key has 1568 bytes, as ML-KEM-1024's",
           "AWS's hypervisor gives such, whatever its guide says", SEEN,
           lambda b: b.document(public_key=octets(bytes(1568)))),
    accept("optional-data-empty", "user_data has no bytes", "0 bytes or more", CONTENT,
           lambda b: b.document(user_data=octets(b""))),
    either("optional-data-5000", "user_data has 5000 bytes", "more than a request can bring", f"{AWS} 2.2",
           lambda b: b.document(user_data=octets(bytes(5000)))),
    either("optional-undefined", "user_data is undefined (f7)",
           "neither null nor a byte string, and yet nothing", f"{CBOR} 3.3",
           lambda b: b.document(user_data=cbor.UNDEFINED)),
    either("optional-key-empty", "public_key has no bytes",
           "1 byte or more in one place of AWS's guide, 0 in another", f"{AWS} 2.2, 3.2.2.2",
           lambda b: b.document(public_key=octets(b""))),
    refuse("optional-key-text", "public_key is a text", "a byte string", CONTENT,
           lambda b: b.document(public_key=text("key"))),
    refuse("optional-data-integer", "user_data is an integer", "a byte string", CONTENT,
           lambda b: b.document(user_data=integer(1))),
    refuse("optional-data-array", "user_data is an array of integers", "a byte string", CONTENT,
           lambda b: b.document(user_data=cbor.array(integer(1), integer(2)))),
    refuse("optional-nonce-text", "the nonce is a text", "a byte string", CONTENT,
           lambda b: b.document(nonce=text(b.nonce.hex()))),

    accept("module-long", "module_id has 300 characters, and not only ASCII", "any text but an empty one",
           CONTENT, lambda b: b.document(module_id=text("i-\u00e9" * 100))),
    either("module-utf8", "module_id is no UTF-8", "invalid, but well-formed; not every decoder looks",
           f"{CBOR} 3.1, 5.3.1", lambda b: b.document(module_id=text(b"i-\xff\xfe"))),
    refuse("module-empty", "module_id has no characters", "one at least", CONTENT,
           lambda b: b.document(module_id=text(""))),
    refuse("module-bytes", "module_id is a byte string", "a text", CONTENT,
           lambda b: b.document(module_id=octets(b"i-0123456789abcdef0-enc0123456789abcdef"))),
    refuse("digest-sha256", "the digest is SHA256", "SHA384 alone", CONTENT,
           lambda b: b.document(digest=text("SHA256"))),
    refuse("digest-sha512", "the digest is SHA512", "SHA384 alone", CONTENT,
           lambda b: b.document(digest=text("SHA512"))),
    refuse("digest-lower-case", "the digest is sha384", "exactly SHA384", CONTENT,
           lambda b: b.document(digest=text("sha384"))),
    refuse("digest-longer", "the digest is SHA384 and a NUL", "exactly SHA384", CONTENT,
           lambda b: b.document(digest=text("SHA384\0"))),
    refuse("digest-bytes", "the digest is a byte string", "a text", CONTENT,
           lambda b: b.document(digest=octets(b"SHA384"))),

    either("time-2100", "a timestamp of the year 2100", "it is the caller's to say how old, or young",
           f"{AWS} 2.2", lambda b: b.document(timestamp=integer(4102444800000))),
    either("time-before-certificate", "a timestamp a day before the certificate's first date",
           "no rule of AWS's, but its key did not exist", f"{AWS} 2.2",
           lambda b: b.document(timestamp=b.timestamp(timedelta(days=-1)))),
    either("time-tagged", "the timestamp has the tag 1", "an integer by another name", f"{CBOR} 3.4.2",
           lambda b: b.document(timestamp=cbor.tag(1, b.timestamp(timedelta())))),
    either("time-largest", "the timestamp is 2^64-1", "in range by the letter, and no time of any calendar",
           f"{AWS} 2.2", lambda b: b.document(timestamp=integer(2**64 - 1))),
    refuse("time-zero", "the timestamp is 0", "greater than 0", CONTENT,
           lambda b: b.document(timestamp=integer(0))),
    refuse("time-negative", "the timestamp is negative", "greater than 0", CONTENT,
           lambda b: b.document(timestamp=integer(-round(b.at.timestamp() * 1000)))),
    refuse("time-float", "the timestamp is a floating-point number", "an integer", CONTENT,
           lambda b: b.document(timestamp=b"\xfb" + struct.pack(">d", b.at.timestamp() * 1000))),
    refuse("time-text", "the timestamp is a text", "an integer", CONTENT,
           lambda b: b.document(timestamp=text(str(round(b.at.timestamp() * 1000))))),
)  # fmt: skip

PCRS = (
    accept("pcrs-all", "all 32 PCRs", "an application may lock its own", f"{AWS} 2.2, 3.2.2.2",
           lambda b: _pcrs(b, {**{i: bytes(48) for i in range(32)}, **b.pcrs()})),
    accept("pcrs-reversed", "the PCRs in reverse order", "maps have no order", f"{CBOR} 5.6",
           lambda b: _pcrs(b, dict(reversed(b.pcrs().items())))),
    accept("pcrs-long-indices", "their indices take more bytes than they need",
           "the shortest form is a preference", f"{CBOR} 4.1",
           lambda b: b.document(pcrs=cbor.mapping((integer(i, 2), octets(v)) for i, v in b.pcrs().items()))),
    accept("pcrs-one", "PCR0 alone", "1 to 32", CONTENT, lambda b: _pcrs(b, {0: b.pcr0})),
    either("pcrs-no-zero", "all but PCR0", "1 to 32, but the one that tells the image is not there", CONTENT,
           lambda b: _pcrs(b, {i: value for i, value in b.pcrs().items() if i})),
    either("pcrs-32-bytes", "PCRs of 32 bytes", "by the letter, but no SHA-384", CONTENT,
           lambda b: _sized(b, 32)),
    either("pcrs-64-bytes", "PCRs of 64 bytes", "by the letter, but no SHA-384", CONTENT,
           lambda b: _sized(b, 64)),
    either("pcrs-zero", "PCR0 is zero: debug mode",
           "proves no code; a verifier refuses it, or leaves that to its caller",
           "AWS's user guide, Cryptographic attestation",
           lambda b: Made(_pcrs(b, b.pcrs(bytes(48))), pcr0=bytes(48))),
    refuse("pcrs-none", "no PCR", "1 to 32", CONTENT, lambda b: _pcrs(b, {})),
    refuse("pcrs-33", "33 PCRs", "1 to 32", CONTENT,
           lambda b: _pcrs(b, {**{i: bytes(48) for i in range(33)}, **b.pcrs()})),
    refuse("pcrs-index-32", "a PCR32", "indices are 0 to 31", CONTENT,
           lambda b: _pcrs(b, {**b.pcrs(), 32: bytes(48)})),
    refuse("pcrs-index-negative", "a PCR-1", "indices are 0 to 31", CONTENT,
           lambda b: _pcrs(b, {**b.pcrs(), -1: bytes(48)})),
    refuse("pcrs-index-huge", "an index of 2^32, which is 0 in 32 bits", "indices are 0 to 31", CONTENT,
           lambda b: _pcrs(b, {**b.pcrs(), 2**32: bytes(48)})),
    refuse("pcrs-index-text", "an index that is a text", "integers", CONTENT,
           lambda b: _pcr_pairs(b, (text("16"), octets(bytes(48))))),
    refuse("pcrs-index-true", "an index that is true", "integers", CONTENT,
           lambda b: _pcr_pairs(b, (b"\xf5", octets(bytes(48))))),
    refuse("pcrs-index-float", "an index that is 16.0", "integers", CONTENT,
           lambda b: _pcr_pairs(b, (b"\xf9\x4c\x00", octets(bytes(48))))),
    refuse("pcrs-twice", "PCR0 twice, the last another", "keys occur once: one reader, one value", ONCE,
           lambda b: _pcr_pairs(b, (integer(0), octets(b"\1" * 48)))),
    refuse("pcrs-twice-lengthened", "PCR0 twice, once with a longer head",
           "equal keys, however they are written", ONCE,
           lambda b: _pcr_pairs(b, (integer(0, 1), octets(b"\1" * 48)))),
    refuse("pcrs-47-bytes", "PCRs of 47 bytes", "48", CONTENT, lambda b: _sized(b, 47)),
    refuse("pcrs-49-bytes", "PCRs of 49 bytes", "48", CONTENT, lambda b: _sized(b, 49)),
    refuse("pcrs-empty-value", "a PCR5 of no bytes", "48", CONTENT, lambda b: _pcrs(b, {**b.pcrs(), 5: b""})),
    refuse("pcrs-null-value", "a PCR16 that is null", "a byte string", CONTENT,
           lambda b: _pcr_pairs(b, (integer(16), cbor.NULL))),
    refuse("pcrs-text-value", "a PCR16 that is a text", "a byte string", CONTENT,
           lambda b: _pcr_pairs(b, (integer(16), text("0" * 48)))),
    refuse("pcrs-array", "the PCRs are an array", "a map", CONTENT,
           lambda b: b.document(pcrs=cbor.array(*map(octets, b.pcrs().values())))),
)  # fmt: skip

BUNDLES = (
    either("certificate-large", "the enclave's certificate has more than 1024 bytes",
           "1 to 1024, but harmless; few look", f"{AWS} 2.2", _large(ENCLAVE)),
    either("bundle-large", "the instance's certificate has more than 1024 bytes",
           "1 to 1024, but harmless; few look", CONTENT, _large(INSTANCE)),
    refuse("certificate-empty", "the certificate has no bytes", "1 to 1024", f"{AWS} 2.2",
           lambda b: b.document(certificate=octets(b""))),
    refuse("certificate-text", "the certificate is a text", "a byte string", f"{AWS} 2.2",
           lambda b: b.document(certificate=text(encoded(b.chain)[ENCLAVE].hex()))),
    refuse("certificate-no-der", "the certificate is 600 zero bytes", "an X.509 certificate", f"{AWS} 3.2.3",
           lambda b: b.document(certificate=octets(bytes(600)))),
    refuse("certificate-key-alone", "in place of the certificate its public key", "an X.509 certificate",
           f"{AWS} 3.2.3", lambda b: b.document(certificate=octets(b.chain[ENCLAVE].key.info))),
    refuse("bundle-empty", "a bundle without certificates", "one at least", CONTENT, lambda b: _bundle(b)),
    refuse("bundle-no-array", "the bundle is one byte string", "an array", CONTENT,
           lambda b: b.document(cabundle=octets(b"".join(encoded(b.chain)[:ENCLAVE])))),
    refuse("bundle-huge", "the bundle claims 2^32 certificates",
           "not well-formed; allocate nothing on its word", f"{CBOR} 5.3.1, 10",
           lambda b: b.document(cabundle=cbor.head(cbor.ARRAY, 2**32) + b"".join(_certificates(b)))),
    refuse("bundle-empty-entry", "an empty entry in the bundle", "1 to 1024", CONTENT,
           lambda b: _bundle(b, *_certificates(b)[:2], octets(b""), *_certificates(b)[2:])),
    refuse("bundle-null-entry", "a null in the bundle", "byte strings", CONTENT,
           lambda b: _bundle(b, *_certificates(b), cbor.NULL)),
    refuse("bundle-text-entry", "the instance's certificate is a text", "byte strings", CONTENT,
           lambda b: _bundle(b, *_certificates(b)[:3], text(encoded(b.chain)[INSTANCE].hex()))),
    refuse("bundle-nested", "the bundle is an array in an array", "byte strings", CONTENT,
           lambda b: _bundle(b, cbor.array(*_certificates(b)))),
)  # fmt: skip

ROWS: tuple[Row, ...] = FORMS + FIELDS + PCRS + BUNDLES
