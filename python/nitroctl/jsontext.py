# SPDX-License-Identifier: MIT
"""JSON as nitro-cli prints it: two spaces of indentation, text as it is, keys in the order given."""

from __future__ import annotations

import json
from typing import Any


def pretty(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair in somebody's metadata
        text = json.dumps(value, indent=2)
    return text
