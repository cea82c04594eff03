# SPDX-License-Identifier: MIT
"""docs/promises.md names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nitroctl.testing import checks

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/promises.md").read_text()
ROWS = re.findall(r"^\| (?!claim|---)(.+?) \| (.+?) \|$", TEXT, re.MULTILINE)


def exists(kind: str, name: str) -> bool:
    if name.endswith(".py"):
        return any(any((ROOT / "tests" / folder).rglob(name)) for folder in ("python", "boot", "plugin"))
    if kind == "boot":
        return name in {check.name for check in checks.CHECKS}
    return (ROOT / "tests" / kind / f"{name}.c").is_file()


@pytest.mark.parametrize(("claim", "tests"), ROWS)
def test_every_promise_has_a_test(claim: str, tests: str) -> None:
    kind, found = "python", 0
    for word, name in re.findall(r"\b(boot|qtest|unit|fuzz)\b(?= `)|`([^`]+)`", tests):
        if word:
            kind = word
        elif not name.startswith("make "):
            assert exists(kind, name), f"{claim}: no {kind} test {name}"
            found += 1
    assert found or "not in check" in tests


def test_there_are_promises() -> None:
    assert len(ROWS) > 25
