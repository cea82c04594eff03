# SPDX-License-Identifier: MIT
"""Every command of `nitroctl`, for tests of what holds for all of them. No test is here."""

from __future__ import annotations

from collections.abc import Iterator

import click

from nitroctl import cli


def commands(
    group: click.Group = cli.nitroctl, path: str = "nitroctl"
) -> Iterator[tuple[str, click.Command]]:
    """The words that it is called by, and the command; groups as well."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
