# SPDX-License-Identifier: MIT
"""How long an arm64 enclave takes, against plain `-M virt` with the same kernel and initramfs, in turns.

    python tests/bench/arm64.py [--size 400] [--runs 5]

Two figures. What the EIF costs to load, check and measure, in SHA-384 digests of the file by openssl: QEMU is
started with its CPUs stopped and told to quit, so that only its own work is counted; `virt` is given the same
kernel and initramfs as files. And from QEMU's start to the heartbeat of a small image, with the same backend.
The distribution's QEMU with the plugin is both, since the tree build has no `virt`; Debian's kernel, which
both can run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import machine
from common import Series, alternate, parts, seconds_of, table, warm

from nitroctl.base import accelerator, proc, progress
from nitroctl.eif import testimage
from nitroctl.toolchain import choice, places

QUIT = b'{"execute":"qmp_capabilities"}{"execute":"quit"}'
LIMIT = 180  # seconds


@contextlib.contextmanager
def backend(folder: Path) -> Iterator[tuple[Path, int]]:
    """A vsock backend for one run; yields its socket, and a pipe that has a line at the heartbeat."""
    socket = folder / "vhost"
    ready, booted = os.pipe(), os.pipe()
    argv: list[str | Path] = [
        places.locate("vsock"), f"--socket-path={socket}", "--guest-cid=16", f"--uds-path={folder}/vsock",
        f"--ready-fd={ready[1]}", f"--booted-fd={booted[1]}",
    ]  # fmt: skip
    process = proc.start(argv, pass_fds=[ready[1], booted[1]], stdout=subprocess.DEVNULL)
    os.close(ready[1])
    os.close(booted[1])
    try:
        if not os.read(ready[0], 16).startswith(b"ready"):
            sys.exit("the vsock backend did not start")
        yield socket, booted[0]
    finally:
        os.close(ready[0])
        os.close(booted[0])
        proc.stop(process)


def loaded(argv: Sequence[str], pass_fds: Sequence[int] = ()) -> float:
    """Seconds that QEMU takes to be ready to run, and to end."""
    more = ["-S", "-accel", accelerator.choose("aarch64").name, "-display", "none", "-qmp", "stdio"]
    begin = time.monotonic()
    subprocess.run(
        [*argv, *more], input=QUIT, check=True, stdout=subprocess.DEVNULL, pass_fds=pass_fds, timeout=LIMIT
    )
    return time.monotonic() - begin


def beating(argv: Sequence[str], booted: int, pass_fds: Sequence[int] = ()) -> float:
    """Seconds from QEMU's start to the heartbeat."""
    more = ["-accel", accelerator.choose("aarch64").name, "-display", "none", "-serial", "null", "-no-reboot"]
    begin = time.monotonic()
    process = proc.start([*argv, *more], stdout=subprocess.DEVNULL, pass_fds=pass_fds)
    try:
        if not os.read(booted, 16).startswith(b"booted"):
            sys.exit(f"no heartbeat from: {' '.join(argv)}")
        return time.monotonic() - begin
    finally:
        process.kill()
        process.wait()


class Case:
    """An image, and the two machines that it is given to."""

    def __init__(self, qemu: Path, folder: Path, kind: str, eif: Path, memory: str) -> None:
        self._qemu, self._folder, self._kind, self._eif, self._memory = qemu, folder, kind, eif, memory
        (folder / kind).mkdir()
        self._kernel, self._cmdline, self._initramfs = parts(eif, folder / kind)

    def enclave(self) -> float:
        machine = ["-M", "nitro-enclave,vsock=c", "-kernel", os.fspath(self._eif)]
        return self._run([*machine, "-m", self._memory])

    def virt(self) -> float:
        memory = f"memory-backend-memfd,id=m,size={self._memory},share=on"
        return self._run([
            "-M", "virt,memory-backend=m", "-global", "virtio-mmio.force-legacy=false", "-nodefaults",
            "-object", memory, "-m", self._memory, "-cpu", accelerator.choose("aarch64").cpu,
            "-kernel", os.fspath(self._kernel), "-append", self._cmdline.replace("ttyS0", "ttyAMA0"),
            "-initrd", f"/proc/self/fd/{self._initramfs}", "-device", "vhost-user-vsock-device,chardev=c",
        ])  # fmt: skip

    def _run(self, arguments: list[str]) -> float:
        with backend(self._folder) as (socket, booted):
            argv = [os.fspath(self._qemu), "-chardev", f"socket,id=c,path={socket}", *arguments]
            if self._kind == "big":
                return loaded(argv, [self._initramfs])
            return beating(argv, booted, [self._initramfs])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default=400, type=int, help="size of the large EIF in MB (default 400)")
    parser.add_argument("--runs", default=5, type=int)
    options = parser.parse_args()
    ours = choice.choose("plugin", "aarch64")
    folder = Path(tempfile.mkdtemp(prefix="nitro-bench-"))
    try:
        series: dict[str, Series] = {}
        for kind, memory in (("big", "2560M"), ("agent", "512M")):
            eif = folder / f"{kind}.eif"
            testimage.make(kind, eif, kernel="prebuilt", size=options.size * 10**6, arch="aarch64")
            case = Case(ours, folder, kind, eif, memory)
            warm(eif)
            what = "loaded" if kind == "big" else "heartbeat"
            contenders: dict[str, Callable[[], float]] = {
                f"{what}, nitro-enclave": case.enclave,
                f"{what}, virt": case.virt,
            }
            if kind == "big":
                contenders["openssl"] = partial(seconds_of, ["openssl", "dgst", "-sha384", eif])
            series |= alternate(contenders, options.runs)
        load = series["loaded, nitro-enclave"].median - series["loaded, virt"].median
        rows = [(name, f"{s} s") for name, s in series.items()]
        digests = load / series["openssl"].median
        rows.append(
            ("load beyond virt, in digests of the file", f"{digests:.2f}  (goal 1.1, at the worst 1.3)")
        )
        ratio = series["heartbeat, nitro-enclave"].median / series["heartbeat, virt"].median
        rows.append(("heartbeat, nitro-enclave / virt", f"{ratio:.2f}"))
        table(f"arm64: an EIF of {options.size} MB, and a small one to its heartbeat", rows)
        table("The machine meanwhile", machine.rows())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with progress.quiet():
        main()
