# SPDX-License-Identifier: MIT
"""Which accelerator this host offers to QEMU."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from nitroctl.base.arch import Arch, facts, host

# linux/kvm.h, and the only version that there has been since 2007.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_API_VERSION = 12


class Accelerator(NamedTuple):
    """How QEMU will run the guest's CPU, and why (a clause for messages)."""

    name: Literal["kvm", "tcg"]
    reason: str
    arch: Arch = "x86_64"  # the guest's

    @property
    def cpu(self) -> str:
        """The CPU model that goes with it: all that the host can do, or as much of what the emulator can as
        kernels bear."""
        return "host" if self.name == "kvm" else facts(self.arch).cpu

    def __str__(self) -> str:
        return f"{self.name.upper()} ({self.reason})"


def choose(
    arch: Arch = "x86_64",
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    kvm: Path = Path("/dev/kvm"),
    machine: str | None = None,
    ioctl: Callable[[int, int, int], int] = fcntl.ioctl,
) -> Accelerator:
    """KVM only where it can work for guests of that architecture, otherwise TCG.

    A device that opens proves nothing, nor does the CPU's flag: containers and nested hosts show a /dev/kvm
    that cannot run a kernel, and another hypervisor may hold the CPU. So a virtual machine is made, and at
    once let go: what QEMU will do first. An arm64 CPU shows no flag for it.
    """
    here = platform.machine() if machine is None else machine
    if host(here) != arch:
        return Accelerator("tcg", f"this host is {here}, the guest {arch}", arch)
    seen = ""
    if arch == "x86_64":
        try:
            found = sorted(_cpu_flags(cpuinfo) & {"vmx", "svm"})
        except OSError as e:
            return Accelerator("tcg", f"{cpuinfo}: {e.strerror}", arch)
        if not found:
            return Accelerator("tcg", f"neither vmx nor svm is among the CPU flags in {cpuinfo}", arch)
        seen = f"{found[0]} is among the CPU flags and "
    try:
        fd = os.open(kvm, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        return Accelerator("tcg", f"{kvm}: {e.strerror}", arch)
    try:
        if reason := _kvm_fails(fd, ioctl):
            return Accelerator("tcg", f"{kvm}: {reason}", arch)
    finally:
        os.close(fd)
    return Accelerator("kvm", f"{seen}{kvm} makes virtual machines", arch)


def _cpu_flags(cpuinfo: Path) -> set[str]:
    with open(cpuinfo, encoding="ascii", errors="replace") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                return set(value.split())
    return set()


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
