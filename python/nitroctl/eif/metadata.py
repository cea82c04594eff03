# SPDX-License-Identifier: MIT
"""JSON as AWS's tools read and write it in an image's metadata. Not what the metadata consist of.

They know numbers that a double holds, UTF-8 alone and 127 levels, and write objects with their keys sorted.
What Python's reader takes beyond that, NaN, 1e400, UTF-16, half a surrogate pair, would make an image whose
metadata nobody else can read.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

# Levels of a value within the metadata, which are one themselves.
DEPTH_MAX = 126


def parse(data: bytes) -> Any:
    """A JSON value; raises ValueError, which says what it is not."""
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_custom(data: bytes) -> Any:
    """As `parse`, of a value that is to be written and read again."""
    value = parse(data)
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [item for outer in level for item in _inside(outer)]
    if any(isinstance(item, dict | list) for item in level):
        raise ValueError(f"nested more than {DEPTH_MAX} levels deep")
    try:
        write(value)
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair") from None
    return value


def write(value: Any) -> bytes:
    """Compact, keys sorted. Raises UnicodeEncodeError for half a surrogate pair."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode("utf-8")


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _int(text: str) -> int:
    if math.isinf(float(text)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return int(text)
