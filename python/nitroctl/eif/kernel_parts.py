# SPDX-License-Identifier: MIT
"""Whether a kernel has the drivers that an enclave needs. A kernel's header gives only its version, so the
drivers are recognised by strings in the kernel or in a module: the names that they register with Linux's
device model, unchanged since 4.8 or earlier. Whether a driver works is not checked.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from nitroctl.base.arch import Arch
from nitroctl.eif.boot import KERNEL_HEADER_SIZE, SECTOR
from nitroctl.eif.measure import CHUNK
from nitroctl.eif.unpack import GZIP_MAGIC, Damaged, unpacked_any

# driver -> its string: net/vmw_vsock/virtio_transport.c, drivers/misc/nsm.c and AWS's own module,
# drivers/virtio/virtio_mmio.c with devices from the command line.
MARKS = {
    "vsock": b"vmw_vsock_virtio_transport\0",
    "nsm": b"nsm-hwrng",
    "virtio-mmio": b"virtio-mmio-cmdline",
}
UNPACKED_MAX = 512 << 20
ARM64_MAGIC = b"ARM\x64"  # at 56 of an arm64 Image (Documentation/arch/arm64/booting.rst)


def is_arm64(head: bytes) -> bool:
    return head[56:60] == ARM64_MAGIC


def arch_of(path: Path) -> Arch | None:
    """The architecture of a kernel file; None if it is neither, or cannot be read."""
    try:
        with open(path, "rb", buffering=0) as f:
            head = f.read(KERNEL_HEADER_SIZE) or b""
    except OSError:
        return None
    if is_arm64(head):
        return "aarch64"
    return "x86_64" if head[0x202:0x206] == b"HdrS" else None


def text_offset(head: bytes) -> int:
    """The text_offset of an arm64 Image: where it wants to be loaded."""
    return int.from_bytes(head[8:16], "little")


def drivers_in(pieces: Iterable[bytes]) -> set[str]:
    """The drivers whose strings occur in the data."""
    found: set[str] = set()
    overlap = max(map(len, MARKS.values())) - 1
    tail = b""
    for data in pieces:
        window = tail + data
        found |= {name for name, mark in MARKS.items() if mark in window}
        tail = window[-overlap:]
        if len(found) == len(MARKS):
            break
    return found


def drivers_of(kernel: io.RawIOBase, size: int) -> set[str] | None:
    """The drivers in an x86 bzImage or an arm64 Image of `size` bytes; None if its compression is unknown or
    not supported here."""
    head = kernel.read(KERNEL_HEADER_SIZE) or b""
    if is_arm64(head):
        kernel.seek(0)
        return drivers_in(_plain(kernel, size))
    if len(head) < KERNEL_HEADER_SIZE:
        return None
    # payload_offset and payload_length, of the boot protocol's 2.08, counted from the protected-mode code.
    offset, length = struct.unpack_from("<II", head, 0x248)
    at = ((head[0x1F1] or 4) + 1) * SECTOR + offset
    if not length or at + length > size:
        return None
    kernel.seek(at)
    # The kernel's build appends the uncompressed size if the compression format does not include it.
    packed = kernel.read(2)
    kernel.seek(at)
    part = _Part(kernel, length if packed == GZIP_MAGIC else max(0, length - 4))
    try:
        with unpacked_any(part) as stream:
            if stream.peek(4)[:4] != b"\x7fELF":  # type: ignore[attr-defined]
                return None
            return drivers_in(_plain(stream, UNPACKED_MAX))
    except Damaged:
        return None


def _plain(stream: io.RawIOBase | BinaryIO, most: int) -> Iterator[bytes]:
    while most > 0 and (data := stream.read(min(CHUNK, most))):
        most -= len(data)
        yield data


class _Part(io.RawIOBase):
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: io.RawIOBase, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left)) or b""
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
