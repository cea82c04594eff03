# SPDX-License-Identifier: MIT
"""`nitroctl fault`: what shall go wrong with a running enclave, for tests of the programs inside and
outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nitroctl.base import output, shown
from nitroctl.commands import enclave_names, fault_vsock, json_option
from nitroctl.enclaves.faults import KINDS


class _EitherOrder(click.Group):
    """`nitroctl fault NAME KIND` is `nitroctl fault KIND NAME`: one may think of the enclave first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().parse_args(ctx, args)


@click.group(cls=_EitherOrder)
def fault() -> None:
    """Inject a fault into a running enclave: NSM errors, a wrong clock, vsock trouble, or sudden death.

    Only the user who runs the enclave can do that. Each fault is kept in the enclave's record (`nitroctl
    inspect`) and in its events.
    """


for _command in fault_vsock.COMMANDS:
    fault.add_command(_command)

_name = click.argument("name", shell_complete=enclave_names)


def _wrong_clock(command: Callable[..., None]) -> Callable[..., None]:
    """The options of either clock, the NSM's and the guest's."""
    jump = click.option("--jump", type=float, metavar="SECONDS", help="Set it ahead, or back if negative.")
    drift = click.option(
        "--drift",
        type=int,
        metavar="PPM",
        help="Let it run faster by so many millionths (ppm); 0: right again.",
    )
    return jump(drift(command))


@fault.command()
@_name
@click.option("--error", is_flag=True, help="Answer requests with InternalError.")
@click.option("--delay", type=float, default=0.0, metavar="SECONDS", help="Delay each answer by so long.")
@click.option("--expired", is_flag=True, help="Issue documents with an expired certificate.")
@click.option("--kind", type=click.Choice(KINDS), help="Only requests of this kind.")
@click.option("--count", type=int, metavar="N", help="Only the next N of them.  [default: all]")
@click.option(
    "--rate", type=float, default=1.0, metavar="R", help="Hit each one with this probability, 0.001 to 1."
)
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Seed for --rate; the same seed hits the same requests."
)
def nsm(name: str, **options: Any) -> None:
    """Let the Nitro Secure Module (NSM) of NAME fail, answer late, or issue expired documents.

    Replaces an earlier fault of this kind. A late answer also delays all requests behind it, as a slow
    module would.
    """
    from nitroctl.enclaves import faults, records

    shown.echo(faults.nsm(records.find(name, running=True), **options))


@fault.command()
@_name
@_wrong_clock
def clock(name: str, **options: Any) -> None:
    """Make the clock of NAME's NSM wrong, which dates documents and the certificates in them."""
    from nitroctl.enclaves import faults, records

    shown.echo(faults.clock(records.find(name, running=True), **options))


@fault.command()
@_name
@_wrong_clock
def guest_clock(name: str, **options: Any) -> None:
    """Make the guest's own clock wrong; the NSM's stays right. NAME must run with --tools."""
    from nitroctl.enclaves import records
    from nitroctl.inside import clock

    shown.echo(clock.fault(records.find(name, running=True), **options))


@fault.command()
@_name
@click.argument("moment", metavar="MOMENT")
def die(name: str, moment: str) -> None:
    """Kill NAME at the MOMENT now, heartbeat, connection:PORT or nsm:N.

    connection:PORT is the first connection to that port, the enclave's or its parent's; nsm:N is the answer
    to the N-th NSM request from now.
    """
    from nitroctl.enclaves import faults, records

    shown.echo(faults.die(records.find(name, running=True), moment))


@fault.command()
@_name
@click.argument("number", type=int, required=False)
def clear(name: str, number: int | None) -> None:
    """Remove all faults of NAME, or only the vsock fault with that NUMBER."""
    from nitroctl.enclaves import faults, records
    from nitroctl.inside import clock

    record = records.find(name, running=True)
    if number is None:
        clock.clear(record)
    faults.clear(record, number)


@fault.command(name="list")
@_name
@json_option()
def list_command(name: str, as_json: bool) -> None:
    """Print the faults that are set for NAME, and how often each was hit."""
    from nitroctl.enclaves import faults, records, vsock_faults

    state = faults.state(records.find(name, running=True))
    if as_json:
        output.document(state)
        return
    rows = [vsock_faults.words(row) for row in state["items"] or ()] + faults.nsm_words(state["nsm"])
    for row in rows:
        shown.echo(row)
    if not rows:
        shown.say("none")
