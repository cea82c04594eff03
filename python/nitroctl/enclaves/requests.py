# SPDX-License-Identifier: MIT
"""The log of an enclave's NSM, read by others than its supervisor: `nsm` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from nitroctl.attestation.nsm import Entry
from nitroctl.enclaves import logs, records, remote
from nitroctl.enclaves.records import Record

# Of one line; a document and the longest request in hex have half of that.
_LINE_MAX = 1 << 17


def begin(record: Record) -> None:
    """See to it that a running enclave's NSM has a log. Raises EnclaveError."""
    remote.ask(record, "nsm")


def of(record: Record, *, follow: bool) -> Iterator[Entry]:
    """Entry by entry from the beginning of the log; with `follow` until the end of the enclave."""
    rest = b""
    for data in records.follow(record, logs.NSM) if follow else logs.read(record.home, logs.NSM):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                yield Entry.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # a gap in it, which it tells in words
        if len(rest) > _LINE_MAX:
            rest = b""
