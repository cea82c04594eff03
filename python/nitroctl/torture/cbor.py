# SPDX-License-Identifier: MIT
"""CBOR written by hand: any head, the right one or a wrong one. Reads nothing, checks nothing.

An encoder that only makes good CBOR is of no use to the kit, nor is one that a verifier uses as well.
Encoding: RFC 8949, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

NULL = b"\xf6"
UNDEFINED = b"\xf7"
BREAK = b"\xff"
EMPTY_MAP = b"\xa0"
BYTES, TEXT, ARRAY, MAP = 2, 3, 4, 5

Pair = tuple[bytes, bytes]  # a key and a value of a map, both encoded


def head(major: int, argument: int, size: int | None = None) -> bytes:
    """As short as it can be, or with an argument of `size` bytes."""
    if size is None:
        if argument < 24:
            return bytes([major << 5 | argument])
        size = next(n for n in (1, 2, 4, 8) if argument < 1 << 8 * n)
    return bytes([major << 5 | 23 + size.bit_length()]) + argument.to_bytes(size, "big")


def integer(value: int, size: int | None = None) -> bytes:
    return head(0, value, size) if value >= 0 else head(1, -1 - value, size)


def octets(value: bytes, size: int | None = None) -> bytes:
    return head(BYTES, len(value), size) + value


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return head(TEXT, len(encoded)) + encoded


def array(*items: bytes) -> bytes:
    return head(ARRAY, len(items)) + b"".join(items)


def mapping(pairs: Iterable[Pair]) -> bytes:
    listed = list(pairs)
    return head(MAP, len(listed)) + b"".join(key + value for key, value in listed)


def tag(number: int, item: bytes) -> bytes:
    return head(6, number) + item


def endless(major: int, *items: bytes) -> bytes:
    """Of indefinite length."""
    return bytes([major << 5 | 31]) + b"".join(items) + BREAK


def endless_map(pairs: Iterable[Pair]) -> bytes:
    return endless(MAP, *(key + value for key, value in pairs))


def chunked(major: int, value: bytes, size: int) -> bytes:
    """A string in chunks of that many bytes."""
    chunks = [value[at : at + size] for at in range(0, len(value), size)]
    return endless(major, *(head(major, len(chunk)) + chunk for chunk in chunks))
