# SPDX-License-Identifier: MIT
"""The commands for enclaves that another process runs: ps, inspect, console, logs, wait, stop, rm.

NAME is an enclave's name, its ID, or the context ID of a running one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from nitroctl.base import output, shown
from nitroctl.base.errors import EXIT_FAILURE, EXIT_TIMEOUT, EnclaveTimeout, NitroError, UsageError
from nitroctl.commands import answers_json, enclave_names, json_option

if TYPE_CHECKING:
    from nitroctl.enclaves.records import Record

_name = click.argument("name", shell_complete=enclave_names)
_names = click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=enclave_names)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also list detached enclaves that have ended.")
@json_option()
def ps(everything: bool, as_json: bool) -> None:
    """List the running enclaves of this user."""
    from nitroctl.enclaves import records

    found = records.every() if everything else records.running()
    if as_json:
        output.items(record.to_json() for record in found)
        return
    rows = [
        (
            record.name,
            str(record.cid) if record.running else "-",
            _state(record),
            _duration(time.time() - record.started),
            f"{record.memory_mib} MiB",
            str(record.cpus),
            os.fspath(record.eif),
        )
        for record in found
    ]
    output.table(rows, head=("NAME", "CID", "STATE", "AGE", "MEMORY", "CPUS", "EIF"))


def _state(record: Record) -> str:
    more = [] if record.running else [str(record.ending)]
    if record.unmeasured:
        more.append("unmeasured")
    return f"{record.state} ({', '.join(more)})" if more else str(record.state)


def _duration(seconds: float) -> str:
    """One unit, the largest that is there; of a clock that was set back, none."""
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


@click.command()
@_name
@click.pass_context
def inspect(ctx: click.Context, name: str) -> None:
    """Print all that is known about the enclave NAME, in JSON."""
    from nitroctl.enclaves import records

    answers_json(ctx)
    output.document(records.find(name).to_json())


_follow = click.option("-f", "--follow", is_flag=True, help="Keep printing until the enclave ends.")
_lines = click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Only the last N lines.")


@click.command()
@_name
@_follow
@_lines
def console(name: str, follow: bool, lines: int | None) -> None:
    """Print the serial console of the enclave NAME; also after it has ended."""
    from nitroctl.enclaves import logs

    _print_log(name, logs.CONSOLE, follow, lines)


@click.command(name="logs")
@_name
@_follow
@_lines
def logs_command(name: str, follow: bool, lines: int | None) -> None:
    """Print the logs of the supervisor, QEMU and vsock backend of the detached enclave NAME."""
    from nitroctl.enclaves import logs, records

    record = records.find(name)
    if not record.detached:
        raise NitroError(
            f"enclave {record.name} runs in the foreground of process {record.supervisor_pid}, "
            "whose standard error is its log"
        )
    _print_log(record.id, logs.SUPERVISOR, follow, lines)


def _print_log(name: str, log: str, follow: bool, lines: int | None) -> None:
    from nitroctl.enclaves import logs, records

    record = records.find(name)
    pieces = records.follow(record, log) if follow else logs.read(record.home, log)
    if lines is not None:
        pieces = _last_lines(pieces, lines, logs.size(record.home, log))
    sys.stdout.flush()
    for data in pieces:
        _write_all(sys.stdout.fileno(), data)


def _last_lines(pieces: Iterator[bytes], lines: int, size: int) -> Iterator[bytes]:
    """Of the first `size` bytes only the last `lines` lines, then all that follows."""
    kept = b""
    for data in pieces:
        before, after = data[:size], data[size:]
        size -= len(before)
        kept += before
        parts = kept.split(b"\n")
        # A last line without its end counts as one.
        count = lines if parts[-1] else lines + 1
        kept = b"\n".join(parts[-count:]) if count else b""
        if size == 0:
            yield kept + after
            kept = b""
            yield from pieces
    yield kept


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=enclave_names)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up after so long, with exit status 124.",
)
@click.option(
    "--app-status",
    is_flag=True,
    help="Exit with the application's own exit status, if it is known, instead of 0 or 5.",
)
@json_option()
def wait(names: tuple[str, ...], timeout: float | None, app_status: bool, as_json: bool) -> int:
    """Wait until all these enclaves have ended, and say how each did.

    The exit status is the one that `nitroctl run` would have; of several enclaves, the first that is not 0.
    It is 124 if one has not ended within --timeout.
    """
    from nitroctl.enclaves import records

    deadline = None if timeout is None else time.monotonic() + timeout
    ended = []
    for record in [records.find(name) for name in names]:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            last = records.wait(record, left)
        except EnclaveTimeout as e:
            # The whole time; not what was left of it for this one.
            message = f"enclave {record.name} has not ended within {timeout:g} s"
            error = EnclaveTimeout(message, record=e.record)
            error.exit_status = EXIT_TIMEOUT
            raise error from None
        if last is None:
            raise NitroError(f"enclave {record.name} has ended, and its record has been removed")
        ended.append(last)
        if not as_json:
            shown.say(f"Enclave {last.name}: {last.message}")
    if as_json:
        output.items(record.to_json() for record in ended)
    statuses = [r.app_status if app_status and r.app_status is not None else r.status for r in ended]
    return next(filter(None, statuses), 0)


def _chosen(names: Iterable[str], everything: bool, every: Callable[[], list[Record]]) -> list[Record]:
    from nitroctl.enclaves import records

    if everything and names:
        raise click.UsageError("give names, or --all")
    if everything:
        return every()
    if not names:
        raise click.UsageError("give a name, or --all")
    return [records.find(name) for name in names]


def _for_each(chosen: list[Record], act: Callable[[Record], None]) -> int:
    """One that fails does not keep the others from their turn."""
    status = 0
    for record in chosen:
        try:
            act(record)
        except NitroError as e:
            shown.failure(e, e.hint)
            status = EXIT_FAILURE
    return status


@click.command()
@_names
@click.option("-a", "--all", "everything", is_flag=True, help="All running enclaves of this user.")
@click.option("--kill", is_flag=True, help="Kill them at once, without asking.")
def stop(names: tuple[str, ...], everything: bool, kill: bool) -> int:
    """Stop running enclaves. Their console and logs stay until `nitroctl rm`."""
    from nitroctl.enclaves import records

    def end(record: Record) -> None:
        if not record.running:
            raise NitroError(f"enclave {record.name} has ended already: {record.message}")
        records.stop(record, kill=kill)
        shown.echo(record.id)

    return _for_each(_chosen(names, everything, records.running), end)


@click.command()
@_names
@click.option("-a", "--all", "everything", is_flag=True, help="All enclaves that have ended.")
@click.option("-f", "--force", is_flag=True, help="Stop an enclave first if it is running.")
def rm(names: tuple[str, ...], everything: bool, force: bool) -> int:
    """Remove the records, console output and logs of enclaves that have ended."""
    from nitroctl.enclaves import records

    if everything and force:
        raise UsageError("--force goes with names", hint="`nitroctl stop --all` ends all enclaves")

    def drop(record: Record) -> None:
        if force and record.running:
            records.stop(record)
        records.remove(record)
        shown.echo(record.id)

    def ended() -> list[Record]:
        return [record for record in records.every() if not record.running]

    return _for_each(_chosen(names, everything, ended), drop)
