# SPDX-License-Identifier: MIT
"""Into a running enclave that was started with `--tools`: shell, cp, top.

NAME is an enclave's name, its ID, or its context ID.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nitroctl.base import output, shown
from nitroctl.base.errors import UsageError
from nitroctl.base.memory import MIB, parse_memory
from nitroctl.commands import enclave_names, json_option

if TYPE_CHECKING:
    from nitroctl.inside.processes import Sample

TOP_SECONDS = 2.0
SAMPLE_SECONDS = 0.5
ROWS = 20


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-T",
    "--no-tty",
    is_flag=True,
    help="Do not allocate a terminal, even if standard input and output are one.",
)
@click.argument("name", shell_complete=enclave_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(no_tty: bool, name: str, command: tuple[str, ...]) -> int:
    """Run COMMAND, or a shell, in the root of the application of enclave NAME, as root.

    The command is one of the image's, or else of busybox's. With a terminal all keys go to it; three Ctrl-]
    in a row leave it. The exit status is the command's, or 128 and the signal that ended it.
    """
    from nitroctl.enclaves import records
    from nitroctl.inside import shell as shells

    found = records.find(name, running=True)
    sys.stdout.flush()
    words = command[1:] if command[:1] == ("--",) else command
    return shells.run(found, words, terminal=not no_tty and shells.is_terminal())


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option(
    "--limit", metavar="SIZE", help="Copy at most SIZE out of the enclave. Default: the size of its memory."
)
def cp(source: str, target: str, limit: str | None) -> None:
    """Copy files out of an enclave, or into it: one of SOURCE and TARGET is NAME:PATH.

    Where TARGET is a folder, the copy goes into it. Out of a guest come files, folders, and links that stay
    within the copy.
    """
    from nitroctl.enclaves import records
    from nitroctl.inside import copy

    there, here = _remote(source), _remote(target)
    if (there is None) == (here is None):
        raise UsageError(
            f"one of {source!r} and {target!r} has to be in an enclave, as NAME:PATH, and the other one here",
            hint="a path here that has a colon begins with ./",
        )
    if there is not None:
        record = records.find(there[0], running=True)
        most = parse_memory(limit) * MIB if limit else None
        shown.bare(copy.out(record, there[1], Path(target), limit=most, note=shown.say))
    elif here is not None:
        record = records.find(here[0], running=True)
        shown.echo(f"{here[0]}:{copy.into(record, Path(source), here[1])}")


def _remote(text: str) -> tuple[str, str] | None:
    """NAME and PATH; a colon after a slash is a path's own."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and name and "/" not in name else None


@click.command()
@click.argument("name", shell_complete=enclave_names)
@json_option("One sample, in JSON.")
def top(name: str, as_json: bool) -> None:
    """Show the processes of the enclave NAME with their CPU and memory, on a terminal until Ctrl-C."""
    from nitroctl.enclaves import records
    from nitroctl.inside import processes

    found = records.find(name, running=True)
    last = processes.sample(found)
    follow = sys.stdout.isatty() and not as_json
    try:
        while True:
            time.sleep(TOP_SECONDS if follow else SAMPLE_SECONDS)
            last = processes.sample(found, last)
            if as_json:
                output.document(last.to_json())
            else:
                if follow:
                    click.clear()
                _show(last, ROWS if follow else None)
            if not follow:
                return
    except KeyboardInterrupt:
        if not follow:
            raise


def _show(sample: Sample, rows: int | None) -> None:
    used = sample.memory_total - sample.memory_available
    shown.echo(
        f"up {sample.uptime:.0f} s, {used // MIB} of {sample.memory_total // MIB} MiB in use, "
        f"{len(sample.processes)} processes"
    )
    output.table(
        (
            (
                str(process.pid),
                str(process.ppid),
                process.state,
                f"{process.cpu_percent:.1f}",
                f"{process.cpu_seconds:.2f}",
                f"{process.memory / MIB:.1f}",
                process.command,
            )
            for process in sample.processes[:rows]
        ),
        head=("PID", "PPID", "STATE", "CPU%", "TIME", "MIB", "COMMAND"),
        right=(0, 1, 3, 4, 5),
    )
