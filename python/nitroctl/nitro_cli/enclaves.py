# SPDX-License-Identifier: MIT
"""run-enclave, describe-enclaves, terminate-enclave and console, over nitroctl's records and supervisors.

Enclaves that `nitroctl run` started are included. What AWS's tool shows about an enclave is in its record,
and in a file beside the record: the IDs of its CPUs, which have no effect here, and the image's metadata at
the start.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base.errors import BootTimeout, EifError, GuestPanic, NitroError, UsageError
from nitroctl.base.shown import say
from nitroctl.enclaves import logs, records
from nitroctl.enclaves.records import Record, State
from nitroctl.nitro_cli.errors import CliError, InEnclaveProcess, file_error, log, told
from nitroctl.nitro_cli.images import note, show
from nitroctl.nitro_cli.request import (
    Request,
    check_cpus,
    check_memory,
    check_whole_cores,
    from_options,
    host_memory,
    run_request,
)

if TYPE_CHECKING:
    from nitroctl.enclaves.plan import Plan

BESIDE = "nitro-cli.json"


# ---- run-enclave ----


def run_enclave(options: dict[str, Any]) -> int:
    request = from_options(options)
    plan, cpu_ids = _check(request)
    beside = {"CPUIDs": cpu_ids, **_metadata(plan.request.eif, request.eif_path.name)}
    say("Start allocating memory...")
    record = _start(plan, cpu_ids)
    try:
        (record.home / BESIDE).write_text(json.dumps(beside))
    except OSError as e:
        say(f"warning: describe-enclaves may tell other CPUs or metadata: {e.filename}: {e.strerror}")
    log("INFO", f"started {record.id}, CID {record.cid}, image {record.eif}")
    show(_identity(record, cpu_ids))
    if request.attach_console:
        return _print_console(record, None)
    return 0


def _check(request: Request) -> tuple[Plan, tuple[int, ...]]:
    """Make all checks before anything starts, in AWS's order. Raises CliError."""
    from nitroctl.eif.format import open_eif
    from nitroctl.enclaves.plan import make_plan
    from nitroctl.enclaves.ready import ready

    path = request.eif_path
    try:
        with open_eif(path) as (_, size):
            pass
    except EifError as e:
        raise file_error(path, "Open", str(e), kind=InEnclaveProcess) from None
    cpu_ids = check_cpus(request)
    check_whole_cores(request)
    memory = check_memory(request, size, host_memory())
    try:
        asked = run_request(request, memory=memory, cpus=len(cpu_ids))
        plan = make_plan(ready(asked, lambda text: say(f"note: {text}")))
        for note in plan.notes:
            say(f"note: {note}")
    except EifError as e:
        code = "E59" if e.rule.startswith("signature-") else "E35"
        raise InEnclaveProcess(code, *told(e)) from None
    except UsageError as e:
        raise CliError("E03", *told(e)) from None
    except NitroError as e:
        raise InEnclaveProcess("E33", *told(e)) from None
    return plan, cpu_ids


def _start(plan: Plan, cpu_ids: tuple[int, ...]) -> Record:
    """Start the enclave and wait for its heartbeat."""
    from nitroctl.enclaves import supervised

    started = False

    def on_state(record: Record) -> None:
        nonlocal started
        # If the guest is faster than QEMU's monitor, there is no state between these two.
        if record.state in (State.BOOTING, State.RUNNING) and not started:
            started = True
            say(f"Started enclave with enclave-cid: {record.cid}, memory: {record.memory_mib} MiB, "
                f"cpu-ids: {list(cpu_ids)}")  # fmt: skip

    try:
        return supervised.start(plan, on_state=on_state)
    except NitroError as e:
        if not started and not isinstance(e, BootTimeout | GuestPanic):
            raise InEnclaveProcess("E27" if "Cannot allocate memory" in str(e) else "E33", *told(e)) from None
        kind = "VsockTimeoutError" if isinstance(e, BootTimeout) else "VsockReceivingError"
        what = f"Waiting on enclave to boot failed with error {kind}. Terminating the enclave..."
        raise InEnclaveProcess("E36", what, *told(e)) from None


# ---- describe-enclaves ----


def describe_enclaves(options: dict[str, Any]) -> int:
    found = [r for r in records.running() if r.state in (State.RUNNING, State.STOPPING)]
    show([_description(record, metadata=bool(options["metadata"])) for record in found])
    return 0


def _identity(record: Record, cpu_ids: Sequence[int]) -> dict[str, Any]:
    return {
        "EnclaveName": record.name,
        "EnclaveID": record.id,
        "ProcessID": record.supervisor_pid,
        "EnclaveCID": record.cid,
        "NumberOfCPUs": record.cpus,
        "CPUIDs": list(cpu_ids),
        "MemoryMiB": record.memory_mib,
    }


def _description(record: Record, *, metadata: bool) -> dict[str, Any]:
    beside = _beside(record)
    return {
        **_identity(record, beside.pop("CPUIDs")),
        "State": "RUNNING" if record.state is State.RUNNING else "TERMINATING",
        "Flags": "DEBUG_MODE" if record.debug else "NONE",
        **_measurements(record),
        **((beside or _metadata(record.eif, record.name)) if metadata else {}),
    }


def _beside(record: Record) -> dict[str, Any]:
    """What run-enclave wrote beside the record; empty for an enclave that `nitroctl run` started."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((record.home / BESIDE).read_text())
        return found
    return {"CPUIDs": check_cpus(Request(record.eif, record.memory_mib, record.cpus))}


def _measurements(record: Record) -> dict[str, Any]:
    """The measurements of the file, also in debug mode, in which the enclave itself reads zeros."""
    from nitroctl.eif.measure import measure
    from nitroctl.eif.pcr import in_aws_shape

    if record.pcrs is not None:
        return {
            "Measurements": in_aws_shape({f"PCR{number}": value for number, value in record.pcrs.items()})
        }
    try:
        return {"Measurements": measure(record.eif).to_json()}
    except NitroError as e:
        note(f"warning: {record.name} cannot be measured: {e}")
        return {}


def _metadata(eif: Path, name: str) -> dict[str, Any]:
    from nitroctl.eif.about import metadata_json
    from nitroctl.eif.peek import peek

    try:
        found = peek(eif).metadata
    except NitroError as e:
        note(f"warning: the image of {name} cannot be read: {e}")
        return {}
    return metadata_json(found) if found else {}


# ---- terminate-enclave ----


def terminate_enclave(options: dict[str, Any]) -> int:
    if options["all"]:
        show([_terminate(record) for record in records.running()])
    else:
        show(_terminate(_find(options)))
    return 0


def _terminate(record: Record) -> dict[str, Any]:
    try:
        last = records.stop(record)
    except (NitroError, OSError) as e:
        raise InEnclaveProcess("E38", f"{record.name}: {e}") from None
    if last is not None and last.running:
        raise InEnclaveProcess("E38", f"{record.name}: it is {last.state} as before")
    log("INFO", f"terminated {record.id}")
    say(f"Successfully terminated enclave {record.id}.")
    return {"EnclaveName": record.name, "EnclaveID": record.id, "Terminated": True}


def _find(options: dict[str, Any]) -> Record:
    """The running enclave that --enclave-id or --enclave-name names. Raises CliError."""
    wanted, name = options["enclave_id"], options["enclave_name"]
    running = records.running()
    key = "id" if name is None else "name"
    found = [record for record in running if getattr(record, key) == (wanted if name is None else name)]
    if len(found) == 1:
        return found[0]
    if name is None:
        known = ", ".join(record.id for record in running) or "none"
        raise CliError("E11", f"No enclave has the ID {wanted}. Running: {known}")
    if found:
        raise CliError("E58", "Conflicting enclave names have been found.")
    known = ", ".join(record.name for record in running) or "none"
    raise CliError("E58", f"No enclave matched the given name. Running: {known}")


# ---- console ----


class _TimeIsUp(Exception):
    pass


def console(options: dict[str, Any]) -> int:
    text = options["disconnect_timeout"]
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise CliError("E03", f"disconnect-timeout: {text!r} is not a number of seconds")
    return _print_console(_find(options), None if text is None else int(text))


def _print_console(record: Record, seconds: int | None) -> int:
    """Print the console from its beginning to its end, or for `seconds`."""
    if not record.debug:
        raise CliError("E44", f"The enclave {record.name} was not started with the debug flag set.")
    _write(b"Connecting to the console for enclave %d...\n" % record.cid)
    _write(b"Successfully connected to the console.\n")
    try:
        with contextlib.suppress(_TimeIsUp), _at_most(seconds):
            for data in records.follow(record, logs.CONSOLE):
                _write(data)
    except BrokenPipeError:
        raise
    except OSError as e:
        raise CliError("E45", *told(e)) from None
    return 0


def _write(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        raise CliError("E46", *told(e)) from None


@contextlib.contextmanager
def _at_most(seconds: int | None) -> Iterator[None]:
    """Raises _TimeIsUp in the body after `seconds`, whatever it is waiting for."""
    if seconds is None:
        yield
        return
    if seconds == 0:
        raise _TimeIsUp

    def ring(*_: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
