# SPDX-License-Identifier: MIT
"""Where documents are made: the chain, the fields, and the envelope, each of which a case may change before
what is around it is made and signed. Which changes there are, and what they are for, is the tables' business.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from nitroctl.torture import cbor, certificates, der, keys
from nitroctl.torture.cbor import Pair
from nitroctl.torture.certificates import ENCLAVE, Certificate, Chain
from nitroctl.torture.keys import Key

ES384 = -35  # RFC 9053, section 2.1
PROTECTED = cbor.mapping([(cbor.integer(1), cbor.integer(ES384))])


@dataclasses.dataclass(frozen=True)
class Made:
    """A document, and what of its surroundings differs from the kit's."""

    document: bytes
    time: datetime | None = None
    nonce: bytes | None = None
    pcr0: bytes | None = None


class Bench:
    def __init__(self, seed: bytes, at: datetime) -> None:
        self.seed = seed
        self.at = at
        self.nonce = keys.stretched(seed, "nonce")[:32]
        self.pcr0 = hashlib.sha384(keys.stretched(seed, "image")).digest()
        self.chain = certificates.chain(seed, at)
        self.strangers = certificates.chain(seed, at, "stranger")  # the same names, other keys

    # ---- certificates ----

    def key(self, name: str, curve: str = "secp384r1") -> Key:
        return Key(self.seed, name, curve)

    def with_certificate(self, level: int, **changes: Any) -> Chain:
        """The chain, one certificate of which is another."""
        chain = list(self.chain)
        chain[level] = dataclasses.replace(chain[level], **changes)
        return tuple(chain)

    def with_extensions(self, level: int, *without: str, **extensions: bytes) -> Chain:
        """The chain, one certificate of which has other extensions: replaced where they were, else added."""
        kept = {name: one for name, one in self.chain[level].extensions.items() if name not in without}
        return self.with_certificate(level, extensions=kept | extensions)

    def dated(self, level: int, begin: timedelta, end: timedelta) -> Chain:
        times = (der.time(self.at + moment) for moment in (begin, end))
        return self.with_certificate(level, **dict(zip(("begin", "end"), times, strict=True)))

    # ---- fields ----

    def pcrs(self, zero: bytes | None = None) -> dict[int, bytes]:
        found = {number: bytes(48) for number in range(16)}
        found[0] = self.pcr0 if zero is None else zero
        for number, words in ((1, "kernel"), (2, "application"), (4, "instance")):
            found[number] = hashlib.sha384(keys.stretched(self.seed, words)).digest()
        return found

    def fields(self, chain: Sequence[Certificate] | None = None, **changes: bytes | None) -> dict[str, bytes]:
        """Of the payload, each encoded, in AWS's order. A change of None takes one away; what is new stands
        behind."""
        *bundle, enclave = certificates.encoded(self.chain if chain is None else chain)
        found = {
            "module_id": cbor.text("i-0123456789abcdef0-enc0123456789abcdef"),
            "digest": cbor.text("SHA384"),
            "timestamp": self.timestamp(timedelta(seconds=-1)),
            "pcrs": pcr_map(self.pcrs()),
            "certificate": cbor.octets(enclave),
            "cabundle": cbor.array(*map(cbor.octets, bundle)),
            "public_key": cbor.NULL,
            "user_data": cbor.NULL,
            "nonce": cbor.octets(self.nonce),
        }
        both: Mapping[str, bytes | None] = {**found, **changes}
        return {name: value for name, value in both.items() if value is not None}

    def timestamp(self, after: timedelta) -> bytes:
        """Of that much later than the kit."""
        return cbor.integer(round((self.at + after).timestamp() * 1000), 8)

    def payload(self, chain: Sequence[Certificate] | None = None, **changes: bytes | None) -> bytes:
        """In today's form, a map of indefinite length."""
        return cbor.endless_map(pairs(self.fields(chain, **changes)))

    # ---- envelope ----

    def parts(
        self,
        payload: bytes | None = None,
        *,
        protected: bytes = PROTECTED,
        unprotected: bytes = cbor.EMPTY_MAP,
        key: Key | None = None,
        signature: bytes | None = None,
    ) -> list[bytes]:
        """The four of a COSE_Sign1, encoded; headers are given as their maps, encoded."""
        body = self.payload() if payload is None else payload
        if signature is None:
            signer = key or self.chain[ENCLAVE].key
            signature = signer.raw(signer.sign(to_be_signed(protected, body)))
        return [cbor.octets(protected), unprotected, cbor.octets(body), cbor.octets(signature)]

    def envelope(self, payload: bytes | None = None, **how: Any) -> bytes:
        return cbor.array(*self.parts(payload, **how))

    def document(self, **changes: bytes | None) -> bytes:
        """A good one but for these fields."""
        return self.under(self.chain, **changes)

    def under(self, chain: Sequence[Certificate], **changes: bytes | None) -> bytes:
        """A good one but for its chain, signed by the last certificate's key."""
        return self.envelope(self.payload(chain, **changes), key=chain[-1].key)

    def replaced(self, number: int, part: bytes) -> bytes:
        """A good one, one of whose four parts was replaced afterwards."""
        parts = self.parts()
        parts[number] = part
        return cbor.array(*parts)


def pairs(fields: Mapping[str, bytes]) -> list[Pair]:
    return [(cbor.text(name), value) for name, value in fields.items()]


def pcr_map(pcrs: Mapping[int, bytes]) -> bytes:
    return cbor.mapping((cbor.integer(number), cbor.octets(value)) for number, value in pcrs.items())


def to_be_signed(
    protected: bytes, payload: bytes, *, context: str = "Signature1", external: bytes = b""
) -> bytes:
    """Sig_structure (RFC 9052, section 4.4)."""
    return cbor.array(cbor.text(context), cbor.octets(protected), cbor.octets(external), cbor.octets(payload))
