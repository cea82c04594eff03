# SPDX-License-Identifier: MIT
"""Every command line of ours in README and docs is one that the program takes: it is parsed by the command
itself, which is not invoked. Which are run besides is in test_docs_run.py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nitroctl import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What ends a simple command of a shell.
ENDS = {"|", "||", "&", "&&", ";", "(", ")"}
REDIRECTIONS = {">", "<", ">>", "2>", "<<"}


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a block, without what is redirected."""
    text = re.sub(r"<<'(\w+)'.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)  # files that are written
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        for inner in re.findall(r"\$\(([^()]*)\)", line):
            yield from commands(inner)
        line = re.sub(r"\$\([^()]*\)", "x", line)
        if not re.match(r"(\w+=\S* )*(nitroctl|nitro-cli|vsock-proxy|echo|pip|make)\b", line):
            continue
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += ":,.@%+{}$"
        for word in [*lexer, ";"]:
            if word in ENDS:
                yield words
                words = []
            else:
                words.append(word)


def ours() -> Iterator[tuple[Path, list[str]]]:
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            for words in commands(text) if language in ("sh", "console") else ():
                if words[:1] == ["nitroctl"] and "..." not in words and "/" not in words[1]:
                    cut = next((i for i, word in enumerate(words) if word in REDIRECTIONS), len(words))
                    yield page, words[1:cut]


def parse(words: list[str]) -> None:
    """Raises click.UsageError for what the command does not take; files need not be there."""
    command: click.Command = cli.nitroctl
    context = click.Context(command, info_name="nitroctl")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        if found is None and command.name == "fault":  # either order: the enclave's name, or what befalls it
            words = [words[1], words[0], *words[2:]]
            found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]}")
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
        context.allow_extra_args = command.allow_extra_args
        context.ignore_unknown_options = command.ignore_unknown_options
        context.allow_interspersed_args = command.allow_interspersed_args
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest or command.allow_extra_args or any(p.nargs == -1 for p in command.params), rest


def test_command_lines_are_ones_that_the_program_takes() -> None:
    wrong, seen = [], 0
    for page, words in ours():
        seen += 1
        try:
            parse(words)
        except (click.UsageError, AssertionError) as e:
            wrong.append(f"{page.name}: nitroctl {' '.join(words)}: {e}")
    assert not wrong, "\n".join(wrong)
    assert seen > 70


def test_an_option_that_is_gone_would_be_seen() -> None:
    for line in ("nitroctl run app.eif --cids 16", "nitroctl ruin app.eif", "nitroctl attest ca shaw"):
        (words,) = commands(line)
        with pytest.raises(click.UsageError):
            parse(words[1:])
