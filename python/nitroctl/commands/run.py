# SPDX-License-Identifier: MIT
"""`nitroctl run`: an enclave in the foreground, its console on standard output, or detached.

What can be asked for of an enclave is in `enclaves.request`; here is what concerns this command alone.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from nitroctl.base import shown
from nitroctl.commands import json_option
from nitroctl.commands.options import asked, requested
from nitroctl.enclaves.request import RunRequest

if TYPE_CHECKING:
    from nitroctl.enclaves.records import Record


@click.command()
@requested(RunRequest)
@click.option(
    "--app-status",
    is_flag=True,
    help="Exit with the application's own exit status, if it is known, instead of 0 or 5.",
)
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Return once it has booted, leave it running, and print its ID; see `nitroctl ps`.",
)
@json_option("With --detach: print its record as JSON.")
@click.option(
    "--dry-run", is_flag=True, help="Print the command lines of the vsock backend and QEMU; start nothing."
)
def run(app_status: bool, detach: bool, as_json: bool, dry_run: bool, **given: Any) -> int:
    """Run the enclave image FILE and print its console until it ends; with --detach, only start it.

    Exit status: 0 after a heartbeat and an orderly end, 2 for a wrong request, 3 if no heartbeat came in
    time, 4 after a kernel panic in the guest, 5 if the application failed, 130 after Ctrl-C, 143 after
    SIGTERM, 1 for every other failure.
    """
    from nitroctl.enclaves.plan import by_hand, make_plan
    from nitroctl.enclaves.ready import ready
    from nitroctl.enclaves.records import State

    if as_json and not detach:
        raise click.UsageError("--json goes with --detach; in the foreground, standard output is the console")
    if app_status and detach:
        raise click.UsageError("--app-status is for the end; with --detach, give it to `nitroctl wait`")
    request = ready(asked(RunRequest, given), _note)
    plan = make_plan(request)
    for note in plan.notes:
        _note(note)
    if dry_run:
        if plan.overlays:
            _note("an overlay that had to be made is kept for these lines, beside the sockets")
        for argv in by_hand(plan):
            shown.data(shown.command(argv))
        if request.pcap:
            _note("a capture (--pcap) is what `nitroctl run` asks the backend for, while it runs")
        if request.kms:
            _note(
                "the KMS is a third, `nitroctl kms serve --vsock 8000 --root PEM`, with the root of "
                "QEMU's own chain"
            )
        return 0

    def tell(record: Record) -> None:
        _tell(record)
        if request.gdb and record.state is State.BOOTING:
            socket = shown.command(["target", "remote", record.folder / "gdb"])
            shown.say(f"debugger: {shown.command(['gdb', '-ex', socket])}")

    if detach:
        from nitroctl.enclaves import supervised

        record = supervised.start(plan, tell)
        if as_json:
            from nitroctl.base import output

            output.document(record.to_json())
        else:
            shown.data(record.id)
        return 0
    from nitroctl.enclaves import foreground
    from nitroctl.enclaves.sink import FdSink

    with contextlib.ExitStack() as stack:
        sinks = []
        if sys.stdout is not None:  # None where it was closed: `>&-`
            sys.stdout.flush()
            sinks.append(FdSink(sys.stdout.fileno()))
            stack.callback(sinks[0].close)
        ended = foreground.run(plan, sinks=sinks, on_state=tell)
    if app_status and ended.app_status is not None:
        status = ended.app_status
    else:
        ended.check()
        status = ended.status or 0
    shown.say(f"Enclave {plan.name}: {ended.message}")
    return status


def _note(text: str) -> None:
    shown.say(f"note: {text}")


def _tell(record: Record) -> None:
    """One line on standard error for each state that a user waits for."""
    from nitroctl.enclaves.records import State

    if record.state is State.STARTING:
        cpus = "1 CPU" if record.cpus == 1 else f"{record.cpus} CPUs"
        accel = f"{record.accel.upper()} ({record.accel_reason})"
        text = f"CID {record.cid}, {record.memory_mib} MiB, {cpus}, {accel}, vsock {record.uds}"
    elif record.state is State.RUNNING and record.booted:
        # Of a clock that was set back meanwhile nothing can be told.
        text = f"heartbeat after {max(0.0, record.booted - record.started):.1f} s"
    else:
        return
    shown.say(f"Enclave {record.name}: {text}")
