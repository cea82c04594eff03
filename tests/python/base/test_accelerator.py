# SPDX-License-Identifier: MIT
"""The choice of an accelerator, on hosts that are made up."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nitroctl.base import accelerator
from nitroctl.base.accelerator import Accelerator


def cpuinfo(tmp_path: Path, flags: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: X\nflags\t\t: {flags}\nbugs\t\t: svm_bug vmx\n\n")
    return path


class Kvm:
    """A KVM as linux/kvm.h has it: its version, and a descriptor for a virtual machine, or an error."""

    def __init__(self, version: int = 12, *errors: int) -> None:
        self.version = version
        self.errors = list(errors)
        self.machines: list[int] = []

    def __call__(self, fd: int, request: int, argument: int) -> int:
        assert argument == 0
        if request == 0xAE00:
            return self.version
        assert request == 0xAE01
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        self.machines.append(os.dup(fd))
        return self.machines[-1]


def choose(tmp_path: Path, flags: str, kvm: Kvm | None = None) -> Accelerator:
    device = tmp_path / "kvm"
    device.touch()
    more: dict[str, Any] = {"ioctl": kvm} if kvm else {}
    return accelerator.choose(cpuinfo=cpuinfo(tmp_path, flags), kvm=device, machine="x86_64", **more)


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_kvm_needs_flag_and_device(tmp_path: Path, flag: str) -> None:
    kvm = Kvm(12, errno.EINTR)
    chosen = choose(tmp_path, f"fpu {flag} sse", kvm)
    assert (chosen.name, chosen.cpu) == ("kvm", "host")
    assert flag in chosen.reason
    (machine,) = kvm.machines
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(machine)


@pytest.mark.parametrize(
    ("kvm", "words"),
    [
        (None, "KVM_GET_API_VERSION fails: Inappropriate ioctl for device"),  # a plain file is no KVM
        (Kvm(11), "its API has version 11, not 12"),
        (Kvm(12, errno.EBUSY), "KVM_CREATE_VM fails: Device or resource busy"),
        (Kvm(12, errno.EOPNOTSUPP), "KVM_CREATE_VM fails: Operation not supported"),
    ],
)
def test_a_device_that_makes_no_machine_is_no_kvm(tmp_path: Path, kvm: Kvm | None, words: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    chosen = choose(tmp_path, "vmx", kvm)
    assert (chosen.name, chosen.reason) == ("tcg", f"{tmp_path}/kvm: {words}")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("flags", ["fpu sse", "fpu vmx_other svm_lock", ""])
def test_a_kvm_device_without_the_cpu_flag_is_not_used(tmp_path: Path, flags: str) -> None:
    chosen = choose(tmp_path, flags, Kvm())
    assert (chosen.name, chosen.cpu) == ("tcg", "max")
    assert "vmx" in chosen.reason


def test_a_cpu_flag_without_the_device_is_not_enough(tmp_path: Path) -> None:
    chosen = accelerator.choose(cpuinfo=cpuinfo(tmp_path, "vmx"), kvm=tmp_path / "missing", machine="x86_64")
    assert chosen.name == "tcg"
    assert "missing: No such file or directory" in chosen.reason


def test_another_architecture_emulates(tmp_path: Path) -> None:
    chosen = accelerator.choose(cpuinfo=cpuinfo(tmp_path, "vmx"), machine="aarch64")
    assert chosen.name == "tcg"
    assert "aarch64" in chosen.reason
