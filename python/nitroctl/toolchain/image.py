# SPDX-License-Identifier: MIT
"""The file of a kernel, as far as its making goes: whether it is one, and where an arm64 one wants to lie.

What a boot loader asks of it is not known here. Linux: Documentation/arch/x86/boot.rst,
Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

from pathlib import Path

from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError

# Offset and bytes by which either is known.
_MAGIC: dict[Arch, tuple[int, bytes]] = {"x86_64": (0x202, b"HdrS"), "aarch64": (0x38, b"ARM\x64")}
_NAMES: dict[Arch, str] = {"x86_64": "bzImage", "aarch64": "arm64 Image"}

# text_offset: bytes 8 to 15 of an arm64 Image. Linux writes 0 there since 5.8, "anywhere"; AWS's loader takes
# that for an address at which no kernel runs, so AWS's own build writes 2 MiB.
TEXT_OFFSET_AT = 8
TEXT_OFFSET = 0x200000


def check_image(path: Path, arch: Arch) -> None:
    """Raise NitroError unless the file has the header of a kernel for that architecture."""
    at, magic = _MAGIC[arch]
    with open(path, "rb") as f:
        head = f.read(at + len(magic))
    if head[at:] != magic:
        raise NitroError(f"{path} is not a{'n' if arch == 'aarch64' else ''} {_NAMES[arch]}: "
                         f"no {magic.decode()} at offset {at:#x}")  # fmt: skip


def give_text_offset(path: Path, arch: Arch) -> None:
    """Write AWS's into an arm64 Image that has none."""
    if arch != "aarch64":
        return
    with open(path, "r+b") as f:
        f.seek(TEXT_OFFSET_AT)
        if not any(f.read(8)):
            f.seek(TEXT_OFFSET_AT)
            f.write(TEXT_OFFSET.to_bytes(8, "little"))
