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
    click.option("--port", type=int, metavar="N", help="Of the parent or the enclave.  [default: any]"),
    click.option("--nth", type=int, metavar="N", help="Only the N-th connection that begins from now on."),
    click.option("--times", type=int, metavar="N", help="Only N connections.  [default: all]"),
    click.option("--rate", type=float, default=1.0, metavar="R", help="Each with this chance, 0 to 1."),
    click.option("--seed", type=int, default=0, metavar="N", help="What decides chances: always the same."),
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
@click.option("--ms", type=int, default=0, metavar="N", help="Milliseconds, to ten of them.")
@click.option("--jitter", type=int, default=0, metavar="N", help="At most so many more, by the seed.")
def latency(name: str, ms: int, jitter: int, **given: Any) -> None:
    """Bytes of NAME's connections come late, either way, and so do the enclave's own connects.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.latency(*_which(name, given), ms=ms, jitter=jitter))


@click.command()
@_fault
def refuse(name: str, **given: Any) -> None:
    """Connections of NAME are refused, as if nobody listened.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.refuse(*_which(name, given)))


_after = click.option(
    "--after", type=int, default=0, metavar="BYTES", help="Once so many have passed, both directions."
)


@click.command()
@_fault
@_after
def reset(name: str, after: int, **given: Any) -> None:
    """Connections of NAME are reset, those that are there and those that begin.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.reset(*_which(name, given), after=after))


@click.command("stop-reading")
@_fault
@_after
def stop_reading(name: str, after: int, **given: Any) -> None:
    """The host's end of NAME's connections takes nothing more, until the enclave can send nothing more.

    Prints the fault's number.
    """
    from nitroctl.enclaves import vsock_faults

    _tell(vsock_faults.stop_reading(*_which(name, given), after=after))


COMMANDS = (latency, refuse, reset, stop_reading)
