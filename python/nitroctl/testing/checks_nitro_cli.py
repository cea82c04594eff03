# SPDX-License-Identifier: MIT
"""What must hold of `nitro-cli` with a real guest; more of `checks`. Its texts and codes need none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nitroctl.testing.claims import boot_check
from nitroctl.testing.lab import LIMIT, Lab, check, check_equal

# As users write it for AWS's tool: nothing in it is for us.
CYCLE = """\
#!/bin/sh
set -eu

nitro-cli run-enclave --eif-path "$1" --cpu-count 2 --memory 512 --debug-mode > run.json
id=$(sed -n 's/^ *"EnclaveID": "\\(.*\\)",$/\\1/p' run.json)

nitro-cli describe-enclaves > list.json
grep -F "\\"EnclaveID\\": \\"$id\\"" list.json
grep -F '"State": "RUNNING"' list.json
grep -F '"Flags": "DEBUG_MODE"' list.json

nitro-cli console --enclave-id "$id" --disconnect-timeout 3 > console.log
grep -E 'Unpacking initramfs|rootfs image as initramfs' console.log

nitro-cli terminate-enclave --enclave-id "$id"
test "$(nitro-cli describe-enclaves)" = '[]'
"""


def run_script(lab: Lab, text: str, *arguments: str) -> None:
    """A shell script with `nitro-cli` on its PATH, in the lab's folder. Raises CheckFailed."""
    programs = Path(sys.executable).parent
    check((programs / "nitro-cli").is_file(), f"no nitro-cli in {programs}: `make setup`")
    (lab.folder / "script.sh").write_text(text)
    env = {
        **lab.environment(),
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NITROCTL_QEMU": os.fspath(lab.qemu),
        "NITROCTL_VSOCK_BACKEND": os.fspath(lab.backend),
        "NITRO_CLI_LOGS_PATH": os.fspath(lab.folder / "nitro-cli-logs"),
        **({"NITRO_CLI_BLOBS": os.fspath(lab.blobs.init.parent)} if lab.blobs else {}),
    }
    done = subprocess.run(
        ["sh", "script.sh", *arguments],
        cwd=lab.folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    if done.returncode != 0:  # what it started must not outlive it
        subprocess.run([programs / "nitro-cli", "terminate-enclave", "--all"], env=env, capture_output=True)
    check_equal(done.returncode, 0, f"the script's status\n{done.stdout}{done.stderr}")
    lab.check_nothing_left()


@boot_check
def nitro_cli_script(lab: Lab) -> None:
    """A shell script written for AWS's nitro-cli runs unchanged: run-enclave, describe-enclaves, console with
    "Unpacking initramfs" in it (or as kernels with ramdisks say it), terminate-enclave."""
    run_script(lab, CYCLE, os.fspath(lab.image("agent")))
