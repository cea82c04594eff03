# SPDX-License-Identifier: MIT
"""A second, deliberately simple EIF: whole files in memory, from hashlib, zlib and struct alone.

Tests compare the package and the C core with it, so it shares no code with either. It is written from AWS's
specification: straight lines, no streaming, no speed. Nothing but tests may import it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5

# The metadata of the test vector.
TINY_METADATA = (
    b'{"ImageName":"tiny","ImageVersion":"1.0","BuildMetadata":{"BuildTime":"1970-01-01T00:00:00+00:00",'
    b'"BuildTool":"t","BuildToolVersion":"0","OperatingSystem":"Linux","KernelVersion":"0.0"},'
    b'"DockerInfo":null,"CustomMetadata":null}'
)

Sections = Sequence[tuple[int, bytes]]

# The published vector: AWS's order of sections. Its file has 871 bytes.
TINY: Sections = (
    (KERNEL, b"K" * 16),
    (CMDLINE, b"c"),
    (METADATA, TINY_METADATA),
    (RAMDISK, b"INITINIT"),
    (RAMDISK, b"APPLAPPLAPPL"),
)
TINY_SHA256 = "b26cd815d69078da87d1eb5df13ff3f33c5ffe8c9365ebaad382923e8de9b09e"
TINY_PCRS = (
    "9a335c3cba13893f5ed6e9e8e521211352d5a57327ad66586e64c98bcce968136deee39fde3b6f215fdcd23ec0f2f64e",
    "cf92aa3b4dd5bf6174faf9ca4b01a5b15ffe949fa6aab520495d96f97328947147213aa09a83c2ff34ce7986a7140981",
    "135a91f11e577c4ef9ab25d7669f5bcdfa838980fab14220df14aded46f893a11c2f0fb34624f8b56fc02b4d89247749",
)
# PCR2 of an image with one ramdisk or none: SHA384(48 zeros || SHA384("")).
EMPTY_PCR2 = (
    "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
)


def with_crc(data: bytes) -> bytes:
    """The same file with the right checksum."""
    if len(data) < 548:
        return data
    return data[:544] + struct.pack(">I", zlib.crc32(data[:544] + data[548:])) + data[548:]


def pack(
    sections: Sections, *, version: int = 4, flags: int = 0, mem: int = 1 << 30, cpus: int = 2,
    gaps: Mapping[int, bytes] = {},
) -> bytes:  # fmt: skip
    """A good file, if the sections are good ones. `gaps`: what lies before the section of that number."""
    header = bytearray(548)
    struct.pack_into(">4sHHQQHH", header, 0, b".eif", version, flags, mem, cpus, 0, len(sections))
    body = b""
    for i, (type, data) in enumerate(sections):
        body += gaps.get(i, b"")
        if i < 32:
            struct.pack_into(">Q", header, 28 + 8 * i, 548 + len(body))
            struct.pack_into(">Q", header, 284 + 8 * i, len(data))
        body += struct.pack(">HHQ", type, 0, len(data)) + data
    return with_crc(bytes(header) + body)


def borders(sections: Sections) -> list[int]:
    """Where headers and sections begin and end."""
    at = 548
    found = [0, 4, 6, 26, 28, 284, 540, 544, 548]
    for _, data in sections:
        found += [at, at + 12, at + 12 + len(data)]
        at += 12 + len(data)
    return sorted(set(found))


def pcr(content: bytes) -> str:
    return hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).hexdigest()


def measure(sections: Sections) -> tuple[str, str, str]:
    """PCR0, PCR1, PCR2 in hex."""
    ramdisks = [i for i, (type, _) in enumerate(sections) if type == RAMDISK]

    def joined(wanted: set[int]) -> bytes:
        return b"".join(data for i, (_, data) in enumerate(sections) if i in wanted)

    boot = {i for i, (type, _) in enumerate(sections) if type in (KERNEL, CMDLINE)}
    return (
        pcr(joined(boot | set(ramdisks))),
        pcr(joined(boot | set(ramdisks[:1]))),
        pcr(joined(set(ramdisks[1:]))),
    )


def verdict(data: bytes) -> str:
    """For a reader of both architectures: the word ok, or the name of the first rule that the file breaks,
    up to cmdline-nul (no signature)."""
    if len(data) < 548:
        return "file-too-short"
    if data[:4] != b".eif":
        return "bad-magic"
    (version,) = struct.unpack_from(">H", data, 4)
    if version not in (2, 3, 4):
        return "bad-version"
    (count,) = struct.unpack_from(">H", data, 26)
    if count < 2 or count > 32:
        return "section-count"
    offsets = struct.unpack_from(f">{count}Q", data, 28)
    sizes = struct.unpack_from(f">{count}Q", data, 284)
    at = 548
    for offset, size in zip(offsets, sizes, strict=True):
        if offset < at:
            return "section-offset"
        at = offset + 12 + size
        if at > len(data):
            return "section-beyond-file"
    if at != len(data):
        return "trailing-bytes"
    types: list[int] = []
    cmdline = b""
    for offset, size in zip(offsets, sizes, strict=True):
        type, _, own = struct.unpack_from(">HHQ", data, offset)
        if own != size:
            return "section-size-mismatch"
        if type == RAMDISK and KERNEL not in types:
            return "ramdisk-before-kernel"
        if type not in (1, 2, 3, 4, 5):
            return "section-type"
        if type != RAMDISK and type in types:
            return {1: "duplicate-kernel", 2: "duplicate-cmdline", 4: "duplicate-signature",
                    5: "duplicate-metadata"}[type]  # fmt: skip
        if type == SIGNATURE and size > 32768:
            return "signature-too-large"
        if type == CMDLINE:
            cmdline = data[offset + 12 : offset + 12 + size]
        types.append(type)
    if KERNEL not in types:
        return "no-kernel"
    if CMDLINE not in types:
        return "no-cmdline"
    if version == 4 and METADATA not in types:
        return "no-metadata"
    if struct.unpack_from(">I", data, 544)[0] != zlib.crc32(data[:544] + data[548:]):
        return "crc-mismatch"
    if b"\0" in cmdline:
        return "cmdline-nul"
    return "ok"


def bzimage(*, version: str = "6.1.0-test", cmdline_size: int = 2047, protocol: int = 0x20F) -> bytes:
    """What passes for a bzImage: a setup header by the Linux/x86 boot protocol, and no code. (The version
    text lies at 0x200 + the number at 0x20e.)"""
    image = bytearray(0x1000)
    image[0x1F1] = 4  # setup sectors
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x202:0x206] = b"HdrS"
    image[0x211] = 1  # loaded high
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<H", image, 0x20E, 0x100)
    text = f"{version} (builder@host) #1 SMP".encode()
    image[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<I", image, 0x238, cmdline_size)
    return bytes(image)


def arm64_image(
    *, version: str = "6.1.0-test", text_offset: int = 0x200000, image_size: int = 1 << 24
) -> bytes:
    """What passes for an arm64 Image: a header by Linux's booting.rst, no code, and the text that Linux
    prints first."""
    image = bytearray(0x1000)
    struct.pack_into("<IIQQQ", image, 0, 0x91005A4D, 0, text_offset, image_size, 0xA)
    image[56:60] = b"ARM\x64"
    text = f"Linux version {version} (builder@host) #1 SMP".encode()
    image[0x300 : 0x300 + len(text)] = text
    return bytes(image)
