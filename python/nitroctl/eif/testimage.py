# SPDX-License-Identifier: MIT
"""The images that the demo and the tests boot: two ramdisks, as in AWS's EIFs, with the programs of guest/.

An image is a bootstrap ramdisk (init, and modules where the kernel needs some) and an application ramdisk
(cmd, env, and the root file system under rootfs/). The broken kinds are broken on purpose, each in one way,
which tests must detect. Not for building images of real applications.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base.arch import Arch, facts
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.eif import compose, cpio
from nitroctl.eif.boot import read_kernel
from nitroctl.eif.build import Built, Generated, Metadata, Parts, Sink, build
from nitroctl.eif.compose import Kernel

# AWS's, except that a panic resets after 1 second: tests that wait for the reset need not wait 30 seconds.
CMDLINES = {arch: text.replace("panic=30", "panic=1") for arch, text in compose.CMDLINES.items()}
CMDLINE = CMDLINES["x86_64"]

BIG_SIZE = 400 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Programs:
    """Static executables: the init, and the applications."""

    init: Path
    hello: Path
    agent: Path
    features: Path

    @staticmethod
    def in_folder(folder: Path) -> Programs:
        return Programs(folder / "init", folder / "hello", folder / "agent", folder / "features")


@dataclass(frozen=True)
class Filler:
    """A file of that many bytes, always the same and incompressible."""

    size: int

    def write(self, sink: Sink) -> None:
        """SHAKE-128 of a block's number, block after block."""
        for at in range(0, self.size, _BLOCK):
            block = hashlib.shake_128(b"nitroctl filler %d" % (at // _BLOCK)).digest(_BLOCK)
            sink.write(block[: self.size - at])


# ---- kinds ----


@dataclass(frozen=True)
class Contents:
    """What one kind of image has in its two ramdisks, besides the folders that all kinds have."""

    init: Path | None
    cmd: bytes | None
    application: tuple[cpio.Entry, ...] = ()


@dataclass(frozen=True)
class Kind:
    summary: str
    contents: Callable[[Programs, int, Arch], Contents]


def _application(name: str, program: Callable[[Programs], Path]) -> Callable[..., Contents]:
    def contents(p: Programs, size: int, arch: Arch) -> Contents:
        return Contents(p.init, b"/%s\n" % name.encode(), (cpio.file(f"rootfs/{name}", program(p), 0o755),))

    return contents


def _big(p: Programs, size: int, arch: Arch) -> Contents:
    filler = Filler(max(0, size - p.agent.stat().st_size - p.init.stat().st_size))
    return Contents(
        p.init,
        b"/agent\n",
        (
            cpio.file("rootfs/agent", p.agent, 0o755),
            cpio.Entry(b"rootfs/filler", stat.S_IFREG | 0o644, filler=filler.write, size=filler.size),
        ),
    )


def _halt(p: Programs, size: int, arch: Arch) -> Contents:
    return Contents(p.init, b"/halt\n", (cpio.file("rootfs/halt", _halting_program(arch), 0o755),))


_HALT = (0xFEE1DEAD, 672274793, 0xCDEF0123)  # LINUX_REBOOT_MAGIC1, _MAGIC2, _CMD_HALT: reboot(2)


def _halt_x86_64() -> bytes:
    return (
        b"\xb8" + struct.pack("<I", 169)  # mov eax, SYS_reboot
        + b"\xbf" + struct.pack("<I", _HALT[0])  # mov edi
        + b"\xbe" + struct.pack("<I", _HALT[1])  # mov esi
        + b"\xba" + struct.pack("<I", _HALT[2])  # mov edx
        + b"\x0f\x05"  # syscall
        + b"\xb8" + struct.pack("<I", 60) + b"\x0f\x05"  # mov eax, SYS_exit; syscall
    )  # fmt: skip


def _halt_aarch64() -> bytes:
    def move(register: int, value: int) -> bytes:  # movz wN, low half; movk wN, high half, lsl 16
        low, high = value & 0xFFFF, value >> 16
        return struct.pack("<II", 0x52800000 | low << 5 | register, 0x72A00000 | high << 5 | register)

    arguments = b"".join(move(register, value) for register, value in enumerate(_HALT))
    call = struct.pack("<I", 0xD4000001)  # svc 0
    return arguments + move(8, 142) + call + move(8, 93) + call  # SYS_reboot, SYS_exit


def _halting_program(arch: Arch) -> bytes:
    """An ELF executable of one system call, reboot(LINUX_REBOOT_CMD_HALT): the CPUs stop and nothing resets
    the machine."""
    code = _halt_x86_64() if arch == "x86_64" else _halt_aarch64()
    base, start = 0x400000, 64 + 56
    machine = facts(arch).elf[1]
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
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
    "panic": Kind(
        "has an init that ends at once: the kernel panics", lambda p, *_: Contents(p.hello, b"/\n")
    ),
    "late-panic": Kind("has no cmd: init dies after the heartbeat", lambda p, *_: Contents(p.init, None)),
    "no-heartbeat": Kind("runs, but never sends a heartbeat", lambda p, *_: Contents(p.agent, b"/\n")),
    "no-init": Kind("has no init: the kernel panics", lambda p, *_: Contents(None, b"/\n")),
    "no-app": Kind("names an application that is not there", lambda p, *_: Contents(p.init, b"/missing\n")),
}


# ---- making ----


def locate_programs(arch: Arch | None = None) -> Programs:
    """The programs of guest/; they are compiled if needed."""
    from nitroctl.toolchain import guest

    return Programs.in_folder(guest.build_init(arch))


def make(
    kind: str,
    output: Path,
    *,
    kernel: Kernel | str | None = None,
    programs: Programs | None = None,
    cmdline: str | None = None,
    size: int = BIG_SIZE,
    arch: Arch | None = None,
) -> Built:
    """Make a test image; the same input gives the same bytes. `kernel` is a Kernel, or what
    `compose.locate_kernel` takes, as it takes `arch`; `cmdline` is AWS's with panic=1 unless given; `size`
    (bytes of the whole file, roughly) is for the kind "big" alone."""
    if kind not in KINDS:
        raise UsageError(f"there is no test image {kind!r}; there are " + ", ".join(sorted(KINDS)))
    if not isinstance(kernel, Kernel):
        kernel = compose.locate_kernel(kernel, arch)
    if programs is None:
        programs = locate_programs(kernel.arch)
    more = (programs.features,) if kind == "features" else ()
    for program in (programs.init, programs.hello, programs.agent, *more):
        if not program.is_file():
            raise NitroError(f"the program {program} does not exist")
    info = read_kernel(kernel.image, kernel.arch)
    contents = KINDS[kind].contents(programs, size - kernel.image.stat().st_size, kernel.arch)
    metadata = Metadata(
        image_name=f"nitroctl-{kind}",
        kernel_version=info.version,
        custom={"nitroctl": kernel.marks} if kernel.marks else None,
    )
    ramdisks = (
        _ramdisk("bootstrap", list(_bootstrap(contents, kernel))),
        _ramdisk("application", list(_application_files(contents))),
    )
    text = CMDLINES[kernel.arch] if cmdline is None else cmdline
    return build(Parts(kernel.image, text.encode(), ramdisks, metadata, arch=kernel.arch), output)


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
