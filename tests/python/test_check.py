# SPDX-License-Identifier: MIT
"""What `make check` runs: nothing is left out for want of a decision."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def program(name: str) -> Any:
    loader = SourceFileLoader(f"tools_{name}", str(ROOT / "tools" / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = sys.modules[loader.name] = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_each_boot_test_runs_with_the_plugin_or_says_that_it_need_not() -> None:
    check = program("check")
    files = {path.stem for path in (ROOT / "tests/boot").glob("test_*.py")}
    assert files == {*check.PLUGIN_TESTS, *check.ANY_QEMU_TESTS}
    assert not set(check.PLUGIN_TESTS) & set(check.ANY_QEMU_TESTS)


def test_what_soak_repeats_is_there() -> None:
    for file in program("soak").FILES:
        assert "NITROCTL_FUZZ_ROUNDS" in (ROOT / file).read_text()
