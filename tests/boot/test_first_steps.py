# SPDX-License-Identifier: MIT
"""AWS's first steps with a container image, as a script for nitro-cli: built, described, run, and what runs
measures as what was built. The cycle of an image that is there is the boot check `nitro-cli-script`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import imagemodel as im
from nitroctl import guest
from nitroctl.checks_nitro_cli import run_script
from nitroctl.lab import Lab

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
