# SPDX-License-Identifier: MIT
"""Many connections and streams at once, at full speed: the workloads of `make bench`, made short.

The guest's side is tests/bench/vsock-rates.c, named by VSOCK_RATES. What is claimed is that everything
arrives, that nothing stalls and that nobody is preferred; how fast, only the benchmark says.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vhost_front import PATIENCE, Backend, fail_after, find_binary, running

PARENT = 3


def rates(backend: Backend, *workload: str | float) -> dict[str, float]:
    program = os.environ.get("VSOCK_RATES")
    if not program:
        pytest.fail("VSOCK_RATES must name the build's tests/bench/vsock-rates")
    argv = [program, backend.socket_path, backend.uds_path, backend.cid, PARENT, *workload]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=3 * PATIENCE)
    for path in backend.folder.glob(f"{backend.uds_path.name}_*"):
        path.unlink()  # its listener
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


@pytest.fixture
def binary() -> Path:
    return find_binary()


@pytest.mark.parametrize("size", [1000, 32404, 32405, 65536])
@pytest.mark.parametrize("form", [(), ("whole",)], ids=["linux", "whole"])
def test_all_that_is_sent_arrives(binary: Path, size: int, form: tuple[str, ...]) -> None:
    with running(binary) as b:
        facts = rates(b, "send", size, 0.2, *form)
        assert facts["lost"] == 0 and not facts["stalled"] and facts["bytes"] > 100 * size
        assert b.statistics()["bytes_from_guest"] == facts["bytes"]


def test_all_that_is_received_has_been_sent(binary: Path) -> None:
    with running(binary) as b:
        facts = rates(b, "receive", 0.2)
        assert facts["lost"] == 0 and not facts["stalled"] and facts["bytes"] > 1 << 20
        assert b.statistics()["bytes_to_guest"] == facts["bytes"]


def test_a_thousand_connections(binary: Path) -> None:
    with running(binary) as b:
        facts = rates(b, "open", 1000)
        assert (facts["opened"], facts["refused"], facts["echoed"]) == (1000, 0, 1000)
        # One driver after the other, as when a guest is started anew: nothing is left of the first.
        facts = rates(b, "open", 1000)
        assert facts["echoed"] == 1000


@pytest.mark.parametrize("direction", ["streams", "pull"])
def test_a_hundred_streams_at_once(binary: Path, direction: str) -> None:
    with running(binary) as b:
        facts = rates(b, direction, 100, 1)
        assert facts["streams"] == 100 and not facts["stalled"]
        assert 0 < facts["most"] <= 2 * facts["least"], facts


def test_connections_one_after_the_other(binary: Path) -> None:
    with running(binary) as b:
        before = b.fds()
        rates(b, "connect", 2000)
        patience = fail_after()
        while b.fds() > before:  # it has yet to see that the front end is gone
            patience(f"{b.fds()} descriptors become {before}")
