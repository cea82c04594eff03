# SPDX-License-Identifier: MIT
"""`make check-js`: AWS's SDK for JavaScript against the local KMS. Not in `make check`, whose packages have
no Node.js; `npm install` of the SDK is the caller's, and its folder the only argument."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from kms_world import ADMINISTRATION, ROLE, Enclave, attested, policy  # noqa: E402
from nitroctl.kms.local import Kms  # noqa: E402

LIST = {"Effect": "Allow", "Action": "kms:ListKeys", "Resource": "*"}
# Who may ask for a key is told that it is not there.
ABSENT = {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": "arn:aws:kms:*:*:alias/none"}


def main() -> None:
    enclave = Enclave()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = enclave.maker.root.public_bytes(Encoding.PEM)
        with Kms(folder / "kms", region="eu-central-1", root=root, inject=["throttle@ListKeys*2"]) as kms:
            key = kms.create_key(policy=policy(ADMINISTRATION, attested()), alias="alias/js")
            (folder / "blob").write_bytes(kms.encrypt(key, b"secret"))
            (folder / "document").write_bytes(enclave.document())
            variables = {
                **os.environ, **kms.environment(ROLE, policy=policy(LIST, ABSENT)),
                "KMS_MODULES": os.path.abspath(sys.argv[1]),
                "KMS_BLOB": name + "/blob", "KMS_DOCUMENT": name + "/document",
                "KMS_ENVELOPE": name + "/envelope",
            }  # fmt: skip
            for url in (kms.url, kms.url.replace("http://", "https://")):
                more = {"AWS_ENDPOINT_URL_KMS": url, "NODE_EXTRA_CA_CERTS": str(kms.ca)}
                subprocess.run(["node", Path(__file__).with_suffix(".mjs")], env=variables | more, check=True)
                assert enclave.open(folder, (folder / "envelope").read_bytes()) == b"secret"
                kms.inject("throttle@ListKeys*2")


if __name__ == "__main__":
    main()
