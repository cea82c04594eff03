# SPDX-License-Identifier: MIT
"""The local CA and the chains minted from it: shape as openssl reads it, and the user's files kept safe."""

from __future__ import annotations

import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from jsonpage import answer
from nitroctl.attestation import chain, pki
from nitroctl.attestation.errors import CertificateError
from nitroctl.base.errors import NitroError
from nitroctl.base.instants import UTC
from nitroctl.cli import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "nitroctl"


def openssl(*arguments: str, input: bytes = b"") -> str:
    return subprocess.run(
        ["openssl", *arguments], input=input, capture_output=True, check=True
    ).stdout.decode()


def text(certificate: x509.Certificate) -> str:
    return openssl("x509", "-noout", "-text", input=certificate.public_bytes(Encoding.PEM))


def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    minted = pki.mint(pki.make_root(), "i-0000000000000000")
    pems = [c.public_bytes(Encoding.PEM) for c in minted.certificates]
    (tmp_path / "root").write_bytes(pems[0])
    (tmp_path / "between").write_bytes(pems[1] + pems[2])
    (tmp_path / "instance").write_bytes(pems[3])
    said = openssl(
        "verify", "-CAfile", f"{tmp_path}/root", "-untrusted", f"{tmp_path}/between",
        f"{tmp_path}/instance",
    )  # fmt: skip
    assert said.endswith("OK\n")
    assert minted.pem == b"".join(pems)


# AWS's levels 0 to 3: constraints, usage, identifiers and sizes of its certificates.
SHAPE = [
    (0, "CA:TRUE\n", "Digital Signature, Certificate Sign, CRL Sign", (True, False), 600),
    (1, "CA:TRUE, pathlen:2\n", "Digital Signature, Certificate Sign, CRL Sign", (True, True), 1024),
    (2, "CA:TRUE, pathlen:1\n", "Digital Signature, Certificate Sign, CRL Sign", (True, True), 1024),
    (3, "CA:TRUE, pathlen:0\n", "Certificate Sign", (True, True), 1024),
]


@pytest.mark.parametrize(("level", "constraints", "usage", "identifiers", "size"), SHAPE)
def test_the_shape_of_each_level(
    level: int, constraints: str, usage: str, identifiers: tuple[bool, bool], size: int
) -> None:
    certificate = pki.mint(pki.make_root(), "i-1234567890abcdef0").certificates[level]
    shown = text(certificate)
    assert f"X509v3 Basic Constraints: critical\n                {constraints}" in shown
    assert f"X509v3 Key Usage: critical\n                {usage}\n" in shown
    assert ("Subject Key Identifier" in shown, "Authority Key Identifier" in shown) == identifiers
    assert "Signature Algorithm: ecdsa-with-SHA384" in shown
    assert "NIST CURVE: P-384" in shown
    assert len(certificate.public_bytes(Encoding.DER)) <= size
    assert (20 if level == 3 else 16) == (certificate.serial_number.bit_length() + 7) // 8
    order = [
        found.start()
        for extension in (
            "Basic Constraints",
            "Authority Key Identifier",
            "Subject Key Identifier",
            "Key Usage",
        )
        if (found := re.search(f"X509v3 {extension}", shown))
    ]
    assert order == sorted(order)
    parsed = openssl("asn1parse", input=certificate.public_bytes(Encoding.PEM))
    assert (parsed.count("UTCTIME"), parsed.count("GENERALIZEDTIME")) == (2, 0)


def test_the_form_of_2023_has_no_identifiers_on_the_instance() -> None:
    minted = pki.mint(pki.make_root(), "i-0", form="2023", unmeasured=True).certificates
    # Of an enclave whose PCRs do not say what runs, one certificate says so: the issuer of its documents'.
    assert ["unmeasured" in certificate.subject.rfc4514_string() for certificate in minted] == [
        False, False, False, True,
    ]  # fmt: skip
    assert "OU=Local\\, not AWS\\, unmeasured" in minted[3].subject.rfc4514_string()
    assert "Key Identifier" not in text(minted[3])
    assert "Authority Key Identifier" in text(minted[2])


def test_names_are_encoded_as_aws_encodes_them_and_claim_nothing() -> None:
    minted = pki.mint(pki.make_root(), "i-1234567890abcdef0")
    for certificate in minted.certificates:
        lines = openssl("asn1parse", input=certificate.public_bytes(Encoding.PEM)).splitlines()
        kinds = {
            name.split(":")[-1]: value.split("prim: ")[1].split()[0]
            for name, value in zip(lines, lines[1:], strict=False)
            if "OBJECT" in name and "STRING" in value
        }
        assert kinds["countryName"] == "PRINTABLESTRING"
        assert kinds["commonName"] == kinds["organizationName"] == "UTF8STRING"
        assert "Local, not AWS" in text(certificate)
        assert "aws.nitro-enclaves" not in text(certificate)
    assert "CN = i-1234567890abcdef0.local.nitro-enclaves" in text(minted.certificates[3])


def test_the_path_rules_hold_for_the_chain_and_its_dates() -> None:
    now = datetime(2026, 5, 4, tzinfo=UTC)
    root = pki.make_root(now)
    minted = pki.mint(root, "i-0", days=2, now=now)
    ders = [c.public_bytes(Encoding.DER) for c in minted.certificates]
    # The instance CA in the place of a leaf: all links above it hold, and it is refused for being a CA.
    with pytest.raises(CertificateError, match="is a CA certificate"):
        chain.check(ders[3], ders[:3], root.certificate, now)
    assert minted.certificates[3].not_valid_after_utc == now + timedelta(days=2)


def test_bad_arguments() -> None:
    root = pki.make_root()
    for days in (0, -1, 5000):
        with pytest.raises(NitroError, match=f"valid for {days} days"):
            pki.mint(root, "i-0", days=days)
    with pytest.raises(NitroError, match="too long"):
        pki.mint(root, "i-" + "0" * 60)
    old = pki.make_root(datetime.now(UTC) - timedelta(days=365 * pki.ROOT_YEARS - 5))
    with pytest.raises(NitroError, match="root expires at"):
        pki.mint(old, "i-0", days=30)


def test_the_ca_is_private_and_made_once(home: Path) -> None:
    assert pki.load() is None
    first = pki.load_or_init()
    assert stat.S_IMODE((home / "ca" / "root.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "ca").stat().st_mode) == 0o700
    assert pki.load_or_init().pem == first.pem
    with pytest.raises(NitroError, match="already"):
        pki.init()
    assert pki.load_or_init().pem == first.pem
    assert list(home.iterdir()) == [home / "ca"]


def test_force_keeps_the_old_ca_aside(home: Path) -> None:
    first, second = pki.init(), pki.init(force=True)
    assert first.pem != second.pem
    (old,) = home.glob("ca.replaced-*")
    assert (old / "root.pem").read_bytes() == first.pem
    loaded = pki.load()
    assert loaded and loaded.pem == second.pem


def test_many_first_uses_at_once_agree(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        pems = {a.pem for a in pool.map(lambda _: pki.load_or_init(), range(8))}
    assert len(pems) == 1
    assert list(home.iterdir()) == [home / "ca"]


def test_one_that_was_made_meanwhile_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else makes the CA after we have looked for it."""
    others: list[pki.Authority] = []
    load = pki.load

    def look() -> pki.Authority | None:
        found = load()
        if not others:
            others.append(pki.init())
        return found

    monkeypatch.setattr(pki, "load", look)
    assert pki.load_or_init().pem == others[0].pem
    assert list(home.iterdir()) == [home / "ca"]


@pytest.mark.parametrize("damage", ["no key", "garbage", "another key"])
def test_a_damaged_ca_is_said_and_not_replaced(home: Path, damage: str) -> None:
    pki.init()
    key = home / "ca" / "root.key"
    if damage == "no key":
        key.unlink()
    elif damage == "garbage":
        key.write_bytes(b"garbage")
    else:
        key.write_bytes(pki.mint(pki.make_root(), "i-0").key_pem)
    before = (home / "ca" / "root.pem").read_bytes()
    with pytest.raises(NitroError, match="local CA"):
        pki.load_or_init()
    assert (home / "ca" / "root.pem").read_bytes() == before


def test_the_command_describes_the_root(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["attest", "ca", "init", "--json"])
    made = answer("nitroctl attest ca init", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["attest", "ca", "show", "--json"])
    assert answer("nitroctl attest ca show", capsys.readouterr().out) == made
    said = openssl("x509", "-in", made["root"], "-noout", "-fingerprint", "-sha256")
    assert said.partition("=")[2].strip().replace(":", "").lower() == made["sha256"]
    with pytest.raises(SystemExit):
        main(["attest", "ca", "show"])
    assert f"SHA-256:     {made['sha256']}\n" in capsys.readouterr().out
