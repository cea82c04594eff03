# SPDX-License-Identifier: MIT
"""What will run: a request with all defaults filled in, and the command lines that come of it.

Decided before anything starts, but for the context ID; whether it can work at all is `preflight`'s to say.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base import accelerator
from nitroctl.base.accelerator import Accelerator
from nitroctl.base.memory import MIB
from nitroctl.enclaves import containment, overlay, tools
from nitroctl.enclaves import qemu as qemu_options
from nitroctl.enclaves.folder import Folder, release, reserve
from nitroctl.enclaves.qemu import QemuConfig
from nitroctl.enclaves.records import Record, State
from nitroctl.enclaves.request import NAME_MAX, RunRequest
from nitroctl.vsock import sockets

if TYPE_CHECKING:
    from nitroctl.eif.overlay import Source

GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """What will run: everything decided but the context ID. What was asked for and needs no decision stays in
    `request`."""

    request: RunRequest
    name: str
    memory_mib: int
    boot_timeout: float
    accel: Accelerator
    acpi: bool
    module_id: str
    cmdline: str = ""  # of the kernel, as far as it is known here
    notes: tuple[str, ...] = ()  # what the user should know beforehand
    unmeasured: tuple[str, ...] = ()  # why the PCRs do not say what runs; empty: they do

    @property
    def overlays(self) -> tuple[Source, ...]:
        """To be joined to one archive."""
        request = self.request
        return (*overlay.sources(request), *tools.sources(request, self.cmdline, self.accel.arch))

    def to_json(self) -> dict[str, Any]:
        """For the process that runs it, in another folder."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**value, "request": self.request.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        return cls(
            **{
                **value,
                "request": RunRequest.from_json(value["request"]),
                "accel": Accelerator(*value["accel"]),
                "notes": tuple(value["notes"]),
                "unmeasured": tuple(value["unmeasured"]),
            }
        )

    @property
    def number(self) -> str:
        """The enclave's own part of its module ID, hex digits."""
        return self.module_id.rpartition("-enc")[2]

    def backend_config(self, folder: Folder, **fds: Any) -> sockets.BackendConfig:
        assert self.request.vsock_backend
        return sockets.BackendConfig(
            binary=self.request.vsock_backend,
            socket_path=folder.device,
            guest_cid=folder.cid,
            uds_path=folder.uds,
            fallback_path=sockets.shared_ports(),
            sandbox=self.request.sandbox,
            forwards=self.request.forwards,
            **fds,
        )

    def qemu_config(
        self, folder: Folder, *, vsock: int | None = None, gdb: int | None = None, **fds: Any
    ) -> QemuConfig:
        """Sockets are made by QEMU itself at their paths, or were made and are inherited as descriptors."""
        request = self.request
        assert request.qemu
        return QemuConfig(
            binary=request.qemu,
            eif=request.eif,
            vsock=folder.device if vsock is None else vsock,
            name=self.name,
            module_id=self.module_id,
            accel=self.accel,
            memory_mib=self.memory_mib,
            cpus=request.cpus,
            parent_id=request.instance_id,
            parent_role=request.role,
            append=tools.append(request),
            acpi=self.acpi,
            debug=request.debug_mode,
            ignore_signature=request.ignore_signature,
            document_form=request.document_form,
            keep_pcrs=request.overlay_keep_pcrs,
            gdb=(folder.gdb if gdb is None else gdb) if request.gdb else None,
            gdb_wait=request.gdb_wait,
            core=not self.confined,
            sandbox=containment.OPTIONS if self.confined and containment.has_sandbox(request.qemu) else None,
            **fds,
        )

    @functools.cached_property  # looking reads QEMU's file
    def confined(self) -> bool:
        """Whether QEMU has no more of this host than it needs."""
        assert self.request.qemu
        return self.request.sandbox and containment.is_program(self.request.qemu)


def default_boot_timeout(eif_size: int, memory: int) -> float:
    """Seconds that nitro-cli waits for the heartbeat: 90 per started 6 GiB of EIF and 90 per started 100 GiB
    of memory (sizes in bytes)."""
    return 90.0 * (1 + (eif_size - 1) // (6 * GIB)) + 90.0 * (1 + (memory - 1) // (100 * GIB))


def new_module_id(instance_id: str) -> str:
    """An id of AWS's shape: the parent's, "-enc", and a 64-bit number in 16 hex digits, whose upper 48 bits
    are the time in milliseconds."""
    number = (time.time_ns() // 1_000_000) << 16 | int.from_bytes(os.urandom(2), "big")
    return f"{instance_id}-enc{number:016x}"


def default_name(eif: Path) -> str:
    """The file's name without `.eif`, as nitro-cli has it; what a terminal cannot show becomes `?`."""
    name = eif.name
    while name.endswith(".eif") and name != ".eif":
        name = name[: -len(".eif")]
    return "".join(c if c.isprintable() else "?" for c in name)[:NAME_MAX]


def make_plan(request: RunRequest) -> Plan:
    """Fill in the defaults of a request that is `ready`, and refuse what cannot work, before anything has
    started: this is where file and host are judged, once for each start. Raises as `preflight.check` does."""
    from nitroctl.enclaves import preflight

    checked = preflight.check(request)
    memory = checked.memory_mib
    cmdline = " ".join(filter(None, (os.fsdecode(checked.eif.cmdline), request.append)))
    arch = checked.eif.arch
    accel = Accelerator(request.accel, "asked for", arch) if request.accel else accelerator.choose(arch)
    return Plan(
        request=request,
        name=request.name or default_name(request.eif),
        memory_mib=memory,
        boot_timeout=request.boot_timeout or default_boot_timeout(checked.eif.size, memory * MIB),
        accel=accel,
        acpi=checked.eif.needs_acpi and arch == "x86_64",
        module_id=new_module_id(request.instance_id),
        cmdline=cmdline,
        notes=checked.notes,
        unmeasured=tuple(overlay.reasons(request)),
    )


def by_hand(plan: Plan) -> tuple[list[str], list[str]]:
    """The command lines of backend and QEMU for two terminals: sockets beside the folders that a run makes,
    which belong to no one else, and the console on standard output. No certificates are minted for it: that
    QEMU makes a chain of its own. An overlay that is no file yet is made."""
    folder = reserve(plan.request.cid)
    release(folder)
    places = _ByHand(folder.cid, folder.path.parent)
    backend = sockets.argv(plan.backend_config(places, once=True))
    made = overlay.prepare(plan.overlays, plan.request.eif, places.overlay)
    return backend, qemu_options.argv(plan.qemu_config(places, overlay=made))


class _ByHand(Folder):
    @property
    def device(self) -> Path:
        return self.path / f"{self.cid}.device"

    @property
    def uds(self) -> Path:
        return self.path / f"{self.cid}.vsock"

    @property
    def overlay(self) -> Path:
        return self.path / f"{self.cid}.overlay.cpio"

    @property
    def gdb(self) -> Path:
        return self.path / f"{self.cid}.gdb"


def first_record(plan: Plan, folder: Folder, *, detached: bool) -> Record:
    """What is known of the enclave before anything runs. Its folder among the records is not made yet."""
    prefix = plan.module_id.removesuffix(plan.number)
    return Record(
        id=f"{prefix}{int(plan.number, 16):x}",
        name=plan.name,
        state=State.STARTING,
        cid=folder.cid,
        eif=plan.request.eif,
        memory_mib=plan.memory_mib,
        cpus=plan.request.cpus,
        accel=plan.accel.name,
        accel_reason=plan.accel.reason,
        debug=plan.request.debug_mode,
        unmeasured=bool(plan.unmeasured),
        keep_pcrs=plan.request.overlay_keep_pcrs,
        detached=detached,
        folder=folder.path,
        uds=folder.uds,
        home=Path(),
        supervisor_pid=os.getpid(),
        qemu_pid=None,
        backend_pid=None,
        started=time.time(),
        tools=plan.request.tools,
    )
