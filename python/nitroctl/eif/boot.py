# SPDX-License-Identifier: MIT
"""The rules of a boot loader for kernel, command line and initramfs. The rules of the EIF format are
elsewhere.

The machine's loader checks the same rules, under the same names, and also whether everything fits into the
guest's memory. Offsets are those of "The real-mode kernel header" in Linux's
Documentation/arch/x86/boot.rst, and of "Call the kernel image" in Documentation/arch/arm64/booting.rst;
numbers there are little-endian.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from nitroctl.base.arch import Arch
from nitroctl.base.errors import EifError, NitroError
from nitroctl.eif.format import Layout, SectionType

KERNEL_HEADER_SIZE = 0x264  # of a bzImage, up to and including init_size; no more of a kernel is read
PROTOCOL_MIN = 0x20A  # 2.10, Linux 2.6.31: the first with init_size
SECTOR = 512
SETUP_MAX = 64 << 10  # the room that the machine has for the setup code

# arm64. Since 5.8 Linux writes a text_offset of 0, which means any multiple of 2 MiB. AWS's loader takes the
# 0 literally, and the kernel does not run there. AWS's own kernels have a text_offset of 2 MiB.
ARM64_HEADER_SIZE = 64
ARM64_MAGIC = b"ARM\x64"
ARM64_PAGE = 4096
ARM64_TEXT_OFFSET = 0x200000
ARM64_CMDLINE_SIZE = 2047  # COMMAND_LINE_SIZE, less its NUL
# The warning about an image whose kernel has a text_offset of 0.
NOT_ON_AWS = (
    "the arm64 kernel's text_offset is 0: AWS's loader would load it at an address where it does not run"
)

# The smallest sizes that are refused: a loader counts a kernel's bytes in an int; the boot protocol has 32
# bits for the size of an initramfs.
KERNEL_LIMIT = 1 << 30
INITRAMFS_LIMIT = (1 << 32) - 1
CMDLINE_MAX = 1 << 16  # kernels take 2047 bytes; this only limits how much is kept in memory


class KernelInfo(NamedTuple):
    """What a kernel's header says. `cmdline_size`: longest command line in bytes, without the NUL."""

    version: str
    cmdline_size: int
    text_offset: int | None = None  # of an arm64 Image: where it is loaded, from the start of memory

    @property
    def boots_on_aws(self) -> bool:
        """Whether AWS's loader would load it where it can run."""
        return self.text_offset != 0


def check_sizes(layout: Layout, path: Path | None = None) -> None:
    """Check the sizes only. Raises EifError: kernel-too-large, cmdline-too-long, initramfs-too-large."""
    for type, rule, limit in (
        (SectionType.KERNEL, "kernel-too-large", KERNEL_LIMIT),
        (SectionType.CMDLINE, "cmdline-too-long", CMDLINE_MAX + 1),
        (SectionType.RAMDISK, "initramfs-too-large", INITRAMFS_LIMIT),
    ):
        size = sum(s.size for s in layout.of_type(type))
        if size >= limit:
            what = {SectionType.RAMDISK: "ramdisks together have"}.get(type, f"{type.name.lower()} has")
            raise EifError(rule, f"the {what} {size} bytes; less than {limit} can be booted", path=path)


def parse_kernel(
    header: bytes, size: int, arch: Arch, path: Path | None = None, offset: int = 0
) -> KernelInfo:
    """Check the first KERNEL_HEADER_SIZE bytes of a kernel of `size` bytes. `offset` is where the kernel
    begins in the file, for messages. The result has no version: that is further on in the kernel."""
    return (_parse_image if arch == "aarch64" else _parse_bzimage)(header, size, path, offset)


def _parse_image(header: bytes, size: int, path: Path | None, offset: int) -> KernelInfo:
    """kernel-not-image, kernel-text-offset, kernel-image-size."""

    def refuse(rule: str, message: str, at: int) -> EifError:
        hint = "an aarch64 enclave's kernel is arch/arm64/boot/Image, not vmlinux or Image.gz"
        return EifError(rule, f"the kernel {message}", path=path, offset=offset + at, hint=hint)

    if size < ARM64_HEADER_SIZE or len(header) < ARM64_HEADER_SIZE:
        message = f"has only {size} bytes; the header of an arm64 Image has {ARM64_HEADER_SIZE}"
        raise refuse("kernel-not-image", message, 0)
    if header[56:60] != ARM64_MAGIC:
        message = f"is not an arm64 Image: {header[56:60].hex()} instead of {ARM64_MAGIC.hex()}"
        raise refuse("kernel-not-image", f"{message}{_image_like(header)}", 56)
    text_offset, image_size = struct.unpack_from("<QQ", header, 8)
    if text_offset % ARM64_PAGE:
        message = (
            f"has the text_offset {text_offset:#x}, not a multiple of 4 KiB; {ARM64_TEXT_OFFSET:#x} is usual"
        )
        raise refuse("kernel-text-offset", message, 8)
    if not image_size:
        message = (
            "has the image_size 0 and does not say how much memory it needs; Linux 3.17 or later is needed"
        )
        raise refuse("kernel-image-size", message, 16)
    return KernelInfo("Unknown", ARM64_CMDLINE_SIZE, text_offset)


def _image_like(header: bytes) -> str:
    """If the kernel is something that is often mistaken for an Image: what it is."""
    if header[0x202:0x206] == b"HdrS":
        return " (it is an x86 bzImage)"
    if header[:2] == b"\x1f\x8b":
        return " (it is a gzip file, like Image.gz: unpack it)"
    if header[:2] == b"MZ" and header[4:8] == b"zimg":
        return " (it is an EFI zboot file, like vmlinuz.efi)"
    return ""


def _parse_bzimage(header: bytes, size: int, path: Path | None, offset: int) -> KernelInfo:
    """kernel-not-bzimage, kernel-setup-size."""

    def refuse(rule: str, message: str, at: int) -> EifError:
        hint = "an enclave's kernel is arch/x86/boot/bzImage, not vmlinux"
        return EifError(rule, f"the kernel {message}", path=path, offset=offset + at, hint=hint)

    def u16(at: int) -> int:
        return int.from_bytes(header[at : at + 2], "little")

    if size < KERNEL_HEADER_SIZE or len(header) < KERNEL_HEADER_SIZE:
        message = f"has only {size} bytes; the header of an x86 bzImage has {KERNEL_HEADER_SIZE}"
        raise refuse("kernel-not-bzimage", message, 0)
    if header[0x202:0x206] != b"HdrS":
        message = f"is not an x86 bzImage: {header[0x202:0x206].hex()} instead of HdrS"
        what = " (it is an arm64 Image)" if header[56:60] == ARM64_MAGIC else ""
        raise refuse("kernel-not-bzimage", f"{message}{what}", 0x202)
    if u16(0x1FE) != 0xAA55:
        raise refuse("kernel-not-bzimage", f"is not a bzImage: its boot flag is {u16(0x1FE):#06x}", 0x1FE)
    protocol = u16(0x206)
    if protocol < PROTOCOL_MIN:
        message = f"has boot protocol {protocol >> 8}.{protocol & 255:02}; 2.10 or later is needed"
        raise refuse("kernel-not-bzimage", message, 0x206)
    if not header[0x211] & 1:
        raise refuse("kernel-not-bzimage", "is a zImage; a bzImage is needed", 0x211)
    setup = ((header[0x1F1] or 4) + 1) * SECTOR
    if not 2 * SECTOR <= setup <= SETUP_MAX or setup >= size:
        message = (
            f"has {setup} bytes of setup code, in {size} bytes altogether; at most {SETUP_MAX} can be loaded"
        )
        raise refuse("kernel-setup-size", message, 0x1F1)
    return KernelInfo("Unknown", struct.unpack_from("<I", header, 0x238)[0])


def check_cmdline(length: int, kernel: KernelInfo, path: Path | None = None) -> None:
    """Check that the kernel takes a command line of `length` bytes, without what the machine adds to it."""
    if length > kernel.cmdline_size:
        message = f"the command line has {length} bytes; this kernel takes at most {kernel.cmdline_size}"
        raise EifError("cmdline-too-long", message, path=path)


def cmdline_nul(offset: int, path: Path | None) -> EifError:
    message = "the command line has a NUL byte, at which the kernel would cut it off"
    return EifError("cmdline-nul", message, path=path, offset=offset)


def read_kernel(path: Path, arch: Arch = "x86_64") -> KernelInfo:
    """Check a kernel file. Raises EifError with the rules of `parse_kernel`."""
    try:
        with open(path, "rb", buffering=0) as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise NitroError(f"the kernel {path} is not a regular file")
            header = os.pread(f.fileno(), KERNEL_HEADER_SIZE, 0)
            info = parse_kernel(header, status.st_size, arch, path)
            if arch == "aarch64":
                return info._replace(version=_banner_version(f.fileno()))
            # kernel_version: the offset of a string, minus 512; 0 if there is none.
            (pointer,) = struct.unpack_from("<H", header, 0x20E)
            text = os.pread(f.fileno(), 128, 0x200 + pointer) if pointer else b""
    except OSError as e:
        raise NitroError(f"cannot read the kernel {path}: {e.strerror}") from e
    words = text.split(b"\0")[0].split()
    version = words[0].decode("ascii", "replace") if words else info.version
    return KernelInfo(version, info.cmdline_size)


def _banner_version(fd: int) -> str:
    """The version of an arm64 Image. Its header has none, but it is not compressed, so the banner that Linux
    prints first can be found in it."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"Linux version ([!-~]{1,64}) ", data)
        return found[1].decode("ascii") if found else "Unknown"
