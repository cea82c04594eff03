# SPDX-License-Identifier: MIT
"""The grammar of signing certificates (docs/eif.md): the package and the C core on any text, and openssl.

What both take, openssl takes for the same certificate; what it is in the end is PCR8.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

import eifmodel as model
import eifsigner as signer
from eifverdict import Core
from nitroctl.base.errors import EifError
from nitroctl.eif import signature
from nitroctl.eif.certificate import read_certificate

PCR0 = bytes.fromhex(model.TINY_PCRS[0])
PAYLOAD = cbor2.dumps({"register_index": 0, "register_value": list(PCR0)})
CERT = signer.pem()
DER = signer.certificate().public_bytes(Encoding.DER)
OTHER = signer.pem("P-256")
BASE64 = base64.b64encode(DER)
BEGIN, END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    with Core("--structure", "--now", str(int(signer.NOW.timestamp()))) as running:
        yield running


RAW = signer.raw_signature("P-384", cbor2.dumps({1: -35}), PAYLOAD)


def agree(core: Core, pem: bytes) -> str:
    """Both verdicts on an image signed with the key of CERT, where `pem` says whose it is: the rule, or PCR8
    of what is good."""
    section = signer.section(PCR0, raw=RAW, certificate_pem=pem)
    theirs = core.ask(model.pack([*model.TINY, (model.SIGNATURE, section)]))
    try:
        pcr8 = signature.check(signature.decode(section), PCR0, signer.NOW).pcr8
    except EifError as e:
        assert theirs[0] == e.rule, (e, theirs)
        return e.rule
    assert theirs[0] == "ok", theirs
    assert theirs[4] == pcr8.hex()
    return theirs[4]


def openssl(*arguments: str | Path, given: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=given, capture_output=True)
    return done.stdout if done.returncode == 0 else b""


def openssl_pcr8(pem: bytes) -> str:
    """PCR8 of the certificate that openssl, with which AWS reads it, finds first in a text."""
    return model.pcr(openssl("x509", "-outform", "DER", given=pem))


def text(der: bytes, label: str = "CERTIFICATE") -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def relabelled(pem: bytes, label: str) -> bytes:
    return pem.replace(b" CERTIFICATE-", b" " + label.encode() + b"-")


KEY = signer.key_pem("P-384")

# Texts whose first certificate is CERT.
GOOD: dict[str, bytes] = {
    "canonical": CERT,
    "a key before it": KEY + CERT,
    "a request before it": relabelled(text(b"0\0"), "CERTIFICATE REQUEST") + CERT,
    "parameters before it": relabelled(text(b"\6\5\x2b\x81\4\0\x22"), "EC PARAMETERS") + CERT,
    "X509 CERTIFICATE": relabelled(CERT, "X509 CERTIFICATE"),
    "X509 CERTIFICATE, then another": relabelled(CERT, "X509 CERTIFICATE") + OTHER,
    "then X509 CERTIFICATE": CERT + relabelled(OTHER, "X509 CERTIFICATE"),
    "CR LF": CERT.replace(b"\n", b"\r\n"),
    "no last line end": CERT.rstrip(b"\n"),
    "spaces at line ends": CERT.replace(b"\n", b" \t\n"),
    "attributes before it": b"Bag Attributes\n    localKeyID: 01\nsubject=CN = a\n" + CERT,
    "text behind it": CERT + b"-----BEGIN rubbish\n\0\xff",
    "NUL before it": b"\0\n" + CERT,
}

# Texts that two readers may well see differently: refused, whoever would take them.
BAD: dict[str, bytes] = {
    "empty": b"",
    "no certificate": KEY,
    "indented": b" " + CERT,
    "behind text in its line": b"x" + CERT,
    "byte order mark": b"\xef\xbb\xbf" + CERT,
    "CR alone": CERT.replace(b"\n", b"\r"),
    "lower case": CERT.replace(b"BEGIN CERTIFICATE", b"begin certificate"),
    "four dashes": CERT.replace(b"-----BEGIN", b"----BEGIN"),
    "more behind BEGIN": CERT.replace(BEGIN, BEGIN.rstrip() + b"x\n"),
    "labels differ": CERT.replace(b"END CERTIFICATE", b"END X509 CERTIFICATE"),
    "no END": CERT.replace(END, b""),
    "indented END": CERT.replace(END, b" " + END),
    "BEGIN twice": BEGIN + CERT,
    "header lines": CERT.replace(BEGIN, BEGIN + b"Proc-Type: 4,CLEAR\n\n"),
    "comment within": CERT.replace(BEGIN, BEGIN + b"# mine\n"),
    "NUL within": CERT.replace(END, b"\0\n" + END),
    "no content": BEGIN + END,
    "base64url": BEGIN + BASE64.replace(b"/", b"_").replace(b"+", b"-") + b"\n" + END,
    "padding within": BEGIN + b"AA==" + BASE64 + b"\n" + END,
    "padding alone": BEGIN + b"====\n" + END,
    "cut off": BEGIN + BASE64[:-5] + b"\n" + END,
    "TRUSTED CERTIFICATE": relabelled(CERT, "TRUSTED CERTIFICATE"),
    "a request": relabelled(CERT, "CERTIFICATE REQUEST"),
    "a byte behind": text(DER + b"\0"),
    "a byte less": text(DER[:-1]),
    "indefinite length": text(b"\x30\x80" + DER[4:] + b"\0\0"),
    "two certificates in one": text(DER + DER),
    "length in more bytes": text(b"\x30\x83\0" + DER[2:]),
    "version 1 written down": text(DER.replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\0")),
    "version 4": text(DER.replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\3")),
    "no such day": text(DER.replace(b"260424120000Z", b"260431120000Z")),
    "second 60": text(DER.replace(b"260424120000Z", b"260424120060Z")),
    "a time zone": text(DER.replace(b"260424120000Z", b"2604241200+00")),
    "other algorithm within": text(DER.replace(b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03",
                                               b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", 1)),
    "another curve's name": text(DER.replace(b"\x2b\x81\x04\0\x22", b"\x2b\x81\x04\0\x0a")),
    "not a point": text(DER.replace(b"\x03\x62\0\4", b"\x03\x62\0\5")),
    "a point off the curve": text(DER.replace(
        signer.key("P-384").public_key().public_numbers().y.to_bytes(48, "big"), b"\1" * 48)),
}  # fmt: skip


@pytest.mark.parametrize("what", GOOD)
def test_good_texts(core: Core, what: str) -> None:
    """The first certificate, as openssl has it."""
    assert agree(core, GOOD[what]) == model.pcr(DER) == openssl_pcr8(GOOD[what])


@pytest.mark.parametrize("what", BAD)
def test_bad_texts(core: Core, what: str) -> None:
    assert BAD[what] != CERT
    assert agree(core, BAD[what]) == "signature-certificate"


WIDE = {
    "one long line": BEGIN + BASE64 + b"\n" + END,
    "a character a line": BEGIN + b"\n".join(bytes([c]) for c in BASE64) + b"\n" + END,
    "blank lines": CERT.replace(b"\n", b"\n\n"),
    "indented content": CERT.replace(b"\n", b"\n \t\v\f").replace(b" \t\v\f-----END", b"-----END"),
}


def test_trusted_certificates_are_none(core: Core) -> None:
    """PEM_read_bio_X509(3), which AWS reads with, knows two labels; the openssl command knows this too."""
    assert agree(core, relabelled(OTHER, "TRUSTED CERTIFICATE") + CERT) == model.pcr(DER)


@pytest.mark.parametrize("what", WIDE)
def test_whitespace_does_not_matter(core: Core, what: str) -> None:
    """RFC 7468, section 3, its lax form; openssl is stricter with some of it."""
    assert agree(core, WIDE[what]) == model.pcr(DER)


@pytest.mark.parametrize(
    "make, what",
    [
        (["-param_enc", "explicit"], "explicit curve parameters"),
        (["-conv_form", "compressed"], "compressed"),
        (["-conv_form", "hybrid"], "not a point"),
    ],
)
def test_keys_in_other_forms(core: Core, tmp_path: Path, make: list[str], what: str) -> None:
    """RFC 5480 forbids the first; none of them is what the COSE readers of enclaves take."""
    key = tmp_path / "key"
    openssl("ec", *make, "-out", key, given=signer.key_pem("P-384"))
    pem = openssl("req", "-x509", "-new", "-key", key, "-sha384", "-days", "30", "-subj", "/CN=x")
    assert pem
    assert agree(core, pem) == "signature-certificate"
    with pytest.raises(EifError, match=what):
        read_certificate(pem)


def test_the_canonical_form() -> None:
    """What is written into an image: what openssl writes, from whatever form."""
    for given_pem in (*GOOD.values(), *WIDE.values()):
        assert read_certificate(given_pem).pem == CERT == openssl("x509", given=CERT)
    for name in signer.CURVES:
        assert read_certificate(signer.pem(name)).pem == signer.pem(name)


# ---- fuzzed against each other ----

PIECES = [
    CERT, OTHER, KEY, BEGIN, END, BASE64, BASE64[:64], BASE64[64:], relabelled(CERT, "X509 CERTIFICATE"),
    relabelled(BEGIN, "X509 CERTIFICATE"), relabelled(END, "X509 CERTIFICATE"), b"-----BEGIN ", b"-----END ",
    b"CERTIFICATE-----", b"-----", b"-", b"=", b"==", b"A", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\v", b"\0",
    b"\x85", b"\xa0", b"# text\n", b"Proc-Type: 4,ENCRYPTED\n",
]  # fmt: skip


Damage = list[tuple[float, int, bytes]]


def damages(pieces: st.SearchStrategy[bytes], widths: list[int]) -> st.SearchStrategy[Damage]:
    """Runs that are replaced: where in the whole, how many bytes, by what."""
    where = st.floats(0, 1, exclude_max=True)
    return st.lists(st.tuples(where, st.sampled_from(widths), pieces), min_size=1, max_size=3)


def damaged(whole: bytes, damage: Damage) -> bytes:
    result = bytearray(whole)
    for where, width, piece in damage:
        at = int(where * (len(result) + 1))
        result[at : at + width] = piece
    return bytes(result)


TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
IN_TEXT = damages(st.one_of(st.sampled_from(PIECES), st.binary(max_size=2)), [0, 1, 2, 64, 65])


@settings(deadline=None, max_examples=150)
@given(st.one_of(TEXTS, st.builds(damaged, st.just(CERT), IN_TEXT)))
def test_any_text(core: Core, pem: bytes) -> None:
    """Put together from pieces, or damaged: one verdict, and no other certificate than openssl's."""
    found = agree(core, pem)
    try:
        der = read_certificate(pem).der
    except EifError:
        return
    if theirs := openssl("x509", "-outform", "DER", given=pem):
        assert der == theirs
    assert found.startswith("signature-") or found == model.pcr(der)


# Tags, lengths, and values of one byte.
BYTES = [0, 1, 2, 3, 4, 5, 6, 0x17, 0x18, 0x30, 0x31, 0x7F, 0x80, 0x81, 0x82, 0x83, 0xA0, 0xA3, 0xFF]
IN_DER = damages(st.lists(st.sampled_from(BYTES), max_size=2).map(bytes), [0, 1, 1, 1, 2])


@settings(deadline=None, max_examples=300)
@given(IN_DER)
def test_any_certificate(core: Core, damage: Damage) -> None:
    """Damage in the DER: one verdict."""
    agree(core, text(damaged(DER, damage)))


def with_signed_part(change: Callable[[bytes], bytes]) -> bytes:
    """The certificate with its signed part changed, and the lengths around it right."""
    size = int.from_bytes(DER[6:8], "big")
    tbs = change(DER[8 : 8 + size])
    inner = b"\x30\x82" + len(tbs).to_bytes(2, "big") + tbs + DER[8 + size :]
    return b"\x30\x82" + len(inner).to_bytes(2, "big") + inner


@settings(deadline=None, max_examples=300)
@given(IN_DER)
def test_any_signed_part(core: Core, damage: Damage) -> None:
    """As before, with lengths that fit, so that what stands behind the damage is read too."""
    assert with_signed_part(bytes) == DER
    agree(core, text(with_signed_part(lambda tbs: damaged(tbs, damage))))


def test_digest_of_the_vector() -> None:
    """PCR8 from first principles, once."""
    inner = hashlib.sha384(DER).digest()
    assert read_certificate(CERT).pcr8 == hashlib.sha384(bytes(48) + inner).digest()
