# SPDX-License-Identifier: MIT
"""Where the installed programs begin: Ctrl-C while the rest is still being imported shows no traceback.

Imports nothing that takes time. What comes after the imports is each program's own.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn


def _start(module: str) -> NoReturn:
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells report it
    sys.exit(0)


def nitroctl() -> NoReturn:
    _start("nitroctl.cli")


def nitro_cli() -> NoReturn:
    _start("nitroctl.nitro_cli")


def vsock_proxy() -> NoReturn:
    _start("nitroctl.nitro_cli.vsock_proxy")
