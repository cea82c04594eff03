# SPDX-License-Identifier: MIT
"""What other projects' CI and our releases run on GitHub: right by GitHub's schemas, its shell by shellcheck.
None of it can be run here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / "action.yml"
WORKFLOWS = [
    *sorted((ROOT / ".github/workflows").glob("*.yml")),
    *sorted((ROOT / "docs/examples").glob("*/.github/workflows/*.yml")),
]


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def run(*argv: str | Path, text: str | None = None) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemas() -> None:
    check = program("check-jsonschema")
    assert len(WORKFLOWS) >= 2
    run(check, "--builtin-schema", "vendor.github-actions", ACTION)
    run(check, "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)


def scripts(node: Any) -> Iterator[str]:
    """Every `run` of every step."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "run" and isinstance(value, str):
                yield value
            else:
                yield from scripts(value)
    elif isinstance(node, list):
        for value in node:
            yield from scripts(value)


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=lambda path: path.name)
def test_shell(path: Path) -> None:
    found = list(scripts(yaml.safe_load(path.read_text())))
    assert found
    for script in found:
        assert "${{" not in script, "a value from outside becomes shell: put it into env"
        run(program("shellcheck"), "--shell=bash", "-", text=f"set -eo pipefail\n{script}")
