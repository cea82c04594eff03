# SPDX-License-Identifier: MIT
"""The torture kit: its documents are what they are said to be, in the eyes of our verifier, of openssl, cbor2
and cryptography, none of which has a part in making them.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from nitroctl.attestation import Policy, verify
from nitroctl.attestation import errors as why
from nitroctl.base.errors import UsageError
from nitroctl.base.instants import UTC
from nitroctl.torture import TABLE, Kit, Misjudged, cbor, der, envelope, expectations, names, path, payload
from nitroctl.torture.keys import Key, in_der
from nitroctl.torture.kit import pem

PAGE = Path(__file__).resolve().parents[3] / "docs/torture.md"
SHAPE = (why.MalformedDocument, why.FieldError)
CHAIN = (why.ChainError, why.RootMismatch)
# Where in a verification what is wrong is met, so that nothing else can be: by table.
STAGES: dict[str, tuple[type[why.AttestationError], ...]] = {
    **dict.fromkeys((row.name for row in envelope.ROWS), (*SHAPE, why.SignatureMismatch)),
    **dict.fromkeys((row.name for row in payload.ROWS), (*SHAPE, why.ChainError, why.DebugEnclave)),
    **dict.fromkeys((row.name for row in path.ROWS), CHAIN),
    **dict.fromkeys((row.name for row in expectations.NONCES), (why.NonceMismatch,)),
    **dict.fromkeys(
        (row.name for row in expectations.IMAGES), (why.PcrMismatch, why.DebugEnclave, why.FieldError)
    ),
    **dict.fromkeys((row.name for row in expectations.TIMES), (why.CertificateExpired,)),
    # which signs with 64 bytes
    "curve-p256-enclave": (why.MalformedDocument,),
}


@pytest.fixture(scope="module")
def kit() -> Kit:
    return Kit(seed="tests")


def test_our_verifier_passes_all(kit: Kit) -> None:
    wrong = []
    for case in kit.cases():
        policy = Policy(at=case.time, nonce=case.nonce, pcrs={0: case.pcr0})
        try:
            with case.judged(why.AttestationError):
                try:
                    verify(case.document, case.root_pem, policy)
                except why.AttestationError as e:
                    if not isinstance(e, STAGES[case.name]):
                        wrong.append(f"{case.name}: {type(e).__name__}: {e}")
                    raise
        except Misjudged as e:
            wrong.append(str(e))
    assert not wrong, "\n".join(wrong)


def test_each_case_has_a_name_of_its_own_and_a_reason() -> None:
    rows = [*envelope.ROWS, *payload.ROWS, *path.ROWS, *expectations.ROWS]
    assert len(TABLE) == len(rows) + 1 and list(TABLE)[0] == "control"
    for row in rows:
        assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", row.name) and row.what and row.reason and row.source
    assert all(row.expected == "refuse" and not row.needs for row in rows if row.forged)
    assert TABLE["stranger-root"].forged and not TABLE["header-es256"].forged
    count = Counter(row.expected for row in TABLE.values())
    text = " ".join(PAGE.read_text().split())
    assert (
        f"The kit has {len(TABLE)} documents" in text
        and f"{count['refuse']} are wrong in one way each" in text
    )
    assert f"{count['accept']} are right" in text and f"{count['either']} are such that good" in text


# What AWS's guide demands of the enclave's certificate beyond RFC 5280: openssl, asked about the chain, has
# nothing against it.
BEYOND = {"usage-enclave", "enclave-path-length"}


def test_openssl_says_the_same_of_the_chains(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(kit.root_pem)
    differs = set()
    for case in kit.cases(row.name for row in path.ROWS if row.expected != "either"):
        said = cbor2.loads(cbor2.loads(case.document)[2])
        (tmp_path / "enclave").write_bytes(pem(said["certificate"]))
        (tmp_path / "bundle").write_bytes(b"".join(map(pem, said["cabundle"])))
        done = subprocess.run(
            ["openssl", "verify", "-attime", str(int(case.time.timestamp())), "-CAfile", "root",
             "-untrusted", "bundle", "enclave"], cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        if (done.returncode == 0) != case.accepted:
            differs.add(case.name)
    assert differs == BEYOND


def test_the_control_is_shaped_as_awss(kit: Kit) -> None:
    """Untagged, a map of indefinite length, nine fields in AWS's order, five certificates."""
    document = kit.case("control").document
    assert document.startswith(bytes.fromhex("8444a1013822a059"))
    body = cbor2.loads(document)[2]
    said = cbor2.loads(body)
    assert (body[0], body[-1]) == (0xBF, 0xFF)
    assert list(said) == [
        "module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle",
        "public_key", "user_data", "nonce",
    ]  # fmt: skip
    chain = [x509.load_der_x509_certificate(one) for one in (*said["cabundle"], said["certificate"])]
    assert chain[0] == x509.load_pem_x509_certificate(kit.root_pem)
    for above, below in zip(chain, chain[1:], strict=False):
        below.verify_directly_issued_by(above)
    constraints = [one.extensions.get_extension_for_class(x509.BasicConstraints) for one in chain]
    assert [(one.value.ca, one.value.path_length, one.critical) for one in constraints] == [
        (True, None, True), (True, 2, True), (True, 1, True), (True, 0, True), (False, None, True),
    ]  # fmt: skip
    usages = [one.extensions.get_extension_for_class(x509.KeyUsage).value for one in chain]
    assert [one.key_cert_sign for one in usages] == [True] * 4 + [False]
    assert [one.digital_signature for one in usages] == [True, True, True, False, True]


def signature(kit: Kit, name: str) -> bytes:
    return bytes(cbor2.loads(kit.case(name).document)[3])


def test_unusual_documents_are_unusual(kit: Kit) -> None:
    """What is to be accepted has what it is there for."""
    half = 2**383 - 1  # that of n is less than 2^190 away
    assert int.from_bytes(signature(kit, "signature-high-s")[48:], "big") > half
    assert int.from_bytes(signature(kit, "signature-low-s")[48:], "big") <= half
    assert signature(kit, "signature-short-r")[0] == 0 == signature(kit, "signature-short-s")[48]
    assert len(signature(kit, "signature-without-zeros")) == 95
    assert kit.case("cose-chunked-payload").document[7] == 0x5F
    assert len(cbor2.loads(cbor2.loads(kit.case("optional-nonce-1025").document)[2])["nonce"]) == 1025
    assert len(cbor2.loads(cbor2.loads(kit.case("chain-long").document)[2])["cabundle"]) == 8
    assert b"\x18\x0f20600101000000Z" in kit.case("dates-after-2050").document
    assert kit.case("bundle-twice").document.count(kit.root) == 2


def test_a_curve_of_ones_own_is_one(kit: Kit, tmp_path: Path) -> None:
    """Its root has our root's public key, which is its generator as well; and openssl, which takes such
    curves, finds its signature and that of what it issued good."""
    fake, regional = cbor2.loads(cbor2.loads(kit.case("stranger-curve").document)[2])["cabundle"][:2]
    key = x509.load_der_x509_certificate(kit.root).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert fake != kit.root and fake.count(point) == 2
    (tmp_path / "root").write_bytes(pem(fake))
    key_pem = openssl("x509", "-in", tmp_path / "root", "-pubkey", "-noout")
    (tmp_path / "key").write_bytes(key_pem)
    for one in map(x509.load_der_x509_certificate, (fake, regional)):
        (tmp_path / "signature").write_bytes(one.signature)
        (tmp_path / "signed").write_bytes(one.tbs_certificate_bytes)
        where = "-signature", tmp_path / "signature", tmp_path / "signed"
        assert openssl("dgst", "-sha384", "-verify", tmp_path / "key", *where) == b"Verified OK\n"


def openssl(*arguments: str | Path) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


def test_a_seed_and_a_time_make_the_same_bytes() -> None:
    at = datetime(2026, 5, 4, 14, 0, 0, 999, tzinfo=UTC)
    chosen = [
        "control",
        "signature-short-s",
        "stranger-curve",
        "header-hmac",
        "nonce-other",
        "curve-p256-instance",
    ]
    one, two, other, later = Kit("a", at), Kit("a", at), Kit("b", at), Kit("a", at + timedelta(seconds=1))
    assert [one.case(name) for name in chosen] == [two.case(name) for name in chosen]
    assert one.root != other.root and one.root != later.root != Kit().root
    assert (
        one.case("control").time == at.replace(microsecond=0)
        and one.case("control").nonce != other.case("control").nonce
    )
    with pytest.raises(UsageError, match="the years 2001 to 2038"):
        Kit(at=datetime(2050, 1, 1, tzinfo=UTC))


def test_judging(kit: Kit) -> None:
    good, bad, open_ = (kit.case(name) for name in ("cose-tag", "cose-cut", "cose-trailing-byte"))
    assert (good.accepted, bad.accepted, open_.accepted) == (True, False, None)
    for case, verdict in ((good, True), (bad, False), (open_, True), (open_, False)):
        case.judge(verdict)
    with pytest.raises(
        AssertionError, match=r"^wrongly refused cose-tag: the tag 18 stands in front \(.*RFC 9052 4"
    ):
        good.judge(None)
    with pytest.raises(Misjudged, match="wrongly accepted cose-cut"), bad.judged(ValueError):
        pass
    with pytest.raises(Misjudged, match="wrongly refused cose-tag") as caught, good.judged(ValueError):
        raise ValueError("why")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(TypeError), bad.judged(ValueError):  # no refusal, but a fault
        raise TypeError
    with bad.judged(KeyError, ValueError):
        int("no number")
    assert len(repr(good)) < 1000


def test_choosing() -> None:
    assert names(["header-es*", "control"], ()) == ["control", "header-es256", "header-es512"]
    assert set(names()) - set(names(checks=())) == {row.name for row in expectations.ROWS}
    assert {TABLE[name].needs for name in set(names(checks=["time"])) - set(names(checks=()))} == {("time",)}
    assert names(["control", "cose-tag"], leave_out=["cose-*"]) == ["control"]
    for wrong in ({"patterns": ["nothing"]}, {"leave_out": ["nothing-*"]}, {"checks": ["tea"]}):
        arguments: dict[str, Any] = wrong
        with pytest.raises(UsageError, match="nothing|tea"):
            names(**arguments)


# ---- what documents are made with ----


@given(st.integers(-(2**64), 2**64 - 1), st.binary(max_size=300), st.text(max_size=300))
def test_cbor_by_hand_is_cbor2s(number: int, octets: bytes, text: str) -> None:
    assert cbor.integer(number) == cbor2.dumps(number)
    assert cbor.octets(octets) == cbor2.dumps(octets)
    assert cbor.text(text) == cbor2.dumps(text)
    items = [cbor.integer(number), cbor.octets(octets), cbor.text(text)]
    assert cbor.array(*items) == cbor2.dumps([number, octets, text])
    assert cbor.mapping([(items[0], items[1])]) == cbor2.dumps({number: octets})
    assert cbor2.loads(cbor.endless_map([(items[0], items[2])])) == {number: text}
    assert cbor2.loads(cbor.chunked(cbor.BYTES, octets, 7)) == octets
    assert cbor2.loads(cbor.octets(octets, 8)) == octets


@pytest.mark.parametrize("curve", ["secp384r1", "secp256r1"])
def test_signatures_are_good(curve: str) -> None:
    key = Key(b"seed", "name", curve)
    kinds: list[tuple[str, hashes.HashAlgorithm]] = [("sha384", hashes.SHA384()), ("sha256", hashes.SHA256())]
    for data, (digest, kind) in itertools.product((b"", b"data"), kinds):
        key.public.verify(in_der(key.sign(data, digest)), data, ec.ECDSA(kind))
    again, other = Key(b"seed", "name", curve), Key(b"other", "name", curve)
    assert key.sign(data) == again.sign(data) != other.sign(data)
    assert len(key.raw(key.sign(data))) == 2 * key.size


@pytest.mark.parametrize("number", [0, 1, 127, 128, 255, 256, 2**159 - 1, -1, -5, -128, -129])
def test_integers_in_der(number: int) -> None:
    content = der.integer(number)
    assert int.from_bytes(content[2:], "big", signed=True) == number
    assert len(content) == 3 or (content[2], content[3] >> 7) not in ((0, 0), (0xFF, 1))


def test_what_is_to_be_compared_is_in_the_document(kit: Kit) -> None:
    for case in kit.cases(("control", "optional-nonce-1025")):
        said = cbor2.loads(cbor2.loads(case.document)[2])
        assert (said["nonce"], said["pcrs"][0]) == (case.nonce, case.pcr0)
        assert said["timestamp"] == int(case.time.timestamp() - 1) * 1000
