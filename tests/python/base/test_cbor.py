# SPDX-License-Identifier: MIT
"""CBOR from strangers: what is accepted is what cbor2 would say, what is refused is refused by name."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitroctl.base import cbor

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.integers(0, 99) | st.text(max_size=5), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_cbor2_writes_is_read_back(value: object) -> None:
    assert cbor.loads(cbor2.dumps(value)) == value


# RFC 8949, appendix F, gives the classes of bad encodings; each row is one of them.
BAD = [
    ("", "ends at offset 0"),
    ("18", "within a head"),
    ("1c", "reserved additional information"),
    ("1f", "indefinite length"),
    ("ff", "break"),
    ("9f", "must begin"),
    ("81ff", "break"),
    ("bf00ff", "break"),
    ("0000", "1 bytes follow"),
    ("42ff", "a string of 2 bytes"),
    ("5bffffffffffffffff00", "a string of 18446744073709551615 bytes"),
    ("9bffffffffffffffff00", "elements at offset 0"),
    ("bb8000000000000000", "elements at offset 0"),
    ("5f6161ff", "chunk of another type"),
    ("5f5f4100ffff", "chunk of another type"),
    ("c000", "tag 0"),
    ("d28400", "tag 18"),
    ("81" * 17 + "00", "nested deeper"),
    ("a200010002", "twice"),
    ("a2a2000100020003", "ends|must begin|twice"),
    ("61ff", "not decodable"),
]


@pytest.mark.parametrize(("text", "why"), BAD)
def test_bad_encodings_are_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(cbor.CborError, match=why):
        cbor.loads(bytes.fromhex(text))


def test_the_one_allowed_tag() -> None:
    assert cbor.loads(bytes.fromhex("d28100"), tag=18) == [0]
    assert cbor.loads(bytes.fromhex("8100"), tag=18) == [0]
    with pytest.raises(cbor.CborError, match="tag 17 where only 18"):
        cbor.loads(bytes.fromhex("d18100"), tag=18)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_cbor_error(data: bytes) -> None:
    try:
        value = cbor.loads(data)
    except cbor.CborError:
        return
    assert cbor2.loads(data) == value or value != value


def test_depth_does_not_reach_the_interpreter() -> None:
    with pytest.raises(cbor.CborError, match="nested deeper"):
        cbor.loads(b"\x81" * 100_000 + b"\x00")
