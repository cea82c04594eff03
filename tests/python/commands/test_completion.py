# SPDX-License-Identifier: MIT
"""What a shell is offered, asked as click's scripts ask; and those scripts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class

from nitroctl import cli, offers
from nitroctl.commands import completion
from nitroctl.enclaves import records
from nitroctl.enclaves.records import Record, State


def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    monkeypatch.setenv("_NITROCTL_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("nitroctl", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit):
        cli.main([])
    found = capsys.readouterr().out.strip("\n").splitlines()  # of none there is an empty line
    return [f"{kind}:{value}" for kind, value in zip(found[::3], found[1::3], strict=True)]


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def test_the_table_answers_as_click_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers, and it answers what is asked most: names of commands and options, for all commands
    whose options are no arguments of another program."""

    def both(shell: str, *words: str) -> tuple[str | None, str]:
        place = words[-1] if shell == "fish" else str(len(words))
        asked = {offers.VARIABLE: f"{shell}_complete", "COMP_WORDS": " ".join(["nitroctl", *words]),
                 "COMP_CWORD": place}  # fmt: skip
        for name, value in asked.items():
            monkeypatch.setenv(name, value)
        kind = get_completion_class(shell)
        assert kind
        return offers.answer(asked), kind(cli.nitroctl, {}, "nitroctl", offers.VARIABLE).complete()

    everything = list(commands(cli.nitroctl))
    for _, command in everything:
        # click keeps it as it was when a test ran the command without its parents: without -h.
        monkeypatch.setattr(command, "_help_option", None, raising=False)
    silent = set()
    for path, command in everything:
        mine, clicks = both("zsh", *path, "-")
        if mine is None:
            silent.add(path)
            continue
        assert mine == clicks and "--help" in clicks
        options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
        for one in [*[o for o in options if o.is_flag][:1], *[o for o in options if not o.is_flag][:1]]:
            given = [*path, one.opts[0], *([] if one.is_flag else ["x"])]
            for words in ([*given, "--"], [*given, ""], [*given, "x", "--"]):
                mine, clicks = both("zsh", *words)
                assert mine in (None, clicks), words
    assert silent == {("attest", "torture"), ("parent",), ("shell",)}
    for shell in completion.SHELLS:
        for line in (
            "",
            "r",
            "eif ",
            "eif b",
            "run --me",
            "run --dry-run --",
            "nothing ",
            "nothing -",
            "run --x",
        ):
            mine, clicks = both(shell, *line.split(" "))
            assert mine in (None, clicks), (shell, line)
            assert (mine is None) == line.startswith("nothing")
        for line in (
            "run --memory ",
            "run --memory=",
            "run -- --",
            "run 'a b' --",
            "run a\\ b --",
            "run ü --",
            "ps x --",
        ):
            assert both(shell, *line.split(" "))[0] is None
    for unknown in ({}, {offers.VARIABLE: "bash_source"}, {offers.VARIABLE: "tcsh_complete"},
                    {offers.VARIABLE: "bash_complete", "COMP_WORDS": "nitroctl ", "COMP_CWORD": "-1"},
                    ):  # fmt: skip
        assert offers.answer(unknown) is None


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_one_of_that_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", shell])
    script = capsys.readouterr().out
    assert ended.value.code == 0 and f"_NITROCTL_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_commands_images_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("app.eif", "other.eif", "app.tar"):
        (tmp_path / name).touch()
    ask = (monkeypatch, capsys)
    assert offered(*ask, "insp") == ["plain:inspect"]
    for words in (["run"], ["eif", "describe"], ["eif", "diff", "x"], ["attest", "verify", "d", "--eif"]):
        assert offered(*ask, *words, "") == ["plain:app.eif", "plain:other.eif"]
        assert offered(*ask, *words, "o") == ["plain:other.eif"]
        assert offered(*ask, *words, "app.t") == ["file:app.t"]
    for words in (["eif", "predict"], ["eif", "build", "--image"]):
        assert offered(*ask, *words, "") == ["file:"]
        assert offered(*ask, *words, "docker:") == ["plain:docker://"]
    (tmp_path / "docker").write_text("#!/bin/sh\necho app:1\necho '<none>:<none>'\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert offered(*ask, "eif", "predict", "docker-daemon:") == ["plain:docker-daemon:app:1"]


def record(name: str, state: State) -> Record:
    nowhere = Path("/none")
    return Record(
        id=name, name=name, state=state, cid=16, eif=nowhere, memory_mib=64, cpus=1, accel="tcg",
        accel_reason="", debug=False, detached=True, folder=nowhere, uds=nowhere, home=nowhere,
        supervisor_pid=1, qemu_pid=None, backend_pid=None, started=0.0,
    )  # fmt: skip


def test_names_of_enclaves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    running, ended = record("web", State.RUNNING), record("old", State.ENDED)
    monkeypatch.setattr(records, "every", lambda: [running, ended])
    monkeypatch.setattr(records, "running", lambda: [running])
    ask = (monkeypatch, capsys)
    for words in (["stop"], ["vsock", "connect"], ["attest", "get"]):
        assert offered(*ask, *words, "") == ["plain:web"]
    for words in (["inspect"], ["rm"], ["wait"], ["logs"]):
        assert offered(*ask, *words, "") == ["plain:web", "plain:old"]
    assert offered(*ask, "stop", "x") == []
