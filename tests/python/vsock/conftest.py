# SPDX-License-Identifier: MIT
"""What several files of this room start: a backend, whose owner asks it over its lifeline where a file wants
that (tests that start theirs otherwise have their own), and the host of programs with the preload library."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preload_host import Host
from vhost_backend import Backend, Owner, find_binary, running


@pytest.fixture
def no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that fails half-way leaves no process behind either."""
    started: list[subprocess.Popen[Any]] = []

    class Recorded(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_binary()


@pytest.fixture
def owned() -> bool:
    """Whether the backend has an owner: a file that wants one says so."""
    return False


@pytest.fixture
def backend(binary: Path, owned: bool) -> Iterator[Backend]:
    with running(binary, owned=owned) as b:
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
