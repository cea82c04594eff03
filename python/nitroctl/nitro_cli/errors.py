# SPDX-License-Identifier: MIT
"""nitro-cli's error codes, how a failure is reported and logged, and `explain`. Decides nothing.

A failure on stderr, in the form that scripts expect:

    [ E26 ] What it means, and what was wrong.
                                                (an empty line)
    For more details, please visit https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html#E26
                                                (an empty line)
    If you open a support ticket, please provide the error log found at "FOLDER/errTIME.log"

The exit status is the code's number. At AWS each enclave has a process of its own; if something fails in it,
the command also reports E39 and ends with 39: see `InEnclaveProcess`.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from nitroctl import __version__
from nitroctl.base import shown
from nitroctl.base.errors import NitroError
from nitroctl.base.instants import UTC

LINK = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"

# The codes and what they are about are AWS's; the sentences are ours. "Not here": nitroctl cannot fail in
# this way.
DESCRIPTIONS = {
    "E00": "Something failed that has no code of its own.",
    "E01": "An argument is missing that the command cannot do without.",
    "E02": "Arguments were given that exclude each other.",
    "E03": "An argument has a value that is not allowed.",
    "E04": "A pair of connected sockets could not be made. Not here: no process of ours needs one.",
    "E05": "The process that looks after the enclave could not be started.",
    "E06": "The process that looks after the enclave could not go to the background.",
    "E07": "The folder in which running enclaves are found could not be read.",
    "E08": "A running enclave's process was found, but it gives no usable answer.",
    "E09": "A connection to an enclave's process could not be closed.",
    "E10": "No time limit could be set for a connection to an enclave's process.",
    "E11": "An enclave's process could not be reached: most likely no such enclave is running.",
    "E12": "Waiting for events (epoll) failed.",
    "E13": "Watching a folder for changes (inotify) failed.",
    "E14": "The enclave's process was sent a command that it does not know.",
    "E15": "A lock could not be taken.",
    "E16": "A thread could not be waited for.",
    "E17": "Text or a message could not be turned into what it describes, or back: it is not well-formed.",
    "E18": "The log's files could not be given the right permissions.",
    "E19": "A file could not be opened, read or written.",
    "E20": "A CPU was named twice.",
    "E21": "A CPU was named that enclaves cannot have.",
    "E22": "More CPUs were asked for than enclaves can have.",
    "E23": "A CPU's number cannot be read.",
    "E24": "A range of CPUs cannot be read. Not here: local enclaves have no pool of CPUs.",
    "E25": "The size of huge pages is unknown. Not here: local enclaves use none.",
    "E26": "The memory asked for is too little for this image.",
    "E27": "The memory asked for is more than there is.",
    "E28": "The enclave's file descriptor is not valid. Not here: there is no driver.",
    "E29": "The driver refused a request. There is none here; what it would refuse is refused all the same.",
    "E30": "Where the image goes in memory could not be found out. Not here: there is no driver.",
    "E31": "Memory could not be given to the enclave. Not here: there is no driver.",
    "E32": "A CPU could not be given to the enclave. Not here: there is no driver.",
    "E33": "The enclave could not be started: QEMU, its vsock backend or the context ID is not to be had.",
    "E34": "The image does not fit into the enclave's memory.",
    "E35": "The file is no valid Enclave Image File.",
    "E36": "The enclave did not boot: its heartbeat, the first thing that init sends, did not arrive.",
    "E37": "Waiting for the enclave's events failed.",
    "E38": "The enclave's process refused or failed to do what it was told.",
    "E39": "The enclave's process ended, or could not be connected to, before it had answered.",
    "E40": "The path of a socket is not valid or could not be made.",
    "E41": "The enclave's process could not send its answer.",
    "E42": "Memory could not be mapped. Not here: QEMU does that itself.",
    "E43": "Memory could not be unmapped. Not here: QEMU does that itself.",
    "E44": "There is no connection to the enclave's console. It can be read in debug mode only.",
    "E45": "Reading the enclave's console failed.",
    "E46": "The console's bytes could not be written.",
    "E47": "The enclave's context ID cannot be read.",
    "E48": "The image file could not be made.",
    "E49": "The container image could not be built from its folder.",
    "E50": "The container image could not be fetched.",
    "E51": "No folder for intermediate files is known: neither NITRO_CLI_ARTIFACTS nor HOME is set.",
    "E52": "The kernel and init that images are made with were not found.",
    "E53": "The clock's time makes no sense.",
    "E54": "The signals that are to be waited for could not be blocked.",
    "E55": "The signals that were blocked could not be let through again.",
    "E56": "The log could not be set up.",
    "E57": "A measurement could not be computed.",
    "E58": "The enclave's name matches none of the running ones, or several.",
    "E59": "The image's signature does not verify, or its certificate is not valid now.",
    "E60": "The image could not be signed.",
}


class CliError(Exception):
    """A failure with one of AWS's codes; `lines` (perhaps empty) say what was wrong."""

    def __init__(self, code: str, *lines: str) -> None:
        assert code in DESCRIPTIONS
        self.code = code
        self.lines = [shown.line(line) for line in lines]
        super().__init__("\n".join(self.lines))

    @property
    def exit_status(self) -> int:
        return int(self.code[1:]) or 1


class InEnclaveProcess(CliError):
    """A failure that at AWS happens in the enclave's own process. The command then also loses its connection
    to that process, and reports that: E39."""

    @property
    def exit_status(self) -> int:
        return 39


def told(error: NitroError | OSError) -> list[str]:
    """An error of nitroctl, and its hint, as the lines of a CliError."""
    hint = getattr(error, "hint", None)
    return [*str(error).split("\n"), *([hint] if hint else [])]


def file_error(path: Path, operation: str, why: str | None, *, kind: type[CliError] = CliError) -> CliError:
    """E19, in AWS's words."""
    return kind("E19", f"File: '{path}', failing operation: '{operation}'.", *([why] if why else []))


def explain(code: str) -> int:
    """`explain --error-code`: prints on stderr, as AWS's tool does."""
    if code not in DESCRIPTIONS:
        shown.say(f"No such error code {code}")
        return 1
    shown.say(DESCRIPTIONS[code], "", f"For more details, please visit {LINK}#{code}")
    return 0


def report(error: CliError, action: str) -> int:
    """Report and log a failure of the command that `action` names; returns the exit status."""
    _tell(error, action)
    if isinstance(error, InEnclaveProcess):
        shown.say("Failed connections: 1")
        _tell(CliError("E39"), action)
    return error.exit_status


def _tell(error: CliError, action: str) -> None:
    lines = [f"[ {error.code} ] {DESCRIPTIONS[error.code]}", *error.lines]
    lines += ["", f"For more details, please visit {LINK}#{error.code}"]
    path = _log_error(error, action)
    if path:
        # Callers find the path by these words.
        lines += ["", f'If you open a support ticket, please provide the error log found at "{path}"']
    shown.say(*lines)


# ---- logs ----


def logs_dir() -> Path:
    """$NITRO_CLI_LOGS_PATH, or a folder of the user's: AWS's default, /var/log/nitro_enclaves, is not
    writable for every user."""
    from nitroctl.base import config

    value = os.environ.get("NITRO_CLI_LOGS_PATH")
    return Path(value) if value else config.state_dir() / "nitro-cli"


def log(level: str, text: str) -> None:
    """Write a line to nitro_enclaves.log. If that fails, there is a warning; the command goes on."""
    path = logs_dir() / "nitro_enclaves.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as f:
            f.write(f"[{datetime.now(UTC).isoformat()}][{os.getpid()}][{level}] {shown.line(text)}\n")
    except OSError as e:
        shown.say(f"warning: cannot write the log in {e.filename or path}: {e.strerror}")


def _log_error(error: CliError, action: str) -> Path | None:
    """Write the error to a file of its own, in AWS's form; None if that fails: the error itself is reported
    anyway."""
    lines = [f"  Action: {action}", "  Subactions:", f"    {DESCRIPTIONS[error.code]}"]
    lines += [f"    {line}" for line in error.lines]
    lines += [f"  Code: {error.code}", f"  Version: {__version__}"]
    log("ERROR", f"{action}: {error.code} {' '.join(error.lines)}")
    try:
        path = logs_dir() / f"err{datetime.now(UTC).isoformat()}.log"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path
