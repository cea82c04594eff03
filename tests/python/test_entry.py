# SPDX-License-Identifier: MIT
"""The installed programs' first moments, before any of them can say anything itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Ctrl-C at the moment when a module is about to be imported.
INTERRUPTED = """\
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
import nitroctl.entry
getattr(nitroctl.entry, sys.argv[1])()
"""


@pytest.mark.parametrize(
    ("function", "module"),
    [
        ("nitroctl", "click"),
        ("nitroctl", "nitroctl.base.errors"),
        ("nitro_cli", "nitroctl.nitro_cli"),
        ("vsock_proxy", "nitroctl.nitro_cli.vsock_proxy"),
    ],
)
def test_ctrl_c_while_importing(function: str, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, function, module], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_every_program_begins_there() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    with open(ROOT / "pyproject.toml", "rb") as f:
        scripts = tomllib.load(f)["project"]["scripts"]
    assert scripts and all(value.startswith("nitroctl.entry:") for value in scripts.values())
    for name in ("", ".nitro_cli"):
        argv = [sys.executable, "-m", f"nitroctl{name}", "--help"]
        done = subprocess.run(argv, capture_output=True, timeout=60)
        assert done.returncode == 0


def test_the_examples_requirements_are_here() -> None:
    """What its first command installs is this checkout, with an extra that it has."""
    folder = ROOT / "docs/examples/greeter"
    (line,) = [line for line in (folder / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    place, _, extra = line.rstrip("]").partition("[")
    tomllib = pytest.importorskip("tomllib")
    with open(folder / place / "pyproject.toml", "rb") as f:
        project = tomllib.load(f)["project"]
    assert project["name"] == "nitroctl" and extra in project["optional-dependencies"]


def test_the_wheel_carries_sources_and_no_program_among_them() -> None:
    """auditwheel takes what begins as a program for one, and stops at a damaged one, as a fuzzer's are."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    with (ROOT / "pyproject.toml").open("rb") as f:
        included = tomllib.load(f)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    files = [f for name in included for f in (ROOT / name, *(ROOT / name).rglob("*")) if f.is_file()]
    assert len(files) > 100
    assert [f for f in files if f.read_bytes()[:4] == b"\x7fELF"] == []
