# SPDX-License-Identifier: MIT
"""The commands of docs/kms.md, "A secret that only one image can read", as they are written there: a real
enclave makes a key pair, gets its document from the NSM, calls Decrypt over TLS through the parent's port
8000 with SigV4, and opens the answer. The example's tests have what else can happen
(docs/examples/greeter/tests/test_keeper.py)."""

from __future__ import annotations

import hmac
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nitroctl.testing.lab import LIMIT, Lab

pytestmark = pytest.mark.boot

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page(lab: Lab, tmp_path: Path) -> None:
    (script,) = re.findall(r"^```sh\n(.*?)^```$", (DOCS / "kms.md").read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(DOCS / "examples/greeter/app/keeper.c", tmp_path)
    programs = Path(sys.executable).parent
    environment = {
        **lab.environment(), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "AWS_REGION": "eu-central-1",
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }  # fmt: skip
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=2 * LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    signature = (tmp_path / "signature").read_text()
    assert signature == hmac.new(b"the secret", b"a contract", "sha256").hexdigest() + "\n", done.stderr
    assert 'allowed by statement 2 ("Enclave") of the key policy: ImageSha384 is' in done.stdout
    lab.check_nothing_left()
