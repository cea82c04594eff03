# SPDX-License-Identifier: MIT
"""Enclaves in a process of their own: the supervisor of a detached enclave, and how one is started.

    starter                                  supervisor (this module as a program)
      | request, a line of JSON  ------------->  |
      | <---------------- records, a line for each state; an error
      | "detach"  ---------------------------->  |   from now on it is on its own
      | "stop", and why  --------------------->  |   or: it shall end

They talk over a socket pair. If the starter's end closes before it said "detach", however that came about,
the enclave is stopped: what nobody waits for any more does not go on booting, and an enclave that belongs to
a test or to a `with` block ends with it. The supervisor's end closes with its life. What the supervisor does
is `enclave`'s business; what it leaves is in `records`. An error comes over as the object that it is,
pickled: both ends of the pair are this same program's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nitroctl.base import proc, shown
from nitroctl.base.errors import EnclaveError, EnclaveTimeout, NitroError
from nitroctl.enclaves import logs, preflight, records
from nitroctl.enclaves.lifecycle import EnclaveRun
from nitroctl.enclaves.plan import make_plan
from nitroctl.enclaves.records import Record, State
from nitroctl.enclaves.request import RunRequest

# ---- the starter's side ------------------------------------------------------------------------------


class Supervised:
    """An enclave in a process of its own, which ends with this object unless it is detached. With `orphan`
    that process is nobody's child, so that nobody has to reap it. The request is `ready`; raises as
    `preflight.check` does."""

    def __init__(self, request: RunRequest, *, orphan: bool = False) -> None:
        preflight.check(request)
        self.record: Record | None = None
        self._buffer = b""
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = proc.start(
                    [sys.executable, "-m", __name__, str(theirs.fileno()), "orphan" if orphan else "child"],
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={"PYTHONPATH": _python_path()},
                    new_session=True,
                    death_signal=0,
                )
                self._channel.sendall(_encode(request))
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

    def wait(self, timeout: float | None = None) -> Record:
        """Wait for its end, and return its last record. Raises EnclaveTimeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._channel.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                value = self._read()
            except TimeoutError:
                name = self.record.name if self.record else ""
                message = f"enclave {name} has not ended within {timeout:g} s"
                raise EnclaveTimeout(message, record=self.record) from None
            if value is None:
                break
            if "error" not in value:
                self.record = Record.from_json(value)
        self._process.wait()
        assert self.record, "it has not even begun"
        return records.again(self.record) or self.record

    def detach(self) -> None:
        """From now on it is on its own."""
        self._channel.sendall(b"detach\n")
        self._channel.close()
        self._process.wait()  # it was an orphan from the beginning

    def cancel(self) -> None:
        """Ask for the enclave's end; `wait_booted` and `wait` in other threads return after it."""
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


def start(request: RunRequest, on_state: Callable[[Record], None] | None = None) -> Record:
    """Start an enclave that outlives us, and wait for its heartbeat. Raises as Supervised.wait_booted does;
    then and after a Ctrl-C it has been stopped, and its record and logs stay."""
    supervised = Supervised(request, orphan=True)
    try:
        record = supervised.wait_booted(on_state)
        supervised.detach()
    except BaseException:
        supervised.stop()
        raise
    return record


def _encode(request: RunRequest) -> bytes:
    return json.dumps(request.to_json()).encode() + b"\n"


def _decode(line: bytes) -> RunRequest:
    return RunRequest.from_json(json.loads(line))


def _python_path() -> str:
    """The supervisor is the same nitroctl, also where that is found by a path alone."""
    own = os.fspath(Path(__file__).resolve().parents[2])
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


# ---- the supervisor's side ---------------------------------------------------------------------------


class _Starter:
    """The other end of the socket pair, as long as there is one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel: socket.socket | None = channel
        self._enclave: EnclaveRun | None = None
        self._detached = False

    def read_request(self) -> RunRequest:
        assert self._channel
        line = b""
        while not line.endswith(b"\n"):
            data = self._channel.recv(65536)
            if not data:
                sys.exit(1)  # it is gone
            line += data
        return _decode(line)

    def watch(self, running: EnclaveRun) -> None:
        assert self._channel
        self._enclave = running
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._read)

    def _read(self) -> None:
        assert self._channel and self._enclave
        try:
            data = self._channel.recv(4096)
        except OSError:
            data = b""
        word, _, why = data.decode(errors="replace").strip().partition(" ")
        if word == "stop":
            self._enclave.stop(why)
            return
        if data:
            self._detached = True
            return
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        self._channel = None
        if not self._detached:
            self._enclave.stop("stopped, because the process that started it has ended or let go of it")

    def tell(self, value: dict[str, Any]) -> None:
        if self._channel is None:
            return
        self._channel.setblocking(True)  # it is reading, or gone
        try:
            self._channel.sendall(json.dumps(value).encode() + b"\n")
        except OSError:
            pass  # _read notices
        finally:
            self._channel.setblocking(False)


def _supervise(channel: socket.socket) -> int:
    starter = _Starter(channel)
    request = starter.read_request()
    said: State | None = None

    def on_state(record: Record) -> None:
        nonlocal said
        if record.state is State.STARTING:
            _log_to(logs.paths(record.home, logs.SUPERVISOR)[1])
        if record.state is not said:
            said = record.state
            text = f": {record.message}" if record.message else ""
            shown.say(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {record.state}{text}")
        starter.tell(record.to_json())

    async def main() -> int:
        loop = asyncio.get_running_loop()
        running = EnclaveRun(make_plan(request), on_state=on_state, detached=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            text = f"stopped by {signal.Signals(number).name}"
            loop.add_signal_handler(number, functools.partial(running.stop, text, signum=number))
        starter.watch(running)
        return (await running.run()).status or 0

    try:
        return asyncio.run(main())
    except NitroError as e:
        starter.tell({"error": base64.b64encode(pickle.dumps(e)).decode()})
        return e.exit_status


def _log_to(path: Path) -> None:
    """From now on what we, QEMU and the backend have to say goes there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for number in (1, 2):
        os.dup2(fd, number)
    os.close(fd)


def _main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
    if sys.argv[2] == "orphan" and os.fork():
        return 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")  # no folder shall be busy because of us
    return _supervise(channel)


if __name__ == "__main__":
    sys.exit(_main())
