# SPDX-License-Identifier: MIT
"""A running enclave's NSM as its supervisor has it: the log of what is asked of it, its clock, and its
faults.

Everything is a property of the device, set over QMP while the guest runs (docs/machine.md), so an enclave
that nobody looks at is started with the same command line as ever and writes nothing. The log begins when
somebody first wants it, and goes on to the end: entry by entry to the enclave's home, and to a file of the
user's. What the lines mean is `attestation.nsm`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base.errors import EnclaveError, NitroError, UsageError
from nitroctl.enclaves import logs
from nitroctl.enclaves.monitor import NSM, Qmp

if TYPE_CHECKING:
    from nitroctl.attestation.nsm import Entry
    from nitroctl.enclaves.faults import ClockFault, NsmFault

_CHARDEV = "nsm-log"
_PIECE = 1 << 16

# What the device has of faults, and what it has where there is none.
_QUIET: dict[str, object] = {
    "fault-kind": "",
    "fault-errors": 0,
    "fault-delays": 0,
    "fault-delay-ms": 0,
    "fault-expired": False,
    "fault-die-after": 0,
    "fault-rate": 1000,
    "fault-seed": 0,
}


class Nsm:
    """`on_entry` hears each entry of the log. What is open is closed by `close`."""

    def __init__(self, qmp: Qmp, home: Path, on_entry: Callable[[Entry], None]) -> None:
        self._qmp = qmp
        self._on_entry = on_entry
        self._sinks = [logs.LogSink(home, logs.NSM)]
        self._attaching = asyncio.Lock()
        self._ours: socket.socket | None = None
        self._rest = b""

    # -- the log

    async def log(self, file: Path | None = None) -> None:
        """See to it that there is one from now on, also in `file`, which is emptied. Raises NitroError."""
        if file is not None:
            from nitroctl.enclaves import capture

            os.close(capture.open_file(file))
            self._sinks.append(logs.LogSink.at(file))
        async with self._attaching:
            if self._ours is not None:
                return
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    await self._qmp.add_socket(_CHARDEV, theirs)
                try:
                    await self._set("log", _CHARDEV)
                except NitroError:
                    with contextlib.suppress(EnclaveError):
                        await self._qmp.execute("chardev-remove", id=_CHARDEV)  # for whoever asks again
                    raise
            except BaseException:
                ours.close()
                raise
            ours.setblocking(False)
            self._ours = ours
            asyncio.get_running_loop().add_reader(ours, self._read)

    def _read(self) -> None:
        """A piece; the loop has its turn between two."""
        from nitroctl.attestation import nsm as words

        assert self._ours
        try:
            data = self._ours.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._ours)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > words.LINE_MAX:
            self._rest = b""
        entries = list(filter(None, map(words.entry, lines)))
        if entries:
            text = b"".join(
                json.dumps({"schema": 1, **entry.to_json(documents=True)}).encode() + b"\n"
                for entry in entries
            )
            for sink in self._sinks:
                sink.append(text)
        for entry in entries:
            self._on_entry(entry)

    def drain(self) -> None:
        """Take what is still there, once QEMU is gone."""
        while self._ours is not None and self._ours.fileno() >= 0:
            before = self._ours
            try:
                if not before.recv(1, socket.MSG_PEEK):
                    return
            except OSError:
                return
            self._read()

    def close(self) -> None:
        if self._ours is not None:
            self.drain()
            asyncio.get_running_loop().remove_reader(self._ours)
            self._ours.close()
        for sink in self._sinks:
            sink.close()

    # -- faults

    async def fault(self, fault: NsmFault) -> None:
        """From now on, in the place of the fault of this kind that there was."""
        from nitroctl.enclaves.faults import ALWAYS

        # What decides whom it befalls comes first, what arms it last.
        await self._set("fault-kind", fault.kind or "")
        await self._set("fault-rate", round(fault.rate * 1000))
        await self._set("fault-seed", fault.seed)
        await self._set("fault-expired", fault.expired)
        await self._set("fault-delay-ms", fault.delay_ms)
        count = ALWAYS if fault.count is None else fault.count
        await self._set("fault-delays", count if fault.delay_ms else 0)
        await self._set("fault-errors", count if fault.error else 0)

    async def die_after(self, requests: int) -> None:
        await self._set("fault-die-after", requests)

    async def clock(self, fault: ClockFault) -> None:
        if fault.drift_ppm is not None:
            await self._set("clock-drift-ppm", fault.drift_ppm)
        if fault.jump_ms is not None:
            now: int = await self._qmp.get(NSM, "clock-offset-ms")
            await self._set("clock-offset-ms", now + fault.jump_ms)

    async def clear(self) -> None:
        for name, value in _QUIET.items():
            await self._set(name, value)
        await self._set("clock-drift-ppm", 0)
        await self._set("clock-offset-ms", 0)

    async def state(self) -> Mapping[str, Any]:
        """What is set, and how often it was felt."""
        names = [*_QUIET, "clock-offset-ms", "clock-drift-ppm", "requests", "fault-hits", "log-dropped"]
        return {name.replace("-", "_"): await self._qmp.get(NSM, name) for name in names}

    async def _set(self, name: str, value: object) -> None:
        try:
            await self._qmp.set(NSM, name, value)
        except EnclaveError as e:
            if "not found" in str(e):
                raise EnclaveError(
                    f"this QEMU's NSM has no {name}: it is of an older version, or not ours",
                    hint="`nitroctl build` makes one that has",
                ) from e
            if "QEMU refuses" in str(e):
                raise UsageError(str(e)) from e
            raise
