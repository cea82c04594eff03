# SPDX-License-Identifier: MIT
"""The signature section: three curves, every rule, hostile CBOR, and what `describe` shows of it."""

from __future__ import annotations

import hashlib
import os
import ssl
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

import eifmodel as model
import eifsigner as signer
from nitroctl.base.errors import EifError
from nitroctl.base.instants import UTC
from nitroctl.eif import signature
from nitroctl.eif.describe import describe
from nitroctl.eif.measure import measure
from nitroctl.eif.pcr import Measurements
from nitroctl.eif.verify import verify as verify_all

PCR0 = bytes.fromhex(model.TINY_PCRS[0])
PAYLOAD = cbor2.dumps({"register_index": 0, "register_value": list(PCR0)})


def verify(path: Path, *, now: datetime) -> Measurements:
    """The vector's kernel is none."""
    return verify_all(path, now=now, file_rules_only=True)


def certified(pem: bytes) -> bytes:
    """A section that is good but for its certificate."""
    return signer.section(PCR0, certificate_pem=pem)


def reversioned(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM with 4 for its version (RFC 5280, 4.1.2.1), whatever else that makes of it."""
    der = certificate.public_bytes(Encoding.DER)
    assert der.count(b"\xa0\3\2\1\2") == 1
    return ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\3")).encode()


def protected(value: object) -> bytes:
    return signer.section(PCR0, protected=cbor2.dumps(value))


def signed(section: bytes) -> bytes:
    return model.pack([*model.TINY, (model.SIGNATURE, section)])


def write(folder: Path, section: bytes) -> Path:
    path = folder / "signed.eif"
    path.write_bytes(signed(section))
    return path


@pytest.mark.parametrize("name", signer.CURVES)
def test_three_curves(tmp_path: Path, name: str) -> None:
    found = verify(write(tmp_path, signer.section(PCR0, name)), now=signer.NOW)
    der = signer.certificate(name).public_bytes(Encoding.DER)
    assert found.pcr0 == PCR0
    assert found.pcr8 is not None and found.pcr8.hex() == model.pcr(der)
    assert measure(tmp_path / "signed.eif") == found


def test_the_published_sig_structure() -> None:
    """AWS's payload for the vector's PCR0, and what is hashed for ES384."""
    payload = cbor2.dumps({"register_index": 0, "register_value": list(PCR0)})
    assert payload.hex()[:76] == (
        "a26e72656769737465725f696e646578006e72656769737465725f76616c75659830189a1833"
    )
    assert len(payload) == 127
    tbs = signature.Signature(b"", bytes.fromhex("a1013822"), payload, b"", -35, 0, PCR0).signed_bytes
    assert len(tbs) == 147
    assert hashlib.sha384(tbs).hexdigest() == (
        "6ceb38d32aa9cf9e899d98f803c435a62a2e6b700959b8a46c104d553b326ba2fb90e18ce71fbeebcfd3b706f156907c"
    )


ACCEPTED: list[tuple[str, Callable[[], bytes]]] = [
    ("tag 18", lambda: signer.section(PCR0, tag=18)),
    ("unprotected header", lambda: signer.section(PCR0, unprotected={4: b"kid"})),
    ("other keys in the protected header", lambda: protected({1: -35, 3: 0})),
    ("other elements follow", lambda: b"\x82" + signer.section(PCR0)[1:] + cbor2.dumps([{}, [[["x"]]]])),
    ("keys the other way round", lambda: swapped(signer.section(PCR0))),
    ("other keys", lambda: cbor2.dumps([{"x": [1], **cbor2.loads(signer.section(PCR0))[0], 5: None}])),
    ("second certificate", lambda: certified(signer.pem() + signer.pem("P-256"))),
    ("text before the certificate", lambda: certified(b"subject=x\n" + signer.pem())),
    ("text of no encoding around it", lambda: certified(b"CN=\xe4\xff\n" + signer.pem() + b"\xe4\n")),
    ("longer integers", lambda: signer.section(PCR0, payload=PAYLOAD.replace(b"x\0n", b"x\x19\0\0n"))),
]


def swapped(section: bytes) -> bytes:
    (pair,) = cbor2.loads(section)
    return cbor2.dumps([{"signature": pair["signature"], "signing_certificate": pair["signing_certificate"]}])


@pytest.mark.parametrize("what, section", ACCEPTED, ids=[w for w, _ in ACCEPTED])
def test_what_may_differ(tmp_path: Path, what: str, section: Callable[[], bytes]) -> None:
    assert verify(write(tmp_path, section()), now=signer.NOW).pcr0 == PCR0


def no_list(section: bytes) -> bytes:
    (pair,) = cbor2.loads(section)
    return cbor2.dumps([{k: bytes(v) for k, v in pair.items()}])


def twice(section: bytes) -> bytes:
    """The map with its first pair repeated."""
    (pair,) = cbor2.loads(section)
    first = cbor2.dumps("signing_certificate") + cbor2.dumps(pair["signing_certificate"])
    return b"\x81\xa3" + first + section[2:]


def cose_of(*items: object) -> bytes:
    return signer.section(PCR0, cose=cbor2.dumps(list(items)))


def payload_of(value: object) -> bytes:
    return signer.section(PCR0, payload=cbor2.dumps(value))


REFUSED: list[tuple[str, str, Callable[[], bytes]]] = [
    ("signature-malformed", "empty section", lambda: b""),
    ("signature-malformed", "empty array", lambda: b"\x80"),
    ("signature-malformed", "map outside", lambda: b"\xa0"),
    ("signature-malformed", "trailing byte", lambda: signer.section(PCR0) + b"\0"),
    ("signature-malformed", "cut short", lambda: signer.section(PCR0)[:-1]),
    ("signature-malformed", "indefinite array", lambda: b"\x9f" + signer.section(PCR0)[1:] + b"\xff"),
    ("signature-malformed", "byte strings", lambda: no_list(signer.section(PCR0))),
    ("signature-malformed", "a key twice", lambda: twice(signer.section(PCR0))),
    ("signature-malformed", "no signature", lambda: cbor2.dumps([{"signing_certificate": list(b"x")}])),
    ("signature-malformed", "no certificate", lambda: cbor2.dumps([{"signature": list(b"x")}])),
    ("signature-malformed", "256 in an array of bytes",
        lambda: cbor2.dumps([{"signing_certificate": [256], "signature": [1]}])),
    ("signature-malformed", "-1 in an array of bytes",
        lambda: cbor2.dumps([{"signing_certificate": [-1], "signature": [1]}])),
    ("signature-malformed", "array of 2^60 elements", lambda: b"\x9b\x10" + bytes(7) + b"\xa0"),
    ("signature-malformed", "nested 32000 deep", lambda: b"\x82\xa0" + b"\x81" * 32000),
    ("signature-malformed", "empty COSE", lambda: signer.section(PCR0, cose=b"")),
    ("signature-malformed", "other tag", lambda: signer.section(PCR0, tag=98)),
    ("signature-malformed", "three elements", lambda: cose_of(b"", {}, b"")),
    ("signature-malformed", "payload null", lambda: cose_of(cbor2.dumps({1: -35}), {}, None, bytes(96))),
    ("signature-malformed", "unprotected an array",
        lambda: cose_of(cbor2.dumps({1: -35}), [], PAYLOAD, bytes(96))),
    ("signature-malformed", "no algorithm", lambda: protected({2: -35})),
    ("signature-malformed", "unknown algorithm", lambda: protected({1: -8})),
    ("signature-malformed", "algorithm as text",
        lambda: protected({1: "ES384"})),
    ("signature-malformed", "protected header empty", lambda: signer.section(PCR0, protected=b"")),
    ("signature-malformed", "payload no map", lambda: payload_of([0, list(PCR0)])),
    ("signature-malformed", "payload without index", lambda: payload_of({"register_value": list(PCR0)})),
    ("signature-malformed", "payload without value", lambda: payload_of({"register_index": 0})),
    ("signature-malformed", "negative index", lambda: signer.section(PCR0, index=-1)),
    ("signature-malformed", "value of 47", lambda: signer.section(PCR0, value=list(PCR0[:47]))),
    ("signature-malformed", "value of 49", lambda: signer.section(PCR0, value=[*PCR0, 0])),
    ("signature-malformed", "value a byte string", lambda: signer.section(PCR0, value=PCR0)),
    ("signature-certificate", "version 4", lambda: certified(reversioned(signer.certificate("P-384")))),
    ("signature-certificate", "no PEM", lambda: certified(b"hello")),
    ("signature-certificate", "empty", lambda: certified(b"")),
    ("signature-certificate", "a key instead", lambda: certified(signer.key_pem("P-384"))),
    ("signature-certificate", "no DER within",
        lambda: certified(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
    ("signature-certificate", "RSA", lambda: certified(signer.pem("rsa"))),
    ("signature-certificate", "secp256k1", lambda: certified(signer.pem("k1"))),
    ("signature-invalid", "other key", lambda: signer.section(PCR0, signing_key="other")),
    ("signature-invalid", "key of another curve", lambda: certified(signer.pem("P-256"))),
    ("signature-invalid", "short", lambda: signer.section(PCR0, raw=bytes(95))),
    ("signature-invalid", "long", lambda: signer.section(PCR0, raw=bytes(97))),
    ("signature-invalid", "empty", lambda: signer.section(PCR0, raw=b"")),
    ("signature-invalid", "zero", lambda: signer.section(PCR0, raw=bytes(96))),
    ("signature-invalid", "largest", lambda: signer.section(PCR0, raw=b"\xff" * 96)),
    ("signature-invalid", "over another payload", lambda: signer.section(
        PCR0, raw=signer.raw_signature("P-384", cbor2.dumps({1: -35}), b"other"))),
    ("signature-index", "1", lambda: signer.section(PCR0, index=1)),
    ("signature-index", "before the value", lambda: signer.section(bytes(48), index=2**64 - 1)),
    ("signature-pcr0", "zero", lambda: signer.section(bytes(48))),
    ("signature-pcr0", "last bit", lambda: signer.section(PCR0[:47] + bytes([PCR0[47] ^ 1]))),
    ("signature-not-yet-valid", "",
        lambda: certified(signer.pem(begin=signer.NOW + timedelta(seconds=1)))),
    ("signature-expired", "",
        lambda: certified(signer.pem(end=signer.NOW - timedelta(seconds=1)))),
]  # fmt: skip


@pytest.mark.parametrize("rule, what, section", REFUSED, ids=[f"{r}-{w}" for r, w, _ in REFUSED])
def test_each_rule(tmp_path: Path, rule: str, what: str, section: Callable[[], bytes]) -> None:
    with pytest.raises(EifError) as e:
        verify(write(tmp_path, section()), now=signer.NOW)
    assert e.value.rule == rule, str(e.value)
    assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize("seconds, rule", [(-1, "signature-not-yet-valid"), (0, None)])
def test_first_second(tmp_path: Path, seconds: int, rule: str | None) -> None:
    check_date(tmp_path, signer.BEGIN + timedelta(seconds=seconds), rule)


@pytest.mark.parametrize("seconds, rule", [(0, None), (1, "signature-expired")])
def test_last_second(tmp_path: Path, seconds: int, rule: str | None) -> None:
    """Both ends are within, in whole seconds, whatever zone the clock is in."""
    check_date(tmp_path, signer.END + timedelta(seconds=seconds), rule)


def check_date(folder: Path, now: datetime, rule: str | None) -> None:
    path = write(folder, signer.section(PCR0))
    for at in (now, now.astimezone(timezone(timedelta(hours=-8))), now.replace(microsecond=999999)):
        if rule is None:
            verify(path, now=at)
        else:
            with pytest.raises(EifError) as e:
                verify(path, now=at)
            assert e.value.rule == rule


def test_a_section_of_32_kib_is_judged(tmp_path: Path) -> None:
    """The largest that is allowed, filled by a certificate with much text before it."""
    text = b"x" * 15000 + b"\n" + signer.pem()
    section = certified(text)
    pad = 32768 - len(section)
    assert pad > 0
    section = b"\x82" + section[1:] + b"\x59" + (pad - 3).to_bytes(2, "big") + bytes(pad - 3)
    assert len(section) == 32768
    assert verify(write(tmp_path, section), now=signer.NOW).pcr0 == PCR0


def test_zero_padded_halves(tmp_path: Path) -> None:
    """r and s with a leading zero byte: half of those on P-521."""
    for i in range(200):
        payload = cbor2.dumps({"register_index": 0, "register_value": list(PCR0), "x": i})
        section = signer.section(PCR0, "P-521", payload=payload)
        raw = cbor2.loads(bytes(cbor2.loads(section)[0]["signature"]))[3]
        verify(write(tmp_path, section), now=signer.NOW)
        if raw[0] == 0 and raw[66] == 0:
            return
    pytest.fail("no such signature in 200")


GOOD_SECTION = signer.section(PCR0)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Random bytes overwritten, inserted or removed: an EifError or a good signature, nothing else."""
    section = bytearray(GOOD_SECTION)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(section) - 1))
        piece = data.draw(st.binary(max_size=3))
        section[at : at + data.draw(st.integers(0, 3))] = piece
    try:
        decoded = signature.decode(bytes(section))
        signature.check(decoded, PCR0, signer.NOW)
    except EifError as e:
        assert e.rule.startswith("signature-")
    else:
        assert decoded.register_value == PCR0


def test_no_recursion() -> None:
    """Nesting as deep as a section can be, far beyond Python's stack."""
    assert sys.getrecursionlimit() < 30000
    deep = signer.section(PCR0)
    deep = b"\x82" + deep[1:] + b"\x81" * (32768 - len(deep) - 1) + b"\0"
    assert signature.decode(deep).register_value == PCR0


# ---- describe ----


def test_describe_json(tmp_path: Path) -> None:
    """nitro-cli's keys in nitro-cli's order; names and dates as OpenSSL prints them."""
    begin, end = datetime(2019, 10, 8, 3, 8, 5, tzinfo=UTC), datetime(2049, 12, 28, 14, 28, 5, tzinfo=UTC)
    text = signer.pem(begin=begin, end=end)
    path = write(tmp_path, certified(text))
    value = describe(path).to_json()
    assert list(value) == [
        "EifVersion", "Measurements", "IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck",
        "ImageName", "ImageVersion", "Metadata",
    ]  # fmt: skip
    assert list(value["Measurements"]) == ["HashAlgorithm", "PCR0", "PCR1", "PCR2", "PCR8"]
    shown = value["SigningCertificate"]
    assert list(shown) == ["IssuerName", "Algorithm", "NotBefore", "NotAfter", "Signature"]
    issuer = {"commonName": "test signer", "countryName": "DE", "organizationName": "Example"}
    assert list(shown["IssuerName"].items()) == list(issuer.items())
    assert shown["Algorithm"] == "ecdsa-with-SHA384"
    assert shown["NotBefore"] == "Oct  8 03:08:05 2019 GMT"
    assert shown["NotAfter"] == "Dec 28 14:28:05 2049 GMT"
    raw = signer.certificate(begin=begin, end=end).signature
    assert shown["Signature"] == ":".join(f"{byte:02X}" for byte in raw)
    assert (value["IsSigned"], value["CheckCRC"], value["SignatureCheck"]) == (True, True, True)


def test_describe_shows_a_signature_over_another_image(tmp_path: Path) -> None:
    """As nitro-cli: not an error, but SignatureCheck false; verify refuses it."""
    path = write(tmp_path, signer.section(bytes(48)))
    assert describe(path).to_json()["SignatureCheck"] is False


def test_describe_refuses_a_forged_signature(tmp_path: Path) -> None:
    with pytest.raises(EifError) as e:
        describe(write(tmp_path, signer.section(PCR0, signing_key="other")))
    assert e.value.rule == "signature-invalid"


def test_describe_does_not_ask_for_dates(tmp_path: Path) -> None:
    old = signer.pem(begin=datetime(2001, 1, 1, tzinfo=UTC), end=datetime(2002, 1, 1, tzinfo=UTC))
    assert describe(write(tmp_path, certified(old))).signature is not None


def test_cryptography_is_not_imported_for_unsigned_files(tmp_path: Path) -> None:
    """It takes longer to import than a small file to describe."""
    import subprocess

    path = tmp_path / "tiny.eif"
    path.write_bytes(model.pack(model.TINY))
    code = (
        "import sys; from pathlib import Path; from nitroctl.eif.describe import describe;"
        "describe(Path(sys.argv[1])); sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, os.fspath(path)], check=True)
