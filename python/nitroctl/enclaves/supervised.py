# SPDX-License-Identifier: MIT
"""Enclaves in a process of their own, as whoever starts them has them: the starter's side of `supervisor`,
which see. Only that process needs an event loop and all that runs an enclave; here nothing of it is imported.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nitroctl.base import proc
from nitroctl.base.errors import EnclaveError, NitroError
from nitroctl.enclaves import records
from nitroctl.enclaves.plan import Plan, make_plan
from nitroctl.enclaves.records import Record, State
from nitroctl.enclaves.request import RunRequest

PROGRAM = "nitroctl.enclaves.supervisor"


class Supervised:
    """An enclave in a process of its own, which ends with this object unless it is detached. With `orphan`
    that process is nobody's child, so that nobody has to reap it. What is no plan yet is a request that is
    `ready`, of which one is made: raises as `make_plan` does."""

    def __init__(self, todo: RunRequest | Plan, *, orphan: bool = False) -> None:
        plan = todo if isinstance(todo, Plan) else make_plan(todo)
        self.record: Record | None = None
        self._buffer = b""
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = proc.start(
                    [sys.executable, "-m", PROGRAM, str(theirs.fileno()), "orphan" if orphan else "child"],
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={"PYTHONPATH": _python_path()},
                    new_session=True,
                    death_signal=0,
                )
                self._channel.sendall(encode(plan))
            except BaseException:
                self._channel.close()
                raise

    def wait_booted(self, on_state: Callable[[Record], None] | None = None) -> Record:
        """Wait for the heartbeat. Raises what `nitroctl run` would end with, and EnclaveError for an enclave
        that was stopped or has ended in good order before it."""
        while value := self._read():
            if "error" in value:
                error: NitroError = pickle.loads(base64.b64decode(value["error"]))
                raise error
            self.record = record = Record.from_json(value)
            if on_state:
                on_state(record)
            if record.booted is not None:
                # It may have ended since; whoever uses it will notice.
                return record
        if self.record and self.record.state is State.ENDED:
            self.record.check()
            raise EnclaveError(f"enclave {self.record.name}: {self.record.message}", record=self.record)
        raise EnclaveError(
            f"the enclave's supervisor died (status {self._process.wait()})", record=self.record
        )

    def _read(self) -> dict[str, Any] | None:
        """The next line's value, None at the end. Raises TimeoutError if the channel has a limit."""
        while b"\n" not in self._buffer:
            data = self._receive()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def _receive(self) -> bytes:
        """What comes next; nothing at the end, also at one that left a word of ours unread."""
        with contextlib.suppress(ConnectionResetError):
            return self._channel.recv(65536)
        return b""

    def detach(self) -> None:
        """From now on it is on its own."""
        self._channel.sendall(b"detach\n")
        self._channel.close()
        self._process.wait()  # it was an orphan from the beginning

    def cancel(self) -> None:
        """Ask for the enclave's end; `wait_booted` in another thread returns after it."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def stop(self, why: str = "stopped, as the process that started it asked for") -> None:
        """End the enclave, and wait for that; `why` becomes its record's message. A second call does
        nothing."""
        if self._channel.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._channel.sendall(f"stop {why}\n".encode())
        self.cancel()
        try:
            self._channel.settimeout(records.STOP_SECONDS)
            while self._receive():
                pass
        except TimeoutError:
            if self.record:
                records.stop(self.record, kill=True)
        self._channel.close()
        self._process.wait()


def start(todo: RunRequest | Plan, on_state: Callable[[Record], None] | None = None) -> Record:
    """Start an enclave that outlives us, and wait for its heartbeat. Raises as Supervised and its wait_booted
    do; after a failed boot and after a Ctrl-C it has been stopped, and its record and logs stay."""
    supervised = Supervised(todo, orphan=True)
    try:
        record = supervised.wait_booted(on_state)
        supervised.detach()
    except BaseException:
        supervised.stop()
        raise
    return record


def encode(plan: Plan) -> bytes:
    return json.dumps(plan.to_json()).encode() + b"\n"


def decode(line: bytes) -> Plan:
    return Plan.from_json(json.loads(line))


def _python_path() -> str:
    """The supervisor is the same nitroctl, also where that is found by a path alone."""
    own = os.fspath(Path(__file__).resolve().parents[2])
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
