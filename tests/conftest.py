# SPDX-License-Identifier: MIT
"""What all Python tests share: how hypothesis searches.

In CI (the variable CI is set) it draws the same examples every time, so a failure there is one that can be
repeated; elsewhere it goes on looking for new ones.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("search", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")
