# SPDX-License-Identifier: MIT
"""`python -m nitroctl.nitro_cli`: the same as the `nitro-cli` command."""

from nitroctl.nitro_cli import main

main()
