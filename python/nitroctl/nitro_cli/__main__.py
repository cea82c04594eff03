# SPDX-License-Identifier: MIT
"""`python -m nitroctl.nitro_cli`: the same as the `nitro-cli` command."""

from nitroctl.entry import nitro_cli

nitro_cli()
