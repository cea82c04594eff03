# SPDX-License-Identifier: MIT
"""What a running enclave takes of this host, and what has gone through its ports: numbers of one moment.

Times and memory are the kernel's, of each process (proc(5)); counts are the vsock backend's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from nitroctl.enclaves import remote
from nitroctl.enclaves.records import Record

_TICKS = os.sysconf("SC_CLK_TCK")
_COUNTS = (
    "connections", "opened_by_guest", "opened_by_host", "packets_from_guest", "packets_to_guest",
    "bytes_from_guest", "bytes_to_guest",
)  # fmt: skip


def of(record: Record) -> dict[str, Any]:
    """As docs/json.md has it. Raises EnclaveError for one that has ended."""
    counted = remote.ask(record, "vsock", request={"do": "stats"})
    pids = (
        ("QEMU", record.qemu_pid),
        ("vsock backend", record.backend_pid),
        ("supervisor", record.supervisor_pid),
    )
    return {
        "enclave": record.name,
        "id": record.id,
        "seconds": round(time.time() - record.started, 3),
        "processes": [found for name, pid in pids if pid and (found := _process(name, pid))],
        **{name: counted[name] for name in _COUNTS},
        "refusals": counted["refusals"],
        "ports": [_port(row) for row in counted["ports"]],
        "other_ports": _port(counted["other_ports"]),
    }


def _port(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: row.get(name) for name in ("side", "port")},
        **{name: row[name] for name in ("connections", "open", "refused")},
        "cause": row.get("cause"),
        **{name: row[name] for name in ("bytes_from_guest", "bytes_to_guest")},
    }


def _process(name: str, pid: int) -> dict[str, Any] | None:
    """None for one that has just ended."""
    folder = Path("/proc", str(pid))
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        # What is shared counts for each process by its part, so the sum is the enclave's.
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kib = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    cpu = (int(fields[11]) + int(fields[12])) / _TICKS
    return {"name": name, "pid": pid, "cpu_seconds": cpu, "memory_bytes": kib << 10}
