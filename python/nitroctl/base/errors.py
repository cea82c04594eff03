# SPDX-License-Identifier: MIT
"""The errors that a user can meet, and the exit statuses they end in. Not a place for logic.

    NitroError                 something went wrong that we can explain: message, hint, exit status
    ├── UsageError             the request itself is wrong (status 2)
    ├── NotBuilt               what nitroctl makes is not there yet: the hint makes it
    ├── CommandFailed          a program that we ran failed: its command line, its last lines, its log
    ├── EifError               a broken or refused Enclave Image File: `rule`, file, offset
    └── EnclaveError           an enclave did not run or end as it should
        ├── BootTimeout        no heartbeat in time (status 3)
        ├── GuestPanic         the guest's kernel panicked (status 4)
        ├── ApplicationFailed  its application ended with another status than 0, or by a signal (status 5)
        └── EnclaveTimeout     it did not do in time what was waited for; a TimeoutError as well

A message says what was wrong, with the value; the hint says what to do next. The command line prints
both without a traceback; a traceback means a bug of ours. Both are one line, whatever a value in them holds;
what a message cites in lines of its own (`lines`) follows it indented.

What an error knows are attributes, never only words: all have `cause`, `record` and `tail`, which say
something where an enclave was involved, and a class may have facts of its own. They survive pickling, and so
the way from an enclave's supervisor to whoever started it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nitroctl.base import shown

if TYPE_CHECKING:
    from pathlib import Path

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NO_HEARTBEAT = 3
EXIT_GUEST_PANIC = 4
EXIT_APPLICATION = 5
EXIT_TIMEOUT = 124  # as timeout(1) has it
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class NitroError(Exception):
    """An expected failure. `message` is one line, `lines` are what it cites, `str(error)` is both; `hint`
    says what to do about it, if we know.

    Where it was an enclave that failed: `cause` is the name of a likely cause, `record` what is known about
    the enclave (a `nitroctl.Record`), `tail` its console's last lines.
    """

    exit_status = EXIT_FAILURE
    cause: str | None = None
    record: Any = None  # a Record, whose class is upstairs
    tail: tuple[str, ...] = ()

    def __init__(self, message: str, *, hint: str | None = None, lines: Sequence[str] = ()) -> None:
        self.message = shown.line(message)
        self.lines = tuple(shown.line(line.expandtabs()) for line in lines)
        super().__init__("\n".join([self.message, *(f"  {line}" for line in self.lines)]))
        self.hint = shown.line(hint) if hint else None
        if hint and sys.version_info >= (3, 11):
            self.add_note(f"hint: {self.hint}")  # for tracebacks: those of programs that use the package

    @property
    def facts(self) -> dict[str, Any]:
        """What only errors of this class know, by the names of the attributes."""
        return {name: value for name, value in vars(self).items() if name not in _COMMON}

    def to_json(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "message": self.message,
            "lines": self.lines,
            "hint": self.hint,
            "exit_status": self.exit_status,
            "cause": self.cause,
            "record": None if self.record is None else self.record.to_json(),
            "tail": self.tail,
            "facts": self.facts,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, vars(self))


_COMMON = {"message", "lines", "hint", "exit_status", "cause", "record", "tail", "__notes__"}


def _again(kind: type[NitroError], args: tuple[object, ...], attributes: dict[str, Any]) -> NitroError:
    """An error as it was when it was pickled, whatever its constructor takes."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(attributes)
    return error


class UsageError(NitroError):
    exit_status = EXIT_USAGE


class NotBuilt(NitroError):
    """Something that nitroctl makes is not there yet; the hint is the command that makes it."""


class CommandFailed(NitroError):
    """A program ended with a non-zero status, or could not be started (status None)."""

    def __init__(
        self,
        argv: Sequence[str],
        status: int | None,
        *,
        output: str = "",
        log: Path | None = None,
        hint: str | None = None,
    ) -> None:
        import shlex

        how = "could not be started" if status is None else f"failed with status {status}"
        lines = output.rstrip().splitlines()[-15:]
        if log is not None:
            lines.append(f"the whole log is in {log}")
        super().__init__(f"{shlex.join(argv)}: {how}", hint=hint, lines=lines)
        self.argv = list(argv)
        self.status = status
        self.output = output
        self.log = log


class EifError(NitroError):
    """A file that is no valid EIF. `rule` is the violated rule's name, the same as in the C core."""

    def __init__(
        self,
        rule: str,
        message: str,
        *,
        path: Path | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if path is None else f"{path}: "
        at = "" if offset is None else f" (at offset {offset})"
        super().__init__(f"{where}{message}{at} [{rule}]", hint=hint)
        self.rule = rule
        self.path = path
        self.offset = offset


class EnclaveError(NitroError):
    """`cause`, `tail` and, in want of another one, `hint` are those of `record`, if there is one."""

    def __init__(
        self, message: str, *, hint: str | None = None, lines: Sequence[str] = (), record: Any = None
    ) -> None:
        super().__init__(message, hint=hint or (record.hint if record else None), lines=lines)
        if record:
            self.record, self.cause, self.tail = record, record.cause, record.tail


class BootTimeout(EnclaveError):
    exit_status = EXIT_NO_HEARTBEAT


class GuestPanic(EnclaveError):
    exit_status = EXIT_GUEST_PANIC


class ApplicationFailed(EnclaveError):
    exit_status = EXIT_APPLICATION


class EnclaveTimeout(EnclaveError, TimeoutError):
    pass
