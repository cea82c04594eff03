# SPDX-License-Identifier: MIT
"""`nitroctl fault`: what shall go wrong with a running enclave, for tests of the programs inside and
outside."""

from __future__ import annotations

import click

from nitroctl.base import output, shown
from nitroctl.commands import enclave_names, fault_vsock, json_option


class _EitherOrder(click.Group):
    """`nitroctl fault NAME KIND` is `nitroctl fault KIND NAME`: one may think of the enclave first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().parse_args(ctx, args)


@click.group(cls=_EitherOrder)
def fault() -> None:
    """Let something go wrong with a running enclave.

    Only the user whose enclave it is can do that.
    """


for _command in fault_vsock.COMMANDS:
    fault.add_command(_command)

_name = click.argument("name", shell_complete=enclave_names)


@fault.command()
@_name
@click.argument("number", type=int, required=False)
def clear(name: str, number: int | None) -> None:
    """All is as it should be again: no fault of NAME is left, or not the one with that NUMBER."""
    from nitroctl.enclaves import records, vsock_faults

    vsock_faults.clear(records.find(name, running=True), number)


@fault.command(name="list")
@_name
@json_option()
def list_command(name: str, as_json: bool) -> None:
    """Print the faults of NAME, and what they have met."""
    from nitroctl.enclaves import records, vsock_faults

    found = vsock_faults.state(records.find(name, running=True))
    if as_json:
        output.items(found)
        return
    for row in found:
        shown.echo(vsock_faults.words(row))
    if not found:
        shown.say("none")
