# SPDX-License-Identifier: MIT
"""What `nitroctl run` gives QEMU to sign documents with: the chain from the user's CA, or none. With fake
programs, as test_run.py.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from enclave_fakes import HEARTBEAT, RESET, Bench, assert_nothing_left, steps
from nitroctl.base.instants import UTC


def test_a_chain_is_minted_from_the_users_ca(bench: Bench) -> None:
    done = bench.run(
        "--instance-id", "i-1234567890abcdef0", "--ca-days", "2",
        **steps(["show", "cert-chain"], ["show", "cert-key"], HEARTBEAT, RESET),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chain = x509.load_pem_x509_certificates(done.stdout.encode())
    key = serialization.load_pem_private_key(done.stdout.encode(), None)
    assert key.public_key() == chain[-1].public_key()
    for issuer, certificate in zip(chain, chain[1:], strict=False):
        certificate.verify_directly_issued_by(issuer)
    root = Path(os.environ["XDG_DATA_HOME"], "nitroctl/ca/root.pem").read_bytes()
    assert chain[0] == x509.load_pem_x509_certificate(root)
    assert "CN=i-1234567890abcdef0.local" in chain[3].subject.rfc4514_string()
    left = chain[3].not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=1, hours=23) < left <= timedelta(days=2)
    assert_nothing_left(bench)


def test_a_qemu_that_signs_nothing_gets_no_chain(bench: Bench) -> None:
    done = bench.run(**steps(["show", "cert-chain"], HEARTBEAT, RESET), FAKE_QEMU_UNSIGNED="1")
    assert (done.returncode, done.stdout) == (0, "none\n")
    assert "cannot sign attestation documents" in done.stderr


def test_the_form_of_documents_is_passed_on_and_the_chains(bench: Bench) -> None:
    assert ",document-form=2023" in bench.run("--dry-run", "--document-form", "2023").stdout
    shown = steps(["show", "cert-chain"], HEARTBEAT, RESET)
    for form, identified in (("2023", False), ("2025", True)):
        done = bench.run("--document-form", form, **shown)
        instance = x509.load_pem_x509_certificates(done.stdout.encode())[3]
        oids = [extension.oid for extension in instance.extensions]
        assert (x509.SubjectKeyIdentifier.oid in oids) == identified, done.stderr
    assert_nothing_left(bench)


def test_a_damaged_ca_ends_the_run_before_anything_starts(bench: Bench) -> None:
    ca = bench.tmp / "data" / "nitroctl" / "ca"
    ca.mkdir(parents=True)
    (ca / "root.pem").write_text("garbage")
    (ca / "root.key").write_text("garbage")
    done = bench.run(**steps(HEARTBEAT, RESET), XDG_DATA_HOME=str(bench.tmp / "data"))
    assert done.returncode == 1
    assert "the local CA" in done.stderr and "Traceback" not in done.stderr
    assert_nothing_left(bench)
