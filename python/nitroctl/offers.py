# SPDX-License-Identifier: MIT
"""What a shell is offered for the names of commands and options, from a table: somebody waits for it with a
key in his hand, and reading click and all options of a command takes longer than all else.

The table, `offers.txt`, is written by tools/generate from the commands themselves, a line for each name:

    COMMAND     name            command                                    help
    COMMAND     --name,-n       flag | flags | value | values | other      help

Here the simple cases are answered, as click would: words without quotes, known commands, known options. All
else (names of enclaves, files, values, what is misspelt) is left to click, which also makes the scripts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

TABLE = os.path.join(os.path.dirname(__file__), "offers.txt")
VARIABLE = "_NITROCTL_COMPLETE"

# What shells and click's splitting of words know, and str.split does not, or the other way round.
_UNUSUAL = frozenset("'\"\\\v\f\x1c\x1d\x1e\x1f")

Row = list[str]  # command, names, kind, help


def answer(environ: Mapping[str, str]) -> str | None:
    """What click would print for this question of a shell's; None: click has to be asked."""
    shell, _, what = environ.get(VARIABLE, "").partition("_")
    words, place = environ.get("COMP_WORDS", ""), environ.get("COMP_CWORD", "")
    if what != "complete" or not (words + place).isascii() or not _UNUSUAL.isdisjoint(words + place):
        return None
    if shell == "fish":
        *before, incomplete = *words.split()[1:], (place.split() or [""])[0]
        if incomplete and before and before[-1] == incomplete:
            before.pop()
    elif shell in ("bash", "zsh") and place.isdecimal():
        split = words.split()
        before, incomplete = split[1 : int(place)], "".join(split[int(place) : int(place) + 1])
    else:
        return None
    found = _offered(before, incomplete)
    return None if found is None else "\n".join(_shown(shell, *one) for one in found)


def _shown(shell: str, name: str, help: str) -> str:
    """One offer as click's script for that shell reads it."""
    if shell == "zsh":
        value = name.replace(":", "\\:") if help else name
        return f"plain\n{value}\n{help or '_'}"
    return f"plain,{name}\t{help}" if help and shell == "fish" else f"plain,{name}"


def _offered(before: list[str], incomplete: str) -> list[tuple[str, str]] | None:
    """Names and their helps; None for what the table cannot tell."""
    with open(TABLE, encoding="utf-8") as file:
        lines = file.read().split("\n")[1:]  # the first is its licence

    def rows(command: str) -> list[Row]:
        start = f"{command}\t"
        return [line.split("\t") for line in lines if line.startswith(start)]

    command, words = "nitroctl", iter(before)
    here = rows(command)
    given: set[str] = set()
    for word in words:
        row = next((row for row in here if word in row[1].split(",")), None)
        if row is None or row[2] == "other":
            return None  # an argument, or nothing that there is
        if row[2] == "command":
            if given:
                return None
            command = f"{command} {word}"
            here = rows(command)
        else:
            given.add(row[1])
            if row[2] in ("value", "values") and next(words, None) is None:
                return None  # its value is what is wanted
    if not here or "=" in incomplete:
        return None
    if incomplete.startswith("-"):
        wanted = [row for row in here if row[2] in ("flags", "values", "other") or row[1] not in given]
        options = [row for row in wanted if row[2] != "command"]
        return [
            (name, row[3]) for row in options for name in row[1].split(",") if name.startswith(incomplete)
        ]
    commands = [row for row in here if row[2] == "command"]
    if not commands or (incomplete and not incomplete.isalnum()):
        return None
    return [(row[1], row[3]) for row in commands if row[1].startswith(incomplete)]
