# SPDX-License-Identifier: MIT
"""Cases of what a caller expects, of documents that are all good: another nonce, another image, another time.
They say nothing about a verifier that is not given what it shall compare.
"""

from __future__ import annotations

from datetime import timedelta

from nitroctl.torture import cbor
from nitroctl.torture.bench import Bench, Made, pcr_map
from nitroctl.torture.cbor import octets
from nitroctl.torture.certificates import ENCLAVE, INSTANCE, REGIONAL, ROOT_BEGINS, ROOT_ENDS
from nitroctl.torture.rows import AWS, PKIX, Row, accept, needing, refuse

FRESH = f"{AWS} 2.2.2"
IMAGE = "AWS's user guide, Cryptographic attestation"
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
VALIDITY = f"{AWS} 3.2.3.1"
BELOW_ROOT = range(REGIONAL, ENCLAVE + 1)
INCLUSIVE = f"{PKIX} 4.1.2.5"


def _at(b: Bench, after: timedelta, level: int = ENCLAVE) -> Made:
    """Looked at that much later than the kit, at an edge of a certificate that lives for an hour before and
    after; the document is of that second, or of the last one in which its key was good."""
    edges = -HOUR, HOUR
    inside = min(max(after, edges[0]), edges[1])
    document = b.under(b.dated(level, *edges), timestamp=b.timestamp(inside))
    return Made(document, time=b.at + after)


def _at_roots(b: Bench, after: timedelta) -> Made:
    """Looked at that much later than the kit, when all but the root are valid."""
    chain = b.chain[:1] + tuple(b.dated(level, after - HOUR, after + HOUR)[level] for level in BELOW_ROOT)
    return Made(b.under(chain, timestamp=b.timestamp(after)), time=b.at + after)


NONCES = (
    refuse("nonce-other", "another nonce", "a replay", FRESH, lambda b: b.document(nonce=octets(b"\1" * 32))),
    refuse("nonce-null", "no nonce", "a replay", FRESH, lambda b: b.document(nonce=cbor.NULL)),
    refuse("nonce-missing", "the key nonce is left out", "a replay", FRESH, lambda b: b.document(nonce=None)),
    refuse("nonce-empty", "a nonce of no bytes", "a replay", FRESH, lambda b: b.document(nonce=octets(b""))),
    refuse("nonce-beginning", "the nonce's first 16 bytes", "all of it", FRESH,
           lambda b: b.document(nonce=octets(b.nonce[:16]))),
    refuse("nonce-longer", "the nonce and a zero byte", "nothing but it", FRESH,
           lambda b: b.document(nonce=octets(b.nonce + b"\0"))),
    refuse("nonce-in-data", "the nonce in user_data, and null in its place",
           "who asks for data may choose them", FRESH,
           lambda b: b.document(nonce=cbor.NULL, user_data=octets(b.nonce))),
)  # fmt: skip

IMAGES = (
    refuse("image-other", "another PCR0", "another image", IMAGE,
           lambda b: b.document(pcrs=pcr_map(b.pcrs(b"\1" * 48)))),
    refuse("image-last-byte", "a PCR0 whose last byte is another", "another image", IMAGE,
           lambda b: b.document(pcrs=pcr_map(b.pcrs(b.pcr0[:-1] + bytes([b.pcr0[-1] ^ 1]))))),
    refuse("image-debug", "PCR0 is zero: debug mode", "the image is not attested", IMAGE,
           lambda b: b.document(pcrs=pcr_map(b.pcrs(bytes(48))))),
    refuse("image-elsewhere", "the expected PCR0 in PCR1, and another in PCR0", "another image", IMAGE,
           lambda b: b.document(pcrs=pcr_map({**b.pcrs(b"\1" * 48), 1: b.pcr0}))),
    refuse("image-missing", "no PCR0", "no image", IMAGE,
           lambda b: b.document(pcrs=pcr_map({i: pcr for i, pcr in b.pcrs().items() if i}))),
    refuse("image-beginning", "the first 32 bytes of the expected PCR0", "all of it", IMAGE,
           lambda b: b.document(pcrs=pcr_map(b.pcrs(b.pcr0[:32])))),
)  # fmt: skip

TIMES = (
    accept("time-first-second", "the enclave's certificate begins in this second",
           "the first second belongs to it", INCLUSIVE, lambda b: _at(b, -HOUR)),
    accept("time-last-second", "the enclave's certificate ends in this second",
           "the last second belongs to it", INCLUSIVE, lambda b: _at(b, HOUR)),
    refuse("time-second-before", "the enclave's certificate begins in the next second", "not yet valid",
           INCLUSIVE, lambda b: _at(b, -HOUR - SECOND)),
    refuse("time-second-after", "the enclave's certificate ended a second ago", "expired", INCLUSIVE,
           lambda b: _at(b, HOUR + SECOND)),
    refuse("time-instance-after", "the instance's certificate ended a second ago", "expired", INCLUSIVE,
           lambda b: _at(b, HOUR + SECOND, INSTANCE)),
    refuse("time-root-before", "the root begins in the next second, all below it is valid",
           "the root's dates count as well", VALIDITY, lambda b: _at_roots(b, ROOT_BEGINS - SECOND)),
    refuse("time-root-after", "the root ended a second ago, all below it is valid",
           "the root's dates count as well", VALIDITY, lambda b: _at_roots(b, ROOT_ENDS + SECOND)),
)  # fmt: skip

ROWS: tuple[Row, ...] = (*needing("nonce", NONCES), *needing("pcr0", IMAGES), *needing("time", TIMES))
