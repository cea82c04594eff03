# SPDX-License-Identifier: MIT
"""`nitroctl fault`: what can go wrong with the vsock of a running enclave."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nitroctl.base import shown
from nitroctl.commands import enclave_names

if TYPE_CHECKING:
    from nitroctl.enclaves.records import Record
    from nitroctl.enclaves.vsock_faults import Which

F = TypeVar("F", bound=Callable[..., Any])

_WHICH = (
    click.option("--port", type=int, metavar="N", help="Port of the parent or the enclave.  [default: any]"),
    click.option("--nth", type=int, metavar="N", help="Hit only the N-th connection from now on."),
    click.option("--times", type=int, metavar="N", help="Hit at most N connections.  [default: all]"),
    click.option(
        "--rate", type=float, default=1.0, metavar="R", help="Hit each one with this probability, 0 to 1."
    ),
    click.option(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="Seed for --rate and jitter; the same seed gives the same faults.",
    ),
)


def _fault(command: F) -> F:
    for option in reversed(_WHICH):
        command = option(command)
    return click.argument("name", shell_complete=enclave_names)(command)


def _which(name: str, given: dict[str, Any]) -> tuple[Record, Which]:
    from nitroctl.enclaves import records
    from nitroctl.enclaves.vsock_faults import Which

    keys = ("port", "nth", "times", "rate", "seed")
    return records.find(name, running=True), Which(**{key: given[key] for key in keys})


def _tell(number: int) -> None:
    shown.data(str(number))


@click.command()
@_fault
@click.option("--ms", type=int, default=0, metavar="N", help="Delay in milliseconds, accurate to 10 ms.")
@click.option(
    "--jitter", type=int, default=0, metavar="N", help="Add a random delay of at most so many milliseconds."
)
def latency(name: str, ms: int, jitter: int, **given: Any) -> None:
    """Delay the bytes of NAME's connections in both directions, and the enclave's own connects.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.latency(*_which(name, given), ms=ms, jitter=jitter))


@click.command()
@_fault
def refuse(name: str, **given: Any) -> None:
    """Refuse connections of NAME, as if nobody listened.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.refuse(*_which(name, given)))


_after = click.option(
    "--after",
    type=int,
    default=0,
    metavar="BYTES",
    help="Start after so many bytes, both directions counted together.",
)


@click.command()
@_fault
@_after
def reset(name: str, after: int, **given: Any) -> None:
    """Reset connections of NAME, open ones and new ones; with --nth only new ones.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.reset(*_which(name, given), after=after))


@click.command("stop-reading")
@_fault
@_after
def stop_reading(name: str, after: int, **given: Any) -> None:
    """Stop reading from NAME's connections on the host side, until the enclave cannot send any more.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.stop_reading(*_which(name, given), after=after))


COMMANDS = (latency, refuse, reset, stop_reading)
