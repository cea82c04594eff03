# SPDX-License-Identifier: MIT
"""What a guest's serial console tells about its life: panic, halt, the last lines.

Pure: bytes in, facts out. The bytes come from the guest and may be anything, of any length; what is kept is
bounded. Where they come from and where they go is `lifecycle`'s business.

The texts are the Linux kernel's own (kernel/panic.c, kernel/reboot.c), which it prints at the emergency
level, so that `quiet` does not hide them. They count only as kernel messages: right after a time stamp (an
application may have left its line unfinished before it), or at the start of a line for kernels without time
stamps. An application that prints such a line itself is believed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

LINE_MAX = 1024  # bytes kept of one line
TAIL_LINES = 60  # lines kept

# "[    1.234567] ", with CONFIG_PRINTK_CALLER "[    1.234567][    T1] "; nothing without printk.time.
STAMP = rb"\[ *[0-9]+\.[0-9]{6}\](?:\[ *[TC][0-9]+\])? "
_START = rb"(?:^|" + STAMP + rb")"
_KERNEL_LINE = rb"^\[ *[0-9]+\.[0-9]{6}\]"
_PANIC = _START + rb"Kernel panic - not syncing: ?(.*)"
# After one of these the kernel only waits: nothing more will come.
_PANIC_OVER = _START + rb"(?:Rebooting in [0-9]+ seconds|---\[ end Kernel panic)"
_HALT = _START + rb"reboot: (System halted|Power down)"


class ConsoleWatch:
    """Reads along. `panic` is the panic's text, `panic_over` that all of it has been printed, `halted` what
    the kernel said when it stopped its CPUs without a reset, `last_word` the last line of user space before
    the panic. `on_line` is called with each whole line, without its end."""

    def __init__(self, on_line: Callable[[bytes], object] | None = None) -> None:
        self._on_line = on_line
        self.panic: str | None = None
        self.panic_over = False
        self.halted: str | None = None
        self.last_word: str | None = None
        self.received = 0
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._line = bytearray()

    def feed(self, data: bytes) -> None:
        self.received += len(data)
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._append(piece)
            self._end_line()
        self._append(rest)

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines, without control characters, an unfinished one included."""
        unfinished = printable(bytes(self._line))
        every = [*self._lines, unfinished] if unfinished else list(self._lines)
        return every[-lines:]

    def _append(self, piece: bytes) -> None:
        room = LINE_MAX - len(self._line)
        if room > 0:
            self._line += piece[:room]

    def _end_line(self) -> None:
        line = bytes(self._line).strip(b"\r\0 ")
        self._line.clear()
        if self._on_line:
            self._on_line(line)
        text = printable(line)
        self._lines.append(text)
        if self.panic is not None:
            if re.search(_PANIC_OVER, line):
                self.panic_over = True
        elif b"Kernel panic" in line and (match := re.search(_PANIC, line)):
            self.panic = printable(match[1]) or "no reason given"
        elif b"reboot: " in line and (match := re.search(_HALT, line)):
            self.halted = printable(match[1])
        elif text and not re.match(_KERNEL_LINE, line):
            self.last_word = text


def printable(line: bytes) -> str:
    """A line as text without control characters."""
    text = line.decode(errors="replace").strip()
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
