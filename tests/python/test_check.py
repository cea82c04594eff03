# SPDX-License-Identifier: MIT
"""What `make check` runs: nothing is left out for want of a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loaded import program

ROOT = Path(__file__).resolve().parents[2]


def test_each_boot_test_runs_with_the_plugin_or_says_that_it_need_not() -> None:
    check = program("tools/check")
    files = {path.stem for path in (ROOT / "tests/boot").glob("test_*.py")}
    assert files == {*check.PLUGIN_TESTS, *check.ANY_QEMU_TESTS}
    assert not set(check.PLUGIN_TESTS) & set(check.ANY_QEMU_TESTS)


def test_what_soak_repeats_is_there() -> None:
    for file in program("tools/soak").FILES:
        assert "NITROCTL_FUZZ_ROUNDS" in (ROOT / file).read_text()


# Fails the first N times, by a file that counts.
UNSTEADY = """
import pathlib

def test_steady():
    pass

def test_unsteady():
    runs = pathlib.Path({runs!r})
    runs.write_text(runs.read_text() + "x")
    assert len(runs.read_text()) > {failures}
"""


def unsteady(tmp_path: Path, failures: int) -> tuple[Any, Any]:
    check = program("tools/check")
    runs = tmp_path / "runs"
    runs.write_text("")
    test = tmp_path / "test_it.py"
    test.write_text(UNSTEADY.format(runs=str(runs), failures=failures))
    return check, lambda *options: (check.pytest(*options, str(test)), len(runs.read_text()))[1]


def test_a_test_that_fails_once_among_others_is_named(tmp_path: Path) -> None:
    check, run = unsteady(tmp_path, 1)
    assert run("-n", "2") == 2
    assert [name.rpartition("::")[2] for name in check._unsteady] == ["test_unsteady"]


def test_a_test_that_fails_alone_fails_the_check(tmp_path: Path) -> None:
    check, run = unsteady(tmp_path, 2)
    with pytest.raises(check.Failed):
        run()
    assert not check._unsteady


def test_strict_tries_nothing_again(tmp_path: Path) -> None:
    check, run = unsteady(tmp_path, 1)
    check._strict = True
    with pytest.raises(check.Failed):
        run()
    assert (tmp_path / "runs").read_text() == "x"


def test_a_suite_that_fails_once_is_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    argv = ("sh", "-c", f"echo x >> {runs}; test $(wc -l < {runs}) -gt $1", "sh")
    check = program("tools/check")
    check.suite("its tests", *argv, "1")
    assert check._unsteady == ["its tests"]
    with pytest.raises(check.Failed):
        check.suite("worse ones", *argv, "4")
    check._strict = True
    with pytest.raises(check.Failed):
        check.suite("strict", *argv, "5")
    assert check._unsteady == ["its tests"] and len(runs.read_text().split()) == 5


def test_many_failures_are_no_accidents(tmp_path: Path) -> None:
    check = program("tools/check")
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n):\n    assert False\n"
    )
    calls: list[tuple[str, ...]] = []
    real = check.call

    def call(*argv: str, **more: Any) -> None:
        calls.append(argv)
        real(*argv, **more)

    check.call = call
    with pytest.raises(check.Failed):
        check.pytest(str(test))
    assert len(calls) == 1
