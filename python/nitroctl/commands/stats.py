# SPDX-License-Identifier: MIT
"""`nitroctl stats`: what a running enclave takes of this host, and what has gone through its ports."""

from __future__ import annotations

from typing import Any

import click

from nitroctl.base import output
from nitroctl.base.memory import MIB
from nitroctl.commands import enclave_names, json_option


@click.command()
@click.argument("name", shell_complete=enclave_names)
@json_option()
def stats(name: str, as_json: bool) -> None:
    """Print CPU time and memory of the enclave NAME's processes, and connections and bytes of each port.

    The parent's ports are those that the enclave connects to, the enclave's those that programs of this host
    do. Memory that processes share is counted in parts, so that the sum is the enclave's.
    """
    from nitroctl.enclaves import records, usage

    found = usage.of(records.find(name, running=True))
    if as_json:
        output.document(found)
        return
    rows = [
        (one["name"], str(one["pid"]), f"{one['cpu_seconds']:.2f} s", f"{one['memory_bytes'] / MIB:.1f} MiB")
        for one in found["processes"]
    ]
    output.table(rows, head=("PROCESS", "PID", "CPU", "MEMORY"), right=(1, 2, 3))
    ports = [*found["ports"], *([found["other_ports"]] if _used(found["other_ports"]) else [])]
    if not ports:
        return
    output.table([("",)])
    head = ("PORT", "CONNECTIONS", "OPEN", "REFUSED", "FROM ENCLAVE", "TO ENCLAVE", "CAUSE OF REFUSAL")
    output.table([_row(port) for port in ports], head=head, right=(1, 2, 3, 4, 5))


def _used(port: dict[str, Any]) -> bool:
    return bool(port["connections"] or port["refused"])


# Of the parent's, those that the vsock backend serves itself.
_NAMES = {9000: "heartbeat", 4294958295: "application's status"}


def _row(port: dict[str, Any]) -> tuple[str, ...]:
    name = f"{port['side']} {port['port']}" if port["side"] else "all others"
    if port["side"] == "parent" and port["port"] in _NAMES:
        name += f" ({_NAMES[port['port']]})"
    counts = ("connections", "open", "refused", "bytes_from_guest", "bytes_to_guest")
    return (name, *(str(port[count]) for count in counts), port["cause"] or "")
