# SPDX-License-Identifier: MIT
"""QEMU's command line, the accelerator and the memory, as values. No QEMU is started."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nitroctl.base.errors import UsageError
from nitroctl.enclaves import qemu
from nitroctl.enclaves.qemu import Accelerator, QemuConfig

TCG = Accelerator("tcg", "because")
KVM = Accelerator("kvm", "because")

CONFIG = QemuConfig(
    binary=Path("/opt/qemu"),
    eif=Path("/srv/hello.eif"),
    vsock=Path("/run/16/device"),
    name="hello",
    module_id="i-0000000000000000-enc0000000000000010",
    accel=TCG,
    memory_mib=512,
)


def test_the_whole_command_line() -> None:
    assert qemu.argv(CONFIG) == [
        "/opt/qemu",
        "-M", "nitro-enclave,vsock=vsock,id=i-0000000000000000-enc0000000000000010",
        "-name", "guest=hello",
        "-accel", "tcg", "-cpu", "max",
        "-smp", "1", "-m", "512M",
        "-kernel", "/srv/hello.eif",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-chardev", "socket,id=vsock,path=/run/16/device",
        "-serial", "stdio",
    ]  # fmt: skip


def test_every_option() -> None:
    config = replace(
        CONFIG,
        accel=KVM,
        memory_mib=4096,
        cpus=2,
        parent_id="i-1234",
        parent_role="arn:aws:iam::123456789012:role/x",
        append="a b",
        acpi=True,
        qmp=9,
        extra=["-S"],
    )
    assert qemu.argv(config) == [
        "/opt/qemu",
        "-M", "nitro-enclave,vsock=vsock,id=i-0000000000000000-enc0000000000000010,parent-id=i-1234,"
              "parent-role=arn:aws:iam::123456789012:role/x,acpi=on",
        "-name", "guest=hello",
        "-accel", "kvm", "-cpu", "host",
        "-smp", "2", "-m", "4096M",
        "-kernel", "/srv/hello.eif",
        "-append", "a b",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-chardev", "socket,id=vsock,path=/run/16/device",
        "-serial", "stdio",
        "-chardev", "socket,id=qmp,fd=9", "-mon", "chardev=qmp,mode=control",
        "-S",
    ]  # fmt: skip


def test_commas_are_doubled_where_qemu_splits_at_them() -> None:
    config = replace(
        CONFIG, name="a,b", module_id="c,d", parent_role="e,f", vsock=Path("/g,h"), eif=Path("/i,j")
    )
    args = qemu.argv(config)
    assert "guest=a,,b" in args
    assert "nitro-enclave,vsock=vsock,id=c,,d,parent-role=e,,f" in args
    assert "socket,id=vsock,path=/g,,h" in args
    assert "/i,j" in args  # -kernel takes its argument whole


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("512m", 512), ("4G", 4096), ("4g", 4096), ("1T", 1 << 20), (" 7 ", 7)],
)
def test_memory(text: str, mib: int) -> None:
    assert qemu.parse_memory(text) == mib


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "512K", "512MB", "G", "0x10", "٣", "9" * 13])
def test_memory_refused(text: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        qemu.parse_memory(text)


@pytest.mark.parametrize(
    ("size", "mib"),
    [(1, 512), (128 << 20, 512), ((128 << 20) + 1, 516), (400 << 20, 1600), (1 << 30, 4096)],
)
def test_default_memory_is_four_times_the_eif_and_at_least_512_mib(size: int, mib: int) -> None:
    assert qemu.default_memory(size) == mib


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
    return qemu.accelerator(cpuinfo=cpuinfo(tmp_path, flags), kvm=device, machine="x86_64", **more)


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
    chosen = qemu.accelerator(
        cpuinfo=cpuinfo(tmp_path, "vmx"), kvm=tmp_path / "missing", machine="x86_64"
    )
    assert chosen.name == "tcg"
    assert "missing: No such file or directory" in chosen.reason


def test_another_architecture_emulates(tmp_path: Path) -> None:
    chosen = qemu.accelerator(cpuinfo=cpuinfo(tmp_path, "vmx"), machine="aarch64")
    assert chosen.name == "tcg"
    assert "aarch64" in chosen.reason
