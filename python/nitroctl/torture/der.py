# SPDX-License-Identifier: MIT
"""DER written by hand, as far as certificates need it. Reads nothing, checks nothing.

X.690, sections 8 and 10; the structures are RFC 5280's.
"""

from __future__ import annotations

import functools
from datetime import datetime

TRUE = b"\x01\x01\xff"
NULL = b"\x05\x00"
UTF8, PRINTABLE, UTC_TIME, GENERALIZED_TIME = 0x0C, 0x13, 0x17, 0x18


def element(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*contents: bytes) -> bytes:
    return element(0x30, *contents)


def integer(value: int) -> bytes:
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return element(2, value.to_bytes(size, "big", signed=True))


def octets(value: bytes) -> bytes:
    return element(4, value)


def bits(value: bytes, unused: int = 0) -> bytes:
    return element(3, bytes([unused]), value)


@functools.lru_cache
def identifier(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return element(6, content)


def time(at: datetime, tag: int | None = None) -> bytes:
    """As RFC 5280 has it, section 4.1.2.5: UTCTime until 2049; or as `tag` says."""
    if tag is None:
        tag = UTC_TIME if at.year < 2050 else GENERALIZED_TIME
    digits = f"{at.year:04}{at:%m%d%H%M%S}Z"
    return element(tag, digits[2 if tag == UTC_TIME else 0 :].encode())


ATTRIBUTES = {
    "CN": "2.5.4.3", "C": "2.5.4.6", "L": "2.5.4.7", "ST": "2.5.4.8", "O": "2.5.4.10", "OU": "2.5.4.11",
}  # fmt: skip


def name(*parts: tuple[str, str], tag: int | None = None) -> bytes:
    """A distinguished name; its strings are of the types in AWS's chains, or all of one."""
    return sequence(
        *(
            element(
                0x31,
                sequence(
                    identifier(ATTRIBUTES[kind]),
                    element(tag or (PRINTABLE if kind == "C" else UTF8), value.encode()),
                ),
            )
            for kind, value in parts
        )
    )


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(identifier(oid), TRUE if critical else b"", octets(value))
