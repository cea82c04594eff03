# SPDX-License-Identifier: MIT
"""What happens to enclaves, as events: written down by each one's supervisor, read and followed by others.

An event is a line of JSON in the file `events` of the enclave's home, with all keys of `KEYS` (docs/json.md).
Those of its life and of vsock are always written; those of the NSM while its log is on (`nsm`), which whoever
follows events sees to. The file is bounded as the console's is, and much smaller.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base import config
from nitroctl.base.errors import NitroError
from nitroctl.enclaves import logs, records
from nitroctl.enclaves.records import Record

if TYPE_CHECKING:
    from nitroctl.attestation.nsm import Entry

Event = dict[str, Any]

KEYS = ("time", "enclave", "id", "event", "side", "port", "cause", "index", "bytes", "fault", "message")

_LINE_MAX = 1 << 16


# ---- for the supervisor ----


class Events:
    """Of one enclave."""

    def __init__(self, home: Path, name: str, id: str) -> None:
        self._about = {"enclave": name, "id": id}
        self._sink = logs.LogSink(home, logs.EVENTS, limit=logs.EVENTS_MAX)

    def tell(self, event: str, **facts: Any) -> None:
        moment = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        value: Event = {**dict.fromkeys(KEYS), "time": moment, **self._about, "event": event}
        value |= {key: content for key, content in facts.items() if key in KEYS}
        self._sink.append(json.dumps({"schema": 1, **value}).encode() + b"\n")

    def tell_request(self, entry: Entry) -> None:
        """What a request to the NSM has changed or given out."""
        from nitroctl.attestation.nsm import SUCCESS

        if entry.result != SUCCESS:
            return
        if entry.kind == "ExtendPCR":
            self.tell("pcr-extended", index=entry.index)
        elif entry.kind == "LockPCR":
            self.tell("pcr-locked", index=entry.index)
        elif entry.kind == "LockPCRs":
            self.tell("pcrs-locked", index=entry.index)
        elif entry.kind == "Attestation":
            self.tell("document", bytes=entry.document_bytes)

    def close(self) -> None:
        self._sink.close()


# ---- for everybody ----


def words(event: Event) -> str:
    """For people, on one line; to be shown by `base.shown`."""
    port = f"port {event['port']}"
    whose = f"the enclave's {port}" if event["side"] == "enclave" else f"the parent's {port}"
    texts: dict[str, str] = {
        "connected": f"first connection to {whose}",
        "refused": f"a connection to {whose} was refused: {event['cause']}",
        "pcr-extended": f"PCR{event['index']} was extended",
        "pcr-locked": f"PCR{event['index']} was locked",
        "pcrs-locked": f"all PCRs below {event['index']} were locked",
        "document": f"an attestation document of {event['bytes']} bytes was issued",
        "fault": f"fault: {event['fault']}",
    }
    text = texts.get(event["event"], str(event["event"]))
    if event["message"]:
        text += f": {event['message']}"
    return f"{event['time'][:23].replace('T', ' ')} {event['enclave']}: {text}"


def _event(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(
        value.get(key) is None or isinstance(value[key], str | int) for key in KEYS
    ):
        return None
    return {key: value.get(key) for key in KEYS} if isinstance(value.get("time"), str) else None


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > _LINE_MAX:
            rest = b""


def recorded(found: Iterable[Record]) -> list[Event]:
    """All that is known of these enclaves, in the order of time."""
    events = [
        event
        for record in found
        for line in _lines(logs.read(record.home, logs.EVENTS))
        if (event := _event(line))
    ]
    return sorted(events, key=lambda event: str(event["time"]))


def of(record: Record, *, follow: bool) -> Iterator[Event]:
    """Those of one enclave from its beginning; with `follow` until its end."""
    pieces = records.follow(record, logs.EVENTS) if follow else logs.read(record.home, logs.EVENTS)
    yield from filter(None, map(_event, _lines(pieces)))


def attached(record: Record, attach: Callable[[Record], None]) -> Iterator[Event]:
    """Those of one enclave until its end, once `attach` went well for it, or as soon as it does."""

    def tried() -> bool:
        try:
            attach(record)
        except NitroError:
            return False
        return True

    done = tried()
    for event in of(record, follow=True):
        yield event
        done = done or tried()


def follow(attach: Callable[[Record], None]) -> Iterator[Event]:
    """Those of all running enclaves and of all that will run, for ever. `attach` is called for each, again
    with its next event if it raised NitroError: an enclave that is just starting cannot be asked yet."""
    found: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
    known: set[Path] = set()

    def one(record: Record) -> None:
        try:
            for event in attached(record, attach):
                found.put(event)
        except (NitroError, FileNotFoundError):
            pass  # it has ended meanwhile
        except OSError as e:
            found.put(e)

    def look() -> None:
        for record in records.running():
            if record.home not in known:
                known.add(record.home)
                threading.Thread(target=one, args=(record,), daemon=True).start()

    def watch() -> None:
        # Homes are renamed into this folder, which is an event of its own.
        never = os.pidfd_open(os.getpid())
        try:
            with logs.watch(base) as wait:
                look()
                while not wait(never, None):
                    look()
            found.put(NitroError(f"the folder {base} has been removed"))
        except (NitroError, OSError) as e:
            found.put(e)
        finally:
            os.close(never)

    base = config.private_dir(config.state_dir() / "enclaves")
    threading.Thread(target=watch, daemon=True).start()
    while True:
        event = found.get()
        if isinstance(event, Exception):
            raise event
        yield event
