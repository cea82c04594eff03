# SPDX-License-Identifier: MIT
"""Measures an EIF: PCR0, PCR1, PCR2 and the checksum, in one pass over the data.

    PCRn = SHA384(48 zero bytes || SHA384(content of PCRn)), content being section data in file order
    PCR0   kernel, command line, all ramdisks
    PCR1   kernel, command line, first ramdisk
    PCR2   all ramdisks but the first
    PCR8   DER bytes of the signing certificate (`signature`)

    CRC    CRC-32/ISO-HDLC (zlib's) over the whole file except its own four bytes

(AWS's EIF specification; the Nitro Enclaves user guide, "Where to get an enclave's measurements".) Memory use
does not depend on the file's size. hashlib releases the GIL, so two threads compute PCR0 and PCR2 while the
caller's thread reads and computes the CRC; PCR1 is a copy of PCR0's state, taken where the second ramdisk
begins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from isal.isal_zlib import crc32  # several times as fast as zlib's

from nitroctl.base import files, progress
from nitroctl.base.errors import EifError, NitroError
from nitroctl.eif import signature
from nitroctl.eif.about import METADATA_KEPT
from nitroctl.eif.boot import KERNEL_HEADER_SIZE, cmdline_nul
from nitroctl.eif.format import CRC_OFFSET, SIGNATURE_MAX, Layout, SectionType, open_eif, read_layout
from nitroctl.eif.pcr import Measurements, pcr_of

CHUNK = 1 << 20  # bytes per buffer: enough to make waking a thread cheap, few enough for the CPU caches
DEPTH = 8  # buffers in use at once

# What is kept of a section besides its digest. nitro-cli limits custom metadata to 4 KiB, `docker inspect`
# output is some ten KiB (`about.METADATA_KEPT`); a kernel takes 2047 bytes of command line.
CMDLINE_KEPT = 1 << 16

# A file this large takes long enough for a progress bar.
PROGRESS_FROM = 256 << 20

Progress = Callable[[int], None]  # bytes done since the last call


def measure_file(path: Path) -> bytes:
    """The value of a PCR into which one whole file is measured, like `nitro-cli pcr --input`."""
    try:
        with open(path, "rb") as f:
            return pcr_of(files.digest(f, "sha384").digest())
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e


class Ring:
    """Buffers that are used in turn. A buffer is handed out again only when all its readers are done."""

    def __init__(self, size: int = CHUNK, depth: int = DEPTH) -> None:
        self._buffers = [memoryview(bytearray(size)) for _ in range(depth)]
        self._readers: list[Sequence[Future[None]]] = [()] * depth
        self._at = -1

    def next(self) -> memoryview:
        self._at = (self._at + 1) % len(self._buffers)
        for reader in self._readers[self._at]:
            reader.result()
        self._readers[self._at] = ()
        return self._buffers[self._at]

    def lend(self, readers: Sequence[Future[None]]) -> None:
        """The buffer given last is being read until all of `readers` are done."""
        self._readers[self._at] = readers


class Digests:
    """The running digests of PCR0, 1 and 2, fed with sections in file order. Use it as a context manager.

    `update` returns at once; the data must not change until the futures that it returns are done.
    """

    def __init__(self) -> None:
        self._all = hashlib.sha384()
        self._rest = hashlib.sha384()
        self._first: hashlib._Hash | None = None  # PCR1's own state, once it differs from PCR0's
        self._ramdisks = 0
        self._type: SectionType | None = None
        # One thread each: the order of a digest's updates is the order of its data.
        self._pcr0 = ThreadPoolExecutor(1, "pcr0")
        self._pcr2 = ThreadPoolExecutor(1, "pcr2")

    def __enter__(self) -> Digests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pcr0.shutdown(cancel_futures=True)
        self._pcr2.shutdown(cancel_futures=True)

    def begin(self, type: SectionType) -> None:
        """Begin a new section, to which the following data belong."""
        self._type = type
        if type is SectionType.RAMDISK:
            self._ramdisks += 1
            if self._ramdisks == 2:
                self._pcr0.submit(self._part)

    def _part(self) -> None:
        self._first = self._all.copy()

    def update(self, data: memoryview) -> Sequence[Future[None]]:
        if self._type is SectionType.RAMDISK:
            work = [self._pcr0.submit(self._all.update, data)]
            if self._ramdisks > 1:
                work.append(self._pcr2.submit(self._rest.update, data))
            return work
        if self._type in (SectionType.KERNEL, SectionType.CMDLINE):
            return [self._pcr0.submit(self._update_both, data)]
        return ()

    def _update_both(self, data: memoryview) -> None:
        self._all.update(data)
        if self._first is not None:  # a command line after the second ramdisk
            self._first.update(data)

    def finish(self) -> Measurements:
        """Wait for the threads, and return the values for what has been fed so far."""
        self._pcr0.submit(lambda: None).result()
        self._pcr2.submit(lambda: None).result()
        first = self._first or self._all
        return Measurements(pcr_of(self._all.digest()), pcr_of(first.digest()), pcr_of(self._rest.digest()))


def crc_mismatch(found: int, expected: int, path: Path | None) -> EifError:
    message = f"the file's CRC is {found:08x}, but its header says {expected:08x}: it was damaged or changed"
    return EifError("crc-mismatch", message, path=path, offset=CRC_OFFSET)


@dataclass(frozen=True)
class Scan:
    """The result of one pass over a file.

    `kernel_header` is the kernel's beginning; `cmdline` and `metadata` are cut at CMDLINE_KEPT and
    METADATA_KEPT; `signature` is whole. `nul_offset` is the file offset of the first NUL in the command line.
    """

    layout: Layout
    measurements: Measurements  # without PCR8
    crc32: int
    kernel_header: bytes
    cmdline: bytes
    metadata: bytes | None
    signature: bytes | None
    nul_offset: int | None

    @property
    def crc_matches(self) -> bool:
        return self.crc32 == self.layout.header.crc32

    def check(self, path: Path | None = None) -> None:
        """Check the two rules about the data. Raises EifError: crc-mismatch, cmdline-nul."""
        if not self.crc_matches:
            raise crc_mismatch(self.crc32, self.layout.header.crc32, path)
        self.check_cmdline(path)

    def check_cmdline(self, path: Path | None = None) -> None:
        if self.nul_offset is not None:
            raise cmdline_nul(self.nul_offset, path)


def crc_of_gap(crc: int, fd: int, gap: tuple[int, int], path: Path | None = None) -> int:
    """`crc` continued over the bytes between two sections (`Layout.gaps`)."""
    at, end = gap
    while at < end:
        data = os.pread(fd, min(CHUNK, end - at), at)
        if not data:
            raise EifError("io", "the file became shorter while it was being read", path=path, offset=at)
        crc = crc32(data, crc)
        at += len(data)
    return crc


_KEPT = {
    SectionType.KERNEL: KERNEL_HEADER_SIZE,
    SectionType.CMDLINE: CMDLINE_KEPT,
    SectionType.METADATA: METADATA_KEPT,
    SectionType.SIGNATURE: SIGNATURE_MAX,
}


def scan_fd(fd: int, file_size: int, path: Path | None = None, progress: Progress | None = None) -> Scan:
    """Check the headers of an open file, then read all of it once. Raises EifError."""
    layout = read_layout(fd, file_size, path)
    # The headers that were judged are the ones summed; they are not read a second time.
    crc = crc32(layout.header.raw[:CRC_OFFSET])
    kept = {type: bytearray() for type in _KEPT}
    nul_offset: int | None = None
    ring = Ring(min(CHUNK, file_size))
    with Digests() as digests:
        for section, gap in zip(layout.sections, layout.gaps, strict=True):
            crc = crc32(section.header, crc_of_gap(crc, fd, gap, path))
            digests.begin(section.type)
            at = section.data_offset
            while at < section.end:
                buffer = ring.next()[: section.end - at]
                n = os.preadv(fd, [buffer], at)
                if n == 0:
                    raise EifError(
                        "io", "the file became shorter while it was being read", path=path, offset=at
                    )
                data = buffer[:n]
                ring.lend(digests.update(data))
                crc = crc32(data, crc)
                if section.type in _KEPT:
                    keep = kept[section.type]
                    keep += data[: _KEPT[section.type] - len(keep)]
                    if section.type is SectionType.CMDLINE and nul_offset is None:
                        nul = bytes(data).find(0)
                        nul_offset = at + nul if nul >= 0 else None
                at += n
                if progress:
                    progress(n)
        measurements = digests.finish()

    def bytes_of(type: SectionType) -> bytes | None:
        return bytes(kept[type]) if layout.first(type) else None

    return Scan(
        layout,
        measurements,
        crc,
        bytes(kept[SectionType.KERNEL]),
        bytes(kept[SectionType.CMDLINE]),
        bytes_of(SectionType.METADATA),
        bytes_of(SectionType.SIGNATURE),
        nul_offset,
    )


@contextmanager
def shown(title: str, size: int) -> Iterator[Progress | None]:
    """A progress bar in bytes, if work on `size` bytes takes long enough for one."""
    if size < PROGRESS_FROM:
        yield None
        return
    with progress.task(title, unit="bytes", total=size) as task:
        yield task.advance


def scan(path: Path) -> Scan:
    """`scan_fd` of a file by name, with a progress bar where it takes long."""
    with open_eif(path) as (fd, size), shown(f"Measuring {path.name}", size) as advance:
        return scan_fd(fd, size, path, advance)


def measure(path: Path) -> Measurements:
    """PCR0, 1, 2 and, for a signed file, 8. Raises EifError if the file breaks a rule.

    The signature itself is only decoded, for PCR8; `signature.check` verifies it.
    """
    found = scan(path)
    found.check(path)
    if found.signature is None:
        return found.measurements
    return signature.with_pcr8(found.measurements, signature.decode(found.signature, path), path)
