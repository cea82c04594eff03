# SPDX-License-Identifier: MIT
"""The commands that show what an enclave does: nsm, events, timeline."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click

from nitroctl.base import output, shown
from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.commands import NEW_FILE, enclave_names, json_option

_follow = click.option("-f", "--follow", is_flag=True, help="Go on until the enclave ends.")


@click.command()
@click.argument("name", shell_complete=enclave_names)
@_follow
@click.option("--documents", is_flag=True, help="Attestation documents in full.")
@json_option("A line of JSON for each request.")
def nsm(name: str, follow: bool, documents: bool, as_json: bool) -> None:
    """Print what the enclave NAME has asked its NSM, and what it was answered.

    The log begins with the enclave if it was started with --nsm-log, else with the first call of this
    command; it stays until `nitroctl rm`. Random bytes are never in it.
    """
    from nitroctl.attestation.nsm import Entry
    from nitroctl.enclaves import logs, records, requests

    record = records.find(name)
    if record.running:
        requests.begin(record)
    elif not logs.size(record.home, logs.NSM):
        raise EnclaveError(
            f"nothing is known of the NSM of {record.name}, which has ended",
            hint="it has to be asked for while the enclave runs, or with `nitroctl run --nsm-log FILE`",
        )

    def tell(entries: Iterable[Entry]) -> None:
        for entry in entries:
            if as_json:
                output.line(entry.to_json(documents=documents))
                continue
            if entry.dropped:
                shown.echo(f"({entry.dropped} requests are missing: nobody took them from QEMU in time)")
            limit = shown.LINE_MAX if not documents else len(entry.document or b"") * 2 + shown.LINE_MAX
            shown.data(shown.line(entry.words(documents=documents), limit))

    tell(requests.of(record, follow=follow))


@click.command()
@click.argument("name", required=False, shell_complete=enclave_names)
@click.option("-f", "--follow", is_flag=True, help="Go on: until NAME ends, without a NAME for ever.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those of enclaves that have ended.")
@json_option("A line of JSON for each event.")
def events(name: str | None, follow: bool, everything: bool, as_json: bool) -> None:
    """Print what happened to the running enclaves of this user, or to the enclave NAME.

    Starts, heartbeats, ends, faults, first connections and refused ports are always recorded; registers that
    were extended or locked, and documents, since somebody follows the events or reads the NSM's log.
    """
    from nitroctl.enclaves import events as life
    from nitroctl.enclaves import records, requests

    if name is not None and everything:
        raise UsageError("give a name, or --all")

    def tell(found: Iterable[life.Event]) -> None:
        for event in found:
            if as_json:
                output.line(event)
            else:
                shown.echo(life.words(event))

    if name is not None:
        record = records.find(name)
        attach = requests.begin if record.running else lambda record: None
        tell(life.attached(record, attach) if follow else life.of(record, follow=False))
        return
    if not follow:
        tell(life.recorded(records.every() if everything else records.running()))
        return
    if everything:
        tell(life.recorded(record for record in records.every() if not record.running))
    tell(life.follow(requests.begin))


@click.command()
@click.argument("name", shell_complete=enclave_names)
@click.option("-o", "--output", "file", type=NEW_FILE, metavar="FILE", help="Write a picture, SVG.")
@json_option()
def timeline(name: str, file: Path | None, as_json: bool) -> None:
    """Print where the time went while the enclave NAME booted, or draw it."""
    from nitroctl.base import atomic
    from nitroctl.base.place import place
    from nitroctl.enclaves import records
    from nitroctl.enclaves import timeline as boot

    record = records.find(name)
    found = boot.phases(record)
    if file is not None:
        with place(file):
            atomic.write(file, boot.svg(record).encode())
    if as_json:
        output.document(boot.to_json(record))
        return
    if file is not None:
        shown.bare(os.fspath(file))
        return
    output.table(boot.rows(found), right=(0, 1))
    if record.loading:
        shown.echo(f"EIF: {'; '.join(boot.loading_words(record.loading))}")
