# SPDX-License-Identifier: MIT
"""The command line: which commands there are, and how an error becomes an exit status.

Each command lives in its own module of `nitroctl.commands`, imported only when it is named, so that
`nitroctl --help` costs no more than click. No work is done here.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import os
import sys
from typing import TYPE_CHECKING

import click

from nitroctl import __version__
from nitroctl.base import shown, stdio
from nitroctl.base.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, NitroError, UsageError
from nitroctl.commands import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name -> (module of nitroctl.commands, attribute, one line for --help). The lines stand here and not in
# the modules, or --help would have to import all of them.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "attest": ("attest", "attest", "Verify attestation documents; manage the local CA."),
    "build": ("build", "build", "Build QEMU with the nitro-enclave machine, and the vsock backend."),
    "cache": ("cache", "cache", "List and clean what has been downloaded and built."),
    "completion": ("completion", "completion", "Print a script for tab completion in your shell."),
    "console": ("life", "console", "Print an enclave's console."),
    "cp": ("inside", "cp", "Copy files out of an enclave, or into it."),
    "demo": ("demo", "demo", "Build what is missing, run a hello enclave, check its PCRs."),
    "doctor": ("doctor", "doctor", "Check what this host has and what it lacks."),
    "eif": ("eif", "eif", "Build, measure, check and sign Enclave Image Files."),
    "events": ("see", "events", "Print the events of enclaves: starts, ends, refused ports, ..."),
    "fault": ("fault", "fault", "Inject a fault into a running enclave."),
    "guest": ("guest", "guest", "Build or fetch guest kernels, init and tools."),
    "inspect": ("life", "inspect", "Print all that is known about an enclave."),
    "kms": ("kms", "kms", "A local KMS that enforces key policies and explains each decision."),
    "logs": ("life", "logs_command", "Print the logs of an enclave's supervisor, QEMU and vsock backend."),
    "nsm": ("see", "nsm", "Print an enclave's NSM requests and the answers."),
    "parent": ("parent", "parent", "Run a parent program that was written for AF_VSOCK, unchanged."),
    "ps": ("life", "ps", "List enclaves."),
    "rm": ("life", "rm", "Remove the records and logs of enclaves that have ended."),
    "run": ("run", "run", "Run an enclave."),
    "shell": ("inside", "shell", "Run a command or a shell inside an enclave."),
    "stats": ("stats", "stats", "Print an enclave's CPU time and memory, and the traffic of its ports."),
    "stop": ("life", "stop", "Stop enclaves."),
    "test": ("test", "test", "Run the qtests and the boot checks."),
    "timeline": ("see", "timeline", "Print or draw how long each phase of a boot took."),
    "top": ("inside", "top", "Show the processes of an enclave."),
    "vsock": ("vsock", "vsock", "Connect to an enclave's port, serve a parent's port, dump packets."),
    "wait": ("life", "wait", "Wait until enclaves end."),
    "which": ("which", "which", "Print the path of a program or kernel that nitroctl uses."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, from a table like COMMANDS."""

    table: dict[str, tuple[str, str, str]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, attribute, _ = self.table[cmd_name]
        command = getattr(importlib.import_module(f"nitroctl.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click does it, but no command is imported for its one line."""
        from click.shell_completion import CompletionItem

        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=self.table[name][2]) for name in names]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from nitroctl.toolchain import about

    commit = about.commit()
    shown.echo(f"nitroctl, version {__version__}{f', commit {commit[:12]}' if commit else ''}")
    shown.echo(f"QEMU: {about.qemu()}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
              help="Show the version, the commit and the QEMU, and exit.")  # fmt: skip
@click.option("--debug", is_flag=True, expose_value=False, help="Show Python tracebacks of failures.")
def nitroctl() -> None:
    """AWS Nitro Enclaves on this machine: build, measure, run, test.

    Local enclaves are for development: they give no isolation from this host.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit. An expected failure prints its message and hint, no traceback; and what
    JSON has of it on standard output, where the answer would have been."""
    stdio.fill()
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments[:1] or bool(os.environ.get("NITROCTL_DEBUG"))
    session = Session()
    try:
        status = _run(arguments, session, debug=debug)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not worth a message.
        _drop_output()
        sys.exit(EXIT_FAILURE)
    except OSError as e:
        # Nobody has said it better: a full disk below standard output, no descriptors left, and the like.
        if debug:
            raise
        what = e.strerror or str(e)
        where = _place(e)
        hint = "NITROCTL_DEBUG=1 shows where that happened"
        error = NitroError(f"{where}: {what}" if where else what, hint=hint)
        shown.failure(error, hint)
        with contextlib.suppress(OSError):  # it may be standard output that is full
            _answer(error, session)
        _drop_output()
        sys.exit(EXIT_FAILURE)
    sys.exit(status if isinstance(status, int) else 0)


def _run(arguments: list[str], session: Session, *, debug: bool) -> object:
    try:
        status = nitroctl.main(args=arguments, prog_name="nitroctl", standalone_mode=False, obj=session)
        sys.stdout.flush()
        return status
    except NitroError as e:
        if not debug:
            shown.failure(e, e.hint)
        _answer(e, session)
        if debug:
            raise
        return e.exit_status
    except click.exceptions.Abort:
        _answer(_interrupted(), session)
        return EXIT_INTERRUPTED
    except click.ClickException as e:
        # The options that say so may not have been looked at.
        session.as_json |= "--json" in itertools.takewhile(lambda word: word != "--", arguments)
        kind = UsageError if e.exit_code == EXIT_USAGE else NitroError
        if e.message:
            e.message = shown.line(e.message)  # type: ignore[misc]
        e.show()
        _answer(kind(e.format_message()), session)
        return e.exit_code
    except KeyboardInterrupt:
        shown.say("interrupted")
        _answer(_interrupted(), session)
        return EXIT_INTERRUPTED


def _interrupted() -> NitroError:
    error = NitroError("interrupted")
    error.exit_status = EXIT_INTERRUPTED
    return error


def _answer(error: NitroError, session: Session) -> None:
    if session.as_json:
        from nitroctl.base import output

        output.failure(error)


def _place(e: OSError) -> str | None:
    """What could not be read or written, if that is known."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT) and e.filename2:
        return os.fsdecode(e.filename2)  # of a copy, where it was to go
    if e.filename:
        return os.fsdecode(e.filename)
    innermost = e.__traceback__
    while innermost and innermost.tb_next:
        innermost = innermost.tb_next
    file = innermost.tb_frame.f_code.co_filename if innermost else ""
    # Files of ours are named where they are written (`place`); these write what is shown.
    return "standard output" if file in (__file__, shown.__file__, click.utils.__file__) else None


def _drop_output() -> None:
    """What could not be written would be tried again, and complained about, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
