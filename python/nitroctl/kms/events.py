# SPDX-License-Identifier: MIT
"""The log of events: one JSON line per request, in the form of a CloudTrail event. It adds what CloudTrail
does not tell: which statement decided, and for a denial what was missing. Events contain no plaintext, no
attestation document and no ciphertext."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base.instants import UTC
from nitroctl.kms import callers, images
from nitroctl.kms.conditions import is_recipient, recipient_pcr
from nitroctl.kms.errors import KmsError
from nitroctl.kms.keys import Place
from nitroctl.kms.names import Caller

if TYPE_CHECKING:
    from nitroctl.kms.call import Call, Origin

FILE = "events.jsonl"
MOST_BYTES = 64 << 20  # size at which the file is renamed to FILE.1, replacing the former FILE.1

# Parameters that an event shows, as CloudTrail does: names and choices, never secrets.
_SHOWN = (
    "KeyId", "EncryptionAlgorithm", "EncryptionContext", "KeySpec", "NumberOfBytes", "KeyPairSpec",
    "KeyAgreementAlgorithm", "SigningAlgorithm", "MessageType", "MacAlgorithm", "SourceKeyId",
    "DestinationKeyId",
    "SourceEncryptionContext", "DestinationEncryptionContext", "SourceEncryptionAlgorithm",
    "DestinationEncryptionAlgorithm", "AliasName", "TargetKeyId", "Description", "KeyUsage", "Origin",
    "MultiRegion", "PendingWindowInDays", "GranteePrincipal", "RetiringPrincipal", "Operations",
    "Constraints",
    "Name", "GrantId", "Policy", "PolicyName", "BypassPolicyLockoutSafetyCheck", "WrappingAlgorithm",
    "WrappingKeySpec", "ExpirationModel", "Limit", "Marker", "Tags", "TagKeys", "DryRun",
    "RotationPeriodInDays",
)  # fmt: skip
_TEXT_MAX = 1000


def _shown(value: Any) -> Any:
    return value[:_TEXT_MAX] + "..." if isinstance(value, str) and len(value) > _TEXT_MAX else value


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]


def event(
    operation: str,
    place: Place,
    caller: Caller | None,
    origin: Origin,
    request_id: str,
    *,
    call: Call | None = None,
    error: KmsError | None = None,
    read_only: bool = True,
) -> dict[str, Any]:
    """Make an event. `caller` is None for the store's owner, and if the caller could not be identified."""
    if caller:
        who = callers.identity(caller, origin.access_key)
    else:
        who = {"type": "Operator" if call else "Unknown", "accountId": place.account}
    found: dict[str, Any] = {
        "eventVersion": "1.11",
        "userIdentity": who,
        "eventTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "eventSource": "kms.amazonaws.com",
        "eventName": operation[:100],
        "awsRegion": place.region,
        "sourceIPAddress": origin.address,
        "userAgent": _shown(origin.agent),
    }
    if error:
        # CloudTrail writes this error without "Exception" at the end, and all others with it.
        code = "AccessDenied" if error.kind == "AccessDeniedException" else error.kind
        found |= {"errorCode": code, "errorMessage": error.text}
    parameters = call.parameters if call else {}
    found["requestParameters"] = {
        _camel(name): _shown(parameters[name]) for name in _SHOWN if name in parameters
    } or None
    found["responseElements"] = None
    if call and call.recipient and not error:
        found["additionalEventData"] = {"recipient": call.recipient.event()}
    found |= {
        "requestID": request_id,
        "eventID": str(uuid.uuid4()),
        "readOnly": read_only,
        "resources": [
            {"accountId": key.account, "type": "AWS::KMS::Key", "ARN": key.arn} for key in call.resources
        ] if call else [],
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": place.account,
    }  # fmt: skip
    found["why"] = _why(call, error)
    return found


def _why(call: Call | None, error: KmsError | None) -> dict[str, Any]:
    decisions = call.decisions if call else []
    text = error.why if error else "; ".join(dict.fromkeys(decision.why for decision in decisions))
    found: dict[str, Any] = {"text": text}
    if call:
        if known := _images(call):
            found["text"] = f"{text}; {known}"
        found["decisions"] = [decision.json() for decision in decisions]
        if call.notes:
            found["notes"] = call.notes
        if call.recipient:
            document = call.recipient.document
            found["document"] = {
                "moduleId": document.module_id,
                "debug": document.debug,
                "unmeasured": document.unmeasured,
                "pcrs": {
                    f"PCR{n}": v.hex() for n, v in document.pcrs.items() if n in (0, 1, 2, 3, 4, 8) or any(v)
                },
            }
    return found


def _images(call: Call) -> str:
    """Which images the PCR values of a denial belong to, as far as known."""
    told = []
    for decision in call.decisions:
        for tested in () if decision.allowed else decision.tests:
            if tested.held or not is_recipient(tested.test.key):
                continue
            pcr = recipient_pcr(tested.test.key)
            for value in tested.test.values:
                if about := images.tell(call.store, pcr, value):
                    told.append(f"{value[:8]}... is {about}")
            for value in tested.found or ():
                if about := images.tell(call.store, pcr, value):
                    told.append(f"the document's {value[:8]}... is {about}")
    return "; ".join(dict.fromkeys(told))


class Log:
    """Writes events to the file in `folder` and hands each one to `tell`. Several servers may write to one
    file: each event is appended by a single write."""

    def __init__(self, folder: Path | None, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path = folder / FILE if folder else None
        self._tell = tell
        self._cut = False  # whether a full disk has left an incomplete line at the end
        self._lock = threading.Lock()

    def write(self, happened: dict[str, Any]) -> None:
        with self._lock:
            # A full disk must not make requests fail: `tell` still gets the event, for the terminal.
            with contextlib.suppress(OSError):
                self._append(json.dumps(happened).encode() + b"\n")
            if self._tell:
                self._tell(happened)

    def _append(self, line: bytes) -> None:
        if self.path is None:
            return
        if self._cut:
            line = b"\n" + line
        with self._opened(self.path) as file:
            full = os.fstat(file.fileno()).st_size + len(line) > MOST_BYTES
            if not full:
                self._cut = file.write(line) != len(line)
        if full:
            self.path.rename(f"{self.path}.1")
            with self._opened(self.path) as file:
                self._cut = file.write(line) != len(line)

    @staticmethod
    def _opened(path: Path) -> FileIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return FileIO(os.open(path, flags, 0o600), "a")


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """All events in the files, oldest first. An incomplete line (the disk was full) is skipped."""
    for path in (folder / f"{FILE}.1", folder / FILE):
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def sentence(happened: dict[str, Any]) -> str:
    """One event as a sentence for people."""
    who = happened["userIdentity"]
    name = who.get("arn", "the store's owner" if who["type"] == "Operator" else "an unknown caller")
    code = happened.get("errorCode")
    outcome = "ok" if code is None else code
    why = happened.get("why", {})
    notes = "".join(f"; note: {note}" for note in why.get("notes", ()))
    return (
        f"{happened['eventTime']} {happened['eventName']} by {name}: {outcome}: {why.get('text', '')}{notes}"
    )
