# SPDX-License-Identifier: MIT
"""A backend whose owner asks it over its lifeline. Tests that start theirs otherwise have their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhost_front import Backend, Owner, find_binary, running


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running(find_binary(), owned=True) as b:
        yield b


@pytest.fixture
def owner(backend: Backend) -> Owner:
    assert backend.owner
    return backend.owner.hello()
