# SPDX-License-Identifier: MIT
"""Finds what AWS will refuse in an EIF, or handle differently: findings by named rules. `lint_facts` gathers
the facts about an EIF; each rule here is a function of them, and docs/lint.md has a row for it.

    run    this very file, on AWS
    build  the same image, when AWS's `nitro-cli build-enclave` makes the file

Nothing is booted, so what a program does is not seen. An image whose ramdisks do not have the layout that
AWS's init needs has an init of its own; the rules about AWS's init are then skipped.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nitroctl.base import elf
from nitroctl.base.errors import EifError
from nitroctl.base.memory import MEMORY_PER_EIF, MIB, default_memory
from nitroctl.eif import kernel_parts, linuxkit
from nitroctl.eif.compose import KERNEL_NEEDS
from nitroctl.eif.cpio import readable
from nitroctl.eif.format import FLAG_AARCH64
from nitroctl.eif.lint_facts import AWS_PATH, Facts, gather

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")
When = Literal["run", "build"]

# What AWS's allocator reserves unless its configuration says otherwise.
POOL_MIB = 512
MIN_MIB = 64  # the driver's
TEXT_OFFSET = 0x200000  # what AWS's own build of an arm64 kernel writes


Found = Iterator[tuple[str, str]]  # what is so, and what to do


@dataclass(frozen=True)
class Rule:
    name: str
    severity: Severity
    when: When
    find: Callable[[Facts], Found]


@dataclass(frozen=True)
class Finding:
    """The name `rule` never changes. `text` says what was found, `mend` what to do."""

    rule: str
    severity: Severity
    when: When
    text: str
    mend: str

    def to_json(self) -> dict[str, str]:
        return {
            "rule": self.rule, "severity": self.severity, "when": self.when, "text": self.text,
            "mend": self.mend,
        }  # fmt: skip


RULES: list[Rule] = []


def _rule(severity: Severity, when: When) -> Callable[[Callable[[Facts], Found]], None]:
    """Register a function as a rule, under the function's name."""

    def add(find: Callable[[Facts], Found]) -> None:
        RULES.append(Rule(find.__name__.strip("_").replace("_", "-"), severity, when, find))

    return add


def lint(path: Path, *, memory: int | None = None) -> list[Finding]:
    """All findings, the most severe first. `memory` (MiB): what the enclave will be given, if known.

    A broken rule of the file format is a finding with that rule's name. Raises EifError for a file that
    cannot be read, or is not an EIF.
    """
    try:
        facts = gather(path, memory)
    except EifError as e:
        if e.rule in ("io", "bad-magic", "file-too-short"):
            raise
        return [_refused(e)]
    found = [_refused(facts.refusal)] if facts.refusal else []
    for rule in RULES:
        found += [Finding(rule.name, rule.severity, rule.when, text, mend) for text, mend in rule.find(facts)]
    return sorted(found, key=lambda f: -SEVERITIES.index(f.severity))


def _refused(error: EifError) -> Finding:
    text = str(error).removesuffix(f" [{error.rule}]")
    return Finding(error.rule, "error", "run", text, error.hint or "make the file again")


# ---- the file ----


@_rule("error", "run")
def _flags(facts: Facts) -> Found:
    kernel_is_arm = kernel_parts.is_arm64(facts.kernel_head)
    if facts.is_arm64 != kernel_is_arm and (kernel_is_arm or facts.kernel_head):
        said, has = ("aarch64", "x86_64") if facts.is_arm64 else ("x86_64", "aarch64")
        yield (
            f"the header's flags say {said}, but the kernel is for {has}",
            f"build the EIF for {has}",
        )


@_rule("note", "run")
def _reserved_flags(facts: Facts) -> Found:
    if facts.flags & ~FLAG_AARCH64:
        yield (
            f"the header's flags {facts.flags:#06x} have reserved bits, which AWS ignores today",
            "leave them 0",
        )


@_rule("error", "run")
def _memory(facts: Facts) -> Found:
    least = max(MIN_MIB, _least(facts))
    if facts.memory is not None and facts.memory < least:
        yield (
            f"AWS demands at least four times the EIF's size as memory, here {least} MiB; {facts.memory} are "
            "too few",
            f"run it with --memory {least}, or make the image smaller",
        )


def _least(facts: Facts) -> int:
    """The least memory, in MiB, by nitro-cli's rule."""
    return MEMORY_PER_EIF * -(-facts.layout.file_size // MIB)


@_rule("warning", "run")
def _memory_pool(facts: Facts) -> Found:
    if _least(facts) > POOL_MIB:
        yield (
            f"the enclave needs {_least(facts)} MiB; AWS's allocator reserves {POOL_MIB} by default",
            "set memory_mib in /etc/nitro_enclaves/allocator.yaml on the parent instance",
        )


@_rule("warning", "run")
def _memory_unpacked(facts: Facts) -> Found:
    memory = default_memory(facts.layout.file_size)
    if facts.compressed and 2 * facts.unpacked > memory * MIB * 63 // 64 - KERNEL_NEEDS:
        yield (
            f"the ramdisks unpack to {-(-facts.unpacked // MIB)} MiB, for which {memory} MiB are too few",
            f"run it with --memory {default_memory(facts.unpacked)}",
        )


# ---- the kernel ----


@_rule("error", "run")
def _text_offset(facts: Facts) -> Found:
    head = facts.kernel_head
    if kernel_parts.is_arm64(head) and not kernel_parts.text_offset(head):
        yield (
            "the arm64 kernel's text_offset is 0: AWS's loader loads it there, and it does not run there",
            f"write {TEXT_OFFSET:#x} into bytes 8 to 15 of the Image, as AWS's own build does",
        )


@_rule("note", "run")
def _kernel_not_read(facts: Facts) -> Found:
    if facts.drivers is None:
        yield (
            "the kernel cannot be unpacked here, so its drivers are not checked",
            "a bzImage compressed with gzip, xz, zstd, bzip2, lzma or lz4 can be checked",
        )


@_rule("error", "run")
def _kernel_virtio_mmio(facts: Facts) -> Found:
    if facts.drivers is not None and not facts.is_arm64 and "virtio-mmio" not in facts.drivers:
        yield (
            "the kernel takes no virtio device from its command line; AWS's machine has no ACPI and no PCI",
            "build it with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y, which Debian's kernel (prebuilt) lacks",
        )


@_rule("error", "run")
def _kernel_vsock(facts: Facts) -> Found:
    if facts.drivers is not None and "vsock" not in facts.drivers:
        yield (
            "neither the kernel nor the first ramdisk has the virtio-vsock driver: there is no heartbeat",
            "build the kernel with CONFIG_VIRTIO_VSOCKETS=y",
        )


@_rule("warning", "run")
def _kernel_nsm(facts: Facts) -> Found:
    if facts.drivers is not None and "nsm" not in facts.drivers:
        yield (
            "neither the kernel nor the first ramdisk has the NSM driver: there is no /dev/nsm",
            "build the kernel with CONFIG_NSM=y (Linux 6.8), or add AWS's nsm.ko",
        )


@_rule("warning", "run")
def _cmdline_panic(facts: Facts) -> Found:
    if not any(word.startswith(b"panic=") and word != b"panic=0" for word in facts.cmdline.split()):
        yield (
            "without panic=N on the command line a kernel that panics hangs: the enclave never ends",
            "add panic=30, as in AWS's command line",
        )


# ---- the ramdisks ----


def _is_awss(facts: Facts) -> bool:
    """Whether the image has the layout that AWS's init needs, or nearly."""
    return not facts.unread and bool({b"rootfs", b"cmd", b"env"} & facts.files.keys())


@_rule("note", "run")
def _not_looked_into(facts: Facts) -> Found:
    for why in facts.unread:
        yield f"the files of {why}", "the rules about files were skipped; see `nitroctl eif extract`"
    if not facts.unread and not _is_awss(facts):
        yield (
            "there is no rootfs, cmd or env after the first ramdisk: the image has an init of its own",
            "the rules about AWS's init were skipped",
        )


@_rule("error", "run")
def _no_init(facts: Facts) -> Found:
    if facts.unread:
        return
    init = facts.boot.get(b"init") or facts.files.get(b"init")
    if init is None:
        yield "no ramdisk has an /init: the kernel panics", "put the ramdisk with init first"
    elif stat.S_ISREG(init.mode) and not init.mode & 0o111:
        yield "/init is not executable: the kernel panics", "give it mode 0755"


@_rule("error", "run")
def _no_command(facts: Facts) -> Found:
    if _is_awss(facts):
        for name in (b"cmd", b"env"):
            if name not in facts.files:
                yield (
                    f"there is no file {readable(name)} beside rootfs: AWS's init crashes",
                    "add it; it may be empty",
                )


@_rule("error", "run")
def _mount_point(facts: Facts) -> Found:
    if _is_awss(facts):
        for name in ("dev", "proc", "run", "sys", "tmp"):
            found = facts.follow(b"/" + name.encode())
            if found is None or not found[1].is_folder:
                yield f"the root has no folder /{name}, on which init mounts something", "add an empty folder"


_MOUNTS = (b"/dev/", b"/proc/", b"/run/", b"/sys/", b"/tmp/")


@_rule("error", "run")
def _program_hidden(facts: Facts) -> Found:
    path = facts.program.path if facts.program else None
    if path and path.startswith(_MOUNTS):
        place = path[: path.index(b"/", 1)]
        yield (
            f"the program {readable(path)} is in {readable(place)}, over which init mounts something else",
            "put it elsewhere; nothing can be started from /tmp either (noexec)",
        )


@_rule("warning", "run")
def _files_hidden(facts: Facts) -> Found:
    hidden = [
        n
        for n, f in facts.files.items()
        if n.startswith((b"rootfs/tmp/", b"rootfs/run/")) and not f.is_folder
    ]
    if hidden:
        first = readable(sorted(hidden)[0].removeprefix(b"rootfs"))
        yield (
            f"init mounts empty file systems over {len(hidden)} files in /tmp and /run, such as {first}",
            "put them elsewhere",
        )


@_rule("warning", "run")
def _program_unpacks(facts: Facts) -> Found:
    if facts.program and facts.program.pyinstaller:
        yield (
            "PyInstaller packed the program into one file: it unpacks libraries into /tmp, which is noexec",
            "set TMPDIR to a folder in the image, or pack with --onedir",
        )


@_rule("error", "run")
def _program_machine(facts: Facts) -> Found:
    head = facts.program.head if facts.program else b""
    if head[:4] == elf.MAGIC and len(head) >= 20:
        machine = int.from_bytes(head[18:20], "big" if head[5:6] == b"\2" else "little")
        wanted = {False: (3, 62), True: (40, 183)}[facts.is_arm64]  # EM_386, EM_X86_64; EM_ARM, EM_AARCH64
        if machine not in wanted:
            yield f"the program is for another machine (ELF machine {machine})", "use an image for this one"


@_rule("error", "run")
def _program_missing(facts: Facts) -> Found:
    if _is_awss(facts) and facts.program and facts.program.path is None:
        word = readable((facts.lines(b"cmd") or [b"sh"])[0])
        yield f"the program {word} is not in the image, or not where init looks", "give its full path"


# ---- what AWS's build makes of the image ----


@_rule("error", "build")
def _program_path(facts: Facts) -> Found:
    if facts.program and facts.program.path is not None and not facts.program.by_aws:
        word = readable((facts.lines(b"cmd") or [b""])[0])
        yield (
            f"AWS's init looks for {word} in {', '.join(AWS_PATH)} from /, but it is not there",
            f"give its full path in the image's command: {readable(facts.program.path)}",
        )


def _config(facts: Facts) -> dict[str, Any]:
    """The image's configuration, if the metadata have it."""
    info = (facts.metadata or {}).get("DockerInfo")
    config = info.get("Config") if isinstance(info, dict) else None
    return config if isinstance(config, dict) else {}


@_rule("warning", "build")
def _cmd_over_entrypoint(facts: Facts) -> Found:
    config = _config(facts)
    if config.get("Cmd") and config.get("Entrypoint"):
        yield (
            "the image has ENTRYPOINT and CMD: AWS's build uses only CMD as the command",
            "put the whole command into CMD, or into ENTRYPOINT without a CMD",
        )


@_rule("warning", "build")
def _user_ignored(facts: Facts) -> Found:
    user = str(_config(facts).get("User") or "") or b" ".join(facts.lines(b"user")).decode(errors="replace")
    if user not in ("", "0", "root", "0:0", "root:root"):
        yield (
            f"the image's USER is {user!r}: AWS's init starts everything as root",
            "change the user in the program itself",
        )


@_rule("warning", "build")
def _workdir_ignored(facts: Facts) -> Found:
    workdir = str(_config(facts).get("WorkingDir") or "") or b"".join(facts.lines(b"cwd")).decode(
        errors="replace"
    )
    if workdir not in ("", "/"):
        yield (
            f"the image's WORKDIR is {workdir!r}: AWS's init starts everything in /",
            "change the working directory in the program itself",
        )


@_rule("error", "build")
def _line_break(facts: Facts) -> Found:
    for name, what in ((b"cmd0", "an argument"), (b"env0", "a variable")):
        if name in facts.files:
            yield (
                f"{what} has a line break, at which AWS's init splits it in two",
                "encode it, for instance in base64",
            )


@_rule("warning", "build")
def _hosts(facts: Facts) -> Found:
    file = facts.files.get(b"rootfs/etc/hosts")
    if file and not file.is_folder and file.text != linuxkit.HOSTS:
        yield (
            "the image's /etc/hosts is replaced by AWS's, which has only localhost",
            "write the file when the program starts",
        )


@_rule("warning", "build")
def _resolv_conf(facts: Facts) -> Found:
    file = facts.files.get(b"rootfs/etc/resolv.conf")
    if file and stat.S_ISREG(file.mode) and file.text:
        yield (
            "the image's /etc/resolv.conf is replaced by a dangling link to /run/resolvconf/resolv.conf",
            "make that folder and file when the program starts",
        )


@_rule("warning", "build")
def _left_out(facts: Facts) -> Found:
    hostname = facts.files.get(b"rootfs/etc/hostname")
    gone = ["/etc/hostname"] if hostname and stat.S_ISREG(hostname.mode) and hostname.size else []
    gone += ["/Dockerfile"] if b"rootfs/Dockerfile" in facts.files else []
    if gone:
        yield f"AWS's build leaves out {' and '.join(gone)}", "move what you need of it elsewhere"


@_rule("note", "build")
def _other_pcrs(facts: Facts) -> Found:
    if _is_awss(facts) and not facts.by_aws:
        yield (
            "AWS's builder would make different ramdisks, and so a different PCR0 and PCR2",
            "`nitroctl eif build --as-aws` makes AWS's; `nitroctl eif predict` prints their PCRs",
        )
