# SPDX-License-Identifier: MIT
"""The commands of docs/kms.md, "A secret that only one image can read" and "With the production image and its
policy", as they are written there: a real enclave makes a key pair, gets its document from the NSM, calls
Decrypt over TLS through the parent's port 8000 with SigV4, and opens the answer. The example's tests have
what else can happen (docs/examples/greeter/tests/test_keeper.py). And the same by programs that are none of
ours: Debian's."""

from __future__ import annotations

import base64
import hmac
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import docpage
import nitroctl
from nitroctl.testing.lab import LIMIT, Lab
from nitroctl.toolchain.apt import AptRoot
from test_environment import compiled

pytestmark = pytest.mark.boot

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"


def test_the_page(lab: Lab, tmp_path: Path) -> None:
    scripts = [one.body for one in docpage.blocks(DOCS / "kms.md") if one.kind() == "elsewhere"]
    assert len(scripts) == 2, "the second is of the same image, as it would be built for production"
    shutil.copy(DOCS / "examples/greeter/app/keeper.c", tmp_path)
    programs = Path(sys.executable).parent
    environment = {
        **lab.environment(), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "AWS_REGION": "eu-central-1",
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }  # fmt: skip
    said = docpage.sh("\n".join(scripts), tmp_path, environment, 4 * LIMIT)
    wanted = hmac.new(b"the secret", b"a contract", "sha256").hexdigest() + "\n"
    assert (tmp_path / "signature").read_text() == wanted, said
    assert (tmp_path / "production-signature").read_text() == wanted, said
    assert '"unmeasured": true' in said
    assert 'allowed by statement 2 ("Enclave") of the key policy: ImageSha384 is' in said
    lab.check_nothing_left()


def test_an_enclave_of_debian_s_own_programs(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """curl signs, socat speaks vsock, openssl makes the key and opens the envelope; ours is what asks the NSM
    for a document: Debian has no such program."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "root"
    debian = AptRoot.open().tree("busybox", "openssl", "curl", "socat")
    shutil.copytree(debian, root, symlinks=True, ignore=shutil.ignore_patterns("share", "gconv"))
    shutil.copy(HERE / "decrypt.sh", root / "bin")
    compiled(root / "bin", "document")
    role = "arn:aws:iam::000000000000:role/debian"
    with nitroctl.Kms(tmp_path / "kms", region="eu-central-1", tls=False) as kms:
        key = kms.create_key()
        given = {**kms.environment(role), "BLOB": base64.b64encode(kms.encrypt(key, b"a secret")).decode()}
        (root / "given").write_text("".join(f"{name}='{value}'\n" for name, value in given.items()))
        built = nitroctl.build_eif(tmp_path / "debian.eif", directory=root, cmd=["/bin/decrypt.sh"])
        allowed = {
            "Effect": "Allow", "Principal": {"AWS": role}, "Action": "kms:Decrypt", "Resource": "*",
            "Condition": {"StringEquals": {"kms:RecipientAttestation:PCR0": built.measurements.pcr0.hex()}},
        }  # fmt: skip
        owner = {
            "Effect": "Allow",
            "Principal": {"AWS": "000000000000"},
            "Action": "kms:Put*",
            "Resource": "*",
        }
        kms.put_policy(key, json.dumps({"Version": "2012-10-17", "Statement": [owner, allowed]}))
        enclave = nitroctl.Enclave(
            built, memory=512, qemu=lab.qemu, vsock_backend=lab.backend, listen_port=[kms.parent_port]
        )
        with enclave:
            denied = enclave.console.wait_for(r"without a document: (\{.*\})", timeout=2 * LIMIT)
            assert json.loads(denied[1])["__type"] == "AccessDeniedException"
            enclave.console.wait_for("with one: a secret", timeout=2 * LIMIT)
        asked = [event for event in kms.events if event["eventName"] == "Decrypt"]
        assert [event.get("errorCode") for event in asked] == ["AccessDenied", None]
        assert asked[1]["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"] == role
        assert asked[1]["sourceIPAddress"] == "vsock" and "curl/" in asked[1]["userAgent"]
    lab.check_nothing_left()
