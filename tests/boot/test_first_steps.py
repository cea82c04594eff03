# SPDX-License-Identifier: MIT
"""AWS's first steps with a container image, as a script for nitro-cli: built, described, run, and what runs
measures as what was built; and a service that an enclave reaches through `vsock-proxy`. The cycle of an image
that is there is the boot check `nitro-cli-script`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import imagemodel as im
from nitroctl.testing.checks_nitro_cli import run_script
from nitroctl.testing.lab import LIMIT, Lab
from nitroctl.toolchain import guest

pytestmark = pytest.mark.boot

FIRST_STEPS = """\
#!/bin/sh
set -eu

pcr0() { sed -n 's/^ *"PCR0": "\\(.*\\)",$/\\1/p'; }

built=$(nitro-cli build-enclave --docker-uri "$1" --output-file app.eif | pcr0)
test "$(nitro-cli describe-eif --eif-path app.eif | pcr0)" = "$built"

nitro-cli run-enclave --eif-path app.eif --cpu-count 2 --memory 512
test "$(nitro-cli describe-enclaves | pcr0)" = "$built"
nitro-cli terminate-enclave --enclave-name app
"""


def test_first_steps(lab: Lab, tmp_path: Path) -> None:
    agent = guest.locate("agent").read_bytes()
    layer = im.layer(im.entry("agent", agent, mode=0o755))
    image = im.docker(tmp_path / "app.tar", [layer], run={"Cmd": ["/agent", "7000"]})
    run_script(lab, FIRST_STEPS, os.fspath(image))


def test_vsock_proxy(lab: Lab) -> None:
    """guest/hello.c asks the parent's port 7001 for a nonce and answers with a document that has it."""
    programs = Path(sys.executable).parent
    nonce = os.urandom(16)
    with socket.create_server(("127.0.0.1", 0)) as verifier:
        env = {
            **lab.environment(), "NITROCTL_QEMU": os.fspath(lab.qemu),
            "NITROCTL_VSOCK_BACKEND": os.fspath(lab.backend),
        }  # fmt: skip
        verifier.settimeout(LIMIT)
        proxy = subprocess.Popen(
            [programs / "vsock-proxy", "7001", "127.0.0.1", str(verifier.getsockname()[1])],
            env=env, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        argv = ["--eif-path", os.fspath(lab.image("hello")), "--memory", "512", "--cpu-count", "1"]
        enclave = None
        try:
            assert proxy.stderr and any("the parent's port 7001 is " in line for line in proxy.stderr)
            enclave = subprocess.Popen(
                [programs / "nitro-cli", "run-enclave", *argv, "--attach-console"],
                env=env, stdout=subprocess.PIPE,
            )  # fmt: skip
            connection, _ = verifier.accept()
            connection.settimeout(LIMIT)
            with connection, connection.makefile("rb") as file:
                connection.sendall(nonce)
                document = file.read()
            console = enclave.communicate(timeout=LIMIT)[0]
        finally:
            if enclave and enclave.poll() is None:
                subprocess.run([programs / "nitro-cli", "terminate-enclave", "--all"], env=env)
                enclave.communicate()
            proxy.terminate()
            proxy.communicate()
    assert (enclave.returncode, proxy.returncode) == (0, 0)
    assert nonce in document and b"An attestation document went to the verifier" in console
    lab.check_nothing_left()
