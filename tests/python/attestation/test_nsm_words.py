# SPDX-License-Identifier: MIT
"""The NSM's log in words. Requests and answers are written down here by the published types of AWS's NSM API,
in every spelling that a guest may choose.
"""

from __future__ import annotations

import json
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitroctl.attestation.nsm import Entry, entry

VALUE = bytes(range(48))
HEX = VALUE.hex()


def line(
    request: Any, answer: Any, *, faults: str = "-", dropped: int = 0, raw: bytes | None = None
) -> bytes:
    """At 2026-01-31 12:00:00.000123 UTC, in 45 microseconds."""
    asked = cbor2.dumps(request) if raw is None else raw
    head = f"1 1769860800000123 45 {dropped} {faults} {len(asked)}"
    return f"{head} {asked.hex() or '-'} {cbor2.dumps(answer).hex()}".encode()


def read(request: Any, answer: Any, **more: Any) -> Entry:
    found = entry(line(request, answer, **more))
    assert found
    assert Entry.from_json(json.loads(json.dumps(found.to_json(documents=True)))) == found
    return found


EXTENDED = {"ExtendPCR": {"data": VALUE}}


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        ({"ExtendPCR": {"index": 16, "data": b"\1\2"}}, EXTENDED, f"ExtendPCR index=16 data=0102 -> {HEX}"),
        ({"ExtendPCR": [16, [1, 2]]}, EXTENDED, f"ExtendPCR index=16 data=0102 -> {HEX}"),
        (["ExtendPCR", {0: 16, 1: "a"}], EXTENDED, f"ExtendPCR index=16 data=61 -> {HEX}"),
        (
            {"DescribePCR": {"index": 3}},
            {"DescribePCR": {"lock": True, "data": VALUE}},
            f"DescribePCR index=3 -> {HEX}, locked",
        ),
        ({"LockPCR": {"index": 16}}, "LockPCR", "LockPCR index=16 -> done"),
        ({"LockPCRs": {"range": 20}}, "LockPCRs", "LockPCRs range=20 -> done"),
        ({"LockPCR": {"index": 3}}, {"Error": "ReadOnlyIndex"}, "LockPCR index=3 -> ReadOnlyIndex"),
        ("GetRandom", {"GetRandom": {"random": b"?" * 256}}, "GetRandom -> 256 random bytes"),
        ({"GetRandom": None}, {"GetRandom": {"random": b""}}, "GetRandom -> 0 random bytes"),
        ("DescribeNSM", {"DescribeNSM": {"digest": "SHA384"}}, "DescribeNSM -> done"),
        (
            {"Attestation": {"user_data": None, "nonce": b"n" * 40, "public_key": b""}},
            {"Attestation": {"document": b"d" * 4711}},
            f"Attestation nonce={'6e' * 16}... (40 bytes) public_key=empty -> a document of 4711 bytes",
        ),
        ("Open\x1b[2J", {"Error": "InvalidOperation"}, "9 bytes that are no request 684f70656e1b5b324a -> "),
    ],
)  # fmt: skip
def test_words(request_: Any, answer: Any, words: str) -> None:
    text = read(request_, answer).words()
    assert text.startswith(f"12:00:00.000123 {words}"), text
    assert text.endswith("(45 us)")


def test_what_is_kept() -> None:
    """Documents on request; random bytes never; faults and gaps; what came, where it was no request."""
    document = {"Attestation": {"document": b"secret"}}
    found = read({"Attestation": {}}, document, faults="delay,expired", dropped=3)
    assert (found.faults, found.dropped, found.document_bytes) == (("delay", "expired"), 3, 6)
    assert found.words().endswith("[fault: delay, expired]")
    assert found.to_json(documents=False)["document"] is None
    assert found.to_json(documents=True)["document"] == b"secret".hex()
    assert b"secret".hex() in found.words(documents=True) and "secret" not in found.words()
    assert found.to_json(documents=False)["time"] == "2026-01-31T12:00:00.000123+00:00"

    random = read("GetRandom", {"GetRandom": {"random": b"\xab" * 256}})
    assert "abab" not in json.dumps(random.to_json(documents=True))
    broken = read(None, {"Error": "InvalidOperation"}, raw=b"\xff")
    assert (broken.kind, broken.request, broken.result) == (None, b"\xff", "InvalidOperation")
    # The device does not read more than 4096 bytes.
    too_long = entry(b"1 1 1 0 - 4097 - " + cbor2.dumps({"Error": "InputTooLarge"}).hex().encode())
    assert too_long and too_long.words().endswith("4097 bytes that are no request -> InputTooLarge (1 us)")
    nothing = entry(b"1 1 1 0 - 0 - -")
    assert nothing and nothing.words().endswith(" 0 bytes that are no request -> no answer (1 us)")
    mixed = read("GetRandom", {"ExtendPCR": {"data": VALUE}})
    assert mixed.result == "an answer of another kind"


@given(st.binary(max_size=200) | st.builds(lambda a, b: b"1 1 1 0 - 0 %s %s" % (a, b), *[st.binary()] * 2))
def test_no_line_does_harm(data: bytes) -> None:
    found = entry(data)
    assert found is None or found.words()


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_no_bytes_of_a_guest_do_harm(request: bytes, answer: bytes) -> None:
    found = entry(f"1 1 1 0 - {len(request)} {request.hex() or '-'} {answer.hex() or '-'}".encode())
    assert found and found.words(documents=True) and found.to_json(documents=True)


def test_lines_of_others() -> None:
    good = line("GetRandom", {"Error": "InternalError"})
    assert entry(good)
    for bad in (
        b"",
        b"2" + good[1:],
        good + b" x",
        good.replace(b" 45 ", b" x "),
        b"1 9" + b"9" * 30 + good[3:],
    ):
        assert entry(bad) is None
