# SPDX-License-Identifier: MIT
"""Text encodings in which attestation documents are passed on in JSON, logs and terminals: hexadecimal,
base64, base64url.

Only the encoding is removed; the result need not be a document.
"""

from __future__ import annotations

import base64
import binascii
import re

# A document begins with 0x84, or with 0xd2 if it is tagged: neither is an ASCII character.
_TEXT = re.compile(rb"\s*[A-Za-z0-9+/_=-]")
_HEX = re.compile(rb"(?:84|d2)(?:[0-9a-f]{2})*", re.IGNORECASE)


def undress(data: bytes) -> bytes:
    """Decode `data`, which is raw bytes or one of these encodings, perhaps with white space in it. Raw bytes
    are returned unchanged."""
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
