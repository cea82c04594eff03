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
    """Let something go wrong with a running enclave: its NSM, its clock, its vsock, or its life.

    Only the user whose enclave it is can do that. What was asked for stands in its record (`nitroctl
    inspect`) from then on, and in its events.
    """


for _command in fault_vsock.COMMANDS:
    fault.add_command(_command)

_name = click.argument("name", shell_complete=enclave_names)


def _wrong_clock(command: Callable[..., None]) -> Callable[..., None]:
    """The options of either clock, the NSM's and the guest's."""
    jump = click.option("--jump", type=float, metavar="SECONDS", help="It jumps ahead, or back if negative.")
    drift = click.option(
        "--drift", type=int, metavar="PPM", help="It runs so many millionths faster; 0: right again."
    )
    return jump(drift(command))


@fault.command()
@_name
@click.option("--error", is_flag=True, help="Requests get InternalError.")
@click.option("--delay", type=float, default=0.0, metavar="SECONDS", help="Answers come so late.")
@click.option("--expired", is_flag=True, help="Documents come with a certificate that has expired.")
@click.option("--kind", type=click.Choice(KINDS), help="Only requests of this kind.")
@click.option("--count", type=int, metavar="N", help="Only the next N of them.  [default: all]")
@click.option("--rate", type=float, default=1.0, metavar="R", help="Each with this chance, 0.001 to 1.")
@click.option("--seed", type=int, default=0, metavar="N", help="What decides the chances: always the same.")
def nsm(name: str, **options: Any) -> None:
    """The Nitro Secure Module of NAME fails, is slow, or its documents have expired.

    It takes the place of the fault of this kind that there was. A late answer holds back all that are asked
    for behind it, as a slow module would.
    """
    from nitroctl.enclaves import faults, records

    shown.echo(faults.nsm(records.find(name, running=True), **options))


@fault.command()
@_name
@_wrong_clock
def clock(name: str, **options: Any) -> None:
    """The clock of NAME's NSM is wrong: the dates of documents, and of the certificate in them."""
    from nitroctl.enclaves import faults, records

    shown.echo(faults.clock(records.find(name, running=True), **options))


@fault.command()
@_name
@_wrong_clock
def guest_clock(name: str, **options: Any) -> None:
    """The clock of NAME's guest is wrong, which was started with --tools; its NSM's stays right."""
    from nitroctl.enclaves import records
    from nitroctl.inside import clock

    shown.echo(clock.fault(records.find(name, running=True), **options))


@fault.command()
@_name
@click.argument("moment", metavar="MOMENT")
def die(name: str, moment: str) -> None:
    """NAME dies without a word, at the MOMENT now, heartbeat, connection:PORT or nsm:N.

    connection:PORT is the first connection to that port, of the enclave's or of its parent's; nsm:N the
    answer to the N-th request to its NSM from now.
    """
    from nitroctl.enclaves import faults, records

    shown.echo(faults.die(records.find(name, running=True), moment))


@fault.command()
@_name
@click.argument("number", type=int, required=False)
def clear(name: str, number: int | None) -> None:
    """All is as it should be again: no fault of NAME is left, or not that of its vsock with that NUMBER."""
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
    """Print the faults of NAME that are set, and what was felt of them."""
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
