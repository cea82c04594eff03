# SPDX-License-Identifier: MIT
"""Asking a running enclave, from any process of its user: the other end of `control`.

Blocking, for commands and the Python API. What can be asked is known by who offers and who asks it.
"""

from __future__ import annotations

import array
import contextlib
import json
import socket
from collections.abc import Sequence
from typing import Any

from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import records
from nitroctl.enclaves.control import VERSION
from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.records import Record
from nitroctl.vsock import sockets

SECONDS = 30.0  # for any answer
_LINE_MAX = 1 << 24


def ask(record: Record, do: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
    """What the enclave answers to one request. Raises EnclaveError if it has ended, and what it refuses: a
    UsageError where the request was wrong."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(_connect(record))
        # Whoever ends meanwhile closes it; reading is bounded like all else here.
        file = stack.enter_context(sock.makefile("rb"))
        try:
            hello = _read(file.readline(_LINE_MAX), record)
            if hello.get("control") != VERSION:
                raise EnclaveError(
                    f"enclave {record.name} has version {hello.get('control')!r} of its control socket, "
                    f"and this nitroctl version {VERSION}",
                    hint="use the nitroctl that started it, or start it anew",
                    record=record,
                )
            if hello.get("id") != record.id:  # the next one with its context ID
                raise _gone(record)
            request = json.dumps({"do": do, **arguments}).encode() + b"\n"
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sent = sock.sendmsg([request], control)
            sock.sendall(request[sent:])
            answer = _read(file.readline(_LINE_MAX), record)
        except TimeoutError:
            raise EnclaveError(
                f"enclave {record.name} has not answered within {SECONDS:g} s", record=record
            ) from None
        except OSError as e:
            raise _gone(record) from e
    if "error" in answer:
        kind = UsageError if answer.get("usage") else EnclaveError
        raise kind(str(answer["error"]), hint=answer.get("hint"))
    return answer.get("answer")


def _connect(record: Record) -> socket.socket:
    if not record.running:
        raise EnclaveError(f"the enclave {record.name!r} has ended: {record.message}", record=record)
    path = Folder(record.cid, record.folder).control
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(SECONDS)
        sock.connect(sockets.check_path(path))
    except OSError as e:
        sock.close()
        raise _gone(record) from e
    except BaseException:
        sock.close()
        raise
    return sock


def _gone(record: Record) -> EnclaveError:
    now = records.again(record)
    if now is None or not now.running:
        return records.ended_meanwhile(record, now)
    return EnclaveError(
        f"enclave {record.name} cannot be asked: it is starting or ending, or an older nitroctl started it",
        hint="try again in a moment; what an older nitroctl started can be asked by that one alone",
        record=now,
    )


def _read(line: bytes, record: Record) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise _gone(record)
    value: dict[str, Any] = json.loads(line)
    return value
