# SPDX-License-Identifier: MIT
"""Writes CiphertextForRecipient: CMS EnvelopedData (RFC 5652), encoded as AWS KMS encodes it. No reader.

The encoding is BER, not DER: the outer structures have indefinite lengths, and the content is one or more
OCTET STRINGs. AWS's own C parser requires version 2 and the key's identifier. Some clients refuse anything
that differs from AWS's bytes, so the encoding is written out here and not left to a library.
`openssl cms -decrypt -inform DER -inkey KEY` opens it.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

# "segmented": the content is a constructed [0] of OCTET STRINGs, as in the answers of AWS KMS. "primitive":
# it is one primitive [0], which AWS's parsers accept too.
Form = Literal["segmented", "primitive"]
FORMS: tuple[Form, ...] = ("segmented", "primitive")

SEGMENT = 1000  # bytes of content in one OCTET STRING at most
_SHELL = b"\x80"  # indefinite length
_END = b"\0\0"  # end-of-contents
_VERSION = bytes.fromhex("020102")
_ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")
_DATA = bytes.fromhex("06092a864886f70d010701")
# RSAES-OAEP with SHA-256 and MGF1 with SHA-256, the hash with NULL parameters, no label (RFC 4055).
_OAEP = bytes.fromhex(
    "303c06092a864886f70d010107302fa00f300d06096086480165030402010500"
    "a11c301a06092a864886f70d010108300d06096086480165030402010500"
)
_AES_256_CBC = bytes.fromhex("301d060960864801650304012a0410")  # and 16 bytes, the IV


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        length = bytes([size])
    else:
        digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes([0x80 | len(digits)]) + digits
    return bytes([tag]) + length + content


def _pieces(content: bytes) -> bytes:
    return b"".join(_tlv(0x04, content[i : i + SEGMENT]) for i in range(0, len(content), SEGMENT))


def seal(plaintext: bytes, key: RSAPublicKey, spki: bytes, form: Form = "segmented") -> bytes:
    """Encrypt `plaintext` to `key`, whose SubjectPublicKeyInfo is `spki`."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    content_key, iv = os.urandom(32), os.urandom(16)
    fill = 16 - len(plaintext) % 16
    encryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).encryptor()
    content = encryptor.update(plaintext + bytes([fill]) * fill) + encryptor.finalize()
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
    recipient = _tlv(
        0x30,
        _VERSION
        + _tlv(0x80, hashlib.sha256(spki).digest())
        + _OAEP
        + _tlv(0x04, key.encrypt(content_key, oaep)),
    )
    encrypted = b"\x30" + _SHELL + _DATA + _AES_256_CBC + iv
    if form == "segmented":
        encrypted += b"\xa0" + _SHELL + _pieces(content) + _END
    else:
        encrypted += _tlv(0x80, content)
    enveloped = b"\x30" + _SHELL + _VERSION + _tlv(0x31, recipient) + encrypted + _END + _END
    return b"\x30" + _SHELL + _ENVELOPED_DATA + b"\xa0" + _SHELL + enveloped + _END + _END
