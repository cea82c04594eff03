# SPDX-License-Identifier: MIT
"""Errors: all that can be caught is had from `nitroctl` and told in docs/python.md, and what one knows stays
with it, in another process and in JSON."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nitroctl
from jsonpage import failure
from nitroctl import cli
from nitroctl.base import output
from nitroctl.base.errors import NitroError

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "python/nitroctl"
# Of programs that end with them: nobody else meets these.
INSIDE = {"nitro_cli", "testing.lab"}
VALUES: dict[str, Any] = {
    "str": "a\nb", "Path": Path("/p"), "int": 7, "bytes": b"\0\xff", "Sequence[str]": ["x", "y z"],
    "int | None": None, "bytes | None": b"", "Path | None": None, "str | None": "h",
    "Any": None, "Collection[Difference]": [SimpleNamespace(name="n", text="t")],
}  # fmt: skip


def classes() -> Iterator[type[NitroError]]:
    """Every class of the package that is a NitroError."""
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.startswith(tuple(INSIDE)):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.bases:
                kind = getattr(import_module(f"nitroctl.{module}"), node.name)
                if issubclass(kind, NitroError):
                    yield kind


KINDS = sorted(classes(), key=lambda kind: kind.__name__)


def sample(kind: type[NitroError]) -> NitroError:
    """One, with a value for each argument of its constructor."""
    path = sys.modules[kind.__init__.__module__].__file__
    for node in ast.walk(ast.parse(Path(str(path)).read_text())):
        if isinstance(node, ast.FunctionDef) and node.lineno == kind.__init__.__code__.co_firstlineno:
            arguments = [*node.args.args[1:], *node.args.kwonlyargs]
            given = {a.arg: VALUES[ast.unparse(a.annotation)] for a in arguments if a.annotation}
            return kind(**given)
    raise AssertionError(kind)


def rows() -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs/python.md").read_text().partition("## What can be caught")[2]
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| .*? \| (.*?) ?\|$", text, re.M)
    return {name: (bases, facts) for name, bases, facts in found}


def names(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


def test_all_that_can_be_caught_is_exported_and_told() -> None:
    assert {kind.__name__ for kind in KINDS} == set(rows())
    for kind in KINDS:
        assert getattr(nitroctl, kind.__name__) is kind
        bases, facts = rows()[kind.__name__]
        assert names(bases) == [base.__name__ for base in kind.__bases__]
        assert names(facts) == list(sample(kind).facts), kind
    assert set(rows()) <= set(nitroctl.__all__) and set(nitroctl.__all__) <= set(dir(nitroctl))
    for name in nitroctl.__all__:
        assert getattr(nitroctl, name).__name__ == name
    with pytest.raises(AttributeError):
        nitroctl.Nothing  # noqa: B018


def test_importing_them_is_put_off() -> None:
    code = "import sys, nitroctl; print([m for m in sys.modules if m.startswith('nitroctl.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_an_error_knows_survives(kind: type[NitroError], capsys: pytest.CaptureFixture[str]) -> None:
    """Pickled and copied it is the same, and JSON has all of it."""
    error = sample(kind)
    error.cause, error.tail = "no-init", ("last",)
    for e in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(e) is kind and str(e) == str(error) and vars(e) == vars(error)
        assert e.exit_status == kind.exit_status and e.args == error.args
    output.failure(error)
    found = failure(capsys.readouterr().out)
    assert (found["class"], found["cause"], found["tail"]) == (kind.__name__, "no-init", ["last"])
    assert "\n".join([found["message"], *(f"  {line}" for line in found["lines"])]) == str(error)
    assert list(found["facts"]) == list(error.facts)


# ---- the command line ----


def ended(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        cli.main(list(argv))
    out, err = capsys.readouterr()
    assert isinstance(e.value.code, int)
    return e.value.code, out, err


@pytest.mark.parametrize(
    ("argv", "status", "kind", "words"),
    [
        (["eif", "verify", "/none.eif"], 1, "EifError", "/none.eif"),
        (["eif", "describe", "/none.eif"], 1, "EifError", "/none.eif"),  # AWS has no shape for that
        (["eif", "diff", "/none.eif", "/none.eif"], 2, "EifError", "/none.eif"),
        (["wait", "nobody"], 1, "EnclaveError", "nobody"),
        (["test", "qtest", "--eif", "x"], 2, "UsageError", "qtests"),
        # What click says, before or after it has seen the option.
        (["ps", "--frobnicate"], 2, "UsageError", "--frobnicate"),
        (["frobnicate"], 2, "UsageError", "frobnicate"),
        (["eif", "verify"], 2, "UsageError", "Missing argument 'FILE'"),
        (["wait", "x", "--timeout", "soon"], 2, "UsageError", "'soon' is not a valid float"),
        (["attest", "verify", "-", "--pcr", "x"], 2, "UsageError", "N=HEX"),
    ],
)
def test_a_failure_is_json_as_well(
    capsys: pytest.CaptureFixture[str], argv: list[str], status: int, kind: str, words: str
) -> None:
    code, out, err = ended(capsys, *argv)
    assert (code, out) == (status, "") and words in err
    code, out, again = ended(capsys, *argv, "--json")
    found = failure(out)
    assert (code, found["exit_status"], found["class"]) == (status, status, kind)
    assert words in found["message"] and again == err


def test_inspect_fails_in_json_without_being_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended(capsys, "inspect", "nobody")
    assert code == 1 and failure(out)["message"] in err


def test_no_json_where_it_was_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["eif", "pcr"], ["ps", "--", "--json"], ["parent", "/none", "--json"]):
        code, out, err = ended(capsys, *argv)
        assert code and out == "" and err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ("KeyboardInterrupt", 130, "interrupted"),
        ("click.Abort", 130, "interrupted"),
        ("OSError(5, 'Input/output error', '/dev/x')", 1, "/dev/x: Input/output error"),
    ],
)
def test_other_ends(error: str, status: int, message: str) -> None:
    """In a process of its own: after an OSError standard output is given up."""
    code = f"""
import click
from nitroctl import cli
from nitroctl.toolchain import doctor
def examine():
    raise {error}
doctor.examine = examine
cli.main(["doctor", "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    found = failure(done.stdout)
    assert (found["message"], found["exit_status"]) == (message, status)


def test_debugging_shows_the_traceback_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NITROCTL_DEBUG", "1")
    with pytest.raises(NitroError):
        cli.main(["wait", "nobody", "--json"])
    assert "nobody" in failure(capsys.readouterr().out)["message"]
