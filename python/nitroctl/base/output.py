# SPDX-License-Identifier: MIT
"""What a command answers on standard output: JSON for programs, as docs/json.md has it, tables for people.

    document(value)   one JSON object
    items(values)     a list, as an object with "items"
    line(value)       one object of a stream, on a line of its own
    failure(error)    what took the place of the answer
    as_aws(value)     JSON whose shape is AWS's, and not of this contract; as_aws_line(value) on one line
    table(rows)       aligned columns

Objects of ours say which edition of the contract they keep, "schema", and have keys in snake_case. Paths
become strings, bytes lower-case hexadecimal digits. How text is printed, and made harmless, is `shown`'s
business.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from nitroctl.base import jsontext, shown
from nitroctl.base.errors import NitroError

SCHEMA = 1

Cell = str | tuple[str, str]  # a text; or a text, and a style of rich's


def document(value: Mapping[str, Any]) -> None:
    shown.data(jsontext.pretty({"schema": SCHEMA, **value}))


def items(values: Iterable[Any]) -> None:
    document({"items": list(values)})


def line(value: Mapping[str, Any]) -> None:
    shown.data(jsontext.compact({"schema": SCHEMA, **value}))


def failure(error: NitroError) -> None:
    document({"error": error.to_json()})


def as_aws(value: Any) -> None:
    shown.data(jsontext.pretty(value))


def as_aws_line(value: Any) -> None:
    shown.data(jsontext.compact(value))


def table(
    rows: Iterable[Sequence[Cell]], *, head: Sequence[str] | None = None, right: Collection[int] = ()
) -> None:
    """Rows of as many cells each, under a head if there is one; columns whose numbers are in `right` end
    where the others begin. Nothing is cut or folded, and the last column is not filled up: what stands there
    can be copied."""
    lines = [
        [(shown.line(cell), "") if isinstance(cell, str) else (shown.line(cell[0]), cell[1]) for cell in row]
        for row in ([head] if head else []) + list(rows)
    ]
    widths = [max(width(text) for text, _ in column) for column in zip(*lines, strict=True)]
    for cells in lines:
        parts: list[tuple[str, str]] = []
        for number, (text, style) in enumerate(cells):
            fill = " " * (widths[number] - width(text))
            last = number == len(cells) - 1
            before, after = (fill, "") if number in right else ("", "" if last else fill)
            parts += [(("  " if number else "") + before, ""), (text, style), (after, "")]
        if any(style for _, style in parts):
            shown.styled(*parts)
        else:
            shown.echo("".join(text for text, _ in parts).rstrip())


def width(text: str) -> int:
    """The columns of a terminal that it takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
