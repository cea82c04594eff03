# SPDX-License-Identifier: MIT
"""Arguments of the Python API that are sequences of texts. A text is a sequence of its letters too, which
nobody means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nitroctl.base.errors import UsageError


def texts(name: str, value: Any, *, words: bool = False) -> tuple[str, ...]:
    """The texts in a keyword argument; UsageError with the right call for one that is no sequence of texts.
    With `words` a text alone was probably meant as a command line."""
    if isinstance(value, str):
        meant = [value]
        if words:
            import shlex

            try:
                meant = shlex.split(value) or meant
            except ValueError:
                pass  # an open quote
        raise UsageError(
            f"{name}={value!r} is one text, and {name} takes a list of texts", hint=f"write {name}={meant!r}"
        )
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | Mapping):
        raise UsageError(f"{name}={value!r}: {name} takes a list of texts")
    found = tuple(value)
    for item in found:
        if not isinstance(item, str):
            raise UsageError(
                f"{name}: {item!r} is no text", hint=f"write {str(item)!r}" if type(item) is int else None
            )
    return found


def variables(name: str, value: Any) -> tuple[str, ...]:
    """NAME=VALUE of a mapping; UsageError for what is none, or not of texts."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        given = [value] if isinstance(value, str) else value
        pairs = (
            [item.partition("=") for item in given if isinstance(item, str)]
            if isinstance(given, Iterable)
            else []
        )
        hint = f"write {name}={ {key: text for key, _, text in pairs}!r}" if pairs else None
        raise UsageError(f"{name}={value!r}: {name} takes a mapping of texts", hint=hint)
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise UsageError(
                f"{name}: {key!r}: {text!r} are not two texts", hint=f"write {str(key)!r}: {str(text)!r}"
            )
    return tuple(f"{key}={text}" for key, text in value.items())
