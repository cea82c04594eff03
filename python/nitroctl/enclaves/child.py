# SPDX-License-Identifier: MIT
"""A program that we started and watch: its end, what it says on standard error, and how it is ended.

QEMU and the vsock backend alike; which programs there are and what their ends mean is not known here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import deque
from collections.abc import Sequence
from typing import Any

from nitroctl.base import proc, shown
from nitroctl.base.confine import Confinement

STOP_SECONDS = 5.0  # from SIGTERM to SIGKILL
STATISTICS_SECONDS = 2.0  # for the backend to tell what it saw


class Child:
    """A started program: `exited` becomes its status; its standard error comes line by line to `tail`, and
    to our own standard error once `forward` was called."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int],
        stdout: int,
        death_signal: int,
        confinement: Confinement | None = None,
    ) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=20)
        self._forwarding = False
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._stderr, writer = os.pipe()
        os.set_blocking(self._stderr, False)
        try:
            self._process = proc.start(
                argv,
                stdout=stdout,
                stderr=writer,
                pass_fds=pass_fds,
                new_session=True,
                death_signal=death_signal,
                confinement=confinement,
            )
        except BaseException:
            os.close(self._stderr)
            raise
        finally:
            os.close(writer)
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._answer: asyncio.Future[bytes] | None = None
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._loop.add_reader(self._stderr, self._on_stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _on_exit(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._stderr >= 0:
            self._on_stderr()
        if not self.exited.done():
            self.exited.set_result(status)

    def _on_stderr(self) -> None:
        while self._stderr >= 0:
            try:
                data = os.read(self._stderr, 65536)
            except BlockingIOError:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            if not data:
                lines, self._rest = [self._rest] if self._rest else [], b""
                self._close_stderr()
            elif len(self._rest) > 4096:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                if self._answer and not self._answer.done() and line.startswith(b"{"):
                    self._answer.set_result(line)
                    continue
                text = shown.line(line.decode(errors="replace").rstrip())
                self.tail.append(text)
                if self._forwarding:
                    shown.say(text)

    def _close_stderr(self) -> None:
        if self._stderr >= 0:
            self._loop.remove_reader(self._stderr)
            os.close(self._stderr)
            self._stderr = -1

    def forward(self) -> None:
        """From now on what it says on standard error is said on ours; what it said already, now."""
        if not self._forwarding:
            self._forwarding = True
            for text in self.tail:
                shown.say(text)

    def hush(self) -> None:
        """What it says about being told to end is for nobody."""
        self._forwarding = False

    def ended_how(self) -> str:
        """A clause about its end, with what it said if nobody has seen that yet."""
        status = self.exited.result()
        if status < 0:
            try:
                how = f"{self.name} was killed by {signal.Signals(-status).name}"
            except ValueError:
                how = f"{self.name} was killed by signal {-status}"
        else:
            how = f"{self.name} ended with status {status}"
        said = [] if self._forwarding else [line for line in self.tail if line]
        return f"{how}: {'; '.join(said[-4:])}" if said else how

    def signal(self, number: int) -> None:
        if not self.exited.done():
            self._process.send_signal(number)

    async def statistics(self) -> dict[str, Any] | None:
        """What the vsock backend counted, None if it does not say."""
        self._answer = self._loop.create_future()
        self.signal(signal.SIGUSR1)
        either = (self._answer, self.exited)
        await asyncio.wait(either, timeout=STATISTICS_SECONDS, return_when="FIRST_COMPLETED")
        try:
            found = json.loads(self._answer.result())
        except (asyncio.InvalidStateError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    async def stop(self) -> None:
        """End it and reap it."""
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self.exited), STOP_SECONDS)
        except asyncio.TimeoutError:  # another one than the built-in until Python 3.11
            self.signal(signal.SIGKILL)
            await self.exited
        finally:
            self._close_stderr()
