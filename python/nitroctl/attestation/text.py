# SPDX-License-Identifier: MIT
"""Attestation documents as they travel in JSON, logs and terminals: hexadecimal, base64, base64url.

Only the dress is taken off; what is below need not be a document.
"""

from __future__ import annotations

import base64
import binascii
import re

# A document begins with 0x84, or with 0xd2 where it has its tag: neither is ASCII, nor white space.
_TEXT = re.compile(rb"\s*[A-Za-z0-9+/_=-]")
_HEX = re.compile(rb"(?:84|d2)(?:[0-9a-f]{2})*", re.IGNORECASE)


def undress(data: bytes) -> bytes:
    """The bytes behind `data`, raw or text with white space in it. What is neither comes back as it is."""
    if not _TEXT.match(data):
        return data
    text = b"".join(data.split())
    if _HEX.fullmatch(text):
        return bytes.fromhex(text.decode())
    text = text.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return data
