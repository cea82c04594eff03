# SPDX-License-Identifier: MIT
"""`nitro-cli` for local enclaves: AWS's commands, options, JSON, messages and exit statuses over nitroctl.

Scripts that were written for AWS's nitro-cli run unchanged. This package is only the command line; nitroctl's
other packages do the work.

    arguments   which commands and options there are; usage errors as clap, the parser of AWS's tool, has them
    errors      the codes E00 to E60, how a failure is reported and logged, and `explain`
    request     the request of run-enclave, from options or a JSON file, and its checks
    enclaves    run-enclave, describe-enclaves, terminate-enclave, console
    images      build-enclave, describe-eif, sign-eif, pcr
    vsock_proxy the command `vsock-proxy`, which AWS's package has as well
    aside       on a host with AWS's driver and nitro-cli, runs AWS's nitro-cli instead

(AWS's user guide, "Nitro Enclaves CLI reference" and "Nitro CLI error codes".)
"""

from __future__ import annotations

import importlib
import os
import sys

# command -> (module, function); imported only when the command is used, so that --help is quick
FUNCTIONS = {
    "run-enclave": ("enclaves", "run_enclave"),
    "terminate-enclave": ("enclaves", "terminate_enclave"),
    "build-enclave": ("images", "build_enclave"),
    "describe-enclaves": ("enclaves", "describe_enclaves"),
    "console": ("enclaves", "console"),
    "describe-eif": ("images", "describe_eif"),
    "pcr": ("images", "pcr"),
    "sign-eif": ("images", "sign_eif"),
}


READING = ("describe-eif", "describe-enclaves", "pcr")


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit."""
    from nitroctl.base import stdio
    from nitroctl.nitro_cli.aside import step_aside

    stdio.fill()
    arguments = sys.argv[1:] if argv is None else argv
    step_aside(arguments)
    try:
        status = _run(arguments)
    except KeyboardInterrupt:
        status = 130  # 128 + SIGINT
    except BrokenPipeError:
        status = 1  # the reader of our output has closed the pipe (`| head`): no message needed
    try:
        sys.stdout.flush()
    except OSError:
        # Otherwise Python would try to write the rest when it ends, and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    sys.exit(status)


def _run(argv: list[str]) -> int:
    from nitroctl.nitro_cli import arguments, errors

    name, options = arguments.parse(argv)
    if name == "explain":
        return errors.explain(options["error_code"])
    from nitroctl.base import progress
    from nitroctl.base.errors import NitroError

    # Callers take any output on stderr for a failure of a command that only reads.
    quiet = name in READING and not sys.stderr.isatty()
    module, function = FUNCTIONS[name]
    try:
        with progress.quiet(quiet):
            status = getattr(importlib.import_module(f"nitroctl.nitro_cli.{module}"), function)(options)
    except errors.CliError as e:
        return errors.report(e, arguments.COMMANDS[name].action)
    except BrokenPipeError:
        raise
    except (NitroError, OSError) as e:  # a failure without an error code of its own
        return errors.report(errors.CliError("E00", *errors.told(e)), arguments.COMMANDS[name].action)
    assert isinstance(status, int)
    return status
