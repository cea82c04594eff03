# SPDX-License-Identifier: MIT
"""How long the machine takes to load, check and measure a large EIF, against one SHA-384 pass over the file.

    python tests/bench/load.py [--size 400M] [--runs 5]

Contenders, in turns: `-M nitro-enclave` with the EIF; plain `-M microvm` with the same kernel, the same
initramfs in a memfd and shared RAM, whose time is what any loader would take; and `openssl dgst -sha384` of
the file. The figure is (nitro-enclave - microvm) / openssl: what the EIF costs beyond the boot, in digests of
the file. Time runs from QEMU's start to the first byte on the console. UPSTREAM_QEMU names a QEMU with the
upstream machine to be measured beside ours; without it the row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import Series, alternate, parts, seconds_of, table, warm

from nitroctl.base import accelerator, proc, progress
from nitroctl.eif import testimage
from nitroctl.toolchain import tree

BOOT_LIMIT = 180  # seconds without a console byte before a run counts as failed


@contextlib.contextmanager
def backend(folder: Path, cid: int) -> Iterator[Path]:
    """A vsock backend for one run; yields the vhost-user socket."""
    socket = folder / f"vhost{cid}"
    read, write = os.pipe()
    process = proc.start(
        [
            tree.locate("vsock"),
            f"--socket-path={socket}",
            f"--guest-cid={cid}",
            f"--uds-path={folder}/vsock{cid}",
            f"--ready-fd={write}",
        ],
        pass_fds=[write],
        stdout=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        if not os.read(read, 16).startswith(b"ready"):
            sys.exit("the vsock backend did not start")
        yield socket
    finally:
        os.close(read)
        proc.stop(process)


def first_byte(argv: Sequence[str], pass_fds: Sequence[int] = ()) -> float:
    """Seconds from starting `argv` to the first byte of its standard output; the program is then killed."""
    begin = time.monotonic()
    process = proc.start(argv, stdout=subprocess.PIPE, pass_fds=pass_fds)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], BOOT_LIMIT)
        took = time.monotonic() - begin
        if not ready or not os.read(process.stdout.fileno(), 1):
            sys.exit(f"no console output from: {' '.join(argv)}")
        return took
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def nitro(binary: Path, eif: Path, memory: str, folder: Path) -> float:
    with backend(folder, 16) as socket:
        return first_byte(
            [
                os.fspath(binary), "-M", "nitro-enclave,vsock=c", "-kernel", os.fspath(eif), "-m", memory,
                "-accel", accelerator.choose().name, "-chardev", f"socket,id=c,path={socket}",
                "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
            ]
        )  # fmt: skip


def microvm(binary: Path, kernel: Path, cmdline: str, initramfs: int, memory: str) -> float:
    return first_byte(
        [
            os.fspath(binary), "-M", "microvm,acpi=off,memory-backend=m", "-cpu", "max",
            "-object", f"memory-backend-memfd,id=m,size={memory},share=on", "-m", memory,
            "-accel", accelerator.choose().name, "-kernel", os.fspath(kernel), "-append", cmdline,
            "-initrd", f"/proc/self/fd/{initramfs}", "-nodefaults",
            "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
        ],
        pass_fds=[initramfs],
    )  # fmt: skip


def difference(a: Series, b: Series) -> float:
    return a.median - b.median


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default=400, type=int, help="size of the EIF in MB (default 400)")
    parser.add_argument("--runs", default=5, type=int)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nitro-bench-"))
    try:
        eif = folder / "big.eif"
        testimage.make("big", eif, size=options.size * 10**6)
        memory = "2560M"
        kernel, cmdline, initramfs = parts(eif, folder)
        warm(eif)
        ours = tree.locate("qemu")
        contenders = {
            "nitro-enclave": lambda: nitro(ours, eif, memory, folder),
            "microvm": lambda: microvm(ours, kernel, cmdline, initramfs, memory),
            "openssl": lambda: seconds_of(["openssl", "dgst", "-sha384", eif]),
        }
        upstream = os.environ.get("UPSTREAM_QEMU")
        if upstream:
            contenders["upstream"] = lambda: nitro(Path(upstream), eif, memory, folder)
        series = alternate(contenders, options.runs)
        load = difference(series["nitro-enclave"], series["microvm"])
        digest = series["openssl"].median
        rows = [(name, f"{s} s") for name, s in series.items()]
        rows.append(("load beyond microvm", f"{load:.3f} s"))
        rows.append(("  in digests of the file", f"{load / digest:.2f}  (goal 1.3, at the worst 2)"))
        if upstream:
            other = difference(series["upstream"], series["microvm"])
            rows.append(("upstream beyond microvm", f"{other:.3f} s, {other / digest:.2f} digests"))
        else:
            rows.append(("upstream beyond microvm", "not measured: UPSTREAM_QEMU names no QEMU"))
        megabytes = eif.stat().st_size / 1e6
        table(f"Loading an EIF of {megabytes:.0f} MB in two ramdisks ({accelerator.choose().name})", rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with progress.quiet():
        main()
