# SPDX-License-Identifier: MIT
"""QEMU's command line for one enclave: a frozen configuration in, a list of arguments out.

Also what decides that command line: which accelerator this host offers, and how much memory an EIF gets. No
process is started here and nothing is written; `enclave` does that.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nitroctl.base.errors import UsageError

MIB = 1 << 20
MIN_MEMORY_MIB = 512
# AWS's rule: an enclave has at least four times its EIF as memory.
MEMORY_PER_EIF = 4

# linux/kvm.h, and the only version that there has been since 2007.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_API_VERSION = 12

_SUFFIXES = {"": 1, "M": 1, "G": 1 << 10, "T": 1 << 20}


@dataclass(frozen=True)
class Accelerator:
    """How QEMU will run the guest's CPU, and why (a clause for messages)."""

    name: Literal["kvm", "tcg"]
    reason: str

    @property
    def cpu(self) -> str:
        """The CPU model that goes with it: all that the host, or the emulator, can do."""
        return "host" if self.name == "kvm" else "max"

    def __str__(self) -> str:
        return f"{self.name.upper()} ({self.reason})"


def accelerator(
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    kvm: Path = Path("/dev/kvm"),
    machine: str | None = None,
    ioctl: Callable[[int, int, int], int] = fcntl.ioctl,
) -> Accelerator:
    """KVM only where it can work, otherwise TCG.

    A device that opens proves nothing, nor does the CPU's flag: containers and nested hosts show a /dev/kvm
    that cannot run a kernel, and another hypervisor may hold the CPU. So a virtual machine is made, and at
    once let go: what QEMU will do first.
    """
    arch = platform.machine() if machine is None else machine
    if arch != "x86_64":
        return Accelerator("tcg", f"this host is {arch}, the guest x86_64")
    flags: set[str] = set()
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as f:
            for line in f:
                key, _, value = line.partition(":")
                if key.strip() == "flags":
                    flags = set(value.split())
                    break
    except OSError as e:
        return Accelerator("tcg", f"{cpuinfo}: {e.strerror}")
    found = sorted(flags & {"vmx", "svm"})
    if not found:
        return Accelerator("tcg", f"neither vmx nor svm is among the CPU flags in {cpuinfo}")
    try:
        fd = os.open(kvm, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        return Accelerator("tcg", f"{kvm}: {e.strerror}")
    try:
        if reason := _kvm_fails(fd, ioctl):
            return Accelerator("tcg", f"{kvm}: {reason}")
    finally:
        os.close(fd)
    return Accelerator("kvm", f"{found[0]} is among the CPU flags and {kvm} makes virtual machines")


def _kvm_fails(kvm: int, ioctl: Callable[[int, int, int], int]) -> str | None:
    """Why KVM makes no virtual machine here, None if it does."""
    call = "KVM_GET_API_VERSION"
    try:
        version = ioctl(kvm, KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            return f"its API has version {version}, not {KVM_API_VERSION}"
        call = "KVM_CREATE_VM"
        while True:
            try:
                os.close(ioctl(kvm, KVM_CREATE_VM, 0))
                return None
            except InterruptedError:
                continue  # by a signal, as the kernel may
    except OSError as e:
        return f"{call} fails: {e.strerror}"


def parse_memory(text: str) -> int:
    """Memory in MiB from `512`, `512M`, `4G`, `1t`: bare numbers are MiB, suffixes in any case."""
    match = re.fullmatch(r"([0-9]{1,12})([MGT]?)", text.strip().upper(), re.ASCII)
    if not match or int(match[1]) == 0:
        raise UsageError(
            f"memory {text!r} is not an amount of memory",
            hint="give a whole number of MiB, or one with the suffix M, G or T, such as 512M or 4G",
        )
    return int(match[1]) * _SUFFIXES[match[2]]


def default_memory(eif_size: int) -> int:
    """MiB for an EIF of `eif_size` bytes: four times its size, rounded up, and at least 512."""
    eif_mib = -(-eif_size // MIB)
    return max(MIN_MEMORY_MIB, MEMORY_PER_EIF * eif_mib)


@dataclass(frozen=True)
class QemuConfig:
    """All that the command line depends on. `qmp` is the number of a connected socket that QEMU inherits and
    speaks QMP on, or None for no monitor. The guest's serial port is QEMU's standard output."""

    binary: Path
    eif: Path
    vsock: Path
    name: str
    module_id: str
    accel: Accelerator
    memory_mib: int
    cpus: int = 1
    parent_id: str | None = None
    parent_role: str | None = None
    append: str | None = None
    acpi: bool = False
    debug: bool = False
    ignore_signature: bool = False
    cert_chain: Path | None = None  # PEM, root first; with it goes `cert_key`
    cert_key: Path | None = None
    document_form: str = "2025"  # of attestation documents; the default is not passed on
    qmp: int | None = None
    extra: Sequence[str] = ()


def escape(value: str | os.PathLike[str]) -> str:
    """A value inside a comma-separated QEMU option: commas are doubled."""
    return os.fspath(value).replace(",", ",,")


def _machine(config: QemuConfig) -> str:
    options = ["nitro-enclave", "vsock=vsock", f"id={escape(config.module_id)}"]
    if config.parent_id is not None:
        options.append(f"parent-id={escape(config.parent_id)}")
    if config.parent_role is not None:
        options.append(f"parent-role={escape(config.parent_role)}")
    if config.acpi:
        options.append("acpi=on")
    if config.debug:
        options.append("debug-mode=on")
    if config.ignore_signature:
        options.append("eif-signature=ignore")
    if config.cert_chain is not None and config.cert_key is not None:
        options.append(f"cert-chain={escape(config.cert_chain)}")
        options.append(f"cert-key={escape(config.cert_key)}")
    if config.document_form != "2025":
        options.append(f"document-form={escape(config.document_form)}")
    return ",".join(options)


def signs_documents(binary: Path) -> bool:
    """Whether this QEMU's nitro-enclave machine takes a certificate chain. Upstream's does not."""
    from nitroctl.base import proc

    said = proc.run([binary, "-M", "nitro-enclave,help"], check=False).stdout.decode(errors="replace")
    return "cert-chain=" in said


def argv(config: QemuConfig) -> list[str]:
    """The command line. None of QEMU's defaults is left: no display, no monitor but QMP, no user config."""
    args = [os.fspath(config.binary)]
    args += ["-M", _machine(config)]
    args += ["-name", f"guest={escape(config.name)}"]
    args += ["-accel", config.accel.name, "-cpu", config.accel.cpu]
    args += ["-smp", str(config.cpus), "-m", f"{config.memory_mib}M"]
    args += ["-kernel", os.fspath(config.eif)]
    if config.append is not None:
        args += ["-append", config.append]
    args += ["-nodefaults", "-no-user-config", "-display", "none"]
    args += ["-chardev", f"socket,id=vsock,path={escape(config.vsock)}"]
    args += ["-serial", "stdio"]
    if config.qmp is not None:
        args += ["-chardev", f"socket,id=qmp,fd={config.qmp}", "-mon", "chardev=qmp,mode=control"]
    return [*args, *config.extra]
