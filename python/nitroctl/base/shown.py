# SPDX-License-Identifier: MIT
"""Text on its way to a terminal or a log: whatever is shown to people goes through here, and nothing else.

Certificates, images, consoles, file names: others choose what they say. Shown as it is, it could move the
cursor, ring, retitle the window, or look like a line of ours. So what is not printable becomes visible
(`\\x1b`, `\\n`, `\\u202e`), and what is too long loses its middle.

    line(text)     text as one line
    say(*texts)    lines on stderr, at once
    failure(error) an expected failure on stderr, with its hint
    echo(*texts)   lines on stdout
    styled(*parts) one line on stdout of texts, and pairs of a text and a style of rich's
    bare(text)     on stdout what another program may read, such as a path: as it is, but not on a terminal
    data(text)     on stdout what is JSON or base64 already, in which nothing can hide
    command(argv)  a command line that can be shown, and pasted

A console that a user asks for is a stream of bytes and no text of ours: it passes as it is, as it would from
a serial line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

LINE_MAX = 2000  # characters of one line, before they are escaped

_GAP = " ... "


def _visible(c: str) -> str:
    if 0xDC80 <= ord(c) <= 0xDCFF:  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape", "surrogatepass").decode()


def line(text: object, limit: int = LINE_MAX) -> str:
    whole = str(text)
    if len(whole) > limit:
        end = limit // 4
        whole = whole[: limit - len(_GAP) - end] + _GAP + whole[-end:]
    return _escaped(whole)


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else _visible(c) for c in text)


def say(*texts: object) -> None:
    for text in texts:
        print(line(text), file=sys.stderr, flush=True)


def failure(error: Exception, hint: str | None) -> None:
    """An expected failure on stderr: what it says, and what can be done."""
    say(*f"error: {error}".split("\n"))
    if hint:
        say(f"hint: {hint}")


def echo(*texts: object) -> None:
    for text in texts or ("",):
        data(line(text))


def styled(*parts: str | tuple[str, str]) -> None:
    from rich.console import Console
    from rich.text import Text

    whole = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        whole.append(line(text), style)
    Console(highlight=False, soft_wrap=True).print(whole)


def bare(text: str | os.PathLike[str]) -> None:
    buffer = getattr(sys.stdout, "buffer", None)  # a program that calls us may have put in its own
    if buffer is None or sys.stdout.isatty():
        data(_escaped(os.fspath(text)))
        return
    sys.stdout.flush()
    buffer.write(os.fsencode(text) + b"\n")
    buffer.flush()


def data(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def command(argv: Sequence[str | os.PathLike[str]]) -> str:
    return " ".join(_word(os.fspath(word)) for word in argv)


def _word(word: str) -> str:
    if word.isprintable():
        import shlex

        return shlex.quote(word)
    # $'...' as bash, zsh and POSIX.1-2024 have it.
    text = "".join(
        f"\\{c}" if c in "\\'" else c if c.isprintable() else "".join(f"\\{b:03o}" for b in os.fsencode(c))
        for c in word
    )
    return f"$'{text}'"
