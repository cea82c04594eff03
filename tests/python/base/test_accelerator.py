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
from nitroctl.base.arch import Arch


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


@pytest.mark.parametrize("pair", ["aarch64 x86_64", "x86_64 aarch64", "riscv64 aarch64"])
def test_another_architecture_emulates(tmp_path: Path, pair: str) -> None:
    host, _, name = pair.partition(" ")
    guest: Arch = "x86_64" if name == "x86_64" else "aarch64"
    kvm = tmp_path / "kvm"
    kvm.touch()
    info = cpuinfo(tmp_path, "vmx")
    chosen = accelerator.choose(guest, cpuinfo=info, kvm=kvm, machine=host, ioctl=Kvm())
    assert (chosen.name, chosen.reason) == ("tcg", f"this host is {host}, the guest {guest}")


def test_an_arm64_host_has_no_flag_but_must_make_a_machine(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()

    def arm(kvm: Kvm) -> Accelerator:
        # No such file: there is nothing in it to ask for.
        return accelerator.choose(
            "aarch64", cpuinfo=tmp_path / "none", kvm=device, machine="aarch64", ioctl=kvm
        )

    chosen = arm(Kvm())
    assert (chosen.name, chosen.cpu) == ("kvm", "host")
    assert chosen.reason == f"{device} makes virtual machines"
    chosen = arm(Kvm(12, errno.EOPNOTSUPP))
    assert chosen.reason == f"{device}: KVM_CREATE_VM fails: Operation not supported"
    # Under TCG no model with 52-bit addresses, which AWS's kernels have no use for.
    assert (chosen.name, chosen.cpu) == ("tcg", "neoverse-n1")


def test_a_cpu_of_which_nothing_is_known_emulates(tmp_path: Path) -> None:
    chosen = accelerator.choose(cpuinfo=tmp_path / "none", machine="x86_64")
    assert str(chosen) == f"TCG ({tmp_path}/none: No such file or directory)"
    (tmp_path / "empty").write_text("processor\t: 0\n\n")
    chosen = accelerator.choose(cpuinfo=tmp_path / "empty", machine="x86_64")
    assert chosen.reason == f"neither vmx nor svm is among the CPU flags in {tmp_path}/empty"
