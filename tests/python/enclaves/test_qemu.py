# SPDX-License-Identifier: MIT
"""QEMU's command line, as a value. No QEMU is started."""

from __future__ import annotations

from pathlib import Path

from nitroctl.base.accelerator import Accelerator
from nitroctl.enclaves import qemu
from nitroctl.enclaves.qemu import QemuConfig

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
    config = CONFIG._replace(
        accel=KVM,
        memory_mib=4096,
        cpus=2,
        parent_id="i-1234",
        parent_role="arn:aws:iam::123456789012:role/x",
        append="a b",
        acpi=True,
        overlay=Path("/a,b.cpio"),
        keep_pcrs=True,
        qmp=9,
        extra=["-S"],
    )
    assert qemu.argv(config) == [
        "/opt/qemu",
        "-M", "nitro-enclave,vsock=vsock,id=i-0000000000000000-enc0000000000000010,parent-id=i-1234,"
              "parent-role=arn:aws:iam::123456789012:role/x,acpi=on,overlay=/a,,b.cpio,overlay-keep-pcrs=on",
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
    config = CONFIG._replace(
        name="a,b", module_id="c,d", parent_role="e,f", vsock=Path("/g,h"), eif=Path("/i,j")
    )
    args = qemu.argv(config)
    assert "guest=a,,b" in args
    assert "nitro-enclave,vsock=vsock,id=c,,d,parent-role=e,,f" in args
    assert "socket,id=vsock,path=/g,,h" in args
    assert "/i,j" in args  # -kernel takes its argument whole
