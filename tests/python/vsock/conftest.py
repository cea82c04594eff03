# SPDX-License-Identifier: MIT
"""What several files of this room start: a backend whose owner asks it over its lifeline (tests that start
theirs otherwise have their own), and the host of programs with the preload library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preload_host import Host
from vhost_front import Backend, Owner, find_binary, running


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running(find_binary(), owned=True) as b:
        yield b


@pytest.fixture
def owner(backend: Backend) -> Owner:
    assert backend.owner
    return backend.owner.hello()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()
