# SPDX-License-Identifier: MIT
"""How long the machine takes to load, check and measure a large EIF, against one SHA-384 pass over the file.

    python tests/bench/load.py [--size 400] [--runs 5]
    python tests/bench/load.py --plot docs/load.svg [--runs 3]

Contenders, in turns: `-M nitro-enclave` with the EIF; plain `-M microvm` with the same kernel, the same
initramfs in a memfd and shared RAM, whose time is what QEMU's own way takes; and `openssl dgst -sha384` of
the file, which is the limit: PCR0 is one such digest, and cannot be divided. The figure is (nitro-enclave -
microvm) / openssl: what the EIF costs beyond the boot, in digests of the file. Time runs from QEMU's start to
the first byte on the console. UPSTREAM_QEMU names a QEMU with the upstream machine to be measured beside
ours; without it the row says so.

Memory is what QEMU holds when the machine is complete and nothing has run: its peak, less the guest's own
RAM, plus files in memory that it keeps open; beside the same with a small image.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import machine
from common import Series, alternate, parts, seconds_of, table, warm

from nitroctl.base import accelerator, proc, progress
from nitroctl.eif import testimage
from nitroctl.toolchain import places

BOOT_LIMIT = 180  # seconds without a console byte before a run counts as failed


@contextlib.contextmanager
def backend(folder: Path, cid: int) -> Iterator[Path]:
    """A vsock backend for one run; yields the vhost-user socket."""
    socket = folder / f"vhost{cid}"
    read, write = os.pipe()
    process = proc.start(
        [
            places.locate("vsock"),
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


def command(binary: Path, eif: Path, memory: str, socket: Path) -> list[str]:
    return [
        os.fspath(binary), "-M", "nitro-enclave,vsock=c", "-kernel", os.fspath(eif), "-m", memory,
        "-accel", accelerator.choose().name, "-chardev", f"socket,id=c,path={socket}",
        "-display", "none", "-monitor", "none", "-no-reboot",
    ]  # fmt: skip


def nitro(binary: Path, eif: Path, memory: str, folder: Path) -> float:
    with backend(folder, 16) as socket:
        return first_byte([*command(binary, eif, memory, socket), "-serial", "stdio"])


RAM = "/memfd:memory-backend-memfd"  # as QEMU calls the guest's


def beyond_guest(pid: int) -> int:
    """Bytes that a QEMU has needed beside the guest's memory, whose pages are all there still."""
    proc_dir = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc_dir / "status").read_text().splitlines())
    ram, mapped = 0, ""
    for line in (proc_dir / "smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            mapped = line
        elif line.startswith("Rss:") and RAM in mapped:
            ram += int(line.split()[1]) * 1024
    files = 0
    for entry in (proc_dir / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing has been closed
            name = os.readlink(entry)
            if name.startswith("/memfd:") and not name.startswith(RAM):
                files += entry.stat().st_blocks * 512
    return int(status["VmHWM"].split()[0]) * 1024 - ram + files


def memory_of(binary: Path, eif: Path, memory: str, folder: Path) -> int:
    """`beyond_guest` of a machine that is complete, and does not run."""
    with backend(folder, 16) as socket:
        argv = [*command(binary, eif, memory, socket), "-S", "-serial", "none", "-qmp", "stdio"]
        with proc.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b'{"execute": "qmp_capabilities"} {"execute": "query-status"}\n')
            process.stdin.flush()
            for _ in range(3):  # the greeting, an empty answer, the status
                process.stdout.readline()
            held = beyond_guest(process.pid)
            process.kill()
            return held


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


def contenders(eif: Path, memory: str, folder: Path) -> dict[str, Callable[[], float]]:
    kernel, cmdline, initramfs = parts(eif, folder)
    warm(eif)
    ours = places.locate("qemu")
    found: dict[str, Callable[[], float]] = {
        "nitro-enclave": lambda: nitro(ours, eif, memory, folder),
        "microvm": lambda: microvm(ours, kernel, cmdline, initramfs, memory),
        "openssl": lambda: seconds_of(["openssl", "dgst", "-sha384", eif]),
    }
    upstream = os.environ.get("UPSTREAM_QEMU")
    if upstream:
        found["upstream"] = lambda: nitro(Path(upstream), eif, memory, folder)
    return found


def measure(size: int, runs: int, folder: Path) -> None:
    eif, small = folder / "big.eif", folder / "small.eif"
    testimage.make("big", eif, size=size * 10**6)
    testimage.make("hello", small)
    memory = f"{max(2560, 5 * size)}M"
    series = alternate(contenders(eif, memory, folder), runs)
    load = difference(series["nitro-enclave"], series["microvm"])
    digest = series["openssl"].median
    ours = places.locate("qemu")
    held, least = (memory_of(ours, path, memory, folder) for path in (eif, small))
    rows = [(name, f"{s} s") for name, s in series.items()]
    rows.append(("load beyond microvm", f"{load:.3f} s"))
    rows.append(
        (
            "  in digests of the file",
            f"{load / digest:.2f}  (goal 1.1; the limit is 1, less microvm's own copying)",
        )
    )
    if "upstream" in series:
        other = difference(series["upstream"], series["microvm"])
        rows.append(("upstream beyond microvm", f"{other:.3f} s, {other / digest:.2f} digests"))
    else:
        rows.append(("upstream beyond microvm", "not measured: UPSTREAM_QEMU names no QEMU"))
    rows.append(
        (
            "host memory beyond the guest's",
            f"{held / 2**20:.1f} MiB; with a small image {least / 2**20:.1f} MiB",
        )
    )
    rows.append(("  what the image adds", f"{(held - least) / 2**20:.1f} MiB  (goal 32 MiB)"))
    megabytes = eif.stat().st_size / 1e6
    table(f"Loading an EIF of {megabytes:.0f} MB in two ramdisks ({accelerator.choose().name})", rows)


SIZES = (20, 100, 200, 400, 800)  # MB
COLOURS = {"nitro-enclave": "#d1242f", "microvm": "#0969da", "openssl": "#57606a", "upstream": "#8250df"}


def svg(points: dict[str, list[tuple[float, float]]]) -> str:
    """Lines through (MB, s), axes, and who is who."""
    left, bottom, width, height = 50, 250, 480, 220
    most_x = max(x for line in points.values() for x, _ in line)
    most_y = max(y for line in points.values() for _, y in line) * 1.05
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 290"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="640" height="290" fill="white"/>',
        f'<path d="M{left} {bottom - height}V{bottom}H{left + width}" fill="none" stroke="black"/>',
        f'<text x="{left + width / 2:.0f}" y="{bottom + 34}">size of the EIF, MB</text>',
        f'<text x="8" y="{bottom - height - 8}">s from QEMU to the first byte on the console;'
        " openssl: one SHA-384 of the file</text>",
    ]
    for size in SIZES:
        x = left + width * size / most_x
        out.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{size}</text>')
    step = 0.5 if most_y < 4 else 1.0 if most_y < 8 else 2.0
    for i in range(int(most_y / step) + 1):
        y = bottom - height * i * step / most_y
        out.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{i * step:g}</text>')
    for name, line in points.items():
        path = " ".join(
            f"{left + width * x / most_x:.0f},{bottom - height * y / most_y:.0f}" for x, y in line
        )
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        end = bottom - height * line[-1][1] / most_y
        out.append(f'<text x="{left + width + 6}" y="{end + 4:.0f}" fill="{COLOURS[name]}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def plot(path: Path, runs: int, folder: Path) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for size in SIZES:
        eif = folder / f"{size}.eif"
        testimage.make("big", eif, size=size * 10**6)
        for name, series in alternate(contenders(eif, "5G", folder), runs).items():
            points.setdefault(name, []).append((size, series.median))
        eif.unlink()
    path.write_text(svg(points))
    table(
        "Start to console, s",
        [(n, "  ".join(f"{x:.0f} MB {y:.2f}" for x, y in line)) for n, line in points.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default=400, type=int, help="size of the EIF in MB (default 400)")
    parser.add_argument("--runs", default=5, type=int)
    parser.add_argument("--plot", type=Path, help="draw times against sizes, to this SVG, and nothing else")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nitro-bench-"))
    try:
        if options.plot:
            plot(options.plot, options.runs, folder)
        else:
            measure(options.size, options.runs, folder)
        table("The machine meanwhile", machine.rows())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with progress.quiet():
        main()
