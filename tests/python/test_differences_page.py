# SPDX-License-Identifier: MIT
"""docs/differences.md: each row has a test that exists, or says why it has none, and the names of strict mode
are all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nitroctl.eif.lint import RULES
from nitroctl.enclaves import differences
from test_promises import exists

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/differences.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|") and not line.startswith(("| on AWS", "|---"))
]


def test_every_row_is_whole_and_has_a_test_or_a_reason() -> None:
    assert len(ROWS) > 25
    for row in ROWS:
        assert len(row) == 6 and all(row[:4]), row
        tests, kind, found = row[5], "python", 0
        for word, name in re.findall(r"\b(boot|qtest|unit)\b(?= `)|`([^`]+)`", tests):
            if word:
                kind = word
            elif not name.startswith("make "):
                assert exists(kind, name), f"no {kind} test {name}: {row[0]}"
                found += 1
        assert found or re.match("no test: .", tests), row


def test_strict_names_are_those_of_the_table() -> None:
    named = {name for row in ROWS for name in re.findall(r"`([^`]+)`", row[4])}
    lint = {name.removeprefix(differences.IMAGE) for name in named if name.startswith(differences.IMAGE)}
    assert named - {differences.IMAGE + name for name in lint} == differences.NAMES
    assert lint <= {rule.name for rule in RULES if rule.severity != "note"}


@pytest.mark.parametrize("page", ["differences.md", "lint.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / page).read_text()):
        assert (ROOT / "docs" / target).exists(), target
