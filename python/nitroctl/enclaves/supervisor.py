# SPDX-License-Identifier: MIT
"""The supervisor of an enclave in a process of its own: this module as a program.

    starter (`supervised`)                   supervisor
      | the plan, a line of JSON ------------->  |
      | <---------------- records, a line for each state; an error
      | "detach"  ---------------------------->  |   from now on it is on its own
      | "stop", and why  --------------------->  |   or: it shall end

They talk over a socket pair. If the starter's end closes before it said "detach", however that came about,
the enclave is stopped: what nobody waits for any more does not go on booting, and an enclave that belongs to
a test or to a `with` block ends with it. The supervisor's end closes with its life. What the supervisor does
is `lifecycle`'s business; what it leaves is in `records`. An error comes over as the object that it is,
pickled: both ends of the pair are this same program's.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import pickle
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from nitroctl.base import shown
from nitroctl.base.errors import NitroError
from nitroctl.enclaves import logs
from nitroctl.enclaves.lifecycle import EnclaveRun
from nitroctl.enclaves.plan import Plan
from nitroctl.enclaves.records import Record, State
from nitroctl.enclaves.supervised import decode


class _Starter:
    """The other end of the socket pair, as long as there is one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel: socket.socket | None = channel
        self._enclave: EnclaveRun | None = None
        self._detached = False

    def read_plan(self) -> Plan:
        assert self._channel
        line = b""
        while not line.endswith(b"\n"):
            data = self._channel.recv(65536)
            if not data:
                sys.exit(1)  # it is gone
            line += data
        return decode(line)

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
    plan = starter.read_plan()
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
        running = EnclaveRun(plan, on_state=on_state, detached=True)
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
