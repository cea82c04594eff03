# SPDX-License-Identifier: MIT
"""Can this enclave be started here as asked? Every rule about file and host that needs no process, before
anything has started; those about one value alone are with it, in `request`.

One broken rule is one error: the value, the rule, what to do. What will work but hardly as the user thinks
becomes a note. Costs some kilobytes of the EIF; what only the whole file tells is the loader's to say
(`eif.peek`). Fills in no default but the memory, which the rules are about.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from nitroctl.base.arch import host as host_arch
from nitroctl.base.errors import EifError, EnclaveError, UsageError
from nitroctl.base.instants import UTC
from nitroctl.base.memory import MEMORY_PER_EIF, MIB, default_memory
from nitroctl.eif.boot import NOT_ON_AWS
from nitroctl.eif.peek import Peek, peek
from nitroctl.enclaves import overlay as overlay_of
from nitroctl.enclaves import tools
from nitroctl.enclaves.folder import KMS_PORT
from nitroctl.enclaves.request import CPUS_MAX, RunRequest
from nitroctl.vsock import forwards

MIN_MEMORY_MIB = 64  # of AWS's driver

# What the machine adds to the command line of a guest without ACPI, as long as it ever is.
DEVICE_ENTRIES = len(" virtio_mmio.device=512@0xfeb00000:5") * 2


class MemoryRefused(UsageError):
    """Too little memory for this EIF, or for any."""


class Host(NamedTuple):
    """What this host has; None where it does not say."""

    available_mib: int | None
    cpus: int

    @staticmethod
    def here(meminfo: Path = Path("/proc/meminfo")) -> Host:
        available = None
        try:
            for line in meminfo.read_text("ascii", "replace").splitlines():
                key, _, value = line.partition(":")
                if key == "MemAvailable":
                    available = int(value.split()[0]) >> 10
        except (OSError, ValueError, IndexError):
            pass  # a note less
        return Host(available, len(os.sched_getaffinity(0)))


class Checked(NamedTuple):
    eif: Peek
    memory_mib: int
    notes: tuple[str, ...]


def check(request: RunRequest, *, now: datetime | None = None, host: Host | None = None) -> Checked:
    """Of a request that is `ready`. Raises UsageError, EifError or EnclaveError for the first rule that is
    broken."""
    host = host or Host.here()
    forwards.check(request.forwards)
    if request.pcap or request.nsm_log:
        from nitroctl.enclaves import capture

        if request.pcap:
            capture.check(request.pcap)
        if request.nsm_log:
            capture.check(request.nsm_log, "`nitroctl nsm NAME -f --json` writes into a pipe")
    for kind in forwards.PARENT if request.kms else ():
        if any(text.startswith(f"{kind}={KMS_PORT}=") for text in request.forwards):
            raise UsageError(f"the parent's port {KMS_PORT} is served by --{kind} and by --kms")
    if request.overlay:
        from nitroctl.eif import overlay

        for path in request.overlay:
            overlay.check(path)
    if request.overlay_keep_pcrs and not overlay_of.reasons(request):
        raise UsageError(
            "--overlay-keep-pcrs is for an enclave that is not measured: give an overlay, or leave it out"
        )
    eif = _check_eif(request, now or datetime.now(UTC))
    if request.cpus > (most := _most_cpus(eif)):
        raise UsageError(
            f"{request.cpus} CPUs are too many: the machine of this image ({eif.arch}) has at most {most}"
        )
    if request.accel == "kvm" and host_arch() != eif.arch:
        raise UsageError(
            f"KVM runs this host's architecture alone, and {request.eif} is for {eif.arch}",
            hint="leave --accel out: TCG emulates it",
        )
    if request.tools:
        tools.locate(eif.arch)
    memory = default_memory(eif.size) if request.memory is None else request.memory
    _check_memory(memory, eif.size, ratio=request.memory_check)
    assert request.qemu and request.vsock_backend, "it is not ready"
    _check_program("QEMU", request.qemu)
    _check_program("the vsock backend", request.vsock_backend)
    return Checked(eif, memory, tuple(_notes(request, eif, memory, host)))


def _check_eif(request: RunRequest, now: datetime) -> Peek:
    eif = peek(request.eif)
    # A device tree needs no words on the command line.
    entries = DEVICE_ENTRIES if eif.arch == "x86_64" and not eif.needs_acpi else 0
    added = tools.append(request)
    eif.check_cmdline(entries + (len(os.fsencode(added)) + 1 if added else 0))
    if not request.ignore_signature:
        try:
            eif.check_signature(now)
        except EifError as e:
            again = "sign it again (`nitroctl eif sign`) with a certificate that is valid now"
            e.hint = e.hint or f"{again}, or start it all the same with `nitroctl run --ignore-signature`"
            raise
    return eif


def _most_cpus(eif: Peek) -> int:
    """The machine's limit: with ACPI QEMU's, without it that of APIC IDs in Intel's MP table; on arm64 the
    room for the redistributors of its interrupt controller."""
    if eif.arch == "aarch64":
        return 128
    return CPUS_MAX if eif.needs_acpi else 254


def _check_memory(memory: int, eif_size: int, *, ratio: bool) -> None:
    if memory < MIN_MEMORY_MIB:
        raise MemoryRefused(
            f"{memory} MiB of memory are too little; an enclave has at least {MIN_MEMORY_MIB} MiB"
        )
    if ratio and memory * MIB < MEMORY_PER_EIF * eif_size:
        need = MEMORY_PER_EIF * -(-eif_size // MIB)
        raise MemoryRefused(
            f"{memory} MiB of memory are too little for an EIF of {eif_size / MIB:.1f} MiB: AWS asks for "
            f"{MEMORY_PER_EIF} times its size, {need} MiB",
            hint=f"give it --memory {need}, or leave AWS's rule aside with --no-memory-check",
        )


def _check_program(what: str, path: Path) -> None:
    if shutil.which(path):
        return
    if path.is_dir():
        why, hint = "is a folder", "name the program in it"
    elif path.exists():
        why, hint = "Permission denied: it is not executable", f"chmod +x {path}, or name another program"
    else:
        why, hint = "No such file or directory", "`nitroctl build` makes QEMU and the vsock backend"
    raise EnclaveError(f"cannot start {what}: {path}: {why}", hint=hint)


def _notes(request: RunRequest, eif: Peek, memory: int, host: Host) -> list[str]:
    notes = []
    if why := overlay_of.reasons(request):
        kept = "PCR0, 1, 2 and 8 are zero"
        if request.overlay_keep_pcrs:
            kept = "its attestation documents say so in the name of their issuer"
        notes.append(f"this enclave is unmeasured, because of {' and '.join(why)}: {kept}")
    if not eif.kernel.boots_on_aws:
        notes.append(f"{NOT_ON_AWS}: `nitroctl eif build` writes AWS's 2 MiB")
    if gap := eif.layout.gap_size:
        notes.append(f"{gap} bytes of {eif.path} lie between its sections: they are in no PCR")
    if eif.lacks:
        notes.append("this image's kernel lacks, of what AWS's has: " + ", ".join(eif.lacks))
    if host.available_mib is not None and memory > host.available_mib:
        notes.append(
            f"the enclave may come to use {memory} MiB of memory, and this host has {host.available_mib} MiB "
            "to give"
        )
    if request.cpus > host.cpus:
        notes.append(f"{request.cpus} virtual CPUs share the {host.cpus} that this host lets us use")
    return notes
