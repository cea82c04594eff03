# SPDX-License-Identifier: MIT
"""Of an ELF file (elf(5)), what tells how it is run: machine, dynamic linker, notes, the libraries it names.

Files come from anywhere: what is read is bounded, and a file that contradicts itself is ValueError.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

MAGIC = b"\x7fELF"

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB = 1, 5
_SEGMENTS = 512
_TEXT = 4096  # bytes of one segment that are read
_NAME = 256  # of a library


class Elf(NamedTuple):
    bits: int
    machine: int  # EM_*
    linker: str | None = None  # the dynamic one
    # (name, type): description
    notes: Mapping[tuple[bytes, int], bytes] = MappingProxyType({})
    needed: tuple[str, ...] = ()


def read(file: BinaryIO) -> Elf | None:
    """None for what is no ELF file; only machine and bits of one that is not 64 bits and little-endian."""
    file.seek(0)
    head = file.read(64)
    if head[:4] != MAGIC:
        return None
    try:
        bits = {1: 32, 2: 64}[head[4]]
        big = {1: False, 2: True}[head[5]]
        (machine,) = struct.unpack_from(">H" if big else "<H", head, 18)
        if bits == 32 or big:
            return Elf(bits, machine)
        linker = None
        notes: dict[tuple[bytes, int], bytes] = {}
        dynamic = b""
        loaded: list[tuple[int, int, int]] = []
        for kind, text, place in _segments(file, head):
            if kind == _PT_INTERP:
                linker = os.fsdecode(text.partition(b"\0")[0])
            elif kind == _PT_NOTE:
                notes |= dict(_notes(text))
            elif kind == _PT_DYNAMIC:
                dynamic = text
            elif kind == _PT_LOAD:
                loaded.append(place)
        return Elf(bits, machine, linker, notes, tuple(_needed(file, dynamic, loaded)))
    except (struct.error, KeyError, IndexError, OverflowError) as e:
        raise ValueError("damaged ELF file") from e


def _segments(file: BinaryIO, head: bytes) -> Iterator[tuple[int, bytes, tuple[int, int, int]]]:
    """Kind, content where it is looked at, and place: offset, address, length."""
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    for index in range(min(count, _SEGMENTS)):
        kind, _, at, address, _, length = struct.unpack("<IIQQQQ", _read_at(file, offset + index * size, 40))
        if kind in (_PT_INTERP, _PT_NOTE, _PT_DYNAMIC, _PT_LOAD):
            text = b"" if kind == _PT_LOAD else _read_at(file, at, min(length, _TEXT))
            yield kind, text, (at, address, length)


def _needed(file: BinaryIO, dynamic: bytes, loaded: list[tuple[int, int, int]]) -> Iterator[str]:
    """The names of DT_NEEDED, which lie in the table of strings of which the address is given."""
    entries = [struct.unpack_from("<QQ", dynamic, at) for at in range(0, len(dynamic) - 15, 16)]
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    for at, address, length in loaded:
        if strings is not None and address <= strings < address + length:
            for tag, value in entries:
                if tag == _DT_NEEDED:
                    name = _read_at(file, at + strings - address + value, _NAME)
                    yield os.fsdecode(name.partition(b"\0")[0])
            return


def _read_at(file: BinaryIO, at: int, most: int) -> bytes:
    if at > file.seek(0, os.SEEK_END):
        raise OverflowError  # a file system may take other offsets than the format
    file.seek(at)
    return file.read(most)


def _notes(text: bytes) -> Iterator[tuple[tuple[bytes, int], bytes]]:
    at = 0
    while at + 12 <= len(text):
        name, description, kind = struct.unpack_from("<III", text, at)
        value = at + 12 + (name + 3) // 4 * 4
        yield (text[at + 12 : at + 12 + name].rstrip(b"\0"), kind), text[value : value + description]
        at = value + (description + 3) // 4 * 4
