# SPDX-License-Identifier: MIT
"""The images that the demo and the tests boot: two ramdisks as AWS makes them, around programs of guest/.

An image is a bootstrap ramdisk (init, and modules where the kernel needs some) and an application ramdisk
(cmd, env, and the root file system under rootfs/). The broken kinds are broken on purpose, one way each, for
the tests that must recognise it. Not for making images of other people's applications.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base.errors import NitroError, UsageError
from nitroctl.eif import compose, cpio
from nitroctl.eif.boot import read_kernel
from nitroctl.eif.build import Built, Generated, Metadata, Parts, Sink, build
from nitroctl.eif.compose import Kernel

# AWS's, but for the reset after a panic: a test that waits for it need not wait half a minute.
CMDLINE = compose.CMDLINE.replace("panic=30", "panic=1")

BIG_SIZE = 400 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Programs:
    """Static x86_64 executables: the init, and the applications."""

    init: Path
    hello: Path
    agent: Path
    features: Path

    @staticmethod
    def in_folder(folder: Path) -> Programs:
        return Programs(folder / "init", folder / "hello", folder / "agent", folder / "features")


@dataclass(frozen=True)
class Filler:
    """A file of so many bytes that no compressor makes smaller, the same every time."""

    size: int

    def write(self, sink: Sink) -> None:
        """SHAKE-128 of a block's number, block after block."""
        for at in range(0, self.size, _BLOCK):
            block = hashlib.shake_128(b"nitroctl filler %d" % (at // _BLOCK)).digest(_BLOCK)
            sink.write(block[: self.size - at])


# ---- kinds ----


@dataclass(frozen=True)
class Contents:
    """What a kind puts into the two ramdisks besides the folders that all have."""

    init: Path | None
    cmd: bytes | None
    application: tuple[cpio.Entry, ...] = ()


@dataclass(frozen=True)
class Kind:
    summary: str
    contents: Callable[[Programs, int], Contents]


def _application(name: str, program: Callable[[Programs], Path]) -> Callable[[Programs, int], Contents]:
    def contents(p: Programs, size: int) -> Contents:
        return Contents(p.init, b"/%s\n" % name.encode(), (cpio.file(f"rootfs/{name}", program(p), 0o755),))

    return contents


def _big(p: Programs, size: int) -> Contents:
    filler = Filler(max(0, size - p.agent.stat().st_size - p.init.stat().st_size))
    return Contents(
        p.init,
        b"/agent\n",
        (
            cpio.file("rootfs/agent", p.agent, 0o755),
            cpio.Entry(b"rootfs/filler", stat.S_IFREG | 0o644, filler=filler.write, size=filler.size),
        ),
    )


def _halt(p: Programs, size: int) -> Contents:
    return Contents(p.init, b"/halt\n", (cpio.file("rootfs/halt", _halting_program(), 0o755),))


def _halting_program() -> bytes:
    """An ELF executable of one system call: reboot(LINUX_REBOOT_CMD_HALT), reboot(2). The CPUs stop and
    nothing resets the machine."""
    code = (
        b"\xb8" + struct.pack("<I", 169)  # mov eax, SYS_reboot
        + b"\xbf" + struct.pack("<I", 0xFEE1DEAD)  # mov edi, LINUX_REBOOT_MAGIC1
        + b"\xbe" + struct.pack("<I", 672274793)  # mov esi, LINUX_REBOOT_MAGIC2
        + b"\xba" + struct.pack("<I", 0xCDEF0123)  # mov edx, LINUX_REBOOT_CMD_HALT
        + b"\x0f\x05"  # syscall
        + b"\xb8" + struct.pack("<I", 60) + b"\x0f\x05"  # mov eax, SYS_exit; syscall
    )  # fmt: skip
    base, start = 0x400000, 64 + 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = start + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


KINDS: dict[str, Kind] = {
    "hello": Kind("prints the PCRs that its NSM reports, and ends", _application("hello", lambda p: p.hello)),
    "agent": Kind("obeys the tests, on vsock port 7000", _application("agent", lambda p: p.agent)),
    "features": Kind(
        "prints what its kernel offers, and ends", _application("features", lambda p: p.features)
    ),
    "big": Kind("the agent, and filling up to --size", _big),
    "halt": Kind("halts after the heartbeat, without a reset", _halt),
    "panic": Kind("has an init that ends at once: the kernel panics", lambda p, _: Contents(p.hello, b"/\n")),
    "late-panic": Kind("has no cmd: init dies after the heartbeat", lambda p, _: Contents(p.init, None)),
    "no-heartbeat": Kind("runs, but never sends a heartbeat", lambda p, _: Contents(p.agent, b"/\n")),
    "no-init": Kind("has no init: the kernel panics", lambda p, _: Contents(None, b"/\n")),
    "no-app": Kind("names an application that is not there", lambda p, _: Contents(p.init, b"/missing\n")),
}


# ---- making ----


def locate_programs() -> Programs:
    """The programs of guest/, compiled if need be."""
    from nitroctl.toolchain import guest

    return Programs.in_folder(guest.build_init())


def make(
    kind: str,
    output: Path,
    *,
    kernel: Kernel | str | None = None,
    programs: Programs | None = None,
    cmdline: str = CMDLINE,
    size: int = BIG_SIZE,
) -> Built:
    """Make a test image; the same input gives the same bytes. `kernel` is a Kernel, or what
    `compose.locate_kernel` takes; `size` (bytes of the whole file, roughly) is for the kind "big" alone."""
    if kind not in KINDS:
        raise UsageError(f"there is no test image {kind!r}; there are " + ", ".join(sorted(KINDS)))
    if not isinstance(kernel, Kernel):
        kernel = compose.locate_kernel(kernel)
    if programs is None:
        programs = locate_programs()
    more = (programs.features,) if kind == "features" else ()
    for program in (programs.init, programs.hello, programs.agent, *more):
        if not program.is_file():
            raise NitroError(f"the program {program} is not there")
    info = read_kernel(kernel.image)
    contents = KINDS[kind].contents(programs, size - kernel.image.stat().st_size)
    metadata = Metadata(
        image_name=f"nitroctl-{kind}",
        kernel_version=info.version,
        custom={"nitroctl": kernel.marks} if kernel.marks else None,
    )
    ramdisks = (
        _ramdisk("bootstrap", list(_bootstrap(contents, kernel))),
        _ramdisk("application", list(_application_files(contents))),
    )
    return build(Parts(kernel.image, cmdline.encode(), ramdisks, metadata), output)


def _bootstrap(contents: Contents, kernel: Kernel) -> Iterator[cpio.Entry]:
    yield cpio.directory("dev")
    if contents.init:
        yield cpio.file("init", contents.init, 0o755)
    yield from kernel.files


def _application_files(contents: Contents) -> Iterator[cpio.Entry]:
    for name in ("", "/dev", "/proc", "/run", "/sys", "/tmp", "/var"):
        yield cpio.directory("rootfs" + name)
    if contents.cmd is not None:
        yield cpio.file("cmd", contents.cmd)
    yield cpio.file("env", b"")
    yield from contents.application


def _ramdisk(name: str, entries: list[cpio.Entry]) -> Generated:
    return Generated(name, lambda sink: cpio.write(sink, entries), sum(e.content_size for e in entries))
