# SPDX-License-Identifier: MIT
"""tools/man: a page for each command, with all of its options, the same bytes every time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from commandtree import commands

ROOT = Path(__file__).resolve().parents[2]


def test_each_command_has_its_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run([sys.executable, ROOT / "tools/man", tmp_path / name], env=env, check=True)
    pages = {path.name: path.read_text() for path in (tmp_path / "one").iterdir()}
    assert pages == {path.name: path.read_text() for path in (tmp_path / "two").iterdir()}
    found = dict(commands())
    assert set(pages) == {"nitroctl.1"} | {f"{name.replace(' ', '-')}.1" for name in found}
    for name, command in found.items():
        page = pages[f"{name.replace(' ', '-')}.1"]
        assert re.match(r'\.TH "[A-Z -]+" "1" "2023-11-14" ', page) and page.isascii()
        assert all(c == "\n" or c.isprintable() for c in page) and not page.split("\n")[2].endswith("...")
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[-1].replace("-", "\\-") in page, f"{name}: {parameter.opts}"


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_the_pages_are_roff(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools/man", tmp_path], check=True)
    argv = ["groff", "-man", "-Tascii", "-ww", "-z", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0
    # Long words cannot be spread over a line; that is no fault of the page.
    assert not [line for line in done.stderr.splitlines() if not re.search("cannot (adjust|break)", line)]
