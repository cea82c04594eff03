# SPDX-License-Identifier: MIT
"""Verification of attestation documents: a genuine one, and per step a test in which only it fails."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from documents import NOW, PROTECTED, Level, Maker, raw_signature
from jsonpage import answer
from nitroctl.attestation import Policy, decode, load_root, verify
from nitroctl.attestation import errors as why
from nitroctl.attestation.text import undress
from nitroctl.base.errors import UsageError
from nitroctl.base.instants import UTC

# A real document, published as test data in capeprivacy/cape-js (packages/cape-js, 2022).
GENUINE = Path(__file__).parents[1] / "data" / "aws-document-2022-09-15.b64"
AT = Policy(at=NOW)


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


# --- genuine ---------------------------------------------------------------------------------------------


def genuine() -> bytes:
    return base64.b64decode(GENUINE.read_text())


def test_the_pinned_root_is_the_one_that_aws_publishes() -> None:
    # The fingerprint stands in the user guide, "Verifying the root of trust".
    fingerprint = load_root("aws").fingerprint(hashes.SHA256()).hex()
    assert fingerprint == "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"


def test_a_genuine_document_verifies_at_its_own_time() -> None:
    document = verify(genuine(), "aws", Policy(at="document"))
    assert document.module_id == "i-0697c9729fa547b20-enc0183422ede9a5dc8"
    assert document.time == datetime(2022, 9, 15, 17, 43, 28, 848000, tzinfo=UTC)
    assert list(document.pcrs) == list(range(16))
    # PCR4 is the instance id as text, extended into zeros.
    assert document.pcrs[4] == hashlib.sha384(bytes(48) + b"i-0697c9729fa547b20").digest()


def test_a_genuine_document_is_expired_today_and_not_yet_valid_before() -> None:
    with pytest.raises(why.CertificateExpired, match=r"cabundle\[1\] expired at 2022-10-03 16:07:45"):
        verify(genuine(), "aws")
    with pytest.raises(why.CertificateExpired, match="is valid from"):
        verify(genuine(), "aws", Policy(at=datetime(2022, 9, 15, 17, 43, 20, tzinfo=UTC)))


def test_every_bit_of_a_genuine_document_counts() -> None:
    data = genuine()
    for at in range(0, len(data), 97):
        with pytest.raises(why.AttestationError):
            verify(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "aws", Policy(at="document"))


# --- one step fails --------------------------------------------------------------------------------------


def test_a_good_document_is_returned_decoded(maker: Maker) -> None:
    document = verify(maker.document(nonce=b"n", user_data=b"", public_key=b"k"), maker.root, AT)
    assert (document.nonce, document.user_data, document.public_key) == (b"n", b"", b"k")
    assert document.timestamp == int(NOW.timestamp() * 1000) + 123
    assert not document.debug


def test_tag_18_and_an_indefinite_payload_map_are_accepted(maker: Maker) -> None:
    assert verify(b"\xd2" + maker.document(), maker.root, AT)
    body = b"\xbf" + b"".join(cbor2.dumps(k) + cbor2.dumps(v) for k, v in maker.payload().items()) + b"\xff"
    assert verify(cbor2.dumps(maker.envelope(body)), maker.root, AT)


def test_optional_fields_may_be_missing(maker: Maker) -> None:
    payload = {k: v for k, v in maker.payload().items() if k not in ("nonce", "user_data", "public_key")}
    assert verify(cbor2.dumps(maker.envelope(payload)), maker.root, AT).nonce is None


def headers(maker: Maker, protected: dict[Any, Any], unprotected: dict[Any, Any] | None = None) -> bytes:
    encoded, _, payload, signature = maker.envelope(protected=cbor2.dumps(protected))
    return cbor2.dumps([encoded, unprotected or {}, payload, signature])


def test_headers_that_nobody_needs_are_accepted(maker: Maker) -> None:
    assert verify(headers(maker, {1: -35, 4: b"key", "note": 1}, {33: b"", "x": None}), maker.root, AT)
    assert verify(headers(maker, {1: -35, 2: [1]}), maker.root, AT)


ENVELOPES: list[tuple[str, Callable[[Maker], bytes], str]] = [
    ("empty", lambda m: b"", "not CBOR"),
    ("trailing byte", lambda m: m.document() + b"\0", "1 bytes follow"),
    ("truncated", lambda m: m.document()[:-1], "not CBOR"),
    ("tag 17", lambda m: b"\xd1" + m.document(), "only 18"),
    ("a map", lambda m: b"\xa0", "array of 4"),
    ("three parts", lambda m: cbor2.dumps(m.envelope()[:3]), "array of 4"),
    ("protected as map", lambda m: cbor2.dumps([{1: -35}, *m.envelope()[1:]]), "protected header is a map"),
    (
        "unprotected as null",
        lambda m: cbor2.dumps([PROTECTED, None, *m.envelope()[2:]]),
        "unprotected header is null",
    ),
    ("empty protected", lambda m: cbor2.dumps(m.envelope(protected=b"")), "protected header is not CBOR"),
    ("ES256", lambda m: cbor2.dumps(m.envelope(protected=bytes.fromhex("a10126"))), "-7, not -35"),
    ("no algorithm", lambda m: cbor2.dumps(m.envelope(protected=b"\xa0")), "None, not -35"),
    ("the key true", lambda m: headers(m, {True: -35}), "the label True"),
    ("the key 1.0", lambda m: headers(m, {1.0: -35}), "the label 1.0"),
    ("the algorithm as float", lambda m: headers(m, {1: -35.0}), "-35.0, not -35"),
    ("critical and unknown", lambda m: headers(m, {1: -35, 2: [5], 5: b""}), "parameter 5 is critical"),
    ("critical by name", lambda m: headers(m, {1: -35, 2: [1, "x"], "x": 0}), "parameter 'x' is critical"),
    ("critical is true", lambda m: headers(m, {1: -35, 2: [True]}), "parameter True is critical"),
    ("critical and absent", lambda m: headers(m, {1: -35, 2: [33]}), "parameter 33 is critical"),
    ("crit is empty", lambda m: headers(m, {1: -35, 2: []}), "crit .* not a non-empty array"),
    ("crit is no array", lambda m: headers(m, {1: -35, 2: 1}), "crit .* not a non-empty array"),
    ("crit unprotected", lambda m: headers(m, {1: -35}, {2: [1]}), "crit .* unprotected"),
    ("algorithm twice", lambda m: headers(m, {1: -35}, {1: -7}), "label 1 is in both"),
    ("unprotected by true", lambda m: headers(m, {1: -35}, {True: -7}), "the label True"),
    ("short signature", lambda m: cbor2.dumps([*m.envelope()[:3], bytes(95)]), "95 bytes, not 96"),
    ("empty payload", lambda m: cbor2.dumps(m.envelope(b"")), "0 bytes"),
    ("payload too long", lambda m: cbor2.dumps(m.envelope(bytes(16385))), "16385 bytes"),
    ("payload is no map", lambda m: cbor2.dumps(m.envelope(b"\x80")), "an array, not a map"),
    (
        "payload with a rest",
        lambda m: cbor2.dumps(m.envelope(cbor2.dumps(m.payload()) + b"\0")),
        "bytes follow",
    ),
    ("payload key twice", lambda m: cbor2.dumps(m.envelope(b"\xa2\x61a\x00\x61a\x00")), "twice"),
    ("far too long", lambda m: bytes(100_000), "at most"),
]


@pytest.mark.parametrize(("name", "make", "text"), ENVELOPES, ids=[e[0] for e in ENVELOPES])
def test_a_malformed_envelope_is_refused(
    maker: Maker, name: str, make: Callable[[Maker], bytes], text: str
) -> None:
    with pytest.raises(why.MalformedDocument, match=text):
        verify(make(maker), maker.root, AT)


MISSING = object()
PCR = bytes(48)
FIELDS: list[tuple[str, Any, str]] = [
    ("module_id", MISSING, "missing"), ("module_id", "", "not a non-empty text"),
    ("module_id", 7, "not a non-empty text"),
    ("digest", MISSING, "missing"), ("digest", "SHA256", "SHA256"), ("digest", b"SHA384", "SHA384"),
    ("timestamp", MISSING, "missing"), ("timestamp", 0, "milliseconds"), ("timestamp", -1, "milliseconds"),
    ("timestamp", "now", "milliseconds"), ("timestamp", True, "milliseconds"),
    ("timestamp", 2**63, "milliseconds"),
    ("pcrs", MISSING, "missing"), ("pcrs", {}, "0 entries"), ("pcrs", [PCR], "not a map"),
    ("pcrs", {32: PCR}, "index 32"), ("pcrs", {-1: PCR}, "index -1"), ("pcrs", {"0": PCR}, "index '0'"),
    ("pcrs", {0: PCR[:-1]}, "47 bytes"), ("pcrs", {0: None}, "null"),
    ("pcrs", {0: PCR, 1: bytes(32)}, "32 bytes at index 1"), ("pcrs", {0: bytes(64)}, "64 bytes at index 0"),
    ("pcrs", {False: PCR}, "index False"), ("pcrs", {0.0: PCR}, "index 0.0"),
    ("pcrs", {i: PCR for i in range(1, 16)}, "no PCR0"),
    ("pcrs", {i: PCR for i in range(33)}, "33 entries"),
    ("certificate", MISSING, "missing"), ("certificate", b"", "0 bytes"),
    ("certificate", bytes(1025), "1025 bytes"),
    ("certificate", "PEM", "text"), ("cabundle", MISSING, "missing"), ("cabundle", [], "empty array"),
    ("cabundle", b"der", "a byte string"), ("cabundle[0]", [b""], "0 bytes"),
    ("cabundle[1]", [b"a", 1], "an integer"),
    ("public_key", b"", "0 bytes"), ("public_key", bytes(4097), "4097 bytes"), ("public_key", "k", "text"),
    ("user_data", bytes(4097), "4097 bytes"), ("user_data", 1, "an integer"),
    ("user_data", cbor2.undefined, "is undefined"), ("user_data", True, "true or false"),
    ("nonce", bytes(4097), "4097 bytes"), ("nonce", [1], "an array"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "text"), FIELDS)
def test_a_bad_field_is_refused_by_name(maker: Maker, field: str, value: Any, text: str) -> None:
    payload = maker.payload()
    key = field.partition("[")[0]
    if value is MISSING:
        del payload[key]
    else:
        payload[key] = value
    with pytest.raises(why.FieldError, match=text) as caught:
        verify(cbor2.dumps(maker.envelope(payload)), maker.root, AT)
    assert caught.value.field == field


def test_fields_as_long_as_a_request_and_the_limit_as_a_policy(maker: Maker) -> None:
    # The largest key in use, ML-KEM-1024's, and the nonce of a genuine document that others met.
    data = maker.document(public_key=bytes(1568), nonce=bytes(1025), user_data=bytes(4050))
    assert len(verify(data, maker.root, AT).public_key or b"") == 1568
    with pytest.raises(why.FieldError, match="public_key has 1568 bytes; 1 to 1024 are allowed"):
        verify(data, maker.root, Policy(at=NOW, field_max=1024))


@pytest.mark.parametrize(("begin", "end"), [(1, 9), (-9, -1)])
def test_a_document_from_outside_of_its_certificate_is_refused(begin: int, end: int) -> None:
    """The leaf is valid when it is checked, and was not when the document says that it was made."""
    maker = Maker(set_level(4, begin=NOW + timedelta(hours=begin), end=NOW + timedelta(hours=end)))
    with pytest.raises(why.FieldError, match="timestamp is 2026-05-04 12:00:00 UTC; the enclave's cert"):
        verify(maker.document(), maker.root, Policy(at=NOW + timedelta(hours=(begin + end) / 2)))


def test_times_are_aware_and_shown_as_utc(maker: Maker) -> None:
    east = datetime.fromisoformat("2026-05-04T17:00:00+05:00")
    assert verify(maker.document(), maker.root, Policy(at=east))
    with pytest.raises(why.CertificateExpired, match="checked for 2026-05-05 17:00:00 UTC"):
        verify(maker.document(), maker.root, Policy(at=east + timedelta(days=1, hours=5)))
    wrongs: tuple[Callable[[], Policy], ...] = (
        lambda: Policy(at=datetime(2026, 5, 4)),
        lambda: Policy(at=datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
        lambda: Policy(at="now"),  # type: ignore[arg-type]
        lambda: Policy(at="document", max_age=timedelta(1)),
        lambda: Policy(max_age=-timedelta(1)),
    )
    for wrong in wrongs:
        with pytest.raises(UsageError):
            wrong()


def set_level(index: int, **changes: Any) -> Callable[[list[Level]], None]:
    def change(chain: list[Level]) -> None:
        for name, value in changes.items():
            setattr(chain[index], name, value)

    return change


EARLIER, LATER = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
CHAINS: list[tuple[str, Callable[[list[Level]], None], type[why.ChainError], str]] = [
    *(
        (f"{name} expired", set_level(i, end=EARLIER), why.CertificateExpired, "expired")
        for i, name in enumerate(("root", "regional", "zonal", "instance", "leaf"))
    ),
    *(
        (f"{name} not yet", set_level(i, begin=LATER), why.CertificateExpired, "valid from")
        for i, name in enumerate(("root", "regional", "zonal", "instance", "leaf"))
    ),
    *(
        (f"{name} by a stranger", set_level(i, signed_by_stranger=True), why.ChainError, "not signed by")
        for i, name in enumerate(("regional", "zonal", "instance", "leaf"), 1)
    ),
    ("issuer's name", set_level(2, issuer_name="nobody"), why.ChainError, "CN=nobody"),
    ("zonal is no CA", set_level(2, ca=False, path_length=None), why.CertificateError, "critical CA:TRUE"),
    ("constraints not critical", set_level(2, critical=False), why.CertificateError, "critical CA:TRUE"),
    ("no constraints", set_level(3, basic_constraints=False), why.CertificateError, "lacks an extension"),
    ("path too long", set_level(1, path_length=1), why.CertificateError, "allows 1 CA cert.* there are 2"),
    ("root's path too short", set_level(0, path_length=2), why.CertificateError, "allows 2"),
    ("may not sign certificates", set_level(3, cert_sign=False), why.CertificateError, "may not sign cert"),
    ("no key usage", set_level(1, key_usage=False), why.CertificateError, "lacks an extension"),
    ("leaf is a CA", set_level(4, ca=True), why.CertificateError, "is a CA certificate"),
    ("leaf may not sign", set_level(4, digital_signature=False), why.CertificateError, "may not sign doc"),
    ("leaf without usage", set_level(4, key_usage=False), why.CertificateError, "lacks an extension"),
    ("a P-256 link", set_level(2, curve=ec.SECP256R1()), why.CertificateError, "not on P-384"),
    ("signed over SHA-256", set_level(3, digest=hashes.SHA256()), why.CertificateError, "ecdsa-with-SHA384"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "error", "text"), CHAINS, ids=[c[0] for c in CHAINS])
def test_a_bad_link_is_refused(
    name: str, change: Callable[[list[Level]], None], error: type[why.ChainError], text: str
) -> None:
    spoilt = Maker(change)
    with pytest.raises(error, match=text) as caught:
        verify(spoilt.document(), spoilt.root, AT)
    assert type(caught.value) is error


def test_another_root_is_refused_even_under_the_same_name(maker: Maker) -> None:
    with pytest.raises(why.RootMismatch, match="CN=root"):
        verify(maker.document(), Maker().root, AT)
    with pytest.raises(why.RootMismatch, match="CN=aws.nitro-enclaves"):
        verify(maker.document(), "aws", AT)


def test_a_swapped_or_shortened_bundle_is_refused(maker: Maker) -> None:
    root, regional, zonal, instance = maker.cabundle
    for bundle in ([root, zonal, regional, instance], [root, regional, zonal]):
        with pytest.raises(why.ChainError):
            verify(maker.document(cabundle=bundle), maker.root, AT)
    with pytest.raises(why.RootMismatch):
        verify(maker.document(cabundle=[instance, zonal, regional, root]), maker.root, AT)


def test_bytes_that_are_no_certificate_are_refused(maker: Maker) -> None:
    with pytest.raises(why.CertificateError, match="no X.509"):
        verify(maker.document(certificate=b"0\x03\x02\x01\x01"), maker.root, AT)


def test_a_flipped_bit_in_what_is_signed_is_refused(maker: Maker) -> None:
    protected, unprotected, payload, signature = maker.envelope()
    nonce_null = payload.rindex(b"\xf6")
    for parts in (
        [protected, unprotected, payload[:nonce_null] + b"\x40", signature],
        [bytes.fromhex("a201382203f6"), unprotected, payload, signature],
        [protected, unprotected, payload, signature[:-1] + bytes([signature[-1] ^ 1])],
        [protected, unprotected, payload, bytes(96)],
        [protected, unprotected, payload, raw_signature(ec.generate_private_key(ec.SECP384R1()), payload)],
    ):
        with pytest.raises(why.SignatureMismatch):
            verify(cbor2.dumps(parts), maker.root, AT)


def test_policy_each_expectation_alone(maker: Maker) -> None:
    good = maker.document(nonce=b"nonce", user_data=b"data", public_key=b"key")
    pcr0 = hashlib.sha384(b"image").digest()
    pcrs, age = {0: pcr0, 1: bytes(48)}, timedelta(seconds=5)
    everything = Policy(NOW, pcrs, nonce=b"nonce", user_data=b"data", public_key=b"key", max_age=age)
    assert verify(good, maker.root, everything)
    for policy, error in (
        (Policy(at=NOW, pcrs={0: bytes(48)}), why.PcrMismatch),
        (Policy(at=NOW, pcrs={16: bytes(48)}), why.PcrMismatch),
        (Policy(at=NOW, nonce=b"other"), why.NonceMismatch),
        (Policy(at=NOW, user_data=b"other"), why.UserDataMismatch),
        (Policy(at=NOW, public_key=b"other"), why.PublicKeyMismatch),
        (Policy(at=NOW + timedelta(seconds=10), max_age=timedelta(seconds=5)), why.StaleDocument),
        (Policy(at=NOW - timedelta(minutes=5), max_age=timedelta(seconds=5)), why.StaleDocument),
    ):
        with pytest.raises(error) as caught:
            verify(good, maker.root, policy)
        assert type(caught.value) is error
    with pytest.raises(why.NonceMismatch, match="it has none"):
        verify(maker.document(), maker.root, Policy(at=NOW, nonce=b""))


def test_a_debug_enclave_needs_permission(maker: Maker) -> None:
    pcrs = {**maker.payload()["pcrs"], 0: bytes(48)}
    with pytest.raises(why.DebugEnclave):
        verify(maker.document(pcrs=pcrs), maker.root, AT)
    assert verify(maker.document(pcrs=pcrs), maker.root, Policy(at=NOW, allow_debug=True)).debug


def test_an_unmeasured_enclave_needs_permission() -> None:
    """Whichever CA says so, in whatever case of letters; the enclave's own name, and other parts, do not."""
    for level, unit, says in (
        (3, "Local, not AWS, unmeasured", True),
        (1, "UnMeasured things", True),
        (3, "Local, not AWS", False),
        (4, "unmeasured", False),
    ):
        maker = Maker(lambda chain, level=level, unit=unit: setattr(chain[level], "unit", unit))  # type: ignore[misc]
        document = maker.document()
        allowed = verify(document, maker.root, Policy(at=NOW, allow_unmeasured=True))
        assert allowed.unmeasured is says
        if says:
            with pytest.raises(why.UnmeasuredEnclave, match="its issuer's name says") as error:
                verify(document, maker.root, Policy(at=NOW, allow_debug=True))
            assert "--allow-unmeasured" in str(error.value.hint)
        else:
            verify(document, maker.root, AT)
    assert not dataclasses.replace(allowed, cabundle=(b"no certificate",)).unmeasured


# --- anything else ---------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_any_bytes_are_a_document_or_a_named_error(data: bytes) -> None:
    with pytest.raises((why.MalformedDocument, why.FieldError)):
        decode(data)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=60) | st.text(max_size=10) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(-1, 40) | st.text(max_size=4), inner)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
        "public_key",
        "user_data",
        "nonce",
    ]
)


@given(st.dictionaries(KEYS, JUNK, max_size=4))
def test_any_payload_is_a_document_or_a_named_error(changes: dict[str, Any]) -> None:
    maker = SHARED
    data = cbor2.dumps([PROTECTED, {}, cbor2.dumps({**maker.payload(), **changes}), bytes(96)])
    with pytest.raises(why.AttestationError):
        verify(data, maker.root, AT)


SHARED = Maker()


# --- the command -----------------------------------------------------------------------------------------


def nitroctl(*arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    import sys

    return subprocess.run([sys.executable, "-m", "nitroctl", *arguments], input=input, capture_output=True)


def test_the_command_accepts_base64_and_raw_and_prints_json() -> None:
    result = nitroctl("attest", "verify", str(GENUINE), "--root", "aws", "--at", "document", "--json")
    report = answer("nitroctl attest verify", result.stdout)
    assert (result.returncode, report["module_id"]) == (0, "i-0697c9729fa547b20-enc0183422ede9a5dc8")
    assert len(report["chain"]) == 5
    result = nitroctl("attest", "verify", "-", "--root", "aws", "--at", "document", input=genuine())
    assert result.returncode == 0
    assert report["pcrs"]["0"] in result.stdout.decode()


def test_every_text_of_a_document_is_recognised() -> None:
    raw = genuine()
    plain = base64.b64encode(raw)
    for text in (
        raw, b"\xd2" + raw, plain, plain.rstrip(b"="), base64.urlsafe_b64encode(raw), raw.hex().encode(),
        raw.hex().upper().encode(), b" \n" + base64.encodebytes(raw), raw.hex(" ").encode() + b"\r\n",
    ):  # fmt: skip
        assert undress(text) in (raw, b"\xd2" + raw)
    for other in (b"", b"\n", b"no document!", b"84!", raw[:1], b"{}"):
        assert undress(other) == other
    for text in (raw.hex().encode(), base64.urlsafe_b64encode(raw)):
        done = nitroctl("attest", "verify", "-", "--root", "aws", "--at", "document", input=text)
        assert done.returncode == 0, done.stderr


def test_the_command_refuses_what_cannot_be_meant() -> None:
    for arguments, text in (
        (["--max-age", "nan"], "nan is not a number of seconds"),
        (["--max-age", "inf"], "inf is not a number of seconds"),
        (["--max-age", "1e300"], "1e+300 is not a number of seconds"),
        (["--max-age", "-1"], "-1.0 is not a number of seconds"),
        (["--at", "document", "--max-age", "5"], "contradict each other"),
        (["--at", "0001-01-01T00:00+05:00"], "years 1 to 9999"),
    ):
        done = nitroctl("attest", "verify", str(GENUINE), "--root", "aws", *arguments)
        said = " ".join(done.stderr.decode().replace("\u2502", "").split())
        assert (done.returncode, text in said) == (2, True), said


def test_the_command_knows_awss_root_by_its_bytes(tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    root.write_bytes(load_root("aws").public_bytes(Encoding.PEM))
    done = nitroctl("attest", "verify", str(GENUINE), "--root", str(root), "--at", "document")
    assert done.returncode == 0
    assert b"local root" not in done.stdout


def test_the_command_fails_in_one_line_and_no_traceback(maker: Maker, tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    root.write_bytes(maker.root.public_bytes(Encoding.PEM))
    (tmp_path / "doc").write_bytes(maker.document())
    for extra, text in (
        (["--at", "2026-05-04T12:00", "--pcr", "0=" + "00" * 48], "PCR0 is"),
        (["--at", "2026-05-04T12:00", "--nonce", "aa"], "nonce"),
        ([], "expired"),
    ):
        result = nitroctl("attest", "verify", str(tmp_path / "doc"), "--root", str(root), *extra)
        assert result.returncode == 1
        assert text in result.stderr.decode()
        assert "Traceback" not in result.stderr.decode()
    assert nitroctl("attest", "verify", str(tmp_path / "doc"), "--pcr", "0=zz").returncode == 2
