# SPDX-License-Identifier: MIT
"""docs/faults.md names only tests that exist, in every row."""

from __future__ import annotations

import re
from pathlib import Path

from nitroctl.testing import checks

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (?!fault|---)(.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs/faults.md").read_text(), re.MULTILINE
)
CASE = re.compile(r"(boot|unit|qtest) `([^`]+)`(?: `([^`]+)`)?|`(test_\w+\.py)::(\w+)`")


def lacks(kind: str, program: str, case: str, file: str, function: str) -> bool:
    if kind == "boot":
        return program not in {check.name for check in checks.CHECKS}
    if kind:
        source = (ROOT / f"tests/{kind}/{program}.c").read_text()
        # A name may be put together: its variant by "%s" or by what is appended.
        parts = [case, case.rpartition("/")[0]]
        return not any(f'"{part}' in source for part in parts)
    found = [path for folder in ("python", "boot") for path in (ROOT / "tests" / folder).rglob(file)]
    pattern = re.compile(
        rf"^(?:    )?(?:async )?def {function}\(|^{function} = |^class {function}\b", re.MULTILINE
    )
    return not any(pattern.search(path.read_text()) for path in found)


def test_every_fault_has_a_test_that_exists() -> None:
    assert len(ROWS) > 40
    for fault, _, tests in ROWS:
        cases = CASE.findall(tests)
        assert cases and CASE.sub("", tests).strip("; ") == "", f"{fault}: {tests}"
        assert [case for case in cases if lacks(*case)] == [], fault
