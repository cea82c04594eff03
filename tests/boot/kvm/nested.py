# SPDX-License-Identifier: MIT
"""A Linux that has KVM and vsock_loopback, on any host: QEMU emulates a CPU with SVM and nested paging.

    python tests/boot/kvm/nested.py [--limit SECONDS] [--] PROGRAM [ARGUMENT]...

runs a program in it, as root, with this host's files: its root is ours, read-only over 9p, below a tmpfs that
takes what is written and is gone at the end. The exit status is the program's. There is no network but lo.

Debian's kernel and busybox are downloaded as the project's other packages are (nitroctl.toolchain.apt).
Emulation is slow: for facts, never for times.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from nitroctl.base.errors import NitroError
from nitroctl.eif import cpio
from nitroctl.toolchain import cache, packages
from nitroctl.toolchain.apt import AptRoot
from nitroctl.toolchain.modules import ModuleFolder

SUITE = "bookworm"
KERNEL = "linux-image-amd64"
MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "kvm-amd", "vsock_loopback")
# One CPU: with two, the emulator's SVM crashes that Linux sooner or later. No XSAVE: QEMU 7.2 does not let
# KVM see XSETBV, and guests would complain.
QEMU = (
    "-M", "pc", "-accel", "tcg", "-cpu", "max,-xsave", "-smp", "1", "-m", "8G",
    "-nodefaults", "-nic", "none", "-display", "none", "-no-reboot",
)  # fmt: skip
LIMIT = 3600.0  # seconds
# What of the environment comes along.
KEPT = ("PATH", "HOME", "USER", "VIRTUAL_ENV", "LANG")
KEPT_PREFIXES = ("XDG_", "NITRO", "VSOCK_", "VHOST_")

INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /lower /upper /root
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r m; do $b insmod /ko/$m.ko || echo "nested: no module $m"; done </modules
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /lower
$b mount -t tmpfs -o size=90% up /upper
$b mkdir /upper/new /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/new,workdir=/upper/work root /root
$b mount -t proc proc /root/proc
$b mount -t sysfs sys /root/sys
$b mount -t devtmpfs dev /root/dev
$b mkdir -p /root/dev/pts /root/dev/shm
$b mount -t devpts -o mode=620,ptmxmode=666 pts /root/dev/pts
$b mount -t tmpfs shm /root/dev/shm
$b mount -t tmpfs run /root/run
$b mount -t cgroup2 cgroup /root/sys/fs/cgroup
$b ip link set lo up
$b hostname nested
$b cp /command /root/run/command
$b chroot /root /bin/sh /run/command </root/dev/null
echo $? >/root/dev/ttyS1
$b sync
$b poweroff -f
"""


class _Sink:
    """A file as `cpio.write` wants it; all entries are bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def copy(self, fd: int, size: int | None, name: str) -> None:
        raise NotImplementedError


def system() -> Path:
    """A folder with `kernel` and `initrd`, made once of these packages."""
    root = AptRoot.open(SUITE)
    (image,) = [name for name in root.depends(KERNEL) if name.startswith("linux-image-")]
    versions = {name: root.version(name) for name in (image, "busybox-static")}

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            tree = Path(name)
            for package, version in versions.items():
                root.unpack(root.download(package, version, name=package.split("-")[0]), tree)
            (kernel,) = (tree / "boot").glob("vmlinuz-*")
            modules = ModuleFolder(tree / "lib/modules" / kernel.name.removeprefix("vmlinuz-"))
            loaded = modules.in_order(MODULES)
            kernel.rename(folder / "kernel")
            (busybox,) = (path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.is_file())
            with open(folder / "initrd", "wb") as f:
                entries = [
                    *map(cpio.directory, ("bin", "dev", "ko")),
                    cpio.device("dev/console", 0o020000, 5, 1),
                    cpio.file("bin/busybox", busybox.read_bytes(), 0o755),
                    cpio.file("init", INIT.encode(), 0o755),
                    cpio.file("modules", "".join(f"{name}\n" for name in loaded).encode()),
                    *(cpio.file(f"ko/{name}.ko", modules.content(name)) for name in loaded),
                ]
                cpio.write(_Sink(f), entries)

    key = "_".join([*versions.values(), cache.digest_text(INIT + " ".join(MODULES))[:12]]).replace(":", "-")
    return cache.build_entry("nested", key, fill, name="nested")


def run(argv: list[str], *, limit: float = LIMIT) -> int:
    """Run a program in that Linux, its output passing through; raises NitroError if that Linux ends early."""
    made = system()
    qemu = packages.DISTRIBUTION_QEMU
    if not Path(qemu.program).is_file():
        raise NitroError(f"{qemu.program} is not installed: a whole PC is emulated with it",
                         hint=f"apt-get install {qemu.debian}")  # fmt: skip
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    script = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in kept.items())
    script += f"cd {shlex.quote(os.getcwd())}\nexec {shlex.join(argv)}\n"
    with tempfile.TemporaryDirectory(prefix="n-") as name:
        folder = Path(name)
        initrd, status = folder / "initrd", folder / "status"
        with open(initrd, "wb") as f:
            f.write((made / "initrd").read_bytes())
            f.write(bytes(-f.tell() % 512))
            cpio.write(_Sink(f), [cpio.file("command", script.encode())])
        line = [
            qemu.program, *QEMU, "-kernel", str(made / "kernel"), "-initrd", str(initrd),
            "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
            "-chardev", "stdio,id=console,signal=off",
            "-serial", "chardev:console", "-serial", f"file:{status}",
        ]  # fmt: skip
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            raise NitroError(f"the nested Linux has not ended within {limit:.0f} s") from None
        finally:
            process.kill()
            process.wait()
        said = status.read_text().strip() if status.is_file() else ""
    if not said.isdigit():
        raise NitroError("the nested Linux ended without telling a status: see its console above")
    return int(said)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a program in an emulated Linux that has KVM.")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that it may take")
    parser.add_argument("argv", nargs="+", metavar="PROGRAM")
    arguments = parser.parse_args()
    return run(arguments.argv, limit=arguments.limit)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NitroError as e:
        sys.exit(f"error: {e}" + (f"\nhint: {e.hint}" if e.hint else ""))
    except KeyboardInterrupt:
        sys.exit(130)
