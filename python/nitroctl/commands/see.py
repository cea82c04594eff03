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

_follow = click.option("-f", "--follow", is_flag=True, help="Keep printing until the enclave ends.")


@click.command()
@click.argument("name", shell_complete=enclave_names)
@_follow
@click.option("--documents", is_flag=True, help="Print attestation documents in full.")
@json_option("A line of JSON for each request.")
def nsm(name: str, follow: bool, documents: bool, as_json: bool) -> None:
    """Print the requests of the enclave NAME to its NSM (Nitro Secure Module), and the answers.

    The log begins at the start with `nitroctl run --nsm-log`, else with the first call of this command or of
    `nitroctl events -f`. It stays until `nitroctl rm`. Random bytes are never in it.
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
@click.option(
    "-f", "--follow", is_flag=True, help="Keep printing: until NAME ends, or without a NAME until Ctrl-C."
)
@click.option("-a", "--all", "everything", is_flag=True, help="Also print those of enclaves that have ended.")
@json_option("A line of JSON for each event.")
def events(name: str | None, follow: bool, everything: bool, as_json: bool) -> None:
    """Print the events of this user's running enclaves, or of the enclave NAME.

    Starts, heartbeats, ends, faults, first connections and refused ports are always recorded. NSM events (a
    PCR was extended or locked, a document was issued) are recorded with `nitroctl run --nsm-log`, or from the
    first `nitroctl events -f` or `nitroctl nsm` on.
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
@click.option("-o", "--output", "file", type=NEW_FILE, metavar="FILE", help="Draw it into FILE, as SVG.")
@json_option()
def timeline(name: str, file: Path | None, as_json: bool) -> None:
    """Print how long each phase of the boot of the enclave NAME took, or draw it."""
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
