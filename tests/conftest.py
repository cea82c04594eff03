# SPDX-License-Identifier: MIT
"""What all Python tests share: how hypothesis searches, a CA of their own, a world with fake programs.

In CI (the variable CI is set) it draws the same examples every time, so a failure there is one that can be
repeated; elsewhere it goes on looking for new ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from enclave_fakes import Bench, install, write_eif

# Started in the background of a script or under nohup we would ignore these, and so would every program that
# a test starts and then sends one.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

settings.register_profile("search", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
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
    # Not below tmp_path, whose name is long under xdist: socket paths end at 107 bytes. Numbers only: a
    # random name in what nitroctl prints can hold the very word that a test waits for.
    runtime = Path(tempfile.gettempdir(), f"n{os.getpid()}-{time.monotonic_ns()}")
    runtime.mkdir(mode=0o700)
    made = Bench(
        tmp=tmp_path,
        runtime=runtime,
        qemu=install("fake_qemu.py", tmp_path),
        backend=install("fake_backend.py", tmp_path),
        eif=write_eif(tmp_path / "hello.eif"),
    )
    yield made
    for pid in made.processes():  # only after a failure
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(runtime, ignore_errors=True)
