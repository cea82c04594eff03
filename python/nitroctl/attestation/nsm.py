# SPDX-License-Identifier: MIT
"""Turns a line of the NSM device's log into an entry for people: what a guest asked, and what was answered.

The bytes come from the guest and are not trusted: they are decoded with `base.cbor`, which trusts no length,
and what is not a valid request is kept as bytes. Requests and answers are those of AWS's NSM API. A guest may
encode a request in several ways (a list for a map, text for bytes), which the device accepts, and so does
this module. How the log is transferred and kept is left to others; its lines are described in
docs/machine.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any

from nitroctl.base import cbor

VERSION = 1  # of the format of the device's lines
LINE_MAX = 1 << 16  # bytes; the longest request and answer in hex have half of that

SUCCESS = "Success"
SHOWN_BYTES = 16  # how many bytes of a value are shown

# Each operation's arguments, in the order in which a list has them.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "DescribeNSM": (),
    "DescribePCR": ("index",),
    "ExtendPCR": ("index", "data"),
    "LockPCR": ("index",),
    "LockPCRs": ("range",),
    "Attestation": ("user_data", "nonce", "public_key"),
    "GetRandom": (),
}


@dataclass(frozen=True)
class Entry:
    """One request and its answer. Fields that a request of this kind does not have are None.

    `kind` is None if the bytes are not a valid request; they are then in `request`. `index` is also LockPCRs'
    range; `value` is the PCR after ExtendPCR or in DescribePCR. Of GetRandom's answer only the number of
    bytes is kept. `faults` names what `nitroctl fault` did to the request. `dropped` counts the requests
    since the previous entry that are missing, because nobody read them from the device in time.
    """

    time: str
    kind: str | None
    index: int | None
    data: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    public_key: bytes | None
    result: str
    value: bytes | None
    locked: bool | None
    random_bytes: int | None
    document_bytes: int | None
    document: bytes | None
    microseconds: int
    faults: tuple[str, ...]
    dropped: int
    request_bytes: int
    request: bytes | None

    def to_json(self, *, documents: bool) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for one in fields(self):
            content = getattr(self, one.name)
            value[one.name] = content.hex() if isinstance(content, bytes) else content
        if not documents:
            value["document"] = None
        return {**value, "faults": list(self.faults)}

    @classmethod
    def from_json(cls, value: Any) -> Entry:
        """The entry from what `to_json` made. Raises KeyError, TypeError or ValueError for anything else."""
        found = {one.name: value[one.name] for one in fields(cls)}
        for name in ("data", "user_data", "nonce", "public_key", "value", "document", "request"):
            if found[name] is not None:
                found[name] = bytes.fromhex(found[name])
        return cls(**{**found, "faults": tuple(found["faults"])})

    def words(self, *, documents: bool = False) -> str:
        """The entry for people, on one line; print it with `base.shown`."""
        given = [
            f"{'range' if name == 'index' and self.kind == 'LockPCRs' else name}={_short(value)}"
            for name in ("index", "data", "user_data", "nonce", "public_key")
            if (value := getattr(self, name)) is not None
        ]
        if self.kind is None:
            given = [f"{self.request_bytes} bytes that are no request"]
            if self.request:
                given.append(_short(self.request))
        clock = self.time[11:26]
        text = f"{clock} {' '.join(filter(None, [self.kind, *given]))} -> {self._outcome(documents)}"
        text += f" ({self.microseconds} us)"
        if self.faults:
            text += f" [fault: {', '.join(self.faults)}]"
        return text

    def _outcome(self, documents: bool) -> str:
        if self.result != SUCCESS:
            return self.result
        if self.document is not None or self.document_bytes is not None:
            whole = f" {self.document.hex()}" if documents and self.document is not None else ""
            return f"a document of {self.document_bytes} bytes{whole}"
        if self.random_bytes is not None:
            return f"{self.random_bytes} random bytes"
        if self.value is not None:
            lock = "" if self.locked is None else ", locked" if self.locked else ", not locked"
            return self.value.hex() + lock
        return "done"


def _short(value: bytes | int) -> str:
    if isinstance(value, int):
        return str(value)
    if len(value) <= SHOWN_BYTES:
        return value.hex() or "empty"
    return f"{value[:SHOWN_BYTES].hex()}... ({len(value)} bytes)"


def entry(line: bytes) -> Entry | None:
    """The entry of one line of the device's log; None if it is not such a line."""
    parts = line.split(b" ")
    if len(parts) != 8 or len(line) > LINE_MAX or parts[0] != b"%d" % VERSION:
        return None
    try:
        arrived, took, dropped, size = (int(parts[n]) for n in (1, 2, 3, 5))
        moment = datetime.fromtimestamp(arrived / 1e6, timezone.utc)
        request, answer = (b"" if part == b"-" else bytes.fromhex(part.decode()) for part in parts[6:])
        names = parts[4].decode()
    except (ValueError, OverflowError, OSError):
        return None
    kind, arguments = _request(request)
    result, found = _answer(answer, kind)
    return Entry(
        time=moment.isoformat(timespec="microseconds"),
        kind=kind,
        index=_number(arguments.get("index", arguments.get("range"))),
        data=_bytes(arguments.get("data")),
        user_data=_bytes(arguments.get("user_data")),
        nonce=_bytes(arguments.get("nonce")),
        public_key=_bytes(arguments.get("public_key")),
        result=result,
        value=_bytes(found.get("data")),
        locked=found["lock"] if isinstance(found.get("lock"), bool) else None,
        random_bytes=_length(found.get("random")),
        document_bytes=_length(found.get("document")),
        document=_bytes(found.get("document")),
        microseconds=took,
        faults=tuple(names.split(",")) if names != "-" else (),
        dropped=dropped,
        request_bytes=size,
        request=None if kind else request,
    )


def _decoded(data: bytes) -> Any:
    try:
        return cbor.loads(data)
    except cbor.CborError:
        return None


def _request(data: bytes) -> tuple[str | None, Mapping[str, Any]]:
    """The operation and its arguments by name."""
    value = _decoded(data)
    given: Any = None
    if isinstance(value, Mapping) and len(value) == 1:
        ((value, given),) = value.items()
    elif isinstance(value, list) and 1 <= len(value) <= 2:
        value, given = value[0], value[1] if len(value) == 2 else None
    if not isinstance(value, str) or value not in _ARGUMENTS:
        return None, {}
    names = _ARGUMENTS[value]
    if isinstance(given, list):
        given = dict(zip(names, given, strict=False))
    elif isinstance(given, Mapping):
        # A number stands for the name in that place.
        given = {
            names[key] if type(key) is int and 0 <= key < len(names) else key: content
            for key, content in given.items()
        }
    else:
        given = {}
    return value, {name: given[name] for name in names if name in given}


def _answer(data: bytes, kind: str | None) -> tuple[str, Mapping[str, Any]]:
    """The outcome (a name or an error), and the answer's fields."""
    value = _decoded(data)
    if isinstance(value, str) and value == kind:
        return SUCCESS, {}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, content),) = value.items()
        if name == "Error" and isinstance(content, str):
            return content, {}
        if name == kind and isinstance(content, Mapping):
            return SUCCESS, content
    return "no answer" if not data else "an answer of another kind", {}


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 16 else None


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if isinstance(value, list) and all(type(one) is int and 0 <= one < 256 for one in value):
        return bytes(value)
    return None


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, bytes) else None
