# SPDX-License-Identifier: MIT
"""Builds an EIF from a kernel, a command line and ramdisks, as AWS's `eif_build` does. Makes no ramdisk
itself.

The sections have AWS's order (kernel, command line, metadata, ramdisks), and so have the keys of the
metadata. Everything is read once: PCRs and checksum are computed while the data are written, and the headers,
which need them, are filled in at the end. The same input gives the same bytes: the only date in an EIF is the
metadata's BuildTime, which is SOURCE_DATE_EPOCH (reproducible-builds.org) or else the first second of 1970,
unless the request names another.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from isal.isal_zlib import crc32

from nitroctl import __version__
from nitroctl.base import files, instants
from nitroctl.base.arch import Arch, facts
from nitroctl.base.errors import EifError, NitroError, UsageError
from nitroctl.base.instants import UTC
from nitroctl.eif import metadata
from nitroctl.eif.boot import (
    ARM64_HEADER_SIZE,
    ARM64_MAGIC,
    ARM64_TEXT_OFFSET,
    NOT_ON_AWS,
    check_cmdline,
    read_kernel,
)
from nitroctl.eif.format import (
    CRC_OFFSET,
    HEADER_SIZE,
    MAX_SECTIONS,
    SECTION_HEADER,
    SECTION_HEADER_SIZE,
    Hints,
    SectionType,
)
from nitroctl.eif.measure import CHUNK, Digests, Progress, Ring, shown
from nitroctl.eif.output import replacing
from nitroctl.eif.pcr import Measurements

TEXT_OFFSET_GIVEN = (
    f"the arm64 kernel's text_offset was 0 and was set to {ARM64_TEXT_OFFSET:#x} in the image, as in AWS's "
    "kernels: otherwise it would not run on AWS"
)

# nitro-cli's limit for a file of custom metadata.
CUSTOM_METADATA_MAX = 4096

# Kernel, command line, metadata; one more slot stays free so that the image can be signed later.
RAMDISKS_MAX = MAX_SECTIONS - 4

_HOLE_MIN = 1 << 16  # a run of zeros shorter than this is written; skipping it would not pay
_ZEROS = memoryview(bytes(CHUNK))


# ---- what goes in ----


class Sink(Protocol):
    """Where a section's data go: bytes, or the next `size` bytes (None: all) of an open file."""

    def write(self, data: bytes) -> None: ...
    def copy(self, fd: int, size: int | None, name: str) -> None: ...


@dataclass(frozen=True)
class Generated:
    """A section whose data are made while they are written, for instance a cpio archive.

    `name` is for messages, `size` (bytes) only for progress.
    """

    name: str
    write: Callable[[Sink], None]
    size: int = 0


Source = Path | Generated


class FileSigner(Protocol):
    """Something that can sign a file while it is written (`sign.SigningKey`)."""

    def append(self, writer: Writer, measurements: Measurements) -> Measurements:
        """Write a signature section over PCR0; returns the measurements with PCR8."""
        ...

    def warnings(self) -> list[str]: ...


@dataclass(frozen=True)
class Metadata:
    """The metadata section, field by field. `docker_info` and `custom` are JSON values; None is null."""

    image_name: str
    image_version: str = "1.0"
    build_time: str = ""  # empty: `default_build_time()`
    build_tool: str = "nitroctl"
    build_tool_version: str = __version__
    operating_system: str = "Linux"
    kernel_version: str = "Unknown"
    docker_info: Any = None
    custom: Any = None

    def to_json(self) -> bytes:
        """The section's compact JSON: AWS's keys in AWS's order; the keys inside the last two are sorted, as
        in AWS's files."""
        value = {
            "ImageName": self.image_name,
            "ImageVersion": self.image_version,
            "BuildMetadata": {
                "BuildTime": self.build_time or default_build_time(),
                "BuildTool": self.build_tool,
                "BuildToolVersion": self.build_tool_version,
                "OperatingSystem": self.operating_system,
                "KernelVersion": self.kernel_version,
            },
        }
        # Names may come from a file system, where a name need not be valid Unicode.
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        docker, custom = metadata.write(self.docker_info), metadata.write(self.custom)
        return text[:-1] + b',"DockerInfo":' + docker + b',"CustomMetadata":' + custom + b"}"


@dataclass(frozen=True)
class Parts:
    """What an EIF is built from. `kernel` must be a file; a ramdisk may also be a pipe or generated. If
    `check_kernel` is false, any file is accepted as a kernel, and the length of the command line is not
    checked against the kernel's limit. `signer` signs the image. `give_text_offset`: an arm64 Image whose
    text_offset is 0 gets that of AWS's own kernels."""

    kernel: Path
    cmdline: bytes
    ramdisks: tuple[Source, ...]
    metadata: Metadata
    check_kernel: bool = True
    signer: FileSigner | None = None
    arch: Arch = "x86_64"
    give_text_offset: bool = True


@dataclass(frozen=True)
class Built:
    """The EIF that was made. `warnings` are sentences about what will probably not boot, `notes` about what
    is good to know."""

    path: Path
    size: int
    measurements: Measurements
    warnings: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    def __fspath__(self) -> str:
        """Makes it usable as the path of an EIF."""
        return os.fspath(self.path)


def default_build_time() -> str:
    """SOURCE_DATE_EPOCH, or 1970-01-01, in the form that AWS's tools write."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    try:
        return datetime.fromtimestamp(int(text), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}; it must be seconds since 1970") from None


def parse_build_time(text: str) -> str:
    """Check a build time given by the user: RFC 3339 with its zone, or "now"."""
    if text == "now":
        return datetime.now(UTC).isoformat()
    try:
        if instants.parse(text).tzinfo is None:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"build time {text!r} is not a date with time and zone",
            hint="like 2024-07-09T17:16:38+00:00, or now",
        ) from None
    return text


def read_custom_metadata(path: Path) -> Any:
    """The JSON value in a file of at most 4096 bytes; nitro-cli has the same limit."""
    over = f"{path}: custom metadata may have at most {CUSTOM_METADATA_MAX} bytes; the file has more"
    data = files.read_at_most(path, CUSTOM_METADATA_MAX, over=over, name=f"the metadata file {path}")
    try:
        return metadata.parse_custom(data)
    except ValueError as e:
        raise NitroError(f"{path}: custom metadata must be JSON: {e}") from None


# ---- CRC-32 of parts ----


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2) modulo CRC-32's, both in its reflected bit order."""
    product = 0
    bit = 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ 0xEDB88320 if b & 1 else b >> 1
        bit >>= 1
    return product


def crc32_combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of A || B from those of A (`first`) and B (`second`); `length` is the number of bytes in B.

    crc(A || B) = crc(A) * x^(8 * len(B)) + crc(B), the arithmetic of zlib's function of this name, which
    Python's zlib module does not offer.
    """
    power = 1 << 30  # x
    shift = 1 << 31  # 1
    bits = 8 * length
    while bits:
        if bits & 1:
            shift = _multiply(power, shift)
        power = _multiply(power, power)
        bits >>= 1
    return _multiply(shift, first) ^ second


# ---- writing ----


@dataclass
class Part:
    """A section as far as it has been written; `crc` is the CRC-32 of its data."""

    type: SectionType
    offset: int
    flags: int
    size: int = 0
    crc: int = 0
    head: bytes = b""  # its first bytes


class Writer:
    """Writes sections one after the other to a file descriptor, and measures them meanwhile. A `Sink`. `name`
    is the name of the file that is written, for error messages."""

    def __init__(self, fd: int, digests: Digests, progress: Progress | None = None, *, name: str) -> None:
        self._fd = fd
        self._name = name
        self._digests = digests
        self._progress = progress
        self._ring = Ring()
        self.parts: list[Part] = []
        self._at = HEADER_SIZE  # in the file
        self._buffer: memoryview | None = None
        self._fill = 0

    def begin(self, type: SectionType, *, flags: int = 0) -> None:
        self._flush()
        self.parts.append(Part(type, self._at, flags))
        self._at += SECTION_HEADER_SIZE
        self._digests.begin(type)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            room = self._room()
            n = min(len(room), len(view))
            room[:n] = view[:n]
            self._fill += n
            view = view[n:]

    def copy(self, fd: int, size: int | None, name: str) -> None:
        """Copy the next `size` bytes of `fd`, or everything up to its end. Holes in the file stay holes."""
        if size is None:
            while self._fill_from(fd, CHUNK, name):
                pass
            return
        end = os.lseek(fd, 0, os.SEEK_CUR) + size
        for length, is_data in _extents(fd, size):
            if not is_data and length >= _HOLE_MIN:
                self._hole(length)
                os.lseek(fd, length, os.SEEK_CUR)
                continue
            while length:
                n = self._fill_from(fd, length, name)
                if not n:
                    break
                length -= n
        if os.lseek(fd, 0, os.SEEK_CUR) < end or os.fstat(fd).st_size < end:
            raise NitroError(f"{name} became shorter while it was read")

    def measurements(self) -> Measurements:
        """The measurements of what has been written so far."""
        self._flush()
        return self._digests.finish()

    def finish(self, hints: Hints = Hints()) -> int:  # noqa: B008 (frozen)
        """Write the headers; returns the file's size in bytes."""
        self._flush()
        offsets = [p.offset for p in self.parts]
        sizes = [p.size for p in self.parts]
        crc = crc32(hints.pack(offsets, sizes, 0)[:CRC_OFFSET])
        for part in self.parts:
            header = SECTION_HEADER.pack(part.type, part.flags, part.size)
            self._put(memoryview(header), part.offset)
            crc = crc32_combine(crc32(header, crc), part.crc, part.size)
        self._put(memoryview(hints.pack(offsets, sizes, crc)), 0)
        os.ftruncate(self._fd, self._at)  # a hole at the end
        return self._at

    def misaligned(self, names: Sequence[str]) -> list[str]:
        """Warnings about ramdisks that the kernel will not find. The kernel reads all ramdisks as one
        initramfs, in which an uncompressed archive must begin at a multiple of four bytes
        (init/initramfs.c)."""
        found, at = [], 0
        ramdisks = [p for p in self.parts if p.type is SectionType.RAMDISK]
        for name, part in zip(names, ramdisks, strict=True):
            if at % 4 and part.head.startswith(b"07070"):
                found.append(
                    f"the ramdisk {name} begins at byte {at} of the initramfs, no multiple of 4: the kernel "
                    "will not find it; pad the ramdisk before it with zeros"
                )
            at += part.size
        return found

    def _room(self) -> memoryview:
        if self._buffer is not None and self._fill == len(self._buffer):
            self._flush()
        if self._buffer is None:
            self._buffer = self._ring.next()
        return self._buffer[self._fill :]

    def _fill_from(self, fd: int, limit: int, name: str) -> int:
        room = self._room()[:limit]
        try:
            n = os.readv(fd, [room])
        except OSError as e:
            raise NitroError(f"cannot read {name}: {e.strerror}") from e
        self._fill += n
        return n

    def _flush(self) -> None:
        if self._buffer is None:
            return
        data = self._buffer[: self._fill]
        self._take(data)
        # A whole buffer of zeros need not be written: the comparison ends at the first other byte.
        if len(data) < len(_ZEROS) or data.obj != _ZEROS.obj:
            self._put(data, self._at - len(data))
        self._buffer = None
        self._fill = 0

    def _put(self, data: memoryview, offset: int) -> None:
        try:
            while data:
                n = os.pwrite(self._fd, data, offset)
                offset += n
                data = data[n:]
        except OSError as e:
            raise NitroError(f"cannot write {self._name}: {e.strerror}") from e

    def _hole(self, length: int) -> None:
        self._flush()
        while length:
            self._ring.next()  # the buffer is not used; waiting for it limits what is queued for the digests
            data = _ZEROS[:length]
            self._take(data)
            length -= len(data)

    def _take(self, data: memoryview) -> None:
        self._ring.lend(self._digests.update(data))
        part = self.parts[-1]
        part.crc = crc32(data, part.crc)
        part.head = part.head or bytes(data[:6])
        part.size += len(data)
        self._at += len(data)
        if self._progress:
            self._progress(len(data))


def _extents(fd: int, size: int) -> Iterator[tuple[int, bool]]:
    """The data and the holes in the next `size` bytes of a file: (length, whether it is data) each. The file
    position stays the same."""
    start = at = os.lseek(fd, 0, os.SEEK_CUR)
    end = start + size
    while at < end:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), end)
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end) if data < end else end
        except OSError as e:
            if e.errno != errno.ENXIO:  # ENXIO: no data up to the end of the file
                raise
            data = hole = end
        os.lseek(fd, at, os.SEEK_SET)
        if data > at:
            yield data - at, False
        if hole > data:
            os.lseek(fd, data, os.SEEK_SET)
            yield hole - data, True
        at = hole


def _check(request: Parts) -> list[str]:
    """Check that the parts can become an EIF; returns warnings. Raises NitroError."""
    if len(request.ramdisks) > RAMDISKS_MAX:
        raise UsageError(
            f"{len(request.ramdisks)} ramdisks are too many; an EIF takes at most {RAMDISKS_MAX}"
        )
    nul = request.cmdline.find(0)
    if nul >= 0:
        raise EifError(
            "cmdline-nul", f"the command line has a NUL at byte {nul}, where the kernel would cut it off"
        )
    if request.check_kernel:
        check_cmdline(len(request.cmdline), read_kernel(request.kernel, request.arch))
    warnings = []
    if not request.give_text_offset and _head(request) is not None:
        warnings.append(NOT_ON_AWS)
    if not request.ramdisks:
        warnings.append("the image has no ramdisk: it boots only if the kernel has a built-in initramfs")
    return warnings


def _head(request: Parts) -> bytes | None:
    """The corrected first bytes of an arm64 Image that AWS's loader would load where it cannot run; None for
    any other kernel."""
    if request.arch != "aarch64":
        return None
    try:
        with open(request.kernel, "rb") as f:
            head = f.read(ARM64_HEADER_SIZE)
    except OSError as e:
        raise NitroError(f"cannot read the kernel {request.kernel}: {e.strerror}") from e
    return head if head[56:60] == ARM64_MAGIC and not any(head[8:16]) else None


def _file(path: Path, stack: ExitStack, *, skip: int = 0) -> Generated:
    """A file or pipe as a source, without its first `skip` bytes. It stays open until `stack` is closed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
    except OSError as e:
        raise NitroError(f"cannot open {path}: {e.strerror}") from e
    if stat.S_ISDIR(status.st_mode):
        raise NitroError(f"{path} is a directory, not a file")
    size = status.st_size - skip if stat.S_ISREG(status.st_mode) else None
    if skip:
        os.lseek(fd, skip, os.SEEK_SET)
    return Generated(str(path), lambda sink: sink.copy(fd, size, str(path)), size or 0)


def build(request: Parts, output: Path) -> Built:
    """Make the EIF. Raises NitroError; then nothing was written, and a file at `output` is unchanged."""
    warnings = _check(request)
    with ExitStack() as stack:
        sources = _sources(request, stack)
        advance = stack.enter_context(shown(f"Writing {output.name}", sources.size))
        fd = stack.enter_context(replacing(output))
        writer = Writer(fd, stack.enter_context(Digests()), advance, name=str(output))
        measurements = _write(writer, request, sources)
        if request.signer:
            measurements = request.signer.append(writer, measurements)
            warnings += request.signer.warnings()
        size = writer.finish(Hints(flags=facts(request.arch).eif))
        warnings += writer.misaligned([r.name for r in sources.ramdisks])
    notes = (TEXT_OFFSET_GIVEN,) if sources.head else ()
    return Built(output, size, measurements, tuple(warnings), notes)


def premeasure(request: Parts) -> Measurements:
    """The measurements that the EIF would have, without writing it; no signature is made, so there is no
    PCR8."""
    _check(request)
    with ExitStack() as stack:
        sources = _sources(request, stack)
        advance = stack.enter_context(shown("Measuring", sources.size))
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        writer = Writer(fd, stack.enter_context(Digests()), advance, name=os.devnull)
        return _write(writer, request, sources)


@dataclass(frozen=True)
class _Sources:
    """The opened parts. `head` replaces the kernel's first bytes, if it is not empty."""

    kernel: Generated
    ramdisks: list[Generated]
    head: bytes = b""

    @property
    def size(self) -> int:
        return self.kernel.size + sum(r.size for r in self.ramdisks)


def _sources(request: Parts, stack: ExitStack) -> _Sources:
    def source(given: Source) -> Generated:
        return given if isinstance(given, Generated) else _file(given, stack)

    head = b""
    if request.give_text_offset and (found := _head(request)):
        head = found[:8] + ARM64_TEXT_OFFSET.to_bytes(8, "little") + found[16:]
    kernel = _file(request.kernel, stack, skip=len(head))
    return _Sources(kernel, [source(r) for r in request.ramdisks], head)


def _write(writer: Writer, request: Parts, sources: _Sources) -> Measurements:
    """All sections but the signature."""
    writer.begin(SectionType.KERNEL)
    writer.write(sources.head)
    sources.kernel.write(writer)
    writer.begin(SectionType.CMDLINE)
    writer.write(request.cmdline)
    writer.begin(SectionType.METADATA)
    writer.write(request.metadata.to_json())
    for ramdisk in sources.ramdisks:
        writer.begin(SectionType.RAMDISK)
        ramdisk.write(writer)
    return writer.measurements()
