# SPDX-License-Identifier: MIT
"""CiphertextForRecipient: each fixed byte is AWS's, and openssl opens it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kms_world import openssl_open, private_key, spki
from nitroctl.kms.envelope import Form, seal

# AWS's answer to a real enclave, published in the README of yawn/ned (January 2025): 28 bytes for RSA-2048.
GENUINE = bytes.fromhex((Path(__file__).parents[1] / "data" / "aws-kms-envelope.hex").read_text())
# What is not the same each time: key identifier, wrapped key, IV, content.
VARIABLE = ((33, 65), (131, 387), (415, 431), (435, 467))


def masked(envelope: bytes) -> bytes:
    data = bytearray(envelope)
    for begin, end in VARIABLE:
        data[begin:end] = bytes(end - begin)
    return bytes(data)


def test_every_fixed_byte_is_aws_s() -> None:
    key = private_key()
    made = seal(b"x" * 28, key.public_key(), spki(key))
    assert masked(made) == masked(GENUINE)
    assert made[33:65] == hashlib.sha256(spki(key)).digest()


def test_the_primitive_form_differs_from_there_on_only() -> None:
    """AWS's own test vectors have [0] primitive: 80, length, content, and four marks."""
    key = private_key()
    made = seal(b"x" * 28, key.public_key(), spki(key), "primitive")
    assert masked(made)[:431] == masked(GENUINE)[:431]
    assert made[431:433] == b"\x80\x20" and made[465:] == bytes(8)


@pytest.mark.parametrize("form", ["segmented", "primitive"])
def test_openssl_opens_it(tmp_path: Path, form: Form) -> None:
    """Also where AES adds a whole block, lengths grow, and the content has more than one piece of 1000
    bytes."""
    for bits, size in ((2048, 1), (2048, 16), (2048, 47), (3072, 256), (4096, 1024), (2048, 4096)):
        key, plaintext = private_key(bits), bytes(i % 251 for i in range(size))
        made = seal(plaintext, key.public_key(), spki(key), form)
        assert openssl_open(tmp_path, key, made) == plaintext, (bits, size)
    assert len(seal(bytes(47), private_key().public_key(), b"")) == 493  # as AWS's with 47 bytes


def test_long_content_comes_in_pieces_of_1000_bytes() -> None:
    """BouncyCastle's, whose marks AWS's answers show: no OCTET STRING above 1000."""
    key = private_key()
    made = seal(bytes(2500), key.public_key(), spki(key))
    at, sizes = 433, []  # the fixed head of RSA-2048, and a0 80
    while made[at] == 4:
        length = made[at + 1]
        head = 2 if length < 0x80 else 2 + (length & 0x7F)
        size = length if length < 0x80 else int.from_bytes(made[at + 2 : at + head], "big")
        sizes.append(size)
        at += head + size
    assert sizes == [1000, 1000, 512] and made[at:] == bytes(10)
