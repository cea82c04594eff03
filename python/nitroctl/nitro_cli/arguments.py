# SPDX-License-Identifier: MIT
"""nitro-cli's command line: its commands and options, and usage errors.

Usage errors look like those of clap, the parser of AWS's tool, and end with status 2. The values of options
are checked by the commands; those errors have codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from nitroctl import __version__
from nitroctl.base import shown

# The AWS release whose command line this is.
AWS_VERSION = "1.5.0"

EXIT_USAGE = 2


@dataclass(frozen=True)
class Option:
    """`metavar` names the option's value; without it the option is a switch. `many`: it takes one or more
    values."""

    flag: str
    help: str
    metavar: str = ""
    many: bool = False
    required: bool = False

    @property
    def key(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    def __str__(self) -> str:
        if not self.metavar:
            return self.flag
        return f"{self.flag} <{self.metavar}>" + ("..." if self.many else "")


@dataclass(frozen=True)
class Command:
    """`one_of`: exactly one of these options must be given. `alone`: an option that replaces all others and
    can be combined only with those in `beside`."""

    action: str  # its name in logs
    about: str
    options: tuple[Option, ...]
    one_of: tuple[str, ...] = ()
    alone: str = ""
    beside: tuple[str, ...] = ()

    def option(self, flag: str) -> Option:
        return next(o for o in self.options if o.flag == flag)


_EIF = Option("--eif-path", "The Enclave Image File.", "FILE", required=True)
_CERTIFICATE = Option("--signing-certificate", "Certificate (PEM) to sign the image with.", "FILE")
_KEY = Option("--private-key", "The certificate's private key (PEM).", "KEY")
_ID = Option("--enclave-id", "The enclave, by its ID.", "ID")
_NAME = Option("--enclave-name", "The enclave, by its name.", "NAME")

COMMANDS = {
    "run-enclave": Command(
        "Run Enclave",
        "Start an enclave and wait until it has booted.",
        (
            Option("--cpu-ids", "The CPUs that the enclave gets.", "ID", many=True),
            Option("--cpu-count", "How many CPUs the enclave gets.", "N"),
            _EIF,
            Option("--memory", "Memory in MiB, or with a suffix: 512, 512M, 4G.", "MEMORY", required=True),
            Option("--enclave-cid", "The context ID. 0, or not given: a free one.", "CID"),
            Option("--debug-mode", "The console can be read; PCR0, 1, 2 and 8 read as zeros."),
            Option("--attach-console", "Print the console once it has started. Implies --debug-mode."),
            Option("--config", "A JSON file that says all of this, in place of options.", "FILE"),
            Option("--enclave-name", "Its name. Default: that of the file, without .eif.", "NAME"),
        ),
        one_of=("--cpu-count", "--cpu-ids"),
        alone="--config",
        beside=("--attach-console",),
    ),
    "terminate-enclave": Command(
        "Terminate Enclave",
        "End an enclave.",
        (_ID, _NAME, Option("--all", "All of this user's enclaves.")),
        one_of=("--enclave-id", "--enclave-name", "--all"),
    ),
    "build-enclave": Command(
        "Build Enclave",
        "Make an Enclave Image File from a container image.",
        (
            Option("--docker-uri", "The container image: an archive or OCI layout, by its path; or its name.",
                   "IMAGE", required=True),
            Option("--docker-dir", "Folder with a Dockerfile to build the image from, first.", "DIR"),
            Option("--output-file", "The file to make.", "FILE", required=True),
            _CERTIFICATE,
            _KEY,
            Option("--name", "The image's name in its metadata.", "NAME"),
            Option("--version", "The image's version in its metadata.", "VERSION"),
            Option("--metadata", "JSON file of custom metadata.", "FILE"),
        ),
    ),
    "describe-enclaves": Command(
        "Describe Enclaves",
        "List the running enclaves.",
        (Option("--metadata", "With the metadata of their images."),),
    ),
    "console": Command(
        "Enclave Console",
        "Print the console of an enclave in debug mode.",
        (_ID, _NAME, Option("--disconnect-timeout", "Stop after so many seconds.", "SECONDS")),
        one_of=("--enclave-id", "--enclave-name"),
    ),
    "describe-eif": Command("Describe EIF", "Say what an Enclave Image File is.", (_EIF,)),
    "pcr": Command(
        "PCR",
        "Compute a PCR from the file that it measures.",
        (
            Option("--input", "Any file.", "FILE"),
            Option("--signing-certificate", "A certificate (PEM): PCR8.", "FILE"),
        ),
        one_of=("--input", "--signing-certificate"),
    ),
    "sign-eif": Command(
        "Sign EIF",
        "Sign an Enclave Image File, replacing a signature that it has.",
        (
            _EIF,
            Option(_CERTIFICATE.flag, _CERTIFICATE.help, _CERTIFICATE.metavar, required=True),
            Option(_KEY.flag, _KEY.help, _KEY.metavar, required=True),
        ),
    ),
    "explain": Command(
        "Explain",
        "Say what an error code means.",
        (Option("--error-code", "The code, like E26.", "CODE", required=True),),
    ),
}  # fmt: skip


# ---- words on the screen ----


def version() -> str:
    return f"Nitro CLI {AWS_VERSION} (nitroctl {__version__})"


def _usage(name: str, command: Command) -> str:
    must = [o for o in command.options if o.required]
    one = f" <{'|'.join(str(command.option(f)) for f in command.one_of)}>" if command.one_of else ""
    rest = len(command.options) > len(must) + len(command.one_of)
    line = f"nitro-cli {name}" + (" [OPTIONS]" if rest else "") + "".join(f" {o}" for o in must) + one
    if command.alone:
        line += f"\n       nitro-cli {name} {command.option(command.alone)}"
    return line


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "".join(f"  {left:{width}}  {right}\n" for left, right in rows)


def help_of(name: str) -> str:
    command = COMMANDS[name]
    rows = [(str(o), o.help) for o in command.options]
    rows += [("-h, --help", "Print this."), ("-V, --version", "Print the version.")]
    if name == "build-enclave":
        rows.pop()
    return f"{command.about}\n\nUsage: {_usage(name, command)}\n\nOptions:\n{_table(rows)}"


def help_of_all() -> str:
    rows = [*((name, command.about) for name, command in COMMANDS.items()), ("help", "Print this.")]
    return (
        f"{version()}: AWS's commands, for enclaves on this machine, which isolate nothing.\n\n"
        f"Usage: nitro-cli <COMMAND>\n\nCommands:\n{_table(rows)}\n"
        f"Options:\n{_table([('-h, --help', 'Print this.'), ('-V, --version', 'Print the version.')])}"
    )


def fail(message: str, usage: str) -> NoReturn:
    """Print a usage error as clap does, and exit."""
    text = f"error: {message}\n\nUsage: {usage}\n\nFor more information, try '--help'."
    shown.say(*text.split("\n"))
    sys.exit(EXIT_USAGE)


# ---- parsing ----


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they can be reworded."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


class _Once(argparse.Action):
    """An option that may be given only once, unless it takes many values."""

    def __call__(self, parser: Any, found: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        before = getattr(found, self.dest)
        if before is not None and self.nargs != "+":
            raise argparse.ArgumentError(self, "again")
        setattr(found, self.dest, True if self.nargs == 0 else [*before, *values] if before else values)


def parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(command, its options by name: text, a list of it, True, or None). Ends the process for --help,
    --version and errors of usage."""
    if not argv:
        shown.say(*help_of_all().splitlines())
        sys.exit(EXIT_USAGE)
    name, *rest = argv
    if name in ("-h", "--help") or argv == ["help"]:
        _say(help_of_all())
    if name in ("-V", "--version"):
        _say(version() + "\n")
    if name == "help":
        name, rest = rest[0], ["--help"]
    if name not in COMMANDS:
        kind = "unexpected argument" if name.startswith("-") else "unrecognized subcommand"
        found = " found" if name.startswith("-") else ""
        fail(f"{kind} '{shown.line(name)}'{found}", "nitro-cli <COMMAND>")
    command = COMMANDS[name]
    if "-h" in rest or "--help" in rest:
        _say(help_of(name))
    if "-V" in rest or ("--version" in rest and name != "build-enclave"):
        _say(version() + "\n")
    return name, _options(name, command, rest)


def _say(text: str) -> NoReturn:
    shown.data(text.removesuffix("\n"))
    sys.exit(0)


def _options(name: str, command: Command, argv: Sequence[str]) -> dict[str, Any]:
    parser = _Parser(prog=f"nitro-cli {name}", add_help=False, allow_abbrev=False)
    for option in command.options:
        nargs: Any = "+" if option.many else None if option.metavar else 0
        parser.add_argument(option.flag, dest=option.key, action=_Once, nargs=nargs)
    usage = _usage(name, command)
    try:
        found, more = parser.parse_known_args(argv)
    except argparse.ArgumentError as e:
        fail(_in_claps_words(str(e), command), usage)
    if more:
        fail(f"unexpected argument '{shown.line(more[0])}' found", usage)
    given = {o.flag for o in command.options if getattr(found, o.key) is not None}
    if command.alone in given:
        if others := sorted(given - {command.alone, *command.beside}):
            fail(f"the argument '{command.option(command.alone)}' cannot be used with "
                 f"'{command.option(others[0])}'", usage)  # fmt: skip
        return vars(found)
    several = [flag for flag in command.one_of if flag in given]
    if len(several) > 1:
        first, second = (command.option(flag) for flag in several[:2])
        fail(f"the argument '{first}' cannot be used with '{second}'", usage)
    missing = [str(o) for o in command.options if o.required and o.flag not in given]
    if command.one_of and not several:
        missing.append(f"<{'|'.join(str(command.option(flag)) for flag in command.one_of)}>")
    if missing:
        fail("the following required arguments were not provided:\n  " + "\n  ".join(missing), usage)
    return vars(found)


def _in_claps_words(message: str, command: Command) -> str:
    """argparse's message in clap's words; argparse says "argument --memory: expected one argument"."""
    if not message.startswith("argument --"):
        return message
    flag, _, what = message.removeprefix("argument ").partition(": ")
    if what == "again":
        return f"the argument '{command.option(flag)}' cannot be used multiple times"
    if "ignored explicit argument" in what:
        return f"unexpected value for '{flag}' found; no more were expected"
    return f"a value is required for '{command.option(flag)}' but none was supplied"
