# SPDX-License-Identifier: MIT
"""What an enclave of the Python API hands out: its console, a served port, its NSM's log, its record as AWS
would show it.

The enclave itself is `api.Enclave`; what these need of it is `Owner`.
"""

from __future__ import annotations

import dataclasses
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nitroctl.attestation.nsm import Entry
from nitroctl.base.errors import EnclaveError, EnclaveTimeout
from nitroctl.enclaves import logs, records, requests
from nitroctl.enclaves.console import ConsoleWatch
from nitroctl.enclaves.records import Ending, Record
from nitroctl.enclaves.waitfor import Pattern
from nitroctl.enclaves.waiting import aside
from nitroctl.vsock import sockets

# Bytes of a console that can be read after the enclave has been closed, and that last lines are taken from.
LAST_WORDS = 1 << 20


class Owner(Protocol):
    """An enclave, as its handles see it."""

    _closed: bool
    _record: Record | None
    _last_words: bytes

    @property
    def name(self) -> str: ...

    @property
    def _now(self) -> Record: ...

    def _asked_for(self, use: str) -> None: ...

    def _await(self, sock: socket.socket, deadline: float | None) -> bool: ...


class NsmLog:
    """What an enclave has asked its NSM: from the start with `nsm_log`, else since the first call here."""

    def __init__(self, enclave: Owner) -> None:
        self._enclave = enclave

    def begin(self) -> None:
        requests.begin(self._enclave._now)

    def entries(self) -> list[Entry]:
        """All that is known now."""
        return list(requests.of(self._enclave._now, follow=False))

    def follow(self) -> Iterator[Entry]:
        """From the beginning, then as they come, until the enclave has ended."""
        return requests.of(self._enclave._now, follow=True)


class EnclaveListener(sockets.Listener):
    """A served port of an enclave's parent, which ends with the enclave."""

    def __init__(self, enclave: Owner, listener: sockets.Listener, port: int) -> None:
        super().__init__(listener.socket, listener.path)
        self._enclave = enclave
        self._port = port

    def accept(self) -> socket.socket:
        """The next connection from the enclave. `socket.settimeout` on `.socket` bounds the wait. Raises
        EnclaveError when the enclave has ended and nobody can connect any more."""
        limit = self.socket.gettimeout()
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            found = self._enclave._await(self.socket, deadline)
            if not found and (deadline is None or time.monotonic() < deadline):
                continue
            try:
                return super().accept()  # without a client, the socket says so in its own way
            except OSError:
                if self.socket.fileno() >= 0:
                    raise
                # Closed between the two, by another thread: asked again, the enclave tells why.


class StrictRecord(Record):
    """A record of which what AWS tells nobody cannot be read unless it is allowed."""

    def __getattribute__(self, name: str) -> Any:
        if name == "app_status":
            object.__getattribute__(self, "__dict__")["asked_for"]("app-status")
        return super().__getattribute__(name)

    def check(self) -> None:
        """As of every record; that an application's end was a good one is its status as well."""
        super().check()
        if self.ending is Ending.ORDERLY:
            self.__dict__["asked_for"]("app-status")

    @staticmethod
    def of(record: Record, asked_for: Callable[[str], None]) -> StrictRecord:
        made = StrictRecord(
            **{field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        )
        made.__dict__["asked_for"] = asked_for
        return made


class Console:
    """What an enclave's serial port has said: kernel and applications, in order."""

    def __init__(self, enclave: Owner) -> None:
        self._enclave = enclave

    @property
    def path(self) -> Path:
        """The file that it is kept in, as long as the enclave is not closed."""
        self._enclave._asked_for("console")
        return logs.paths(self._enclave._now.home, logs.CONSOLE)[1]

    def read(self) -> bytes:
        """All of it, as it came."""
        self._enclave._asked_for("console")
        if self._is_gone:
            return self._enclave._last_words
        return b"".join(logs.read(self._enclave._now.home, logs.CONSOLE))

    @property
    def _is_gone(self) -> bool:
        return self._enclave._closed or self._enclave._record is None

    @property
    def text(self) -> str:
        """All of it, decoded, with plain line ends."""
        return self.read().decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int = 40) -> list[str]:
        """The last lines, without control characters."""
        self._enclave._asked_for("console")
        return self._tail(lines)

    def _tail(self, lines: int) -> list[str]:
        watch = ConsoleWatch()
        if self._is_gone:
            watch.feed(self._enclave._last_words)
        else:
            watch.feed(logs.read_tail(self._enclave._now.home, logs.CONSOLE, LAST_WORDS))
        return watch.tail(lines)

    def lines(self, *, timeout: float | None = None) -> Iterator[str]:
        """Line by line from the beginning, as they come, until the enclave has ended. Raises EnclaveTimeout
        after `timeout` seconds."""
        self._enclave._asked_for("console")
        rest = b""
        for data in records.follow(self._enclave._now, logs.CONSOLE, timeout=timeout):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield _text(line)
        if rest:
            yield _text(rest)

    def wait_for(self, pattern: str | re.Pattern[str], *, timeout: float = 60.0) -> re.Match[str]:
        """Wait for a line, finished or not, in which this regular expression is found; lines that were there
        before count as well. Raises EnclaveTimeout, and EnclaveError if the enclave ends without it; their
        `tail` is what the console said last."""
        self._enclave._asked_for("console")
        expression = re.compile(pattern)
        rest = b""
        try:
            for data in records.follow(self._enclave._now, logs.CONSOLE, timeout=timeout):
                *whole, rest = (rest + data).split(b"\n")
                for line in [*whole, rest]:
                    if match := expression.search(_text(line)):
                        return match
        except EnclaveTimeout:
            raise self._said(EnclaveTimeout, f"{self._missing(expression)} within {timeout:g} s") from None
        ended = self._enclave._now.message
        raise self._said(EnclaveError, f"{self._missing(expression)} until its end: {ended}")

    def _said(self, kind: type[EnclaveError], message: str) -> EnclaveError:
        error = kind(message, lines=self.tail(10), record=self._enclave._now)
        error.tail = tuple(self.tail())
        return error

    async def wait_for_async(self, pattern: Pattern, *, timeout: float = 60.0) -> re.Match[str]:
        """As `wait_for`, for asyncio."""
        return await aside(lambda: self.wait_for(pattern, timeout=timeout))

    def _missing(self, expression: re.Pattern[str]) -> str:
        return f"the enclave {self._enclave.name} did not print {expression.pattern!r}"


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
