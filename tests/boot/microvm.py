# SPDX-License-Identifier: MIT
"""A virtual machine that is no enclave: `-M microvm` with the agent as PID 1, so that there is neither a
heartbeat nor an NSM, and vsock."""

from __future__ import annotations

import os
from pathlib import Path

from nitroctl.eif.extract import extract
from nitroctl.enclaves.qemu import escape
from nitroctl.testing.lab import Lab

IMAGE = "no-heartbeat"  # the lab's image with such an agent


def argv(lab: Lab, folder: Path, socket: Path, memory: str) -> list[str]:
    """QEMU's; what it boots is put into the folder."""
    parts = extract(lab.image(IMAGE), folder / "parts")
    ramdisks = [part for part in parts if part.name.startswith("ramdisk")]
    initramfs = folder / "initramfs"
    initramfs.write_bytes(b"".join(part.read_bytes() for part in ramdisks))
    kernel = next(part for part in parts if part.name.startswith("kernel"))
    return [
        os.fspath(lab.qemu), "-M", "microvm,acpi=off,memory-backend=m", "-m", memory,
        "-object", f"memory-backend-memfd,id=m,size={memory},share=on",
        "-accel", lab.accel.name, "-cpu", "host" if lab.accel.name == "kvm" else "max",
        "-kernel", os.fspath(kernel), "-initrd", os.fspath(initramfs),
        "-append", "console=ttyS0 panic=1 reboot=t", "-nodefaults", "-nographic", "-serial", "stdio",
        "-no-reboot", "-chardev", f"socket,id=c,path={escape(socket)}",
        "-device", "vhost-user-vsock-device,chardev=c",
    ]  # fmt: skip
