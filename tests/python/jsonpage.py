# SPDX-License-Identifier: MIT
"""docs/json.md as what it is, the shape of each command's answer, and answers judged by it. No test is here.

`answer` and `failure` decode what a command has printed, and fail if it is not what the page says.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs/json.md"

_PLAIN: dict[str, Any] = {
    "string": lambda value: isinstance(value, str),
    "path": lambda value: isinstance(value, str) and value != "",
    "hex": lambda value: isinstance(value, str) and re.fullmatch("([0-9a-f]{2})*", value),
    "time": lambda value: isinstance(value, str) and datetime.fromisoformat(value).tzinfo,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "AWS's": lambda value: isinstance(value, dict),
    "fact": lambda value: (
        value is None or isinstance(value, str | int | float) or fits(value, "list of string")
    ),
}


@cache
def sections() -> dict[str, str]:
    """The page's text by the words of its headings; one that names several commands counts for each."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        for name in title.split(", "):
            assert name not in found, name
            found[name] = text.partition("\n# ")[0]
    return found


def commands() -> set[str]:
    return {name for name in sections() if name.startswith("nitroctl ")}


def aws_shaped() -> set[str]:
    """The commands that the page exempts."""
    (text,) = re.findall(r"\*\*AWS's shape\.\*\*(.*?)\n\n", PAGE.read_text(), re.S)
    return set(re.findall(r"`(nitroctl [a-z ]+)`", text))


@cache
def keys(name: str) -> dict[str, str]:
    """The type of each key of a section's table."""
    text = sections()[name]
    if same := re.search(r"\[(\w+)\]\(#\1\) itself", text):
        return keys(same[1])
    if less := re.search(r"^The keys of `(.+?)` but for (.*)\.$", text, re.M):
        gone = re.findall("`(.+?)`", less[2])
        return {key: type for key, type in keys(less[1]).items() if key not in gone}
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .*\|$", text, re.M)
    assert len(rows) == text.count("\n|") - 2 + text.startswith("|"), f"{name}: a row that is none"
    return dict(rows)


def fits(value: Any, type: str) -> bool:
    type = type.partition(",")[0]
    if type.endswith(" or null"):
        return value is None or fits(value, type.removesuffix(" or null"))
    if type.startswith("list of "):
        return isinstance(value, list) and all(fits(v, type.removeprefix("list of ")) for v in value)
    if type.startswith("map of "):
        return isinstance(value, dict) and all(fits(v, type.removeprefix("map of ")) for v in value.values())
    if type in _PLAIN:
        return bool(_PLAIN[type](value))
    return isinstance(value, dict) and not differences(value, type)


def differences(value: dict[str, Any], name: str) -> list[str]:
    """What in an object is not as its table says."""
    table = keys(name)
    found = [f"no key {key}" for key in table.keys() - value.keys()]
    found += [f"unknown key {key}" for key in value.keys() - table.keys()]
    found += [
        f"{key} is no {type}: {value[key]!r}"
        for key, type in table.items()
        if key in value and not fits(value[key], type)
    ]
    return found


def failure(text: str | bytes) -> Any:
    """The error that took the place of the answer."""
    value = json.loads(text)
    assert list(value) == ["schema", "error"] and value["schema"] == 1
    assert not (wrong := differences(value["error"], "error")), wrong
    return value["error"]


def answer(command: str, text: str | bytes) -> Any:
    value = json.loads(text)
    assert value.pop("schema") == 1
    assert not (wrong := differences(value, command)), wrong
    return value
