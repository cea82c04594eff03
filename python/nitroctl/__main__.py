# SPDX-License-Identifier: MIT
"""`python -m nitroctl`: the command line, started by module name. Everything else is in `cli`."""

from nitroctl.entry import nitroctl

if __name__ == "__main__":
    nitroctl()
