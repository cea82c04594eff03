# SPDX-License-Identifier: MIT
"""PCR values: how they are computed from what is measured, and the PCRs of one EIF."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

DIGEST_SIZE = 48  # bytes of SHA-384


def extend(pcr: bytes, data: bytes) -> bytes:
    """A PCR's value after it is extended: SHA384(pcr || data)."""
    return hashlib.sha384(pcr + data).digest()


def pcr_of(digest: bytes) -> bytes:
    """The value of a PCR into which data with this SHA-384 digest are measured: SHA384(48 zero bytes ||
    digest)."""
    return extend(bytes(DIGEST_SIZE), digest)


@dataclass(frozen=True)
class Measurements:
    """PCR values of 48 bytes. `pcr8` is None for an unsigned file (the enclave's PCR8 is then zero)."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None = None

    def items(self) -> list[tuple[str, str]]:
        """("PCR0", lower-case hex) and so on; PCR8 only for a signed file."""
        values = [("PCR0", self.pcr0), ("PCR1", self.pcr1), ("PCR2", self.pcr2), ("PCR8", self.pcr8)]
        return [(name, value.hex()) for name, value in values if value is not None]

    def by_number(self) -> dict[str, str]:
        """The number of each PCR, as a string (a JSON key), with its value in lower-case hex."""
        return {name.removeprefix("PCR"): value for name, value in self.items()}

    def to_json(self) -> dict[str, str]:
        """As nitro-cli prints them."""
        return in_aws_shape(dict(self.items()))


def in_aws_shape(values: Mapping[str, str]) -> dict[str, str]:
    """The object that nitro-cli prints under "Measurements"."""
    return {"HashAlgorithm": "Sha384 { ... }", **values}
