# SPDX-License-Identifier: MIT
"""Two readers of certificates, one verdict: the package's path check and that of the machine.

Certificates are written here in DER, field by field, so that each can have one fault that no library would
make. The machine's answers come from nsm-chain-verdict; openssl says what RFC 5280 has for a judge.
"""

from __future__ import annotations

import base64
import itertools
import os
import random
import subprocess
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from documents import Maker
from eifverdict import program
from nitroctl.attestation import Policy, chain, verify
from nitroctl.attestation import errors as why
from nitroctl.base.instants import UTC

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MUTANTS = 400

# --- DER, by hand ----------------------------------------------------------------------------------------


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    head = (
        bytes([size])
        if size < 128
        else b"\x81" + bytes([size])
        if size < 256
        else b"\x82" + size.to_bytes(2, "big")
    )
    return bytes([tag]) + head + content


def seq(*contents: bytes) -> bytes:
    return der(0x30, *contents)


def oid(*content: int) -> bytes:
    return der(6, bytes(content))


def name(text: str | bytes, tag: int = 0x0C) -> bytes:
    return seq(der(0x31, seq(oid(0x55, 4, 3), der(tag, text.encode() if isinstance(text, str) else text))))


def utc(text: str) -> bytes:
    return der(0x17, text.encode())


def extension(identifier: bytes, value: bytes, critical: bytes = b"") -> bytes:
    return seq(identifier, critical, der(4, value))


CRITICAL = b"\x01\x01\xff"
ALGORITHM = seq(oid(0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3))
CONSTRAINTS, USAGE = oid(0x55, 0x1D, 19), oid(0x55, 0x1D, 15)
IS_CA = extension(CONSTRAINTS, seq(b"\x01\x01\xff"), CRITICAL)
MAY_SIGN = extension(USAGE, b"\x03\x02\x01\x86", CRITICAL)
UNKNOWN = oid(0x2B, 6, 1, 4, 1, 0x86, 0x8D, 0x1F, 1)  # 1.3.6.1.4.1.99999.1
SAN, EKU, NAMES = oid(0x55, 0x1D, 17), oid(0x55, 0x1D, 37), oid(0x55, 0x1D, 30)
VALIDITY = seq(utc("260101000000Z"), utc("270101000000Z"))
ACME = seq(der(0xA0, seq(der(0xA4, seq(der(0x31, seq(oid(0x55, 4, 10), der(0x0C, b"Acme"))))))))
SERVER = seq(oid(0x2B, 6, 1, 5, 5, 7, 3, 1))
X400 = seq(der(0xA3, seq(seq())))

ROOT_KEY, OWN_KEY = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


PARTS: dict[str, bytes] = {
    "version": der(0xA0, b"\x02\x01\x02"),
    "serial": b"\x02\x01\x05",
    "algorithm": ALGORITHM,
    "issuer": name("root"),
    "validity": VALIDITY,
    "subject": name("instance"),
    "key": spki(OWN_KEY),
    "extensions": der(0xA3, seq(IS_CA, MAY_SIGN)),
}


def tbs(**changes: bytes) -> bytes:
    return seq(*(PARTS | changes).values())


def signed(body: bytes, key: ec.EllipticCurvePrivateKey = ROOT_KEY, algorithm: bytes = ALGORITHM) -> bytes:
    return seq(body, algorithm, der(3, b"\0" + key.sign(body, ec.ECDSA(hashes.SHA384()))))


ROOT = signed(tbs(subject=name("root"), key=spki(ROOT_KEY)))


def extended(*more: bytes) -> bytes:
    return tbs(extensions=der(0xA3, seq(IS_CA, MAY_SIGN, *more)))


def rights(constraints: bytes = seq(b"\1\1\xff"), usage: bytes = b"\3\2\1\x86") -> bytes:
    both = extension(CONSTRAINTS, constraints, CRITICAL), extension(USAGE, usage, CRITICAL)
    return tbs(extensions=der(0xA3, seq(*both)))


def dated(begin: bytes = utc("260101000000Z"), end: bytes = utc("270101000000Z")) -> bytes:
    return tbs(validity=seq(begin, end))


# --- the two readers -------------------------------------------------------------------------------------


def pem(certificate: bytes) -> str:
    text = base64.encodebytes(certificate).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


class Machine:
    """One running nsm-chain-verdict."""

    def __init__(self, folder: Path) -> None:
        self._chain, self._key = folder / "chain.pem", folder / "key.pem"
        self._key.write_bytes(OWN_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._child = subprocess.Popen(
            [program("nsm-chain-verdict")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, ders: list[bytes]) -> tuple[str, str]:
        """The fault's name or "ok", and the sentence."""
        assert self._child.stdin and self._child.stdout
        self._chain.write_text("".join(map(pem, ders)))
        self._child.stdin.write(f"{self._chain} {self._key} {int(NOW.timestamp())}\n")
        self._child.stdin.flush()
        fault, _, text = self._child.stdout.readline().rstrip("\n").partition("\t")
        assert fault, f"it died, status {self._child.wait(60)}"
        return fault, text

    def close(self) -> None:
        self._child.communicate(timeout=60)
        assert self._child.returncode == 0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    running = Machine(tmp_path_factory.mktemp("chain"))
    yield running
    running.close()


def package(ders: list[bytes]) -> str:
    """The package's complaint, or an empty text."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none may reach a user
        try:
            chain.check_path(ders, NOW, leaf=False)
        except why.ChainError as e:
            return str(e)
    return ""


MALFORMED, EXTENSION = "certificate-malformed", "certificate-extension"
ROWS: list[tuple[str, bytes, str, str]] = [
    ("critical extension", extended(extension(UNKNOWN, b"\5\0", CRITICAL)), EXTENSION, "1.3.6.1.4.1.99999.1"),
    ("critical purpose", extended(extension(EKU, SERVER, CRITICAL)), EXTENSION, "2.5.29.37"),
    ("critical other names", extended(extension(SAN, X400, CRITICAL)), EXTENSION, "2.5.29.17"),
    ("names limited", extended(extension(NAMES, ACME, CRITICAL)), EXTENSION, "name constraints"),
    ("names limited, not critical", extended(extension(NAMES, ACME)), EXTENSION, "name constraints"),
    ("extension twice", extended(extension(UNKNOWN, b""), extension(UNKNOWN, b"\0")), MALFORMED, "twice"),
    ("usage twice", extended(MAY_SIGN), MALFORMED, "twice"),
    ("critical FALSE written out", extended(extension(UNKNOWN, b"", b"\x01\x01\0")), MALFORMED, "not in DER"),
    ("critical as 1", extended(extension(UNKNOWN, b"", b"\x01\x01\x01")), MALFORMED, "not in DER"),
    ("no extensions in the list", tbs(extensions=der(0xA3, seq())), MALFORMED, "no extension"),
    ("33 extensions", extended(*(extension(oid(1, i), b"") for i in range(31))), MALFORMED, "32 extensions"),
    ("unique identifiers", tbs(extensions=der(0x81, b"\0\1") + PARTS["extensions"]), MALFORMED, "behind"),
    ("30 February", dated(begin=utc("260230000000Z")), MALFORMED, "no calendar has: 20260230"),
    ("month 13", dated(end=utc("261301000000Z")), MALFORMED, "last date that no calendar"),
    ("24 o'clock", dated(begin=utc("260101240000Z")), MALFORMED, "no calendar"),
    ("second 60", dated(begin=utc("260101000060Z")), MALFORMED, "no calendar"),
    ("day 0", dated(begin=utc("260100000000Z")), MALFORMED, "no calendar"),
    ("year 0", dated(begin=der(0x18, b"00000101000000Z")), MALFORMED, "no calendar"),
    ("no seconds", dated(begin=utc("2601010000Z")), MALFORMED, "RFC 5280"),
    ("a zone", dated(begin=utc("260101000000+0100")), MALFORMED, "RFC 5280"),
    ("a fraction", dated(begin=der(0x18, b"20260101000000.5Z")), MALFORMED, "RFC 5280"),
    ("letters for digits", dated(begin=utc("2601010000 0Z")), MALFORMED, "RFC 5280"),
    ("a date is text", dated(begin=der(0x0C, b"260101000000Z")), MALFORMED, "no time"),
    ("PrintableString with @", tbs(subject=name("a@b", 0x13)), MALFORMED, "characters"),
    ("UTF8String with half a character", tbs(subject=name(b"a\xc3")), MALFORMED, "characters"),
    ("UTF8String with a surrogate", tbs(subject=name(b"\xed\xa0\x80")), MALFORMED, "characters"),
    ("IA5String with 8 bits", tbs(subject=name(b"a\xe9", 0x16)), MALFORMED, "characters"),
    ("NUL", tbs(subject=name(b"a\0b")), MALFORMED, "characters"),
    ("empty string", tbs(subject=name(b"")), MALFORMED, "characters"),
    ("BMPString", tbs(subject=name(b"\0a", 0x1E)), MALFORMED, "no UTF8String"),
    ("TeletexString", tbs(subject=name(b"a", 0x14)), MALFORMED, "no UTF8String"),
    ("empty subject", tbs(subject=seq()), MALFORMED, "empty subject"),
    ("version 1", tbs(version=b""), MALFORMED, "version 1"),
    ("version 2", tbs(version=der(0xA0, b"\x02\x01\x01")), MALFORMED, "version 2"),
    ("version 4", tbs(version=der(0xA0, b"\x02\x01\x03")), MALFORMED, "version 4"),
    ("version -1", tbs(version=der(0xA0, b"\x02\x01\xff")), MALFORMED, "negative version"),
    ("serial 0", tbs(serial=b"\x02\x01\0"), MALFORMED, "serial number of zero"),
    ("negative serial", tbs(serial=b"\x02\x01\xfb"), MALFORMED, "negative serial"),
    ("serial of 21 bytes", tbs(serial=der(2, b"\1" * 21)), MALFORMED, "more than 20 bytes"),
    ("serial with a zero too many", tbs(serial=b"\x02\x02\0\5"), MALFORMED, "no integer in DER"),
    ("a length not the shortest", tbs(serial=b"\x02\x81\1\5"), MALFORMED, "not the shortest"),
    ("CA:FALSE written out", rights(seq(b"\1\1\0")), MALFORMED, "not in DER"),
    ("negative path length", rights(seq(b"\1\1\xff\2\1\xff")), MALFORMED, "negative path length"),
    ("usage with a dirty end", rights(usage=b"\3\2\1\x87"), MALFORMED, "bit string"),
]  # fmt: skip
GOOD: list[tuple[str, bytes]] = [
    ("plain", tbs()),
    ("unknown, not critical", extended(extension(UNKNOWN, b"anything"))),
    ("TLS feature 99", extended(extension(oid(0x2B, 6, 1, 5, 5, 7, 1, 24), seq(b"\2\1\x63")))),
    ("usage of one bit", rights(usage=b"\3\2\2\4")),
    ("GeneralizedTime before 2050", dated(end=der(0x18, b"20270101000000Z"))),
    ("the year 9999", dated(end=der(0x18, b"99991231235959Z"))),
    ("29 February", dated(begin=utc("240229235959Z"))),
    ("serial of 20 bytes behind a zero", tbs(serial=der(2, b"\0" + b"\xff" * 20))),
    ("an IA5String", tbs(subject=name("a@b", 0x16))),
    ("more than ASCII", tbs(subject=name("é𝄞"))),
]


@pytest.mark.parametrize(("what", "body", "fault", "text"), ROWS, ids=[row[0] for row in ROWS])
def test_both_refuse_it_and_say_the_same(
    machine: Machine, what: str, body: bytes, fault: str, text: str
) -> None:
    ders = [ROOT, signed(body)]
    ours, (name, theirs) = package(ders), machine.ask(ders)
    assert text in ours
    assert name == fault
    assert text in theirs
    assert theirs.endswith(ours.removeprefix("the certificate cabundle[1]"))
    assert ": certificate 2 " in theirs


@pytest.mark.parametrize(("what", "body"), GOOD, ids=[row[0] for row in GOOD])
def test_both_accept_it(machine: Machine, what: str, body: bytes) -> None:
    ders = [ROOT, signed(body)]
    assert (package(ders), machine.ask(ders)) == ("", ("ok", ""))


def test_two_algorithms_are_refused(machine: Machine) -> None:
    sha256 = seq(oid(0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2))
    for certificate in (signed(tbs(algorithm=sha256)), signed(tbs(), algorithm=sha256)):
        assert "ecdsa-with-SHA384" in package([ROOT, certificate])
        assert machine.ask([ROOT, certificate])[0] in ("certificate-algorithm", "chain-malformed")


def test_openssl_refuses_what_is_critical_as_well(tmp_path: Path) -> None:
    (tmp_path / "root").write_text(pem(ROOT))
    for more, error in (
        (extension(UNKNOWN, b"\5\0", CRITICAL), "error 34"),
        (extension(NAMES, ACME, CRITICAL), "error 47"),
        (extension(UNKNOWN, b"\5\0"), None),
    ):
        authority = signed(extended(more))
        leaf = signed(tbs(issuer=name("instance"), subject=name("leaf")), OWN_KEY)
        (tmp_path / "authority").write_text(pem(authority))
        (tmp_path / "leaf").write_text(pem(leaf))
        said = subprocess.run(
            ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", tmp_path / "root",
             "-untrusted", tmp_path / "authority", tmp_path / "leaf"], capture_output=True, text=True,
        )  # fmt: skip
        assert (said.returncode != 0) == (error is not None)
        assert error is None or error in said.stderr
        assert bool(package([ROOT, authority])) == (error is not None)


def test_the_verdict_on_mutants_is_one(machine: Machine) -> None:
    """Bytes of the signed part change, and the issuer signs again."""
    rounds = int(os.environ.get("NITROCTL_FUZZ_ROUNDS", 1)) * MUTANTS
    chance = random.Random(4)
    verdicts = set()
    bodies = [tbs(), *(body for _, body in GOOD), *(row[1] for row in ROWS)]
    for _ in range(rounds):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.randrange(len(body))
            body[at] = chance.choice((body[at] ^ 1 << chance.randrange(8), chance.randrange(256), 0, 0xFF))
        ders = [ROOT, signed(bytes(body))]
        ours, (fault, theirs) = package(ders), machine.ask(ders)
        verdicts.add(fault)
        if fault == "key-mismatch":  # not the key in key.pem, be it on the curve or not
            assert not ours or "Invalid key" in ours
        elif not (fault == "chain-malformed" and SAN in body):  # gnutls reads alternative names
            assert (fault == "ok") == (not ours), f"{ours or 'ok'} | {fault} {theirs} | {ders[1].hex()}"
    assert {"ok", MALFORMED, EXTENSION} <= verdicts


# --- extensions of strangers -----------------------------------------------------------------------------

KNOWN = [oid(0x55, 0x1D, i) for i in itertools.chain(range(9, 40), (46, 54, 56))]
KNOWN += [oid(0x2B, 6, 1, 5, 5, 7, 1, i) for i in range(1, 33)]
KNOWN += [oid(0x2B, 6, 1, 4, 1, 0xD6, 0x79, 2, 4, i) for i in range(1, 6)]
VALUES = st.binary(max_size=40) | st.sampled_from([b"", seq(), seq(seq()), X400, ACME, b"\5\0", b"\2\1\xff"])


@given(
    st.lists(
        st.tuples(st.sampled_from(KNOWN), VALUES, st.sampled_from([b"", CRITICAL, b"\1\1\0"])), max_size=4
    )
)
def test_any_extensions_give_a_document_or_a_named_error(found: list[tuple[bytes, bytes, bytes]]) -> None:
    """Also in documents, where a stranger wrote the certificate and the root."""
    more = [extension(*one) for one in found]
    leaf = signed(
        tbs(issuer=name("root"), extensions=der(0xA3, seq(extension(USAGE, b"\3\2\6\xc0"), *more))), ROOT_KEY
    )
    stranger = signed(
        tbs(subject=name("root"), key=spki(ROOT_KEY), extensions=der(0xA3, seq(IS_CA, MAY_SIGN, *more)))
    )
    maker = SHARED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maker.key, maker.leaf, maker.cabundle = OWN_KEY, leaf, [ROOT]
        try:
            verify(maker.document(), pem(ROOT).encode(), Policy(at=NOW))
        except why.AttestationError:
            assert found
        maker.cabundle = [stranger]
        with pytest.raises(why.RootMismatch):
            verify(maker.document(), "aws", Policy(at=NOW))


SHARED = Maker()


# --- what was good before --------------------------------------------------------------------------------


def test_a_path_is_remembered_by_all_its_bytes_while_it_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is: another leaf, a flipped byte, another time, a path that was refused."""
    maker, other = Maker(), Maker()
    asked: list[datetime] = []

    def check(*arguments: Any) -> Any:
        asked.append(arguments[3])
        return really(*arguments)

    really = chain.check
    monkeypatch.setattr(chain, "check", check)
    remembering = chain.Remembering(most=2)
    for _ in range(3):
        path = remembering(maker.leaf, maker.cabundle, maker.root, NOW)
    assert path == really(maker.leaf, maker.cabundle, maker.root, NOW) and len(asked) == 1
    flipped = bytearray(maker.leaf)
    flipped[-1] ^= 1
    for leaf, bundle, at in (
        (bytes(flipped), maker.cabundle, NOW),
        (other.leaf, maker.cabundle, NOW),
        (maker.leaf, other.cabundle, NOW),
        (maker.leaf, [*maker.cabundle[:-1]], NOW),
        (maker.leaf, maker.cabundle, NOW + timedelta(days=2)),
        (maker.leaf, maker.cabundle, NOW - timedelta(days=2)),
    ):
        for _ in range(2):
            with pytest.raises(why.AttestationError):
                remembering(leaf, bundle, maker.root, at)
    assert len(asked) == 1 + 12
    for made in (other, Maker(), maker):  # more than it keeps
        remembering(made.leaf, made.cabundle, made.root, NOW)
    assert len(asked) == 16
