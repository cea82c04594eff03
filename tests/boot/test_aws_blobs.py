# SPDX-License-Identifier: MIT
"""`make check-aws`, for users who have AWS's kernel and init: it boots what it is given, and says what it
leaves out. The blobs here are a stand-in, our kernel and an init that does what AWS's does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nitroctl.testing.lab import Lab
from test_environment import compiled
from test_image import stand_in

pytestmark = [pytest.mark.boot, pytest.mark.ours("about the option itself")]
ROOT = Path(__file__).resolve().parents[2]


def test_the_boot_tests_with_blobs(lab: Lab, tmp_path: Path) -> None:
    blobs = stand_in(lab, tmp_path / "blobs")
    compiled(tmp_path, "stand-in").rename(blobs / "init")
    # A word that only these images have on their command line, and AWS's time for the reset.
    line = (blobs / "cmdline").read_text().replace("panic=1", "panic=30").rstrip()
    (blobs / "cmdline").write_text(f"{line} audit=0\n")
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={lab.folder}/b", "--blobs", str(blobs)]
    programs = ["--qemu", str(lab.qemu), "--vsock-backend", str(lab.backend)]
    # command-line compares what the guest was booted with to what the blobs say.
    chosen = [f"tests/boot/test_boot.py::test_boot[{name}]" for name in ("command-line", "application-exit")]
    argv = [sys.executable, "-m", "pytest", *options, *programs, *chosen]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"^1 passed, 1 deselected", done.stdout, re.MULTILINE), done.stdout[-2000:]
    assert "not asked here" in done.stdout
    assert re.search(r"application-exit\]: AWS's init tells no status$", done.stdout, re.MULTILINE)
