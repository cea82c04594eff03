# SPDX-License-Identifier: MIT
"""The package's rooms lie on floors, and imports go down the stairs only: docs/hacking.md shows the house.

All imports count, also those inside functions, which keep start-up short, and those for type checkers alone:
a room that needs another one to be understood needs it, whenever that is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "nitroctl"

# Top first. Rooms on one floor do not know each other; `entry` imports by name, at run time.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands", "nitro_cli"),
    ("pytest_plugin",),
    ("api",),
    ("keywords",),
    ("testing",),
    ("kms", "inside"),
    ("enclaves",),
    ("eif",),
    ("attestation", "torture", "vsock", "toolchain"),
    ("base", "entry"),
    ("offers",),
)
FLOOR = {room: len(FLOORS) - number for number, floor in enumerate(FLOORS) for room in floor}


def modules() -> dict[str, Path]:
    """Every module by its name below the package; the package itself is the empty name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(source: str) -> Iterator[str]:
    """What of the package a module imports, wherever it does: names below the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "nitroctl.__version__":
                continue  # of no room, and no floor is too low for it
            if name == "nitroctl" or name.startswith("nitroctl."):
                below = name.removeprefix("nitroctl").removeprefix(".")
                while below and below not in MODULES:  # an object in a module
                    below = below.rpartition(".")[0]
                yield below


ARROWS = {
    (name, other) for name, path in MODULES.items() for other in imported(path.read_text()) if other != name
}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in MODULES} - {""} <= set(FLOOR)


def test_imports_go_downwards_only() -> None:
    """The package itself only says where its public names are."""
    wrong = sorted(
        f"{name} imports {other}"
        for name, other in ARROWS
        if name and room(name) != room(other) and (not other or FLOOR[room(name)] <= FLOOR[room(other)])
    )
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_modules() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, other in ARROWS:
        # A package imports its own modules so that they can be had from it, and they need none of that.
        if name and not name.startswith(f"{other}."):
            graph[name].add(other)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from nitroctl.base import errors", {"base.errors"}),
        ("def f():\n    from nitroctl.base.errors import NitroError", {"base.errors"}),
        ("if TYPE_CHECKING:\n    import nitroctl.api", {"api"}),
        ("from nitroctl import Enclave, __version__", {""}),
        ("import os\nfrom nitroctlx import y", set()),
    ],
)
def test_what_counts_as_an_import(source: str, expected: set[str]) -> None:
    assert set(imported(source)) == expected
