# SPDX-License-Identifier: MIT
"""A case before its document is made: what it is, what a verifier has to say to it, and why. No case is here.

What is to be accepted is right by its standard, or is what AWS's own documents look like; what is to be
refused breaks a rule that a verifier must heed, or proves nothing. Where a standard binds only who makes a
document, or leaves it open, and good verifiers differ, either is right, and is only told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from nitroctl.torture.bench import Bench, Made

Expected = Literal["accept", "refuse", "either"]
# What of a case's surroundings a verifier has to be given, or the case says nothing about it.
Need = Literal["time", "nonce", "pcr0"]
NEEDS: tuple[Need, ...] = ("time", "nonce", "pcr0")

# Sources
AWS = "AWS, attestation_process.md"
CBOR, COSE, COSE_ALGORITHMS, PKIX = "RFC 8949", "RFC 9052", "RFC 9053", "RFC 5280"
ECDSA = "FIPS 186-5, 6.4.2"


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    expected: Expected
    what: str  # of the document
    reason: str  # for what is expected
    source: str
    make: Callable[[Bench], bytes | Made]
    needs: tuple[Need, ...] = ()
    forged: bool = False  # who accepts it can be made to accept anything, by anybody


def accept(name: str, what: str, reason: str, source: str, make: Callable[[Bench], bytes | Made]) -> Row:
    return Row(name, "accept", what, reason, source, make)


def refuse(name: str, what: str, reason: str, source: str, make: Callable[[Bench], bytes | Made]) -> Row:
    return Row(name, "refuse", what, reason, source, make)


def forged(name: str, what: str, reason: str, source: str, make: Callable[[Bench], bytes | Made]) -> Row:
    """To be refused above all."""
    return Row(name, "refuse", what, reason, source, make, forged=True)


def either(name: str, what: str, reason: str, source: str, make: Callable[[Bench], bytes | Made]) -> Row:
    return Row(name, "either", what, reason, source, make)


def needing(need: Need, rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(dataclasses.replace(row, needs=(need,)) for row in rows)
