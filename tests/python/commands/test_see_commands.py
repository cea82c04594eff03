# SPDX-License-Identifier: MIT
"""`events`, `nsm`, `timeline`, `test` and `which` in one process: options that do not go together, enclaves
of which nothing is known, what a terminal is shown. What they show of real ones: enclaves/test_see.py."""

from __future__ import annotations

import pty
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nitroctl import cli
from nitroctl.commands import test as testing
from nitroctl.enclaves import events, records
from nitroctl.enclaves.records import State
from nitroctl.toolchain import choice, steps, tree
from recorded import record

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(status, stdout, stderr) of one command."""
    for kind in ("DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.replace("│", "").split())

    return call


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("events hello --all", "give a name, or --all"),
        ("test --series 10.0", "--series is for the qtests: nitroctl test qtest --series X.Y"),
        ("test boot --series 10.0", "--series is for the qtests"),
        ("test --arch aarch64 --qemu /q", "--arch chooses a QEMU, and so does --qemu"),
        ("test --sanitize --qemu /q", "--sanitize chooses a QEMU, and so does --qemu"),
        ("test qtest --eif /x", "qtests run in the tree that was built"),
        ("which vsock --arch aarch64", "vsock is for enclaves of any architecture"),
        ("which kernel --sanitize", "there is no sanitized kernel"),
    ],
)
def test_options_that_do_not_go_together(run: Run, words: str, text: str) -> None:
    status, out, err = run(*words.split())
    assert (status, out) == (2, "") and text in err


def test_an_enclave_whose_nsm_nobody_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = record(state=State.ENDED, home=tmp_path)
    monkeypatch.setattr(records, "find", lambda name: ended)
    status, _, err = run("nsm", "hello")
    assert status == 1 and "nothing is known of the NSM of hello, which has ended" in err
    assert "nitroctl run --nsm-log FILE" in err


def test_a_boot_as_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds since the start, and of each phase; what loading the image took, in milliseconds."""
    milestones = {"qemu": 100.5, "console": 102.0, "heartbeat": 104.0}
    found = record(milestones=milestones, loading={"read": 1500})
    monkeypatch.setattr(records, "find", lambda name: found)
    status, out, _ = run("timeline", "hello")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert [(line[0], line[1], line[3]) for line in lines[:3]] == [
        ("0.500", "+0.500", "qemu"), ("2.000", "+1.500", "console"), ("4.000", "+2.000", "heartbeat"),
    ]  # fmt: skip
    assert out.splitlines()[-1].startswith("EIF: ") and "1.5 ms" in out.splitlines()[-1]


def test_following_begins_with_those_that_have_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --all; those that run are told of as they are followed."""
    ended, runs = record(state=State.ENDED, name="old"), record(name="new")
    monkeypatch.setattr(records, "every", lambda: [ended, runs])
    monkeypatch.setattr(events, "recorded", lambda found: [one.name for one in found])
    monkeypatch.setattr(events, "follow", lambda attach: ["followed"])
    monkeypatch.setattr(events, "words", str)
    assert run("events", "-f", "--all") == (0, "old\nfollowed\n", "")
    assert run("events", "-f") == (0, "followed\n", "")


def test_programs_that_are_gone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choose", lambda arch: tmp_path / "qemu")
    status, _, err = run("which", "qemu")
    assert status == 1 and f"{tmp_path / 'qemu'} is not there any more" in err
    status, _, err = run("test", "boot", "--qemu", str(tmp_path / "qemu"))
    assert status == 1 and f"{tmp_path / 'qemu'} is not a program" in err
    # That of this folder, where there is none; PATH's is another.
    status, _, err = run("test", "boot", "--qemu", "./true")
    assert status == 1 and "./true is not a program" in err


def test_trees_without_qtests(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = SimpleNamespace(build_dir=str(tmp_path), qtests=())
    monkeypatch.setattr(tree, "manifest", lambda **_: built)
    status, _, err = run("test", "qtest")
    assert status == 1 and f"the QEMU tree in {tmp_path} has no qtests of ours" in err
    assert "hint: nitroctl build" in err
    built.qtests = ("tests/qtest/nitro-one", "tests/qtest/nitro-two")
    monkeypatch.setattr(steps, "tool", lambda name: name)
    asked: list[str] = []

    def one(meson: str, build_dir: Path, name: str) -> list[Any]:
        asked.append(name)
        return [testing.Line("qtest", name, "", name != "nitro-two", 1.0)]

    monkeypatch.setattr(testing, "_one_qtest", one)
    status, out, _ = run("test", "qtest", "-k", "two")
    assert (status, asked) == (1, ["nitro-two"]) and out.splitlines()[-1] == "0 passed, 1 failed in 1 s"
    status, out, err = run("test", "qtest", "-k", "three")
    assert (status, out) == (2, "") and "no check has 'three' in its name" in err


def test_results_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each as it comes; what a check says is escaped as everywhere."""
    reader, writer = pty.openpty()
    text = ""
    with open(reader, "rb", buffering=0) as read:
        with open(writer, "w") as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            monkeypatch.setenv("COLUMNS", "120")
            monkeypatch.setenv("TERM", "xterm")
            show = testing._shower(False)
            show(testing.Line("boot", "run-hello", "a hello", True, 1.5))
            show(testing.Line("boot", "bad", "", False, 2.0, "line one\nline\x1b[2J two"))
            while "two" not in text:
                text += read.read(65536).decode()
    assert "ok" in text and "run-hello" in text and "1.5 s" in text and "a hello" in text
    assert "FAIL" in text and "line one" in text and "line\\x1b[2J two" in text
