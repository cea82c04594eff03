# SPDX-License-Identifier: MIT
"""A command in a guest, joined to this process's terminal, or to its standard input and output.

With a terminal every key is the guest's, Ctrl-C too; three Ctrl-] in a row leave it, which helps when the
guest does not answer any more. Without one, standard output and error stay apart, the end of standard input
is passed on, and so are the signals that would end us. What the command says passes as it is, as it would
from a serial line: it is a stream of bytes and no text of ours.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import termios
import tty as tty_modes
from collections.abc import Iterator, Sequence
from types import FrameType

from nitroctl.base.errors import NitroError
from nitroctl.enclaves.records import Record
from nitroctl.inside import agent

STDIN, STDOUT, STDERR = 0, 1, 2
ESCAPE = b"\x1d"  # Ctrl-]
ESCAPES = 3
EXIT_ESCAPED = 130

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def is_terminal() -> bool:
    return os.isatty(STDIN) and os.isatty(STDOUT)


def run(record: Record, words: Sequence[str], *, terminal: bool) -> int:
    """Run a command, busybox's shell if there is none, to its end, from the main thread; returns its exit
    status, 128 and the signal if it died of one."""
    agent.check(record)
    rows, columns = _size() if terminal else (0, 0)
    term = os.environb.get(b"TERM", b"vt100")
    environment = [b"TERM=" + term] if terminal else []
    with contextlib.ExitStack() as stack:
        call = stack.enter_context(
            agent.Call(
                record, b"X", words, flags=agent.TTY if terminal else 0, rows=rows, columns=columns,
                environment=environment,
            )
        )  # fmt: skip
        numbers = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP) if terminal else _PASSED_ON
        wake = stack.enter_context(_signals(numbers))
        if terminal:
            stack.enter_context(_raw())
        return _Session(call, wake, terminal).run()


class _Session:
    def __init__(self, call: agent.Call, wake: int, terminal: bool) -> None:
        self._call = call
        self._wake = wake
        self._terminal = terminal
        self._may_send = True  # what was sent last has been taken
        self._input = True  # not at its end
        self._escapes = 0

    def run(self) -> int:
        sock = self._call.socket
        while True:
            for kind, payload in self._call.frames():
                if kind == b"o":
                    _write(STDOUT, payload)
                elif kind == b"r":
                    _write(STDERR, payload)
                elif kind == b"a":
                    self._may_send = True
                elif kind == b"x":
                    return agent.status_of(payload)
            ready = select.poll()
            ready.register(sock, select.POLLIN)
            ready.register(self._wake, select.POLLIN)
            if self._may_send and self._input:
                ready.register(STDIN, select.POLLIN)
            found = dict(ready.poll())
            if self._wake in found:
                self._pass_signals()
            if STDIN in found and self._take_input():
                return EXIT_ESCAPED
            if sock.fileno() in found:
                self._call.pull()

    def _take_input(self) -> bool:
        """Send what there is; true if the user wants to leave."""
        try:
            data = os.read(STDIN, agent.PIECE)
        except OSError as e:
            raise NitroError(f"cannot read standard input: {e.strerror}") from e
        if not data:
            self._input = False
            self._call.send(b"e")
            return False
        if self._terminal:
            self._escapes = self._escapes + len(data) if set(data) == set(ESCAPE) else 0
            if self._escapes >= ESCAPES:
                return True
        self._may_send = False
        self._call.send(b"i", data)
        return False

    def _pass_signals(self) -> None:
        for number in os.read(self._wake, 64):
            if number == signal.SIGWINCH and self._terminal:
                self._call.send(b"w", struct.pack("<HH", *_size()))
            elif self._terminal:
                raise SystemExit(128 + number)  # the terminal is put right on the way
            else:
                self._call.send(b"s", bytes([number]))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _size() -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(STDOUT)
    except OSError:
        return 24, 80
    return rows, columns


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    before = termios.tcgetattr(STDIN)
    tty_modes.setraw(STDIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(numbers: Sequence[int]) -> Iterator[int]:
    """A descriptor from which the numbers of these signals are read, in place of what they would do."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _nothing) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
