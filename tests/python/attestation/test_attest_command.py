# SPDX-License-Identifier: MIT
"""`nitroctl attest` in one process: its options, what a report says to people, and where its files go; what
is verified is tested in test_attestation_verify.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from documents import Maker
from eifmodel import RAMDISK, TINY, measure, pack
from nitroctl import cli
from nitroctl.attestation.document import DOCUMENT_MAX
from nitroctl.enclaves import records
from nitroctl.testing import agent

Run = Callable[..., tuple[int, str, str]]
AT = ("--at", "document")


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], maker: Maker
) -> Run:
    """(status, stdout, stderr) of one command, in a folder with the maker's root."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root.pem").write_bytes(maker.root.public_bytes(Encoding.PEM))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["attest", *words])
        out, err = capsysbinary.readouterr()
        return int(ended.value.code or 0), out.decode(), " ".join(err.decode().replace("│", "").split())

    return call


def test_the_root_goes_to_a_file_or_to_standard_output(run: Run, tmp_path: Path) -> None:
    status, _, err = run("ca", "export")
    assert status == 1 and "nitroctl attest ca init" in err
    assert run("ca", "init")[0] == 0
    assert run("ca", "export", "local.pem")[0] == 0
    pem = (tmp_path / "local.pem").read_bytes()
    assert run("ca", "export") == (0, pem.decode(), "")
    assert x509.load_pem_x509_certificate(pem).subject and b"PRIVATE" not in pem
    status, _, err = run("ca", "export", "nowhere/local.pem")
    assert (status, err.startswith("error: cannot write nowhere/local.pem: No such file")) == (1, True), err


def test_an_image_s_pcrs_are_expected(run: Run, tmp_path: Path, maker: Maker) -> None:
    """By the model's measurements, not by the package's."""
    sections = [*TINY[:-1], (RAMDISK, b"application")]
    (tmp_path / "app.eif").write_bytes(pack(sections))
    (tmp_path / "other.eif").write_bytes(pack([*TINY[:-1], (RAMDISK, b"another")]))
    pcrs = {i: bytes(48) for i in range(16)}
    pcrs |= dict(enumerate(map(bytes.fromhex, measure(sections))))
    (tmp_path / "document").write_bytes(maker.document(pcrs=pcrs))
    verify = ("verify", "document", "--root", "root.pem", *AT)
    assert run(*verify, "--eif", "app.eif", "--pcr", f"0={pcrs[0].hex()}")[0] == 0
    status, _, err = run(*verify, "--eif", "other.eif")
    assert status == 1 and "PCR0" in err
    status, _, err = run(*verify, "--eif", "app.eif", "--pcr", f"2={'ab' * 48}")
    assert status == 2 and "app.eif name different values for PCR2" in err
    for wrong in ("32=" + "ab" * 48, "-1=" + "ab" * 48, "0=" + "ab" * 47, "0"):
        status, _, err = run(*verify, "--pcr", wrong)
        assert status == 2 and ("N must be 0 to 31" in err or "is not N=HEX" in err), err


def test_what_is_no_document_by_its_size(run: Run, tmp_path: Path) -> None:
    (tmp_path / "document").write_bytes(b"84" * (2 * DOCUMENT_MAX))
    status, _, err = run("verify", "document", "--root", "root.pem")
    assert status == 1 and f"it has more than {3 * DOCUMENT_MAX} bytes" in err
    status, _, err = run("verify", "nothing", "--root", "root.pem")
    assert status == 1 and "cannot read the document nothing: No such file" in err
    (tmp_path / "document").write_bytes(b"x")
    (tmp_path / "root.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    status, _, err = run("verify", "document", "--root", "root.pem")
    assert status == 1 and "root.pem is not a PEM certificate" in err


def test_a_report_says_what_a_document_does_not_prove(run: Run, tmp_path: Path, maker: Maker) -> None:
    pcrs = {i: bytes(48) for i in range(16)}
    (tmp_path / "debug").write_bytes(maker.document(pcrs={**pcrs, 3: bytes([3]) * 48}, nonce=b"n" * 40))
    verify = ("verify", "debug", "--root", "root.pem", *AT)
    status, _, err = run(*verify)
    assert status == 1 and "debug" in err
    status, out, _ = run(*verify, "--allow-debug")
    assert status == 0 and "debug mode" in out and "its code is not attested" in out
    assert "It was issued under a local root: it proves what was measured, not isolation." in out
    assert f"nonce       {b'n'.hex() * 32}... (40 bytes)" in out
    assert f"PCR3   {'03' * 48}  role of the parent" in out and "zero: PCR 0, 1, 2, 4, 5," in out
    every = {i: hashlib.sha384(bytes([i])).digest() for i in range(16)}
    (tmp_path / "full").write_bytes(maker.document(pcrs=every))
    status, out, _ = run("verify", "full", "--root", "root.pem", *AT)
    assert status == 0 and "zero:" not in out and "debug" not in out
    assert f"PCR8   {every[8].hex()}  signing certificate" in out


def test_a_document_of_a_running_enclave(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: the agent is a stand-in that answers with what it was asked for."""
    asked: list[dict[str, Any]] = []

    class Answers:
        def __init__(self, uds: Path, **_: Any) -> None:
            assert uds == tmp_path / "v.sock"

        def __enter__(self) -> Answers:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def attestation(self, **fields: Any) -> bytes:
            asked.append(fields)
            return b"\x84document"

    found = SimpleNamespace(uds=tmp_path / "v.sock")
    monkeypatch.setattr(agent, "Agent", Answers)
    monkeypatch.setattr(records, "find", lambda name, running: found)
    words = ("get", "app", "--nonce", "00ff", "--user-data", "", "--public-key", "ab")
    assert run(*words) == (0, "hGRvY3VtZW50\n", "")  # base64 of it
    assert asked == [{"nonce": b"\0\xff", "user_data": b"", "public_key": b"\xab"}]
    assert run(*words, "-o", "out")[0] == 0 and (tmp_path / "out").read_bytes() == b"\x84document"
    status, _, err = run(*words, "-o", "nowhere/out")
    assert status == 1 and "cannot write nowhere/out: No such file" in err
    status, _, err = run("get", "app", "--nonce", "0g")
    assert status == 2 and "'0g' is not hexadecimal" in err
