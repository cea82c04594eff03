# SPDX-License-Identifier: MIT
"""One module per command: options and output only; the work is in the package's other modules."""

from __future__ import annotations

from pathlib import Path

import click

# A path of the user's. What is wrong with it is said where it is opened, with the reason and always the same
# status, be it missing, unreadable or a folder; click would judge some of that as wrong usage.
PATH = click.Path(path_type=Path, readable=False)
NEW_FILE = click.Path(path_type=Path, readable=False, dir_okay=False)
