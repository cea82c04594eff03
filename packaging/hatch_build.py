# SPDX-License-Identifier: MIT
"""hatchling's hook: with NITROCTL_BUNDLE, a wheel is for a platform and has what tools/dist has built;
with NITROCTL_MAN, a folder, it brings manual pages.

Without that variable it changes nothing: an editable install, or a wheel of Python and C sources alone.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        bundle = os.environ.get("NITROCTL_BUNDLE")
        if not bundle or version == "editable":
            return
        folder, _, where = bundle.partition("=")
        build_data["pure_python"] = False
        build_data["tag"] = os.environ["NITROCTL_TAG"]
        build_data["force_include"][folder] = where
        if pages := os.environ.get("NITROCTL_MAN"):
            # `man` looks there for what is in the folder `bin` beside it.
            build_data["shared_data"][pages] = "share/man/man1"
