# SPDX-License-Identifier: MIT
"""Every boot check of `nitroctl.checks`, each as one test named after its claim."""

from __future__ import annotations

import pytest

from nitroctl import checks
from nitroctl.checks import Check
from nitroctl.lab import Lab

pytestmark = pytest.mark.boot


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.name)
def test_boot(check: Check, lab: Lab) -> None:
    check.run(lab)
