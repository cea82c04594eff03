# SPDX-License-Identifier: MIT
"""The command lines of docs/machine.md, "By hand", as they are written there, with both kernels."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from nitroctl.testing.lab import LIMIT, Backend, Lab

pytestmark = pytest.mark.boot

PAGE = Path(__file__).parents[2] / "docs" / "machine.md"


def by_hand() -> tuple[str, str, str]:
    """The backend's command line, QEMU's, and QEMU's option -M for Debian's kernel."""
    section = PAGE.read_text().partition("\n## By hand\n")[2].partition("\n## ")[0]
    backend, qemu = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[:2]
    (debian,) = re.findall(r"`(-M [^`]*acpi=on[^`]*)`", section)
    assert "Without KVM leave `--enable-kvm -cpu host` out" in section
    return backend, qemu, debian


@pytest.mark.parametrize("kernel", ["own", "prebuilt"])
def test_by_hand(lab: Lab, kernel: str) -> None:
    """Only the folder of the sockets is another, since /tmp/v.sock is one for all."""
    backend, qemu, debian = by_hand()
    folder = lab.folder / f"by-hand-{kernel}"
    folder.mkdir()
    (folder / "vhost-user-vsock").symlink_to(lab.backend)
    # A script: the launcher of the plugin looks beside itself.
    (folder / "qemu-system-x86_64").write_text(f'#!/bin/sh\nexec {shlex.quote(str(lab.qemu))} "$@"\n')
    (folder / "qemu-system-x86_64").chmod(0o755)
    shutil.copyfile(lab.image("hello", kernel=kernel), folder / "hello.eif")
    if lab.accel.name != "kvm":
        qemu = qemu.replace("--enable-kvm -cpu host ", "")
    if kernel == "prebuilt":
        qemu = re.sub(r"-M \S+", debian, qemu)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    lines = [line.strip().replace("/tmp/", f"{folder}/") for line in (backend, qemu)]
    with Backend(lab, ["env", f"PATH={path}", "sh", "-c", f"exec {lines[0]}"]) as started:
        started.expect("ready")
        done = subprocess.run(
            ["sh", "-c", lines[1]], cwd=folder, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert re.search(rb"PCR0: [0-9a-f]{96}", done.stdout)
        started.expect("booted")
