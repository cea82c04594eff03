# SPDX-License-Identifier: MIT
"""tools/setup without installing anything: what it would run, when it asks, when it does nothing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "tools" / "setup"

# Stand-ins that write what they were called with; PATH has nothing else, so much is "missing".
FAKES = {
    "apt-get": '#!/bin/sh\necho "apt-get $*" >> "$CALLS"\n',
    "sudo": '#!/bin/sh\necho "sudo $*" >> "$CALLS"\n',
}

# Runs tools/setup as the user with this number, whoever runs the test.
AS_USER = """
import os, runpy, sys
uid = int(sys.argv[1])
os.geteuid = lambda: uid
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with apt-get and sudo and no package of ours; the file in which their calls are."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def setup(
    *arguments: str, uid: int = 1000, stdin: int | None = subprocess.DEVNULL, script: Path = SETUP
) -> tuple[int, str]:
    argv = [sys.executable, "-c", AS_USER, str(uid), str(script), *arguments]
    result = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def calls(host: Path) -> str:
    return host.read_text() if host.exists() else ""


def test_without_a_terminal_it_prints_the_line_and_fails(host: Path) -> None:
    status, output = setup("packages")
    assert status == 1
    assert "no terminal" in output and "sudo apt-get install " in output and "libcbor-dev" in output
    assert calls(host) == ""


@pytest.mark.parametrize("answer, runs", [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks_before_sudo(host: Path, answer: str, runs: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        status, output = setup("packages", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "[y/N]" in output
    # The stand-ins install nothing, which is noticed.
    assert status == 1
    assert ("sudo apt-get install" in calls(host)) == runs
    assert ("still missing" in output) == runs


def test_agreed_to_without_a_terminal_sudo_may_not_ask(host: Path) -> None:
    setup("packages", "--yes")
    lines = calls(host).splitlines()
    assert lines and all(line.startswith("sudo -n apt-get ") for line in lines)


def test_without_sudo(host: Path) -> None:
    (host.parent / "bin" / "sudo").unlink()
    status, output = setup("packages")
    assert status == 1 and "as root: apt-get install" in output


def test_without_apt(host: Path) -> None:
    (host.parent / "bin" / "apt-get").unlink()
    status, output = setup("packages")
    assert status == 1 and "apt only" in output and "libcbor-dev" in output


def test_root_needs_no_sudo(host: Path) -> None:
    setup("packages", uid=0)
    lines = calls(host).splitlines()
    assert [line.split()[1] for line in lines] == ["update", "install"]
    assert all(line.startswith("apt-get ") for line in lines)


def test_dry_run_only_prints(host: Path, tmp_path: Path) -> None:
    status, output = setup("packages", "--dry-run")
    assert status == 0 and "sudo apt-get update" in output and "--no-install-recommends" in output
    status, output = setup("venv", "--dry-run", "--venv", str(tmp_path / "venv"))
    assert status == 0
    assert f"-m venv --clear {tmp_path}/venv" in output
    assert "pip install" in output and f"{ROOT}[dev]" in output
    assert calls(host) == "" and not (tmp_path / "venv").exists()


def test_nothing_missing_is_quiet(tmp_path: Path) -> None:
    """On a host that can run these tests for real, all is there."""
    status, output = setup("packages", "--dry-run")
    if output:
        pytest.fail(f"packages are missing on this host, run `make packages`: {output}")
    assert status == 0


def test_a_finished_environment_is_left_alone(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    code = (
        "import runpy, sys\n"
        f"setup = runpy.run_path({str(SETUP)!r})\n"
        f"open({str(venv / 'nitroctl-setup')!r}, 'w').write(setup['wanted']())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert setup("venv", "--dry-run", "--venv", str(venv)) == (0, "")
    (venv / "nitroctl-setup").write_text("another pyproject.toml")
    status, output = setup("venv", "--dry-run", "--venv", str(venv))
    # Renewed in place, keeping the links to what was built.
    assert status == 0 and "pip install" in output and "--clear" not in output


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    status, output = setup("venv", "--venv", str(tmp_path))
    assert status == 1 and "is no virtual environment" in output
    assert (tmp_path / "precious").read_text() == "data"


def checkout(folder: Path, *wheels: str) -> Path:
    """One that has these wheels in dist/ and no others, as far as `tools/setup` looks at it."""
    (folder / "tools").mkdir(parents=True)
    (folder / "dist").mkdir()
    for name in ("python", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "tools/setup").write_bytes(SETUP.read_bytes())
    for name in wheels:
        (folder / "dist" / name).write_bytes(b"a wheel")
    return folder / "tools/setup"


def test_the_demonstration_asks_for_what_it_uses(host: Path, tmp_path: Path) -> None:
    script = checkout(tmp_path / "checkout")
    status, output = setup("demo", "--venv", str(tmp_path / "venv"), script=script)
    assert status == 1 and "libcbor-dev" in output
    for kernels in ("flex", "bison", "libelf-dev", "kmod", "mmdebstrap"):
        assert kernels not in output


def test_with_wheels_the_demonstration_needs_only_python(host: Path, tmp_path: Path) -> None:
    names = [f"{name}-0.1.0-py3-none-any.whl" for name in ("nitroctl", "nitroctl_qemu")]
    script = checkout(tmp_path / "checkout", *names)
    wheels = [tmp_path / "checkout/dist" / name for name in names]
    argv = [
        sys.executable,
        str(script),
        "demo",
        "--dry-run",
        "--venv",
        str(tmp_path / "venv"),
    ]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and " -m venv " in lines[0]
    assert lines[1].endswith(f"{wheels[0]} {wheels[1]}") and "--editable" not in lines[1]
    assert calls(host) == ""
