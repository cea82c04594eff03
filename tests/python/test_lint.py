# SPDX-License-Identifier: MIT
"""The linters, as tests: ruff, mypy, QEMU's checkpatch, licences, and the shape of the package.

checkpatch comes with the QEMU source that `nitroctl build` unpacks.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nitroctl.toolchain import cache, source, tree

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "nitroctl"
SCRIPTS = (
    "tools/check", "tools/check-kvm", "tools/dist", "tools/dist-check", "tools/generate", "tools/setup",
    "tools/coverage", "tools/fuzz",
    "tools/soak",
)  # fmt: skip

# What is compiled into QEMU, and what lets it in, has QEMU's licence; the rest is MIT.
GPL = ("hw/", "include/", "tests/qtest/", "graft/", "configs/", "Kconfig")
SOURCES = re.compile(
    r".*\.(c|h|py|build|toml|mak|patch|config|sh|yml|txt)|(.*/)?(Kconfig|Makefile|trace-events|meson_options\.txt)"
    r"|tools/.*|\.ci/.*|\.gitignore|\.editorconfig"
)
NOT_OURS = re.compile(r"LICENSES/.*|tests/.*/data/.*|tests/(corpora|.*-seeds)/.*|.*/trace\.h")
SPDX = re.compile(r"SPDX-License-Identifier: ([\w.-]+)")
SPDX_LINES = 5  # within the opening comment


def tracked() -> list[str]:
    """Files of this repository, and new ones that are not ignored, relative to its top."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True,
    ).stdout.decode()  # fmt: skip
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def run(*argv: str | Path) -> None:
    result = subprocess.run(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff() -> None:
    run(sys.executable, "-m", "ruff", "check", "--quiet", "python", "tests", "packaging", *SCRIPTS)
    run(
        sys.executable,
        "-m",
        "ruff",
        "format",
        "--check",
        "--quiet",
        "python",
        "tests",
        "docs/examples",
        *SCRIPTS,
    )


def test_the_oldest_python() -> None:
    """Ubuntu 22.04's, which no test runs on: nothing that came later is used (ruff and mypy look as well)."""
    vermin = Path(sys.executable).with_name("vermin")
    run(
        vermin, "--quiet", "--no-tips", "--violations", "--target=3.10-", "python", "tools/setup", "packaging"
    )


def test_mypy() -> None:
    run(sys.executable, "-m", "mypy", "--no-error-summary")
    for script in SCRIPTS:
        run(sys.executable, "-m", "mypy", "--no-error-summary", script)


def test_every_source_has_its_licence() -> None:
    wrong = []
    names = [name for name in tracked() if SOURCES.fullmatch(name) and not NOT_OURS.fullmatch(name)]
    assert len(names) > 50
    for name in names:
        with open(ROOT / name, errors="replace") as f:
            head = "".join(line for line, _ in zip(f, range(SPDX_LINES), strict=False))
        found = SPDX.search(head)
        licence = "GPL-2.0-or-later" if name.startswith(GPL) else "MIT"
        if not found or found[1] != licence:
            wrong.append(f"{name}: {found[1] if found else 'nothing'}, expected {licence}")
    assert not wrong, "\n".join(wrong)


def test_every_c_file_opens_alike() -> None:
    """One comment: the licence, then what the file is and is not."""
    opening = re.compile(r"/\*\n \* SPDX-License-Identifier: [\w.-]+\n \*\n \* \S")
    names = [name for name in tracked() if name.endswith((".c", ".h")) and "/data/" not in name]
    assert len(names) > 100
    wrong = [name for name in names if not opening.match((ROOT / name).read_text())]
    assert not wrong, "\n".join(wrong)


def test_c_is_cut_into_readable_pieces() -> None:
    """Files of about 600 lines, functions of about 60; a longer test says in its head why it is."""
    wrong = []
    for name in (name for name in tracked() if name.endswith(".c") and "/data/" not in name):
        text = (ROOT / name).read_text()
        lines = text.split("\n")
        reason = name.startswith("tests/") and "Long because" in text[: text.index("*/")]
        if len(lines) > 640 and not reason:
            wrong.append(f"{name}: {len(lines)} lines")
        start = 0
        for at, line in enumerate(lines):
            if line == "{":
                start = at
            elif line == "}" and at - start > 60:
                wrong.append(f"{name}:{start + 1}: a function of {at - start - 1} lines")
    assert not wrong, "\n".join(wrong)


def test_licence_texts() -> None:
    assert (
        "GNU GENERAL PUBLIC LICENSE\n                       Version 2"
        in (ROOT / "LICENSES/GPL-2.0-or-later.txt").read_text()
    )
    assert "without restriction" in (ROOT / "LICENSES/MIT.txt").read_text()


@pytest.mark.parametrize("folder", ["contrib", "guest"])
def test_mit_programs_include_no_gpl_header(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.[ch]")):
        for included in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            if not (path.parent / included).is_file():
                wrong.append(f"{path.relative_to(ROOT)} includes {included}")
    assert not wrong, "\n".join(wrong)


def checkpatch() -> Path:
    """The script in the newest QEMU source that there is."""
    newest = sorted(source.SERIES, key=lambda name: [int(n) for n in name.split(".")], reverse=True)
    for series in newest:
        found = cache.current(f"qemu-source-{series}")
        if found:
            return found / "scripts/checkpatch.pl"
    built = tree.manifest()
    assert built is not None, "no QEMU source for its checkpatch.pl: run `nitroctl build`"
    return Path(built.source_dir) / "scripts/checkpatch.pl"


def test_checkpatch() -> None:
    script = checkpatch()

    def complaints(name: str) -> list[str]:
        result = subprocess.run(
            ["perl", script, "--no-tree", "--no-signoff", "--terse", "--file", name],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = (result.stdout + result.stderr).splitlines()
        assert result.returncode == 0 or lines, name
        # QEMU would like its own licence, and ours outside of it is MIT; and no code for one architecture,
        # which a guest's program has that tries instructions.
        borne = (
            "Saw acceptable license 'MIT",
            *(["architecture specific"] if name.startswith("guest/") else []),
        )
        return [
            line
            for line in lines
            if not line.startswith("total: ") and not any(words in line for words in borne)
        ]

    names = [name for name in tracked() if name.endswith((".c", ".h")) and not NOT_OURS.fullmatch(name)]
    assert names
    with ThreadPoolExecutor() as pool:
        found = [line for lines in pool.map(complaints, names) for line in lines]
    assert not found, "\n".join(found)


def test_clang_format() -> None:
    """The C that is not QEMU's has QEMU's style, too (.clang-format)."""
    files = [name for name in tracked() if re.match(r"(contrib|guest)/.*\.[ch]$", name)]
    assert len(files) > 40
    run(Path(sys.executable).with_name("clang-format"), "--dry-run", "--Werror", *files)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from nitroctl.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as e:\n    assert e.code == 0\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(ast.literal_eval(result.stderr.strip().splitlines()[-1]))
    assert "click" in loaded
    assert not loaded & {"rich", "cryptography", "asyncio", "qemu", "cbor2", "pexpect", "subprocess"}


def _printing(tree: ast.AST) -> Iterator[tuple[int, str]]:
    calls = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in calls:
            yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            yield from ((node.lineno, "rich") for alias in node.names if alias.name == "Console")


def test_nothing_else_prints() -> None:
    """Bytes of consoles and documents pass by `buffer` and os.write. Bars and tables are rich's, of texts
    that have been through `shown.line`."""
    # entry.py: one word of its own, before anything can be imported.
    allowed = {"base/shown.py", "base/progress.py", "commands/eif.py", "commands/test.py", "entry.py"}
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in allowed
        for line, what in _printing(ast.parse(path.read_text()))
    ]
    assert not found, "to be done by nitroctl.base.shown:\n" + "\n".join(found)
