# SPDX-License-Identifier: MIT
"""JSON as AWS's tools read and write it in an image's metadata. What the metadata contain is left to others.

They accept numbers that fit a double, only UTF-8, and 127 levels of nesting, and write objects with sorted
keys. Python's parser also accepts NaN, 1e400, UTF-16 and lone surrogates, which would make an image whose
metadata nobody else can read.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

# Levels of a value inside the metadata object, which is itself one level.
DEPTH_MAX = 126


def parse(data: bytes) -> Any:
    """Parse a JSON value. Raises ValueError, which says what is wrong."""
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_custom(data: bytes) -> Any:
    """Like `parse`, for a value that will be written into metadata and read again."""
    value = parse(data)
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [item for outer in level for item in _inside(outer)]
    if any(isinstance(item, dict | list) for item in level):
        raise ValueError(f"it is nested more than {DEPTH_MAX} levels deep")
    try:
        write(value)
    except UnicodeEncodeError:
        raise ValueError("it contains a lone surrogate (half a surrogate pair)") from None
    return value


def write(value: Any) -> bytes:
    """Write compact JSON with sorted keys. Raises UnicodeEncodeError for a lone surrogate."""
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
