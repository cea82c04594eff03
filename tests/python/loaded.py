# SPDX-License-Identifier: MIT
"""A program of ours as a module, for tests of what is in it: tools/check has no name that could be imported.
No test is here."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def program(name: str) -> Any:
    """`name` is its path below the checkout. Each call has a module of its own; sys.path stays as it is."""
    loader = SourceFileLoader("program_" + Path(name).stem.replace("-", "_"), str(ROOT / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = sys.modules[loader.name] = module_from_spec(spec)
    path = list(sys.path)
    try:
        loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module
