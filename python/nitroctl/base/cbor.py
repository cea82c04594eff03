# SPDX-License-Identifier: MIT
"""CBOR from strangers: `loads` checks one data item's shape before cbor2 builds any object from it.

The check walks the bytes once, keeps a list instead of recursing, and refuses what our formats never hold:
depth beyond a limit, tags, trailing bytes, lengths beyond the input, repeated map keys. What is left cannot
make a decoder recurse, allocate on a header's word, or run a tag's constructor. Writing CBOR needs none of
this: use cbor2.

Encoding rules: RFC 8949, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# AWS's documents and signatures nest five deep at the most (array, map, array of integers); 16 leaves room.
MAX_DEPTH = 16

TAG_COSE_SIGN1 = 18  # RFC 9052, section 4.2


class CborError(ValueError):
    """Not one well-formed CBOR item of the kind that we accept. The text says why and where."""


def _head(data: bytes, at: int) -> tuple[int, int | None, int]:
    """Decode one head: (major type, argument or None for indefinite, offset behind it)."""
    if at >= len(data):
        raise CborError(f"it ends at offset {at} where another item must begin")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info < 24:
        return major, info, at
    if info == 31:
        return major, None, at
    if info > 27:
        raise CborError(f"reserved additional information {info} at offset {at - 1}")
    size = 1 << (info - 24)
    if at + size > len(data):
        raise CborError(f"it ends at offset {len(data)} within a head")
    return major, int.from_bytes(data[at : at + size], "big"), at + size


def check(data: bytes, *, start: int = 0, max_depth: int = MAX_DEPTH) -> int:
    """Check the one item that begins at `start` and fills the rest; return how many map pairs it holds.

    Raises CborError.
    """
    # Open containers: [items or None for indefinite, major type, items seen].
    stack: list[list[Any]] = []
    at = start
    pairs = 0
    while True:
        begin = at
        major, argument, at = _head(data, at)
        if major == 7 and argument is None:  # "break"
            if not stack or stack[-1][0] is not None or (stack[-1][1] == 5 and stack[-1][2] % 2):
                raise CborError(f"a break at offset {begin} that ends nothing")
            _, kind, seen = stack.pop()
            if kind == 5:
                pairs += seen // 2
        else:
            if stack and stack[-1][1] in (2, 3) and (major != stack[-1][1] or argument is None):
                raise CborError(f"a chunk of another type in the string at offset {begin}")
            if stack:
                stack[-1][2] += 1
            if major in (0, 1, 6) and argument is None:
                raise CborError(f"an integer or tag of indefinite length at offset {begin}")
            if major == 6:
                raise CborError(f"tag {argument} at offset {begin}")
            if major in (2, 3) and argument is not None:
                if argument > len(data) - at:
                    raise CborError(
                        f"a string of {argument} bytes at offset {begin}, but only {len(data) - at} follow"
                    )
                at += argument
            elif major in (2, 3, 4, 5):
                # Each element takes a byte at least: what claims more than there is left is refused here.
                items = None if argument is None else argument * (2 if major == 5 else 1)
                if items is not None and items > len(data) - at:
                    raise CborError(
                        f"{argument} elements at offset {begin}, but only {len(data) - at} bytes follow"
                    )
                if len(stack) == max_depth:
                    raise CborError(f"nested deeper than {max_depth} at offset {begin}")
                stack.append([items, major, 0])
                if items != 0:
                    continue
        # An item is complete: so may be the containers that it closes.
        while stack and stack[-1][0] is not None and stack[-1][2] == stack[-1][0]:
            if stack[-1][1] == 5:
                pairs += stack[-1][0] // 2
            stack.pop()
        if not stack:
            break
    if at != len(data):
        raise CborError(f"{len(data) - at} bytes follow the item that ends at offset {at}")
    return pairs


def _pairs(value: Any) -> int:
    """How many pairs the maps of a decoded item hold; the recursion is as deep as `check` allowed."""
    if isinstance(value, Mapping):
        return len(value) + sum(_pairs(k) + _pairs(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return sum(map(_pairs, value))
    return 0


def loads(data: bytes, *, tag: int | None = None, max_depth: int = MAX_DEPTH) -> Any:
    """Decode `data`, one CBOR item and nothing behind it, which the tag `tag` may precede.

    Returns int, bytes, str, list, dict, bool, None or float. Raises CborError, and nothing else.
    """
    import cbor2

    start = 0
    if tag is not None and data[:1] and data[0] >> 5 == 6:
        _, number, start = _head(data, 0)
        if number != tag:
            raise CborError(f"tag {number} where only {tag} may stand")
    pairs = check(data, start=start, max_depth=max_depth)
    try:
        value = cbor2.loads(data[start:])
    except (cbor2.CBORDecodeError, ValueError, TypeError) as e:
        raise CborError(f"not decodable: {e}") from e
    if _pairs(value) != pairs:
        raise CborError("a map key occurs twice")
    return value
