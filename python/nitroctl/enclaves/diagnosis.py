# SPDX-License-Identifier: MIT
"""Why an enclave did not come up: a likely cause, from what its console said and what the vsock backend saw.

Pure: lines and numbers in, a Cause out, or None: no guess is better than a wrong one. The lines are those of
the Linux kernel (init/main.c, init/initramfs.c, kernel/exit.c, mm/oom_kill.c, drivers/virtio/virtio_mmio.c),
of AWS's init and of ours, which has the same words for the same steps. An application can print them as well,
so they count only for an enclave that ended without success. docs/troubleshooting.md has each cause by its
name.
"""

from __future__ import annotations

import re
import signal
from typing import Any, NamedTuple

from nitroctl.base.arch import Arch
from nitroctl.enclaves.console import STAMP, printable
from nitroctl.vsock.sockets import HEARTBEAT_PORT, PARENT_CID


class Cause(NamedTuple):
    """`name` for scripts and the documentation, `text` a clause for people, `hint` what to do about it."""

    name: str
    text: str
    hint: str


# ---- what the console says ---------------------------------------------------------------------------

# Of each clue what its line must hold, and then the line's form: most lines hold none of it. An error's text
# as strerror(3) has it, at the end of a line.
_CLUES: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "mmio": ((b"virtio-mmio: ",), rb"virtio-mmio: Registering device"),
    "run-init": ((b" as init process",), rb"Run (/\S*) as init process"),
    "unpacking": ((b"Initramfs unpacking",), rb"Initramfs unpacking failed: (.*)"),
    "bad-init": ((b"(error -",),
                 rb"(?:Failed to execute|Starting init:) (/\S+) (?:exists .*)?\(error (-\d+)\)"),
    "no-root": ((b"VFS: ",), rb"VFS: (?:Unable to mount root fs|Cannot open root device)"),
    "oom": ((b"Out of memory: ", b"deadlocked on memory", b"oom-killer"),
            rb"Out of memory: |System is deadlocked on memory|invoked oom-killer"),
    "kill-init": ((b"kill init!",), rb"Attempted to kill init! exitcode=0x([0-9a-f]{8})"),
    "socket": ((b"socket: ",), rb"^(?:init: )?socket: ([A-Z].*)"),
    "connect": ((b"connect: ",), rb"^(?:init: )?connect: ([A-Z].*)"),
    "heartbeat": ((b"heartbeat",),
                  rb"^(?:init: )?(?:read heartbeat|write heartbeat|received wrong heartbeat)\b"),
    "module": ((b"failed to insert ",),
               rb"^(?:init: )?failed to insert (nsm driver|module: .+): ([A-Z].*)"),
    "no-command": ((b"init: the application's ",),
                   rb"^init: the application's ramdisk lacks a file it must have: (\S+): "),
    "rootfs": ((b"rootfs: ", b"chroot .: "),
               rb"^(?:init: )?(?:mount --bind /rootfs /rootfs|chdir /rootfs|chroot \.): "),
    "mount": ((b"init: mount: ", b"init: mkdir: ", b"init: symlink: "),
              rb"^init: (?:mount|mkdir|symlink): (/\S*): ([A-Z].*)"),
    "exec": ((b"execvpe: ",), rb"^(?:init: )?execvpe: (?:(.+): )?([A-Z][^:]*)$"),
    "folder": ((b"init: working directory: ",), rb"^init: working directory: (.*): ([A-Z][^:]*)$"),
    "user": ((b"init: user: ",), rb"^init: user: (.*): ([A-Z][^:]*)$"),
}  # fmt: skip
_STAMP = rb"^" + STAMP
_WORDS = tuple((word, name) for name, (words, _) in _CLUES.items() for word in words)

# What init says about an application that it cannot start is among so many last lines.
_LAST_LINES = 8


class Clues:
    """The telling lines of a console, as they come: of each kind the groups of its first line in `found`, the
    number of its last line in `last`."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, ...]] = {}
        self.last: dict[str, int] = {}
        self.count = 0

    def line(self, line: bytes) -> None:
        self.count += 1
        for name in dict.fromkeys([name for word, name in _WORDS if word in line]):
            if match := re.search(_CLUES[name][1], re.sub(_STAMP, b"", line)):
                self.last[name] = self.count
                if name not in self.found:
                    self.found[name] = tuple(printable(group or b"") for group in match.groups())


# ---- what that means ---------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """All that is known. `statistics` are the backend's, None where it gave none."""

    clues: Clues
    received: int  # bytes on the console
    booted: bool
    cmdline: str = ""
    acpi: bool = False  # the kernel is told of virtio devices that way
    arch: Arch = "x86_64"
    statistics: dict[str, Any] | None = None
    panic: str | None = None


def diagnose(evidence: Evidence) -> Cause | None:
    """Why it panicked, or did not boot: the most specific cause that fits."""
    for rule in (_memory, _ramdisk, _init, _heartbeat_astray, _init_step, _init_end, _no_heartbeat):
        if cause := rule(evidence):
            return cause
    return None


def not_started(clues: Clues) -> Cause | None:
    """Why the application of an enclave that has booted and ended was never started, if that is so: init said
    it in its last lines."""

    def last(name: str) -> bool:
        return clues.count - clues.last.get(name, -_LAST_LINES) < _LAST_LINES

    if last("exec"):
        program, error = clues.found["exec"]
        missing = "it, or the interpreter or dynamic loader that it names, is not in the image"
        return Cause(
            "application-not-started",
            f"the application {program} could not be started ({error})".replace("  ", " "),
            missing
            if "No such file" in error
            else "it must be an executable file for the enclave's architecture",
        )
    for name, what in (("folder", "working directory"), ("user", "user")):
        if last(name):
            value, error = clues.found[name]
            return Cause(
                "application-not-started",
                f"the application could not be started: its {what} {value}: {error}",
                "the image names it; is it there?",
            )
    return None


def _memory(e: Evidence) -> Cause | None:
    unpacking = e.clues.found.get("unpacking") == ("write error",)
    if unpacking or "oom" in e.clues.found:
        return Cause(
            "memory",
            "the guest had too little memory" + (" for its ramdisks" if unpacking else ""),
            "give it more with --memory; while they are unpacked, the ramdisks are there twice",
        )
    return None


def _ramdisk(e: Evidence) -> Cause | None:
    if why := e.clues.found.get("unpacking"):
        return Cause(
            "ramdisk",
            f"the kernel cannot unpack the ramdisks ({why[0]})",
            "a ramdisk is a cpio archive (newc), plain or compressed in a way that this kernel knows",
        )
    return None


# Kernel error numbers of execve(2): ENOENT, ENOEXEC, EACCES.
_EXECVE = {
    "-2": ("its interpreter or dynamic loader is not in the first ramdisk", "link init statically"),
    "-8": (
        "it is no program for this machine",
        "init is an ELF program for the enclave's architecture, or begins with #!",
    ),
    "-13": ("it is not executable", "its mode in the first ramdisk should be 0755"),
}


def _init(e: Evidence) -> Cause | None:
    path, number = e.clues.found.get("bad-init", ("", ""))
    if number in _EXECVE:
        why, hint = _EXECVE[number]
        return Cause("init-not-executable", f"the kernel cannot start {path}: {why}", hint)
    if "no-root" in e.clues.found or "No working init found" in (e.panic or ""):
        return Cause(
            "no-init",
            "there is no /init in the first ramdisk",
            "look into it with `nitroctl eif extract`; `nitroctl eif build` puts one there for --image and "
            "--directory",
        )
    return None


def _heartbeat_astray(e: Evidence) -> Cause | None:
    """By what the backend saw of it."""
    if e.booted or e.statistics is None:
        return None
    if e.statistics.get("wrong_heartbeats"):
        return Cause(
            "heartbeat-byte",
            f"the guest sent another byte than 0xB7 to port {HEARTBEAT_PORT}",
            "the heartbeat is the one byte 0xB7, which the parent sends back",
        )
    if e.statistics.get("relayed_heartbeats"):
        return _wrong_answer()
    if port := e.statistics.get("refused_port"):
        cid = e.statistics.get("refused_cid")
        if (cid, port) == (PARENT_CID, HEARTBEAT_PORT):
            # Without somebody else on it, the backend takes it itself.
            return Cause(
                "heartbeat-answer",
                f"what is to serve the parent's port {HEARTBEAT_PORT} on this host does not take connections",
                "let it answer the heartbeat, or leave that port out of --proxy and --listen-port",
            )
        return Cause(
            "heartbeat-port",
            f"the guest knocked at port {port} of CID {cid}, where nobody listens",
            f"the heartbeat goes to port {HEARTBEAT_PORT} of CID {PARENT_CID}",
        )
    return None


def _wrong_answer() -> Cause:
    return Cause(
        "heartbeat-answer",
        f"a program serves the parent's port {HEARTBEAT_PORT} and has not answered the heartbeat well",
        "it must send back the byte 0xB7, or leave that port alone",
    )


def _init_step(e: Evidence) -> Cause | None:
    found = e.clues.found
    for name in ("socket", "connect"):
        (error,) = found.get(name, ("",))
        if any(text in error for text in ("Address family", "No such device", "Network is unreachable")):
            return _no_driver(e)
    if "heartbeat" in found:
        return _wrong_answer()
    if "module" in found:
        what, error = found["module"]
        return Cause(
            "module",
            f"init could not insert the {what} ({error})",
            "a module must be built for exactly the kernel in the image",
        )
    if "no-command" in found or "rootfs" in found:
        (what,) = found.get("no-command", ("/rootfs",))
        return Cause(
            "no-application",
            f"the second ramdisk has no {what}",
            "it has /rootfs, /cmd and /env; was it left out, or is the order of the ramdisks wrong?",
        )
    if "mount" in found:
        where, error = found["mount"]
        return Cause(
            "mount-point",
            f"init could not prepare {where} ({error})",
            "the application's root needs the folders dev, proc, run, sys and tmp",
        )
    return None


def _no_driver(e: Evidence) -> Cause:
    if "mmio" in e.clues.found or "Address family" in e.clues.found.get("socket", ("",))[0]:
        return Cause(
            "no-vsock-driver",
            "the guest's kernel has no driver for its vsock device",
            "it needs CONFIG_VIRTIO_VSOCKETS, or the module inserted before the heartbeat",
        )
    if e.acpi or e.arch == "aarch64":  # by tables of the machine's: ACPI's, or a device tree
        return Cause(
            "no-virtio-driver",
            "the guest's kernel has no driver for virtio-mmio, or none for the vsock device on it",
            "it needs CONFIG_VIRTIO_MMIO and CONFIG_VIRTIO_VSOCKETS, or both modules inserted first",
        )
    return Cause(
        "no-virtio-driver",
        "the guest's kernel found no virtio device: it has no driver for virtio-mmio, or none that looks for "
        "devices on the command line",
        "it needs CONFIG_VIRTIO_MMIO and CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES; an image whose kernel finds "
        'devices only by ACPI says so in its custom metadata: {"nitroctl": {"acpi": true}}',
    )


def _init_end(e: Evidence) -> Cause | None:
    if "kill-init" not in e.clues.found:
        return None
    status = int(e.clues.found["kill-init"][0], 16)  # as wait(2) has it
    if number := status & 0x7F:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        hint = "the lines before it on the console may say more"
        if number == signal.SIGILL:
            hint = "it was compiled for a CPU with more features than the guest's"
        return Cause("init-died", f"init was killed by {name}", hint)
    when = "" if e.booted else " before it had sent the heartbeat"
    hint = "the last lines on the console may say why; PID 1 must never end"
    return Cause("init-died", f"init ended with status {status >> 8 & 0xFF}{when}", hint)


def _no_heartbeat(e: Evidence) -> Cause | None:
    """After a timeout, or an end without a panic."""
    if e.booted:
        return None
    if not e.received:
        return _silence(e)
    if e.statistics is None:
        return None
    if e.statistics.get("drivers"):
        if not e.statistics.get("opened_by_guest"):
            return Cause(
                "no-heartbeat",
                "init has not tried to reach its parent",
                f"an enclave's init connects to CID {PARENT_CID}, port {HEARTBEAT_PORT}, and sends the byte "
                "0xB7; the init that `nitroctl eif build` puts into an image does",
            )
    elif "run-init" in e.clues.found:
        return _no_driver(e)
    return None  # still on its way: too short a time, perhaps


_KERNELS_NEED: dict[Arch, str] = {
    "x86_64": "it must be a bzImage for x86-64 with a serial driver (CONFIG_SERIAL_8250_CONSOLE)",
    "aarch64": "it must be an arm64 Image with a driver for the serial port (CONFIG_SERIAL_8250_CONSOLE and "
    "CONFIG_SERIAL_OF_PLATFORM), GICv3 and pages that the CPU has (CONFIG_ARM64_4K_PAGES)",
}


def _silence(e: Evidence) -> Cause | None:
    consoles = re.findall(r"(?:^|\s)console=(\S+)", e.cmdline)
    if consoles and not any(name.startswith("ttyS0") for name in consoles):
        return Cause(
            "console",
            f"the kernel's console is {consoles[-1]}, so nothing that it says can be seen",
            "put console=ttyS0 into the command line, or try it with --append console=ttyS0",
        )
    if e.statistics is not None and not e.statistics.get("drivers"):
        return Cause(
            "kernel",
            "the kernel gave no sign of life",
            _KERNELS_NEED[e.arch],
        )
    return None
