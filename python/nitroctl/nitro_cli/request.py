# SPDX-License-Identifier: MIT
"""The request of run-enclave, from options or a JSON file: AWS's checks of it, and its translation into
nitroctl's RunRequest.

The checks have AWS's order: first those of the command itself (E01, E02, E03, the file), then those of the
enclave's process: CPUs (E20 to E23, E29) and memory (E26, E27). Starts nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.base.errors import UsageError
from nitroctl.base.memory import MEMORY_PER_EIF, MIB, parse_memory
from nitroctl.enclaves.preflight import MIN_MEMORY_MIB
from nitroctl.enclaves.request import CID_MAX, CPUS_MAX, RESERVED_CIDS, RunRequest
from nitroctl.nitro_cli.errors import CliError, InEnclaveProcess, file_error

HUGE_PAGE_MIB = 2  # the memory of AWS's enclaves is a multiple of this

_CONFIG_MAX = 1 << 20  # bytes


@dataclass(frozen=True)
class Request:
    """`cpu_ids` as asked for; None if only their number was. `attach_console` implies `debug_mode`."""

    eif_path: Path
    memory_mib: int
    cpu_count: int
    cpu_ids: tuple[int, ...] | None = None
    enclave_cid: int | None = None
    debug_mode: bool = False
    attach_console: bool = False
    enclave_name: str | None = None


def from_options(options: dict[str, Any]) -> Request:
    """The request from the command line's options. Raises CliError."""
    if options["config"] is not None:
        return from_config(Path(options["config"]))
    ids = options["cpu_ids"]
    if ids is not None:
        # AWS's syntax has no commas, but users often write them.
        texts = [part for text in ids for part in text.split(",")]
        ids = tuple(_number(text, "cpu-ids", "E23") for text in texts)
    count = len(ids) if ids is not None else _number(options["cpu_count"], "cpu-count")
    try:
        memory = parse_memory(options["memory"])
    except UsageError as e:
        raise CliError("E03", f"memory: {e}", e.hint or "") from None
    cid = None if options["enclave_cid"] is None else _number(options["enclave_cid"], "enclave-cid")
    attach = bool(options["attach_console"])
    return Request(
        eif_path=Path(options["eif_path"]),
        memory_mib=memory,
        cpu_count=count,
        cpu_ids=ids,
        enclave_cid=_cid(cid),
        debug_mode=bool(options["debug_mode"]) or attach,
        attach_console=attach,
        enclave_name=options["enclave_name"],
    )


def _number(text: str, what: str, code: str = "E03") -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise CliError(code, f"{what}: {text!r} is not a number")
    return int(text)


def _cid(value: int | None) -> int | None:
    if not value:
        return None
    if value in RESERVED_CIDS or value > CID_MAX:
        raise CliError(
            "E03", f"enclave-cid: {value} is not allowed; give 4 to {CID_MAX}, or 0 for any free one"
        )
    return value


# ---- the file ----

_KEYS: dict[str, type] = {
    "eif_path": str, "memory_mib": int, "cpu_count": int, "cpu_ids": list, "enclave_cid": int,
    "debug_mode": bool, "attach_console": bool, "enclave_name": str,
}  # fmt: skip
_KINDS = {str: "a text", int: "a whole number", list: "a list of whole numbers", bool: "true or false"}


def from_config(path: Path) -> Request:
    """The request from a JSON file. Raises CliError: E19 and E17 for the file, E01 and E02 for its
    contents."""
    try:
        with open(path, "rb") as f:
            data = f.read(_CONFIG_MAX)
    except OSError as e:
        raise file_error(path, "Open", e.strerror) from None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise CliError("E17", f"{path} is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise CliError("E17", f"{path} is not a JSON object")
    for key, value in found.items():
        # Other keys are ignored.
        if key in _KEYS and value is not None and not _fits(value, _KEYS[key]):
            raise CliError("E17", f"{path}: {key} must be {_KINDS[_KEYS[key]]}, not {json.dumps(value)[:80]}")
    _check_file_name(path, found.get("eif_path") or "")
    given = {key: value for key, value in found.items() if value is not None}
    for key in ("eif_path", "memory_mib"):
        if key not in given:
            raise CliError("E01", f"{path}: {key} is missing")
    if "cpu_ids" in given and "cpu_count" in given:
        raise CliError("E02", f"{path}: cpu_count and cpu_ids exclude each other")
    if "cpu_ids" not in given and "cpu_count" not in given:
        raise CliError("E01", f"{path}: cpu_count or cpu_ids is missing")
    ids = tuple(given["cpu_ids"]) if "cpu_ids" in given else None
    attach = given.get("attach_console", False)
    return Request(
        eif_path=Path(given["eif_path"]),
        memory_mib=given["memory_mib"],
        cpu_count=len(ids) if ids is not None else given["cpu_count"],
        cpu_ids=ids,
        enclave_cid=_cid(given.get("enclave_cid")),
        debug_mode=given.get("debug_mode", False) or attach,
        attach_console=attach,
        enclave_name=given.get("enclave_name"),
    )


def _check_file_name(path: Path, name: str) -> None:
    """Refuse a name that JSON can express but a file cannot have."""
    try:
        if b"\0" not in os.fsencode(name):
            return
    except UnicodeEncodeError:
        pass
    raise CliError("E03", f"{path}: eif_path: {name[:80]!r} cannot be the name of a file")


def _fits(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and all(_fits(item, int) for item in value)
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 64  # True is an int, too
    return isinstance(value, kind)


# ---- checks ----


def check_cpus(request: Request) -> tuple[int, ...]:
    """The IDs of the enclave's CPUs. There is no CPU pool here, and virtual CPUs run on any CPU of the host.
    So the IDs are those that were asked for, or those of a parent with two threads per core: 1, 3, 5, ..."""
    ids = request.cpu_ids
    if request.cpu_count > CPUS_MAX:
        raise InEnclaveProcess("E22", f"{request.cpu_count} CPUs were asked for; {CPUS_MAX} can be had")
    if request.cpu_count < 1:
        raise InEnclaveProcess("E29", "An enclave has at least 1 CPU.")
    if ids is None:
        return tuple(range(1, 2 * request.cpu_count, 2))
    for number, cpu in enumerate(ids):
        if cpu in ids[:number]:
            raise InEnclaveProcess("E20", f"CPU {cpu} is there twice.")
        if not 1 <= cpu <= CPUS_MAX:
            why = "CPU 0 is always the parent's" if cpu == 0 else f"IDs go up to {CPUS_MAX} here"
            raise InEnclaveProcess("E21", f"CPU {cpu} is not in the pool: {why}.")
    return ids


def check_whole_cores(request: Request) -> None:
    """Refuse an odd number of CPUs: AWS's driver gives whole cores with two threads each. Checked only with
    NITRO_CLI_STRICT=1; here one CPU is enough."""
    if os.environ.get("NITRO_CLI_STRICT") == "1" and request.cpu_count % 2:
        raise InEnclaveProcess("E29", f"{request.cpu_count} CPUs are not whole cores of two CPUs each.")


def host_memory() -> int:
    """The host's total memory in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def check_memory(request: Request, eif_size: int, available: int) -> int:
    """The memory in MiB to give: what was asked for, rounded up to whole huge pages. Raises CliError if that
    is too little for the image, or more than the host has."""
    least = max(MEMORY_PER_EIF * -(-eif_size // MIB), MIN_MEMORY_MIB)
    if request.memory_mib * MIB < max(MEMORY_PER_EIF * eif_size, MIN_MEMORY_MIB * MIB):
        raise InEnclaveProcess(
            "E26",
            f"`memory` is {request.memory_mib} MB; by the size of the EIF file, the minimum memory should be "
            f"{least} MB",
        )
    if request.memory_mib > available:
        raise InEnclaveProcess(
            "E27", f"`memory` is {request.memory_mib} MB, but this host has only {available} MB"
        )
    return -(-request.memory_mib // HUGE_PAGE_MIB) * HUGE_PAGE_MIB


# ---- as a request of ours ----


def variable(name: str) -> str:
    """The environment variable for an option of `nitroctl run` that nitro-cli does not have."""
    return f"NITROCTL_{name.upper()}"


def run_request(request: Request, **decided: Any) -> RunRequest:
    """The RunRequest: from `request` what AWS has an option for, the rest from environment variables;
    `decided` overrides both. Raises CliError."""
    given = dict(decided)
    for one in RunRequest.options():
        assert one.option
        known = one.option.nitro_cli
        if one.name in decided or known is False:
            continue
        if known is not None:
            given[one.name] = getattr(request, known)
        elif text := os.environ.get(variable(one.name)):
            try:
                given[one.name] = one.take_text(text)
            except UsageError as e:
                raise CliError("E03", f"{variable(one.name)}: {e}", e.hint or "") from None
    return RunRequest(**given)
