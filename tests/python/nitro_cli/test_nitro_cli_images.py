# SPDX-License-Identifier: MIT
"""`nitro-cli describe-eif`, `sign-eif` and `pcr`: what they print of an image. How one is built:
test_nitro_cli_build.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import eifmodel as model
import eifsigner as signer
from nitro_cli_world import check_failure, run

pytestmark = pytest.mark.usefixtures("world")


# The vector with what passes for a kernel.
BOOTABLE = [(model.KERNEL, model.bzimage()), *model.TINY[1:]]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.eif"
    path.write_bytes(model.pack(BOOTABLE))
    return path


def measurements(pcrs: tuple[str, str, str], pcr8: str | None = None) -> dict[str, str]:
    value = {"HashAlgorithm": "Sha384 { ... }", "PCR0": pcrs[0], "PCR1": pcrs[1], "PCR2": pcrs[2]}
    return value if pcr8 is None else {**value, "PCR8": pcr8}


def test_describe_eif(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capfd, "describe-eif", "--eif-path", tiny)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert out == json.dumps(found, indent=2) + "\n"
    assert list(found) == [
        "EifVersion", "Measurements", "IsSigned", "CheckCRC", "ImageName", "ImageVersion", "Metadata",
    ]  # fmt: skip
    assert found["Measurements"] == measurements(model.measure(BOOTABLE))


def test_a_command_that_reads_says_nothing_off_a_terminal(
    tiny: Path, world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers take any byte on stderr for a failure."""
    monkeypatch.setattr("nitroctl.eif.measure.PROGRESS_FROM", 0)
    for argv in (("describe-eif", "--eif-path", tiny), ("pcr", "--input", tiny)):
        status, out, err = run(capfd, *argv)
        assert (status, err) == (0, "") and json.loads(out)
    odd = world / "odd.eif"
    odd.write_bytes(model.pack([(k, b"{" if k == 5 else data) for k, data in BOOTABLE]))
    status, out, err = run(capfd, "describe-eif", "--eif-path", odd)
    assert (status, err) == (0, "") and json.loads(out)
    assert "the metadata are not readable" in (world / "logs" / "nitro_enclaves.log").read_text()


def test_describe_eif_of_no_eif(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = world / "x"
    check_failure(run(capfd, "describe-eif", "--eif-path", path), "E35", "No such file", str(path))
    path.write_bytes(b"x" * 1000)
    check_failure(run(capfd, "describe-eif", "--eif-path", path), "E35", "bad-magic")


def test_sign_eif(tiny: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    status, out, err = run(
        capfd, "sign-eif", "--eif-path", tiny, "--signing-certificate", keys[0], "--private-key", keys[1]
    )
    assert (status, err) == (0, "Enclave Image successfully signed.\n")
    der = x509.load_pem_x509_certificate(keys[0].read_bytes()).public_bytes(Encoding.DER)
    pcr8 = hashlib.sha384(bytes(48) + hashlib.sha384(der).digest()).hexdigest()
    found = json.loads(out)
    assert list(found["Measurements"].items()) == list(measurements(model.measure(BOOTABLE), pcr8).items())
    _, out, _ = run(capfd, "describe-eif", "--eif-path", tiny)
    assert list(json.loads(out))[2:6] == ["IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck"]
    _, out, _ = run(capfd, "pcr", "--signing-certificate", keys[0])
    assert out == f'{{\n  "PCR8": "{pcr8}"\n}}\n'


def test_sign_eif_failures(
    world: Path, tiny: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    def sign(eif: Path, certificate: Path, key: Path | str) -> tuple[int, str, str]:
        return run(
            capfd, "sign-eif", "--eif-path", eif, "--signing-certificate", certificate, "--private-key", key
        )

    check_failure(sign(tiny, world / "no.pem", keys[1]), "E19", f"File: '{world}/no.pem', failing operation")
    check_failure(sign(tiny, keys[1], keys[1]), "E60")
    (world / "other.pem").write_bytes(signer.key_pem("other"))
    check_failure(sign(tiny, keys[0], world / "other.pem"), "E60", "does not belong")
    check_failure(sign(world / "no.eif", *keys), "E35", "No such file")
    arn = "arn:aws:kms:eu-west-1:123456789012:key/0000"
    check_failure(sign(tiny, keys[0], arn), "E60", "KMS", "--signer")
    assert tiny.read_bytes() == model.pack(BOOTABLE)


def test_pcr(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (world / "file").write_bytes(b"content")
    status, out, err = run(capfd, "pcr", "--input", world / "file")
    assert (status, out, err) == (0, f'{{\n  "PCR": "{model.pcr(b"content")}"\n}}\n', "")
    check_failure(run(capfd, "pcr", "--input", world / "no"), "E19", "failing operation: 'Open'")
    check_failure(run(capfd, "pcr", "--signing-certificate", world / "file"), "E57")
