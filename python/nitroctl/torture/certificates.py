# SPDX-License-Identifier: MIT
"""A document's chain of certificates, written field by field, so that any one field can be wrong and all the
others, signatures included, right.

The chain is shaped as AWS's: root, regional, zonal, instance, enclave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from nitroctl.torture import der, keys
from nitroctl.torture.keys import Key

ROOT, REGIONAL, ZONAL, INSTANCE, ENCLAVE = range(5)
LEVELS = ("root", "regional", "zonal", "instance", "enclave")

VERSION_3 = der.element(0xA0, der.integer(2))
ECDSA_SHA384 = der.sequence(der.identifier("1.2.840.10045.4.3.3"))
ECDSA_SHA256 = der.sequence(der.identifier("1.2.840.10045.4.3.2"))
BASIC_CONSTRAINTS, KEY_USAGE, NAME_CONSTRAINTS = "2.5.29.19", "2.5.29.15", "2.5.29.30"
SUBJECT_KEY, AUTHORITY_KEY, CRL_POINTS = "2.5.29.14", "2.5.29.35", "2.5.29.31"
PURPOSES, SUBJECT_NAMES, AUTHORITY_INFO = "2.5.29.37", "2.5.29.17", "1.3.6.1.5.5.7.1.1"
UNKNOWN = "1.3.6.1.4.1.99999.1"  # nobody's

# KeyUsage, RFC 5280, section 4.2.1.3
SIGNS_ALL = der.bits(b"\x86", 1)  # digitalSignature, keyCertSign, cRLSign
SIGNS_CERTIFICATES = der.bits(b"\x04", 2)
SIGNS_DATA = der.bits(b"\xc0", 6)  # digitalSignature, nonRepudiation
AGREES = der.bits(b"\x08", 3)  # keyAgreement

ORGANISATION = (("O", "nitroctl"), ("OU", "Torture kit, not AWS"))
AREA = "torture.nitro-enclaves"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ROOT_BEGINS, ROOT_ENDS = -365 * DAY, 3650 * DAY  # from the kit's time on


def common_name(text: str, **how: int) -> bytes:
    return der.name(("C", "XX"), *ORGANISATION, ("CN", text), **how)


def basic(ca: bool, path_length: int | None = None, *, critical: bool = True) -> bytes:
    length = b"" if path_length is None else der.integer(path_length)
    value = der.sequence(der.TRUE if ca else b"", length)
    return der.extension(BASIC_CONSTRAINTS, value, critical=critical)


def usage(value: bytes, *, critical: bool = True) -> bytes:
    return der.extension(KEY_USAGE, value, critical=critical)


def subject_key(key: Key) -> bytes:
    return der.extension(SUBJECT_KEY, der.octets(key.id))


def authority_key(key: Key) -> bytes:
    return der.extension(AUTHORITY_KEY, der.sequence(der.element(0x80, key.id)))


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What one is made of, in DER; what stands here as None follows from the rest of the chain."""

    subject: bytes
    key: Key
    begin: bytes
    end: bytes
    extensions: dict[str, bytes]  # by any names, in this order
    serial: int = 1
    version: bytes = VERSION_3
    algorithm: bytes = ECDSA_SHA384
    algorithm_outside: bytes | None = None  # as inside
    issuer: bytes | None = None  # the subject of the one above
    signer: Key | None = None  # the key of the one above
    info: bytes | None = None  # of `key`
    digest: str = "sha384"
    sign: Callable[[bytes], bytes] | None = None  # what signs instead, giving the content of the BIT STRING
    finish: Callable[[bytes], bytes] = bytes  # what is done to the whole in the end

    def body(self, above: Certificate) -> bytes:
        """TBSCertificate."""
        listed = b"".join(self.extensions.values())
        return der.sequence(
            self.version,
            der.integer(self.serial),
            self.algorithm,
            above.subject if self.issuer is None else self.issuer,
            der.sequence(self.begin, self.end),
            self.subject,
            self.key.info if self.info is None else self.info,
            der.element(0xA3, der.sequence(listed)) if listed else b"",
        )

    def encoded(self, above: Certificate) -> bytes:
        body = self.body(above)
        if self.sign:
            signature = self.sign(body)
        else:
            signature = keys.in_der((self.signer or above.key).sign(body, self.digest))
        outside = self.algorithm if self.algorithm_outside is None else self.algorithm_outside
        return self.finish(der.sequence(body, outside, der.bits(signature)))


Chain = tuple[Certificate, ...]  # root first


def encoded(chain: Sequence[Certificate]) -> list[bytes]:
    return [one.encoded(chain[max(number - 1, 0)]) for number, one in enumerate(chain)]


def chain(seed: bytes, at: datetime, whose: str = "") -> Chain:
    """A good chain at that time; `whose` are its keys, with the same names and numbers for all."""
    level = {name: Key(seed, f"{whose}/{name}") for name in LEVELS}
    number = {name: int.from_bytes(keys.stretched(seed, "serial", name)[:15], "big") | 1 for name in LEVELS}
    hexadecimal = {name: keys.stretched(seed, "name", name)[:8].hex() for name in LEVELS}
    instance = f"i-{keys.stretched(seed, 'instance').hex()[:17]}"

    def one(name: str, subject: bytes, begin: timedelta, end: timedelta, **extensions: bytes) -> Certificate:
        times = der.time(at + begin), der.time(at + end)
        return Certificate(subject, level[name], *times, extensions, number[name])

    zonal = f"{hexadecimal['zonal']}.zonal.{AREA}"
    place = (("ST", "Local"), ("L", "Local"))
    return (
        one(
            "root",
            common_name(AREA),
            ROOT_BEGINS,
            ROOT_ENDS,
            basic=basic(True),
            subject_key=subject_key(level["root"]),
            usage=usage(SIGNS_ALL),
        ),
        one(
            "regional",
            common_name(f"{hexadecimal['regional']}.{AREA}"),
            -DAY,
            20 * DAY,
            basic=basic(True, 2),
            authority_key=authority_key(level["root"]),
            subject_key=subject_key(level["regional"]),
            usage=usage(SIGNS_ALL),
        ),
        one(
            "zonal",
            der.name(("CN", zonal), *reversed(ORGANISATION), ("C", "XX"), *place),
            -DAY,
            5 * DAY,
            basic=basic(True, 1),
            authority_key=authority_key(level["regional"]),
            subject_key=subject_key(level["zonal"]),
            usage=usage(SIGNS_ALL),
        ),
        one(
            "instance",
            der.name(("C", "XX"), *place, *ORGANISATION, ("CN", f"{instance}.{AREA}")),
            -4 * HOUR,
            20 * HOUR,
            basic=basic(True, 0),
            authority_key=authority_key(level["zonal"]),
            subject_key=subject_key(level["instance"]),
            usage=usage(SIGNS_CERTIFICATES),
        ),
        one(
            "enclave",
            der.name(("C", "XX"), *place, *ORGANISATION, ("CN", f"{instance}-enc0123456789abcdef.torture")),
            -HOUR / 6,
            3 * HOUR - HOUR / 6,
            basic=basic(False),
            usage=usage(SIGNS_DATA, critical=False),
        ),
    )
