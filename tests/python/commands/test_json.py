# SPDX-License-Identifier: MIT
"""docs/json.md is about every command that has --json, and every answer on it is looked at by some test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import jsonpage
from commandtree import commands
from nitroctl import cli
from nitroctl.base import output, progress
from nitroctl.toolchain.doctor import Finding

TESTS = Path(__file__).resolve().parents[1]


def with_json() -> set[str]:
    return {
        name for name, c in commands() if any("--json" in p.opts for p in c.params)
    }  # fmt: skip


def test_every_command_with_json_is_on_the_page() -> None:
    told = {name.partition(" --")[0] for name in jsonpage.commands()}
    assert with_json() <= told | jsonpage.aws_shaped()
    assert told - with_json() == {"nitroctl inspect"}  # which has nothing else to print


def test_every_answer_on_the_page_is_compared_with_a_real_one() -> None:
    sources = "".join(path.read_text() for path in TESTS.rglob("*.py"))
    assert jsonpage.commands() == set(re.findall(r'\banswer\(\s*"(nitroctl [^"]+)"', sources))


def test_the_page_has_one_case_for_keys_and_types_that_it_explains() -> None:
    names = set(jsonpage.sections()) - jsonpage.commands()
    for name in jsonpage.sections():
        assert jsonpage.keys(name), name
        for key, type in jsonpage.keys(name).items():
            assert re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", key), key
            bare = re.sub(r"^(list|map) of | or null$", "", type.partition(",")[0])
            assert bare in names or bare in jsonpage._PLAIN, f"{name}: {key}: {type}"


def test_a_wrong_answer_is_seen() -> None:
    good = {"path": "a.eif", "signed": False, "pcrs": {"0": "00ff"}, "warnings": []}
    jsonpage.answer("nitroctl eif verify", json.dumps({"schema": 1, **good}))
    for change in ({"signed": None}, {"pcrs": {"0": "FF"}}, {"path": ""}, {"more": 1}, {"schema": 2}):
        with pytest.raises(AssertionError):
            jsonpage.answer("nitroctl eif verify", json.dumps({"schema": 1, **good, **change}))
    del good["path"]
    with pytest.raises(AssertionError):
        jsonpage.answer("nitroctl eif verify", json.dumps({"schema": 1, **good}))


def test_the_printers(capsys: pytest.CaptureFixture[str]) -> None:
    output.document({"path": Path("/a\x9b"), "bytes": b"\0\xff", "text": "\x7f\u202e\udc80ü"})
    output.items(iter([1]))
    output.line({"text": "a\nb\x7f\x9b"})
    printed = capsys.readouterr().out
    assert all(c == "\n" or c.isprintable() for c in printed)
    first, items, line = re.fullmatch("(.+?)\n({.+})\n({.+})\n", printed, re.S).groups()  # type: ignore[union-attr]
    value = {"schema": 1, "path": "/a\x9b", "bytes": "00ff", "text": "\x7f\u202e\udc80ü"}
    assert list(json.loads(first).items()) == list(value.items())
    assert json.loads(items) == {"schema": 1, "items": [1]}
    assert json.loads(line) == {"schema": 1, "text": "a\nb\x7f\x9b"} and "\n" not in line


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """In columns, whatever stands in them, and without trailing spaces."""
    output.table([("a", "12", "x\x1b[2J"), ("日本", "3", "")], head=("NAME", "N", "TEXT"), right={1})
    assert capsys.readouterr().out == "NAME   N  TEXT\na     12  x\\x1b[2J\n日本   3\n"
    output.table([(("Name", "bold"), ("x" * 300, "red"))])  # no terminal: no colours, nothing cut
    assert capsys.readouterr().out == f"Name  {'x' * 300}\n"
    output.table([])
    assert capsys.readouterr().out == ""


def test_quiet_ends_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def examine() -> list[Finding]:
        said.append(progress._quiet)
        return []

    monkeypatch.setattr("nitroctl.toolchain.doctor.examine", examine)
    for argv, status in ((["doctor", "--json"], 0), (["doctor"], 0), (["inspect", "nobody"], 1)):
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert (ended.value.code, progress._quiet) == (status, False)
    assert said == [True, False]
