# SPDX-License-Identifier: MIT
"""What follows from the requests' fields is what stands in the tree, and one line more is one option more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LINE = '    loud: Annotated[Literal["low", "high"], Option("How loud it is.", session=True)] = "low"\n'

# Run where that line was added: every place that an option has, but for docs.
PLACES = """
import inspect, os
from click.testing import CliRunner
import nitroctl
from nitroctl.base.accelerator import Accelerator
from nitroctl.commands.run import run
from nitroctl.enclaves import supervised
from nitroctl.enclaves.plan import Plan
from nitroctl.enclaves.request import RunRequest
from nitroctl.keywords import RunKeywords
from nitroctl.nitro_cli.request import Request, run_request
from nitroctl.pytest_plugin import _session

help = " ".join(CliRunner().invoke(run, ["--help"]).output.split())
assert "--loud [low|high] How loud it is. [default: low]" in help, help
assert inspect.signature(nitroctl.Enclave).parameters["loud"].default == "low"
assert "loud" in RunKeywords.__annotations__
assert nitroctl.Enclave("a.eif", loud="high")._request.loud == "high"
try:
    nitroctl.Enclave("a.eif", loud=1)
except nitroctl.UsageError as e:
    assert str(e) == "loud=1: loud takes 'low' or 'high'", e
else:
    assert False
plan = Plan(RunRequest("a.eif", loud="high"), "a", 512, 90.0, Accelerator("tcg", "so"), False, "i-0-enc1")
assert supervised.decode(supervised.encode(plan)).request.loud == "high"
os.environ["NITROCTL_LOUD"] = "high"
assert run_request(Request("a.eif", 512, 1)).loud == "high"
assert "loud" in [one.name for one in _session(RunRequest)]
"""


def generate(root: Path, *options: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(root / "python")}
    done = subprocess.run(
        [sys.executable, root / "tools/generate", *options],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_is_as_the_requests_say() -> None:
    assert generate(ROOT, "--check") == ""


def test_an_option_is_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "python", tmp_path / "python", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, tmp_path / "docs")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/generate", tmp_path / "tools")
    file = tmp_path / "python/nitroctl/enclaves/request.py"
    before, mark, after = file.read_text().partition("    accel: Annotated[")
    file.write_text(before + LINE + mark + after)
    changed = [line.removeprefix("wrote ") for line in generate(tmp_path).splitlines()]
    assert changed == [
        "python/nitroctl/keywords.py", "python/nitroctl/offers.txt", "docs/nitroctl.md", "docs/python.md",
        "docs/nitro-cli.md", "docs/pytest.md",
    ]  # fmt: skip
    for name, text in {
        "nitroctl": "| `--loud low\\|high` | How loud it is. | low |",
        "python": '| `loud` | `Literal["low", "high"]` | How loud it is. | low |',
        "nitro-cli": "| `NITROCTL_LOUD` | How loud it is. | low |",
        "pytest": "| `--nitro-loud low\\|high` | `nitro_loud` | How loud it is. | low |",
    }.items():
        assert text in (tmp_path / f"docs/{name}.md").read_text().splitlines()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "python")}
    done = subprocess.run(
        [sys.executable, "-c", PLACES], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
