# SPDX-License-Identifier: MIT
"""Every boot check of `nitroctl.testing.checks`, each as one test named after its claim."""

from __future__ import annotations

import pytest

from nitroctl.testing import checks
from nitroctl.testing.checks import Check
from nitroctl.testing.lab import Lab

pytestmark = pytest.mark.boot


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.name)
def test_boot(check: Check, lab: Lab) -> None:
    check.run(lab)
