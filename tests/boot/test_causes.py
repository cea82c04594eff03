# SPDX-License-Identifier: MIT
"""Each likely cause of an enclave that does not come up, made with a real kernel, backend and QEMU: the error
and the record name it. What tells them apart is in tests/python/enclaves/test_diagnosis.py."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nitroctl.eif import compose, cpio, testimage
from nitroctl.eif.build import Generated, Metadata, Parts, build
from nitroctl.testing.lab import LIMIT, Lab, heartbeat_listener
from nitroctl.toolchain import guest

pytestmark = [pytest.mark.boot, pytest.mark.ours("causes are told from what our init says")]

# Init of its own: connects to a CID and port, sends a byte, and says what came of it before it dies.
INIT = r"""
#include <stdio.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

int main(void)
{
    struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = CID, .svm_port = PORT };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    unsigned char byte = BYTE;

    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        perror("own init");
    } else if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1) {
        perror("own init, later");
    }
    tcdrain(2);
    return 9;
}
"""

VSOCK_MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")
STATIC = ("-O2", "-static", "-w")


def compiled(tmp_path: Path, source: str, *options: str) -> bytes:
    code, program = tmp_path / "init.c", tmp_path / "init"
    code.write_text(source)
    subprocess.run(["cc", *options, "-o", program, code], check=True)
    return program.read_bytes()


def knocking(tmp_path: Path, cid: int, port: int, byte: int) -> bytes:
    return compiled(tmp_path, INIT, *STATIC, f"-DCID={cid}", f"-DPORT={port}", f"-DBYTE={byte}")


def illegal() -> bytes:
    """An ELF program of the instruction UD2."""
    base, start, code = 0x400000, 64 + 56, b"\x0f\x0b"
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = start + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def image(
    lab: Lab,
    init: bytes | None = None,
    *,
    mode: int = 0o755,
    kernel: compose.Kernel | None = None,
    acpi: bool | None = None,
    cmdline: str = testimage.CMDLINE,
    second: bytes | tuple[str, ...] | None = ("rootfs", "rootfs/dev", "rootfs/proc", "rootfs/run",
                                              "rootfs/sys", "rootfs/tmp"),
) -> Path:  # fmt: skip
    """An image with this init (None: ours) and this second ramdisk: names of folders in it, or bytes."""
    path = lab.folder / f"{os.urandom(4).hex()}.eif"
    kernel = kernel or compose.locate_kernel("own")
    ours = guest.build_init()
    data = (ours / "init").read_bytes() if init is None else init

    def bootstrap(sink: Any) -> None:
        archive = cpio.Archive(sink)
        archive.add(cpio.directory("dev"))
        archive.add(cpio.Entry(b"init", stat.S_IFREG | mode, data=data))
        for entry in kernel.files:
            archive.add(entry)
        archive.finish()

    def application(sink: Any) -> None:
        if isinstance(second, bytes):
            sink.write(second)
            return
        archive = cpio.Archive(sink)
        for name in second or ():
            archive.add(cpio.directory(name))
        archive.add(cpio.file("cmd", b"/hello\n"))
        archive.add(cpio.file("env", b""))
        archive.add(cpio.file("rootfs/hello", ours / "hello", 0o755))
        archive.finish()

    disks = [Generated("first", bootstrap, len(data))]
    if second is not None:
        disks.append(Generated("second", application, 1 << 20))
    custom = {"nitroctl": {"acpi": True}} if (kernel.acpi if acpi is None else acpi) else None
    metadata = Metadata(image_name="broken", kernel_version="x", custom=custom)
    build(Parts(kernel.image, cmdline.encode(), tuple(disks), metadata), path)
    return path


def without(*modules: str) -> compose.Kernel:
    """Debian's kernel without some of the modules that init inserts."""
    kernel = compose.locate_kernel("prebuilt")
    (listing,) = [entry for entry in kernel.files if entry.name == b"modules"]
    assert listing.path
    lines = listing.path.read_text().splitlines(True)
    kept = "".join(line for line in lines if not any(f"/{module}.ko" in line for module in modules))
    files = tuple(cpio.file("modules", kept.encode()) if e is listing else e for e in kernel.files)
    return dataclasses.replace(kernel, files=files)


def cause(lab: Lab, eif: Path, *options: str, status: int = 4) -> tuple[str, str]:
    """Run it detached; the name of the cause in its record, and the command's error."""
    argv = [
        sys.executable, "-m", "nitroctl", "run", "--detach", str(eif), "--qemu", str(lab.qemu),
        "--vsock-backend", str(lab.backend), *options,
    ]  # fmt: skip
    done = subprocess.run(argv, env=lab.environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == status, done.stderr
    listed = [sys.executable, "-m", "nitroctl", "ps", "--all", "--json"]
    listing = subprocess.run(listed, env=lab.environment(), capture_output=True, text=True, check=True)
    (record,) = [r for r in json.loads(listing.stdout)["items"] if r["eif"] == str(eif)]
    assert record["hint"] and record["hint"] in done.stderr
    return record["cause"], done.stderr


def test_no_init(lab: Lab) -> None:
    name, error = cause(lab, lab.image("no-init"))
    assert name == "no-init" and "likely cause: there is no /init in the first ramdisk" in error


@pytest.mark.parametrize(
    ("init", "mode", "why"),
    [
        ("text", 0o755, "it is no program for this machine"),
        ("dynamic", 0o755, "its interpreter or dynamic loader is not in the first ramdisk"),
        ("static", 0o644, "it is not executable"),
    ],
)
def test_init_cannot_be_executed(lab: Lab, tmp_path: Path, init: str, mode: int, why: str) -> None:
    source = "int main(void) { return 0; }"
    make: dict[str, Callable[[], bytes]] = {
        "text": lambda: b"not a program",
        "dynamic": lambda: compiled(tmp_path, source),
        "static": lambda: compiled(tmp_path, source, *STATIC),
    }
    name, error = cause(lab, image(lab, make[init](), mode=mode))
    assert name == "init-not-executable" and f"the kernel cannot start /init: {why}" in error


def test_init_dies(lab: Lab, tmp_path: Path) -> None:
    name, error = cause(lab, image(lab, illegal()))
    assert name == "init-died" and "init was killed by SIGILL" in error and "CPU with more features" in error
    name, error = cause(lab, image(lab, compiled(tmp_path, "int main(void) { return 9; }", *STATIC)))
    assert name == "init-died" and "init ended with status 9 before it had sent the heartbeat" in error


def check_message(lab: Lab, eif: Path, text: bytes, *options: str) -> None:
    """For what happens after the heartbeat, when a detached run has returned."""
    with lab.run(eif, *options) as run:
        run.expect(rb"error: the guest's kernel panicked: .*; likely cause: " + text)
        run.expect(rb"hint: ")
        run.check_ends(4)


def test_too_little_memory(lab: Lab) -> None:
    eif = lab.image("big", size=100 << 20)
    check_message(lab, eif, rb"the guest had too little memory", "--memory", "150M", "--no-memory-check")


def test_a_ramdisk_that_is_none(lab: Lab) -> None:
    check_message(lab, image(lab, second=b"no cpio archive"), rb"the kernel cannot unpack the ramdisks \(")


def test_no_application(lab: Lab) -> None:
    check_message(lab, image(lab, second=None), rb"the second ramdisk has no /env")


def test_no_mount_points(lab: Lab) -> None:
    eif = image(lab, second=("rootfs", "rootfs/dev"))
    check_message(lab, eif, rb"init could not prepare /proc \(No such file or directory\)")


def test_an_application_that_is_not_there(lab: Lab) -> None:
    with lab.run(lab.image("no-app")) as run:
        run.expect(rb"error: the application /missing could not be started \(No such file or directory\)")
        run.check_ends(1)


@pytest.mark.parametrize(
    ("cid", "port", "byte", "expected", "text"),
    [
        (3, 9001, 0xB7, "heartbeat-port", "the guest knocked at port 9001 of CID 3"),
        (7, 9000, 0xB7, "heartbeat-port", "the guest knocked at port 9000 of CID 7"),
        (3, 9000, 0xB6, "heartbeat-byte", "the guest sent another byte than 0xB7"),
    ],
)
def test_a_heartbeat_astray(
    lab: Lab, tmp_path: Path, cid: int, port: int, byte: int, expected: str, text: str
) -> None:
    name, error = cause(lab, image(lab, knocking(tmp_path, cid, port, byte)))
    assert name == expected and f"likely cause: {text}" in error


def test_a_heartbeat_that_is_answered_wrongly(lab: Lab) -> None:
    eif = image(lab)
    with lab.run(eif) as run, heartbeat_listener(run.uds()) as listener, listener.accept() as beat:
        assert beat.recv(1) == b"\xb7"
        beat.sendall(b"\x17")
        run.expect(rb"likely cause: a program serves the parent's port 9000")
        run.check_ends(4)


def test_no_heartbeat(lab: Lab) -> None:
    """The agent as init: it serves and never knocks. It waits for as long as it is given."""
    eif = image(lab, guest.locate("agent").read_bytes())
    name, error = cause(lab, eif, "--boot-timeout", "20", status=3)
    assert name == "no-heartbeat" and "init has not tried to reach its parent" in error
    assert "the console's last lines: " in error and "agent: listening on vsock port 7000" in error


def test_no_drivers(lab: Lab) -> None:
    """Debian's kernel, which has all that matters as modules."""
    name, error = cause(lab, image(lab, kernel=without(*VSOCK_MODULES)))
    assert name == "no-vsock-driver" and "no driver for its vsock device" in error
    name, error = cause(lab, image(lab, kernel=without("virtio_mmio")))
    assert name == "no-virtio-driver"
    name, error = cause(lab, image(lab, kernel=compose.locate_kernel("prebuilt"), acpi=False))
    assert name == "no-virtio-driver" and "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES" in error


def test_a_module_of_another_kernel(lab: Lab) -> None:
    kernel = compose.locate_kernel("own")
    foreign = [e for e in compose.locate_kernel("prebuilt").files if e.name == b"ko/nsm.ko"]
    kernel = dataclasses.replace(kernel, files=(dataclasses.replace(foreign[0], name=b"nsm.ko"),))
    name, error = cause(lab, image(lab, kernel=kernel))
    assert name == "module" and "init could not insert the nsm driver" in error


def test_a_console_that_nobody_sees(lab: Lab, tmp_path: Path) -> None:
    quiet = testimage.CMDLINE.replace("console=ttyS0", "console=hvc0")
    assert quiet != testimage.CMDLINE
    eif = image(lab, knocking(tmp_path, 3, 9001, 0), cmdline=f"{quiet} panic=1")
    name, error = cause(lab, eif, "--boot-timeout", "20", status=3)
    assert name in ("heartbeat-port", "console")
