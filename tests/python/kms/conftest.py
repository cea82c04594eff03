# SPDX-License-Identifier: MIT
"""What the tests of the local KMS share as a fixture. What it is made of is `kms_world`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kms_world import World, the_enclave


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A KMS of its own that takes the documents of `the_enclave`."""
    return World(tmp_path, the_enclave())
