# SPDX-License-Identifier: MIT
"""Prints captured vsock packets for people: a pcap stream in, one line per packet out.

Formats: pcap-savefile(5) as the backend writes it, LINKTYPE_VSOCK with the header of linux/vsockmon.h,
followed by the packet header of virtio 1.2, section 5.10. Use wireshark or tshark for anything more.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from nitroctl.base.errors import NitroError

FILE = struct.Struct("<IHHIIII")
RECORD = struct.Struct("<IIII")
VSOCKMON = 32
HEADER = struct.Struct("<QQIIIHHIII")
LINKTYPE_VSOCK = 271
MAGIC = 0xA1B2C3D4

_OPS = ("INVALID", "REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST")
_OFF = {1: "receive", 2: "send", 3: "receive and send"}
_RECORD_MAX = 1 << 20


class Lines:
    """Reads a capture piece by piece."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False

    def feed(self, data: bytes) -> Iterator[str]:
        self._rest += data
        if not self._begun:
            if len(self._rest) < FILE.size:
                return
            magic, _, _, _, _, _, link = FILE.unpack_from(self._rest)
            if (magic, link) != (MAGIC, LINKTYPE_VSOCK):
                raise NitroError("this is not a capture of vsock packets")
            self._begun, self._rest = True, self._rest[FILE.size :]
        at = 0
        while len(self._rest) - at >= RECORD.size:
            seconds, micros, kept, whole = RECORD.unpack_from(self._rest, at)
            if not VSOCKMON + HEADER.size <= kept <= _RECORD_MAX:
                raise NitroError(f"the capture has a packet of {kept} bytes, which cannot be a vsock packet")
            if len(self._rest) - at < RECORD.size + kept:
                break
            at += RECORD.size
            yield _line(seconds, micros, self._rest[at : at + kept], whole)
            at += kept
        self._rest = self._rest[at:]


def _line(seconds: int, micros: int, packet: bytes, whole: int) -> str:
    fields = HEADER.unpack_from(packet, VSOCKMON)
    src, dst, src_port, dst_port, length, kind, op, flags, buf_alloc, fwd_cnt = fields
    moment = time.strftime("%H:%M:%S", time.localtime(seconds))
    name = _OPS[op] if op < len(_OPS) else f"operation {op}"
    words = [f"{moment}.{micros:06d}", f"{src}:{src_port} > {dst}:{dst_port}", name]
    if name == "RW" or length:
        words.append(f"{length} bytes")
    if name == "SHUTDOWN":
        words.append(_OFF.get(flags, f"flags {flags:#x}"))
    elif flags:
        words.append(f"flags {flags:#x}")
    if kind != 1:
        words.append(f"type {kind}")
    words.append(f"credit {buf_alloc}, taken {fwd_cnt}")
    data = packet[VSOCKMON + HEADER.size :]
    if data:
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data[:32])
        more = "..." if whole - VSOCKMON - HEADER.size > 32 else ""
        words.append(f"|{shown}|{more}")
    return "  ".join(words)
