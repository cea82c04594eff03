# SPDX-License-Identifier: MIT
"""What `--tools` adds to an enclave: a ramdisk with a static busybox and our agent, and the word on the
kernel's command line that has the kernel start ours first (guest/tools.c), which then becomes the image's
own init.

What the agent is asked for is `nitroctl.inside`'s business; its protocol is guest/tools-protocol.h.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nitroctl.base.arch import Arch
from nitroctl.base.errors import NotBuilt
from nitroctl.enclaves.request import RunRequest

if TYPE_CHECKING:
    from nitroctl.eif.cpio import Entry
    from nitroctl.eif.overlay import Source

# guest/tools-protocol.h
PORT = 4294958296
CORE_PORT = 4294958297
VERSION = 1

FOLDER = ".nitroctl"
APPEND = f"rdinit=/{FOLDER}/tools"

# Words without a value that the kernel takes for itself, from admin-guide/kernel-parameters.rst. Any other
# one becomes an argument of init.
_KERNELS = frozenset(
    "debug early_printk ignore_loglevel keepinitrd mitigations noaliencache noapic noapictimer "
    "nodelayacct nofpu nofxsr nogbpages nohibernate nohlt noinitrd noinvpcid nokaslr nolapic "
    "nolapic_timer nomce nomodule nomodules nopat nopcid nopku nopti norandmaps noreplace-smp noresume "
    "nosmap nosmep nosmp nosmt nosoftlockup nospec nospectre_v1 nospectre_v2 nosync nowatchdog nox2apic "
    "noxsave noxsavec noxsaveopt quiet ro rootwait rw sysrq_always_enabled threadirqs".split()
)


def locate(arch: Arch = "x86_64") -> tuple[Path, Path]:
    """The agent and busybox. Raises NotBuilt with the command that makes them."""
    from nitroctl.toolchain import busybox, guest

    try:
        return guest.locate("tools", arch), busybox.locate(arch)
    except NotBuilt as e:
        raise NotBuilt(
            "--tools needs programs that are not here yet", hint=f"nitroctl guest tools{guest.option(arch)}"
        ) from e


def init_words(cmdline: str) -> list[str]:
    """How the kernel would have started the image's own init: its path, then the words that are nothing to
    the kernel, as Linux's init/main.c sorts them. `rdinit=` and `init=` drop what stands before them."""
    path = "/init"
    words: list[str] = []
    before, dashes, after = f" {cmdline} ".partition(" -- ")
    for word in before.split():
        name, equals, value = word.partition("=")
        if name in ("rdinit", "init") and equals:
            path, words = (value if name == "rdinit" else path), []
        elif not equals and "." not in word and word not in _KERNELS:
            words.append(word)
    return [path, *words, *after.split()]


def append(request: RunRequest) -> str | None:
    """What goes behind the EIF's command line."""
    if not request.tools:
        return request.append
    return " ".join(filter(None, (request.append, APPEND)))


def sources(request: RunRequest, cmdline: str, arch: Arch = "x86_64") -> tuple[Source, ...]:
    """The overlay of an enclave that is asked for with `--tools`; `cmdline` without what we add to it."""
    return (lambda image: entries(cmdline, arch),) if request.tools else ()


def entries(cmdline: str, arch: Arch = "x86_64") -> list[Entry]:
    """The ramdisk for an image with this command line. Raises NotBuilt."""
    from nitroctl.eif import cpio

    agent, box = locate(arch)
    words = b"".join(os.fsencode(word) + b"\0" for word in init_words(cmdline))
    return [
        cpio.directory(FOLDER, 0o700),
        cpio.file(f"{FOLDER}/busybox", box, 0o755),
        cpio.file(f"{FOLDER}/next", words),
        cpio.file(f"{FOLDER}/tools", agent, 0o755),
    ]
