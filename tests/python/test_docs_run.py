# SPDX-License-Identifier: MIT
"""README and docs are run: every block that needs neither guest nor kernel, as it is written, in a fresh
home, and what a page shows is what one gets. A block that is neither run here nor marked (docpage.py) fails.
tests/boot/test_docs.py runs those with kernels, and with guests by `make check-docs`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import docgiven
import docpage

PAGE = """\
# P
<!-- blocks below: not run: a picture -->
```sh
false
```
## Q
<!-- each alone -->
<!-- status 1: false -->
```sh
true
false
```
# R
```sh
echo a
```
```text
b
```
```console
$ echo x
x
$ exit 3
```
"""
PAGES = {page: docpage.blocks(page) for page in docpage.PAGES}
ALONE = [page for page, blocks in PAGES.items() if any(block.kind() == "alone" for block in blocks)]


@pytest.mark.parametrize("page", ALONE, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path) -> None:
    """Its blocks in their order, in one home."""
    env = docpage.environment(tmp_path, docpage.programs(tmp_path / "bin"))
    wrong = []
    for block in PAGES[page]:
        if block.kind() == "alone":
            for name in block.given():
                env |= docgiven.MAKERS[name](tmp_path) or {}
            wrong += docpage.run(block, tmp_path, env)
    assert not wrong, "\n".join(wrong)


def test_blocks_that_are_not_run_here_say_why() -> None:
    """The test that runs a block is there, and knows the page; a reason names only tests that exist."""
    wrong = []
    for block in (block for blocks in PAGES.values() for block in blocks):
        for name in block.values("run by"):
            file = docpage.ROOT / name
            known = "docs/examples" if "examples" in block.page.parts else block.page.stem
            if not file.is_file() or known not in file.read_text():
                wrong.append(f"{block}: {name} does not run {block.page.name}")
        for mark in block.marks:
            for name in re.findall(r"\b(?:tests|tools|docs)/[\w./-]+\w", mark):
                if not (docpage.ROOT / name).exists():
                    wrong.append(f"{block}: there is no {name}")
        if block.language not in ("sh", "console", "python") and block.kind() != "never":
            if block.kind() != "elsewhere":
                wrong.append(f"{block}: {block.language} is not run, and nothing says why")
    assert not wrong, "\n".join(wrong)
    kinds = [block.kind() for blocks in PAGES.values() for block in blocks]
    assert kinds.count("never") <= 35, "more blocks than ever are not run"


def test_python_of_pages_is_python() -> None:
    for block in (block for blocks in PAGES.values() for block in blocks):
        if block.language == "python" and not block.body.startswith(" "):
            compile(block.body, str(block), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_what_is_shown_is_compared(tmp_path: Path) -> None:
    """The reader of pages itself: what it takes for the same, and what not."""
    assert docpage.same("a\nb ...\n", "a\nb 12 s\n")
    assert docpage.same("...\nb\n...\n", "a\na\nb\n") and docpage.same("...\nb\n", "b\n")
    for shown, said in (
        ("a\n", "a\nb\n"),
        ("a ...\n", "a b\nc\n"),
        ("a\n...\nc\n", "a\nb\n"),
        ("a.c\n", "abc\n"),
    ):
        assert not docpage.same(shown, said), (shown, said)
    page = docpage.ROOT / "docs/none.md"
    first, second, third, fourth = docpage.blocks(page, PAGE)
    assert (first.kind(), second.kind(), third.shown) == ("never", "alone", "b\n")
    env = docpage.environment(tmp_path, docpage.programs(tmp_path / "bin"))
    assert docpage.run(second, tmp_path, env) == []
    (one,) = docpage.run(third, tmp_path, env)
    assert "--- shown\nb\n--- said\na\n" in one
    (one,) = docpage.run(fourth, tmp_path, env)
    assert "exit 3: status 3" in one
    for bad in (
        "```\nx\n```\n",
        "<!-- not run -->\n```sh\nx\n```\n",
        "<!-- with ghosts -->\n```sh\nx\n```\n",
    ):
        with pytest.raises(ValueError, match=r"docs/none.md:\d"):
            docpage.blocks(page, bad)
