# SPDX-License-Identifier: MIT
"""Keys that follow from a seed, and ECDSA signatures that follow from key and data: the same kit twice is
the same bytes.

Signatures are computed here, with the library's multiplication on the curve, so that they can have any
digest, any nonce, and both values of s. This is for documents that nobody shall trust: neither keys nor
nonces are kept from anyone, nor is the time constant. FIPS 186-5, section 6.4; SEC 1, section 2.3.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import TYPE_CHECKING

from nitroctl.torture import der

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

EC_KEY = "1.2.840.10045.2.1"
# FIPS 186-4, D.1.2: of each curve its identifier, field, b, and the order of its generator; a is -3.
CURVES = {
    "secp384r1": (
        "1.3.132.0.34",
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
    "secp256r1": (
        "1.2.840.10045.3.1.7",
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    ),
}
ORDER = CURVES["secp384r1"][3]
# This many times P-384's generator is a point whose x begins with a zero byte.
SHORT = 197

Pair = tuple[int, int]  # r and s


def stretched(seed: bytes, *words: str) -> bytes:
    """64 bytes that follow from the seed and what they are for."""
    return hmac.digest(seed, "/".join(words).encode(), "sha512")


class Key:
    """An EC key by its name."""

    def __init__(self, seed: bytes, name: str, curve: str = "secp384r1") -> None:
        self.curve = curve
        self.identifier, self.field, self.b, self.order = CURVES[curve]
        self.size = (self.order.bit_length() + 7) // 8
        self.secret = int.from_bytes(stretched(seed, "key", name), "big") % (self.order - 1) + 1
        self.public = self._times(self.secret)
        self._signed: dict[tuple[str, bytes], Pair] = {}

    def _times(self, number: int) -> ec.EllipticCurvePublicKey:
        from cryptography.hazmat.primitives.asymmetric import ec

        curve = ec.SECP384R1() if self.curve == "secp384r1" else ec.SECP256R1()
        return ec.derive_private_key(number, curve).public_key()

    @functools.cached_property
    def point(self) -> bytes:
        numbers = self.public.public_numbers()
        return b"\4" + numbers.x.to_bytes(self.size, "big") + numbers.y.to_bytes(self.size, "big")

    @functools.cached_property
    def info(self) -> bytes:
        """SubjectPublicKeyInfo (RFC 5480, section 2)."""
        return key_info(der.identifier(self.identifier), self.point)

    @functools.cached_property
    def id(self) -> bytes:
        """RFC 5280, section 4.2.1.2, method 1."""
        return hashlib.sha1(self.point, usedforsecurity=False).digest()

    def sign(self, data: bytes, digest: str = "sha384", nonce: int | None = None) -> Pair:
        """r and s; `nonce` is the secret number of this signature, which else follows from the data."""
        hashed = hashlib.new(digest, data).digest()
        known = self._signed.get((digest, hashed)) if nonce is None else None
        if known:
            return known
        number = nonce or (
            int.from_bytes(stretched(hashed, digest, f"{self.secret:x}"), "big") % (self.order - 1) + 1
        )
        r = self._times(number).public_numbers().x % self.order
        made = r, self.close(hashed, r, number)
        if nonce is None:
            self._signed[digest, hashed] = made
        return made

    def close(self, hashed: bytes, r: int, number: int) -> int:
        """The s that belongs to an r."""
        z = int.from_bytes(hashed[: self.size], "big")
        return pow(number, -1, self.order) * (z + r * self.secret) % self.order

    def raw(self, pair: Pair) -> bytes:
        """As COSE has it (RFC 9053, section 2.1)."""
        return b"".join(number.to_bytes(self.size, "big") for number in pair)


def in_der(pair: Pair) -> bytes:
    """As certificates have it (RFC 5480, appendix A)."""
    return der.sequence(*map(der.integer, pair))


def key_info(parameters: bytes, point: bytes) -> bytes:
    return der.sequence(der.sequence(der.identifier(EC_KEY), parameters), der.bits(point))


def curve_of_ones_own(key: Key) -> bytes:
    """The same public key on the same curve, but with itself as the generator, so that its secret is 1
    (X9.62's explicit parameters, which RFC 5480, section 2.1.1, forbids)."""
    numbers = [(key.field - 3), key.b]
    parameters = der.sequence(
        der.integer(1),
        der.sequence(der.identifier("1.2.840.10045.1.1"), der.integer(key.field)),
        der.sequence(*(der.octets(number.to_bytes(key.size, "big")) for number in numbers)),
        der.octets(key.point),
        der.integer(key.order),
        der.integer(1),
    )
    return key_info(parameters, key.point)


def sign_with_secret_one(key: Key, data: bytes, number: int) -> Pair:
    """What verifies under `curve_of_ones_own(key)`, made without the key's secret."""
    from cryptography.hazmat.primitives.asymmetric import ec

    mine = ec.derive_private_key(number, ec.SECP384R1())
    r = int.from_bytes(mine.exchange(ec.ECDH(), key.public), "big") % key.order
    z = int.from_bytes(hashlib.sha384(data).digest(), "big")
    return r, pow(number, -1, key.order) * (z + r) % key.order
