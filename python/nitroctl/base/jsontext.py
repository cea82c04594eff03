# SPDX-License-Identifier: MIT
"""JSON as text: as nitro-cli prints it, two spaces of indentation, text as it is, keys in the order given; or
on one line."""

from __future__ import annotations

import json
import os
from typing import Any


def pretty(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain)
    if all(map(str.isprintable, text.split("\n"))):
        return text
    # What could steer a terminal, or is half a surrogate pair: JSON can say that in ASCII.
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def compact(value: Any) -> str:
    return json.dumps(value, default=_plain).replace("\x7f", "\\u007f")


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else os.fspath(value)  # type: ignore[call-overload]


def _escape(c: str) -> str:
    return "\\u007f" if c == "\x7f" else json.dumps(c)[1:-1]
