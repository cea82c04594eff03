# SPDX-License-Identifier: MIT
"""Lines for people of a capture that was written by hand, after pcap-savefile(5), linux/vsockmon.h and virtio
1.2, section 5.10; captures of the backend's are in test_vsock_dump.py."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from nitroctl.base.errors import NitroError
from nitroctl.vsock.packets import Lines

HEAD = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65612, 271)


def record(op: int, payload: bytes = b"", *, kept: int | None = None, **fields: Any) -> bytes:
    kind, flags, length = fields.get("type", 1), fields.get("flags", 0), len(payload)
    packet = bytes(32) + struct.pack("<QQIIIHHIII", 3, 16, 1024, 5000, length, kind, op, flags, 4096, 7)
    packet += payload
    size = len(packet) if kept is None else kept
    return struct.pack("<IIII", 0, 42, size, len(packet)) + packet[:size]


def lines(data: bytes, step: int) -> list[str]:
    reader = Lines()
    return [line for at in range(0, len(data), step) for line in reader.feed(data[at : at + step])]


@pytest.mark.parametrize("step", [1, 100, 10_000])
def test_each_operation_and_what_is_odd(step: int) -> None:
    """However the stream is cut into pieces."""
    data = HEAD + record(1) + record(4, flags=1) + record(4, flags=2) + record(4, flags=3)
    data += (
        record(4, flags=8) + record(5, b"hello\x1b[2J") + record(5, b"a" * 40) + record(5, b"end", flags=2)
    )
    data += record(1, type=2) + record(0) + record(9)
    found = [line.split("  ", 1)[1] for line in lines(data, step)]
    ends, credit = "3:1024 > 16:5000", "credit 4096, taken 7"
    assert found == [
        f"{ends}  REQUEST  {credit}",
        f"{ends}  SHUTDOWN  receive  {credit}",
        f"{ends}  SHUTDOWN  send  {credit}",
        f"{ends}  SHUTDOWN  receive and send  {credit}",
        f"{ends}  SHUTDOWN  flags 0x8  {credit}",
        f"{ends}  RW  9 bytes  {credit}  |hello.[2J|",
        f"{ends}  RW  40 bytes  {credit}  |{'a' * 32}|...",
        f"{ends}  RW  3 bytes  flags 0x2  {credit}  |end|",
        f"{ends}  REQUEST  type 2  {credit}",
        f"{ends}  INVALID  {credit}",
        f"{ends}  operation 9  {credit}",
    ]
    assert all(line.split("  ")[0].endswith(".000042") for line in lines(data, step))


def test_what_is_no_capture_of_vsock() -> None:
    assert lines(HEAD[:-1], 24) == [] and lines(HEAD + record(1)[:-1], 1000) == []
    for head in (
        b"\n\r\r\n".ljust(24, b"\0"),  # pcapng
        struct.pack(">IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65612, 271),
        HEAD[:20] + struct.pack("<I", 1),  # Ethernet
    ):
        with pytest.raises(NitroError, match="not a capture of vsock"):
            lines(head, 24)
    for size in (0, 75, 1 << 31):
        with pytest.raises(NitroError, match=f"a packet of {size} bytes, which cannot be"):
            lines(HEAD + struct.pack("<IIII", 0, 0, size, size), 1000)
    with pytest.raises(NitroError, match="a packet of 60 bytes"):
        lines(HEAD + record(1, kept=60), 1000)
