# SPDX-License-Identifier: MIT
"""Times as users write them, in ISO 8601; no clock."""

from __future__ import annotations

from datetime import datetime, timezone

UTC = timezone.utc  # datetime.UTC of Python 3.11


def parse(text: str) -> datetime:
    """As datetime.fromisoformat, with a Z for the zone also before Python 3.11; raises ValueError."""
    return datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text)
