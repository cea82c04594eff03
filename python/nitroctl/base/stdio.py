# SPDX-License-Identifier: MIT
"""Standard descriptors that whoever started us has closed, as with `2>&-`. Nothing but that is here.

Without them the next file that is opened becomes descriptor 2 and gets what is meant for standard error; and
what Python is told to print on a standard error that is not there goes to standard output.
"""

from __future__ import annotations

import os
import sys


def fill() -> None:
    """/dev/null in the place of each one that is closed. To be called before any file is opened."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            os.set_inheritable(opened, True)
            setattr(sys, name, open(opened, mode, closefd=False))
            assert opened == fd
