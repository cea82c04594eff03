# SPDX-License-Identifier: MIT
"""Which accelerator this host offers to QEMU."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# linux/kvm.h, and the only version that there has been since 2007.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_API_VERSION = 12


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


def choose(
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
