# SPDX-License-Identifier: MIT
"""What all Python tests share: how hypothesis searches, a CA of their own, a world with fake programs.

In CI (the variable CI is set) it draws the same examples every time, so a failure there is one that can be
repeated; elsewhere it goes on looking for new ones.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from enclave_fakes import Bench, install, make_bench
from enclave_life import Life

# Started in the background of a script or under nohup we would ignore these, and so would every program that
# a test starts and then sends one.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

# How long something takes is the machine's business: neither a deadline nor a judgement of slow data.
_any_pace: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("search", **_any_pace)
settings.register_profile("ci", **_any_pace, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")


@pytest.fixture(autouse=True, scope="session")
def own_data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Enclaves that tests run issue documents under a CA of the test run's, never under the user's, and their
    records are not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A private world with fake programs, for tests that start the real command."""
    with make_bench(tmp_path, install("fake_backend.py", tmp_path)) as made:
        yield made


@pytest.fixture
def life(bench: Bench) -> Iterator[Life]:
    made = Life(bench)
    yield made
    made("stop", "--all")
