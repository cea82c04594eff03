# SPDX-License-Identifier: MIT
"""Where the installed programs begin: Ctrl-C while the rest is still being imported shows no traceback, and
`nitroctl --help` and what a shell is offered are there before the rest would be.

Imports nothing that takes time. What comes after the imports is each program's own.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

TYPE_CHECKING = False  # typing's own takes a third of what `--help` does
if TYPE_CHECKING:
    from typing import NoReturn

# What a program imports is there to stay: looking for garbage among it each 700 objects, as Python does,
# takes a twentieth of a start.
OBJECTS = 50_000


def _start(module: str) -> NoReturn:
    gc.set_threshold(OBJECTS)
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells report it
    sys.exit(0)


def nitroctl() -> NoReturn:
    if sys.argv[1:] in (["--help"], ["-h"]) and _help():
        sys.exit(0)
    if "_NITROCTL_COMPLETE" in os.environ and _offer():
        sys.exit(0)
    _start("nitroctl.cli")


# What `nitroctl --help` prints, written by tools/generate, and the width that it is written for.
HELP = os.path.join(os.path.dirname(__file__), "help.txt")
HELP_COLUMNS = 80


def _help() -> bool:
    """Print it, if it is what the command line would print here; whatever is in the way is the command line's
    to say."""
    try:
        if "COLUMNS" in os.environ or (os.isatty(1) and os.get_terminal_size(1).columns < HELP_COLUMNS):
            return False
        with open(HELP, "rb") as f:
            text = f.read().partition(b"\n")[2]  # the first line is its licence
        return os.write(1, text) == len(text)
    except OSError:
        return False


def _offer() -> bool:
    """The same for the question of a shell that completes a command line."""
    from nitroctl import offers

    try:
        text = offers.answer(os.environ)
        return text is not None and os.write(1, f"{text}\n".encode()) > 0
    except OSError:
        return False


def nitro_cli() -> NoReturn:
    _start("nitroctl.nitro_cli")


def vsock_proxy() -> NoReturn:
    _start("nitroctl.nitro_cli.vsock_proxy")
