# SPDX-License-Identifier: MIT
"""Cases of the chain: who issued whom, with which rights, valid when, written how. Envelope and fields are
good, and the last certificate's key has signed the document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta

from nitroctl.torture import cbor, certificates, der, keys
from nitroctl.torture.bench import Bench
from nitroctl.torture.certificates import (
    AGREES,
    ENCLAVE,
    INSTANCE,
    LEVELS,
    REGIONAL,
    ROOT,
    SIGNS_ALL,
    SIGNS_CERTIFICATES,
    SIGNS_DATA,
    UNKNOWN,
    ZONAL,
    Certificate,
    Chain,
    basic,
    encoded,
    usage,
)
from nitroctl.torture.rows import AWS, PKIX, Row, accept, either, forged, refuse

Make = Callable[[Bench], bytes]

VALIDITY, RIGHTS, USAGE, ORDER = f"{AWS} 3.2.3.1", f"{AWS} 3.2.3.2", f"{AWS} 3.2.3.3", f"{AWS} 3.2.3"
SIGNED, NAMED = f"{PKIX} 6.1.3 (a)(1)", f"{PKIX} 6.1.3 (a)(4)"
# extendedKeyUsage, of TLS clients
CLIENT = der.extension(certificates.PURPOSES, der.sequence(der.identifier("1.3.6.1.5.5.7.3.2")))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def _under(change: Callable[[Bench], Chain]) -> Make:
    return lambda b: b.under(change(b))


def _changed(level: int, **changes: object) -> Make:
    return lambda b: b.under(b.with_certificate(level, **changes))


def _extended(level: int, *without: str, **extensions: bytes) -> Make:
    return lambda b: b.under(b.with_extensions(level, *without, **extensions))


# ---- dates ----


def _expired(level: int) -> Make:
    """An hour ago; a document of such an enclave is as old."""

    def make(b: Bench) -> bytes:
        older = {"timestamp": b.timestamp(-2 * HOUR)} if level == ENCLAVE else {}
        return b.under(b.dated(level, -3 * HOUR, -HOUR), **older)

    return make


def _not_yet(level: int) -> Make:
    def make(b: Bench) -> bytes:
        younger = {"timestamp": b.timestamp(DAY + HOUR)} if level == ENCLAVE else {}
        return b.under(b.dated(level, DAY, 2 * DAY), **younger)

    return make


def _time(level: int, digits: bytes, tag: int = der.UTC_TIME) -> Make:
    """The last date, as it is given."""
    return _changed(level, end=der.element(tag, digits))


def _generalized(b: Bench) -> Chain:
    chain = b.chain
    for level in (REGIONAL, ENCLAVE):
        one = b.dated(level, -HOUR, HOUR)[level]
        begin, end = (der.time(b.at + step, der.GENERALIZED_TIME) for step in (-HOUR, HOUR))
        chain = (*chain[:level], dataclasses.replace(one, begin=begin, end=end), *chain[level + 1 :])
    return chain


# ---- who issued whom ----


def _stranger(level: int) -> Make:
    """One certificate that names the one above as its issuer, and was signed by somebody else's key."""

    def make(b: Bench) -> bytes:
        return b.under(b.with_certificate(level, signer=b.strangers[max(level - 1, 0)].key))

    return make


def _flipped(level: int, at: int) -> Make:
    """One bit of a certificate is another: of its serial number, or at the end, of its signature."""

    def flip(whole: bytes) -> bytes:
        spoilt = bytearray(whole)
        spoilt[at] ^= 1
        return bytes(spoilt)

    return _changed(level, finish=flip)


def _bundled(change: Callable[[Bench, list[bytes]], list[bytes]]) -> Make:
    """A good document but for which certificates are in the bundle, and in which order."""

    def make(b: Bench) -> bytes:
        bundle = change(b, encoded(b.chain)[:ENCLAVE])
        return b.document(cabundle=cbor.array(*map(cbor.octets, bundle)))

    return make


def _authority(b: Bench, name: str, **extensions: bytes) -> Certificate:
    """One more CA certificate, like the instance's."""
    return dataclasses.replace(
        b.chain[INSTANCE],
        subject=certificates.common_name(f"{name}.{certificates.AREA}"),
        key=b.key(name),
        serial=int.from_bytes(keys.stretched(b.seed, "serial", name)[:15], "big") | 1,
        extensions={"basic": basic(True), "usage": usage(SIGNS_CERTIFICATES), **extensions},
    )


def _long(b: Bench) -> Chain:
    """Eight CA certificates, none of which says how many may follow."""
    return b.chain[ROOT], *(_authority(b, f"authority-{i}") for i in range(7)), b.chain[ENCLAVE]


def _short(b: Bench) -> Chain:
    return b.chain[ROOT], b.chain[ENCLAVE]


def _by_an_enclave(b: Bench) -> Chain:
    """A genuine enclave's own certificate issues another one: any enclave's owner could."""
    forged = dataclasses.replace(
        b.chain[ENCLAVE],
        subject=certificates.common_name("forged.torture"),
        key=b.key("forged"),
        serial=2,
    )
    return *_unlimited(b), forged


def _too_long(b: Bench) -> Chain:
    """The instance's certificate, which says that no CA may follow, issues one."""
    return *b.chain[:ENCLAVE], _authority(b, "one too many"), b.chain[ENCLAVE]


def _stranger_from(level: int) -> Make:
    """From there on all are a stranger's, who says that the one above has issued his first."""

    def make(b: Bench) -> bytes:
        first, *others = b.strangers[level:]
        extensions = b.chain[level].extensions | {
            name: one for name, one in first.extensions.items() if name != "authority_key"
        }
        signer = b.strangers[level - 1].key
        first = dataclasses.replace(first, signer=signer, extensions=extensions)
        return b.under((*b.chain[:level], first, *others))

    return make


def _self_signed(b: Bench) -> Chain:
    key = b.key("self")
    return b.with_certificate(ENCLAVE, key=key, signer=key, issuer=b.chain[ENCLAVE].subject, info=key.info)


def _whole_stranger(b: Bench, *bundle: Chain) -> bytes:
    """A stranger's whole chain and signature, the bundle made of these."""
    ders = [one for chain in bundle for one in encoded(chain)[: min(len(chain), ENCLAVE)]]
    return b.under(b.strangers, cabundle=cbor.array(*map(cbor.octets, ders)))


def _curve_of_ones_own(b: Bench) -> bytes:
    """A root with our root's name and public key, but with a curve on which its secret is known; and below
    it a stranger's regional certificate, signed with that."""
    root = b.chain[ROOT]
    number = int.from_bytes(keys.stretched(b.seed, "number"), "big") % (keys.ORDER - 1) + 1

    def sign(data: bytes) -> bytes:
        return keys.in_der(keys.sign_with_secret_one(root.key, data, number))

    fake = dataclasses.replace(root, info=keys.curve_of_ones_own(root.key), sign=sign)
    regional = dataclasses.replace(
        b.strangers[REGIONAL],
        extensions=b.strangers[REGIONAL].extensions | {"authority_key": certificates.authority_key(root.key)},
        sign=sign,
    )
    return b.under((fake, regional, *b.strangers[ZONAL:]))


# ---- how it is written ----


def _compressed(b: Bench) -> Chain:
    key = b.chain[ENCLAVE].key
    numbers = key.public.public_numbers()
    point = bytes([2 + numbers.y % 2]) + numbers.x.to_bytes(key.size, "big")
    return b.with_certificate(ENCLAVE, info=keys.key_info(der.identifier(key.identifier), point))


def _off_the_curve(b: Bench) -> Chain:
    point = bytearray(b.chain[ENCLAVE].key.point)
    point[-1] ^= 1
    info = keys.key_info(der.identifier("1.3.132.0.34"), bytes(point))
    return b.with_certificate(ENCLAVE, info=info)


def _p256(level: int) -> Make:
    """One key on P-256. What it signs: an enclave's, a document, with 64 bytes; a CA's, a certificate."""

    def make(b: Bench) -> bytes:
        return b.under(b.with_certificate(level, key=b.key("small", "secp256r1")))

    return make


def _other_string_type(b: Bench) -> Chain:
    """The issuer's name as PrintableString, where the one above has UTF8String."""
    root = certificates.common_name(certificates.AREA, tag=der.PRINTABLE)
    return b.with_certificate(REGIONAL, issuer=root)


def _constraints(directory_name: bytes) -> bytes:
    """Name constraints, critical: only what is below that name."""
    subtree = der.sequence(der.element(0xA4, directory_name))
    value = der.sequence(der.element(0xA0, subtree))
    return der.extension(certificates.NAME_CONSTRAINTS, value, critical=True)


def _points(url: bytes) -> bytes:
    uri = der.element(0x86, url)
    value = der.sequence(der.sequence(der.element(0xA0, der.element(0xA0, uri))))
    return der.extension(certificates.CRL_POINTS, value)


def _ocsp(url: bytes) -> bytes:
    access = der.sequence(der.identifier("1.3.6.1.5.5.7.48.1"), der.element(0x86, url))
    return der.extension(certificates.AUTHORITY_INFO, der.sequence(access))


def _unknown(*, critical: bool) -> bytes:
    return der.extension(UNKNOWN, der.NULL, critical=critical)


def _twice(b: Bench) -> Chain:
    """A second KeyUsage, which allows what the first does not."""
    return b.with_extensions(INSTANCE, usage=usage(der.bits(b"\x80", 7)), another=usage(SIGNS_CERTIFICATES))


def _without_identifiers(b: Bench) -> Chain:
    return tuple(
        dataclasses.replace(
            one, extensions={k: v for k, v in one.extensions.items() if not k.endswith("_key")}
        )
        if level != ROOT
        else one
        for level, one in enumerate(b.chain)
    )


def _identified(b: Bench) -> Chain:
    """The enclave's certificate has them as well, and the instance's tells its issuer by name and number."""
    above = b.chain[ZONAL]
    by_name = der.sequence(
        der.element(0xA1, der.element(0xA4, b.chain[REGIONAL].subject)),
        der.element(0x82, der.integer(above.serial)[2:]),
    )
    chain = b.with_extensions(INSTANCE, authority_key=der.extension(certificates.AUTHORITY_KEY, by_name))
    enclave = b.with_extensions(
        ENCLAVE,
        authority_key=certificates.authority_key(b.chain[INSTANCE].key),
        subject_key=certificates.subject_key(b.chain[ENCLAVE].key),
    )[ENCLAVE]
    return *chain[:ENCLAVE], enclave


def _identified_wrongly(b: Bench) -> Chain:
    return b.with_extensions(INSTANCE, authority_key=certificates.authority_key(b.key("nobody")))


def _with_lists(b: Bench) -> Chain:
    """With revocation lists where AWS's have them."""
    points = _points(b"http://crl.invalid/crl")
    regional, zonal = (b.with_extensions(level, more=points)[level] for level in (REGIONAL, ZONAL))
    return b.chain[ROOT], regional, zonal, *b.chain[INSTANCE:]


def _unlimited(b: Bench) -> Chain:
    return tuple(
        dataclasses.replace(one, extensions=one.extensions | {"basic": basic(True)})
        if level < ENCLAVE
        else one
        for level, one in enumerate(b.chain)
    )


DATES = (
    *(refuse(f"expired-{name}", f"the {name} certificate ended an hour ago",
                 "all are valid at the time of the check, the root as well", VALIDITY, _expired(level))
      for level, name in enumerate(LEVELS) if level != ROOT),
    *(refuse(f"not-yet-{name}", f"the {name} certificate begins tomorrow",
                 "all are valid at the time of the check, the root as well", VALIDITY, _not_yet(level))
      for level, name in enumerate(LEVELS) if level != ROOT),
    accept("dates-after-2050", "a certificate that lives until 2060, in GeneralizedTime",
           "from 2050 on, as it must be", f"{PKIX} 4.1.2.5",
           _time(REGIONAL, b"20600101000000Z", der.GENERALIZED_TIME)),
    accept("dates-without-end", "a certificate that lives until 9999-12-31 23:59:59",
           "it says that it has no end", f"{PKIX} 4.1.2.5",
           _time(INSTANCE, b"99991231235959Z", der.GENERALIZED_TIME)),
    either("dates-generalized-early", "GeneralizedTime before 2050",
           "issuers must not, and verifiers know both", f"{PKIX} 4.1.2.5", _under(_generalized)),
    either("dates-without-seconds", "a UTCTime without seconds", "issuers must have them",
           f"{PKIX} 4.1.2.5.1", _time(ZONAL, b"4901010000Z")),
    either("dates-with-zone", "a UTCTime with a zone, +0000", "issuers must have Z", f"{PKIX} 4.1.2.5.1",
           _time(ZONAL, b"490101000000+0000")),
    refuse("dates-no-calendar", "a certificate that ends on 30 February 2049", "no such day",
           f"{PKIX} 4.1.2.5.1", _time(ZONAL, b"490230000000Z")),
)  # fmt: skip

ISSUERS = (
    accept("chain-long", "eight CA certificates", "AWS's guide has N of them", ORDER, _under(_long)),
    accept("chain-short", "the root alone issues the enclave's certificate",
           "a bundle has one certificate or more", f"{AWS} 3.2.2.2", _under(_short)),
    accept("chain-unlimited", "no CA certificate says how many may follow", "then any number may", RIGHTS,
           _under(_unlimited)),
    *(forged(f"stranger-signs-{name}",
                 f"the {name} certificate names its issuer, and is not signed by it",
                 "each is signed by the one above it", SIGNED, _stranger(level))
      for level, name in enumerate(LEVELS) if level != ROOT),
    *(forged(f"bit-{name}", f"one bit of the {name} certificate's signed part is another",
                 "each is signed by the one above it", SIGNED, _flipped(level, 24))
      for level, name in ((REGIONAL, "regional"), (ENCLAVE, "enclave"))),
    forged("bit-signature", "one bit of the instance certificate's signature is another",
           "each is signed by the one above it", SIGNED, _flipped(INSTANCE, -1)),
    forged("signature-zero-enclave", "r and s of the enclave certificate's signature are zero",
           "1 to n-1 each, or everything verifies (CVE-2022-21449)", "FIPS 186-5, 6.4.2",
           _changed(ENCLAVE, sign=lambda body: keys.in_der((0, 0)))),
    forged("stranger-root", "a whole chain under another root of the same name",
           "the root is known by its key and bytes", f"{AWS} 3.2.4", lambda b: b.under(b.strangers)),
    forged("stranger-below-root", "our root, and under it a stranger's chain of the same names",
           "each is signed by the one above it", SIGNED,
           _stranger_from(REGIONAL)),
    forged("stranger-beside-root", "a stranger's whole chain, with our root in front of his",
           "what ends at another root proves nothing", f"{AWS} 3.2.4",
           lambda b: _whole_stranger(b, b.chain[:1], b.strangers)),
    forged("stranger-before-root", "a stranger's whole chain, with our root behind it",
           "what ends at another root proves nothing", f"{AWS} 3.2.4",
           lambda b: _whole_stranger(b, b.strangers, b.chain[:1])),
    forged("stranger-bundle", "a stranger's certificate and signature, and our whole bundle",
           "each is signed by the one above it", SIGNED, _stranger_from(ENCLAVE)),
    forged("stranger-curve",
           "a root with our root's name and public key, on a curve chosen so that its secret is 1",
           "explicit parameters are forbidden (CVE-2020-0601)", "RFC 5480 2.1.1", _curve_of_ones_own),
    forged("self-signed", "the enclave's certificate is signed by itself",
           "each is signed by the one above it", NAMED, _under(_self_signed)),
    forged("enclave-issues", "an enclave's certificate, genuine, issues another one, which signs",
           "who is no CA issues nothing", f"{PKIX} 6.1.4 (k)", _under(_by_an_enclave)),
    refuse("other-issuer", "the zonal certificate names another issuer, though the one above signed it",
           "names chain as well", NAMED, _changed(ZONAL, issuer=certificates.common_name("nobody"))),
    refuse("bundle-gap", "the zonal certificate is left out of the bundle",
           "each is signed by the one above it", SIGNED,
           _bundled(lambda b, all: [*all[:ZONAL], *all[INSTANCE:]])),
    refuse("bundle-root-only", "all but the root are left out of the bundle",
           "each is signed by the one above it", SIGNED, _bundled(lambda b, all: all[:1])),
    either("bundle-reversed", "the bundle's order is reversed",
           "the root comes first, but who looks for a path finds it", ORDER,
           _bundled(lambda b, all: all[::-1])),
    either("bundle-swapped", "two certificates of the bundle are swapped",
           "each follows its issuer, but who looks for a path finds it", ORDER,
           _bundled(lambda b, all: [all[ROOT], all[ZONAL], all[REGIONAL], all[INSTANCE]])),
    either("bundle-without-root", "the root is left out of the bundle",
           "it comes first, but who trusts it has it", ORDER, _bundled(lambda b, all: all[1:])),
    either("bundle-more", "a stranger's certificate behind the others",
           "no part of the path, but who looks for one finds it", ORDER,
           _bundled(lambda b, all: [*all, encoded(b.strangers)[INSTANCE]])),
    either("bundle-twice", "the root twice", "no part of the path, but who looks for one finds it", ORDER,
           _bundled(lambda b, all: [all[0], *all])),
    either("root-renewed", "a root with our root's key and name, but other dates",
           "other bytes, but a trusted key", f"{PKIX} 6.1.1 (d)",
           lambda b: b.under(b.dated(ROOT, -DAY, 100 * DAY))),
)  # fmt: skip

CONSTRAINTS = (
    *(refuse(f"no-ca-{name}", f"the {name} certificate has CA:FALSE", "who is no CA issues nothing",
                 f"{PKIX} 6.1.4 (k)", _extended(level, basic=basic(False)))
      for level, name in ((REGIONAL, "regional"), (INSTANCE, "instance"))),
    refuse("no-basic-zonal", "the zonal certificate has no BasicConstraints", "who is no CA issues nothing",
           f"{PKIX} 6.1.4 (k)", _extended(ZONAL, "basic")),
    refuse("path-zonal", "the zonal certificate allows no CA below it, and there is one", "pathLenConstraint",
           RIGHTS, _extended(ZONAL, basic=basic(True, 0))),
    refuse("path-regional", "the regional certificate allows one CA below it, and there are two",
           "pathLenConstraint", RIGHTS, _extended(REGIONAL, basic=basic(True, 1))),
    refuse("path-instance", "the instance's certificate allows no CA below it, and has issued one",
           "pathLenConstraint", RIGHTS, _under(_too_long)),
    *(refuse(f"usage-{name}", f"the {name} certificate's KeyUsage has no keyCertSign",
                 "it may sign no certificate", f"{USAGE}; {PKIX} 6.1.4 (n)",
                 _extended(level, usage=usage(der.bits(b"\x80", 7))))
      for level, name in ((REGIONAL, "regional"), (INSTANCE, "instance"))),
    refuse("usage-enclave", "the enclave's KeyUsage has no digitalSignature", "it may sign no document",
           USAGE, _extended(ENCLAVE, usage=usage(AGREES))),
    refuse("usage-twice", "the instance's certificate has KeyUsage twice, with and without keyCertSign",
           "an extension occurs once", f"{PKIX} 4.2", _under(_twice)),
    either("usage-none-zonal", "the zonal certificate has no KeyUsage",
           "AWS wants keyCertSign, PKIX where there is one", f"{USAGE}; {PKIX} 6.1.4 (n)",
           _extended(ZONAL, "usage")),
    either("usage-none-enclave", "the enclave's certificate has no KeyUsage",
           "AWS wants digitalSignature, PKIX nothing", USAGE, _extended(ENCLAVE, "usage")),
    either("basic-not-critical", "the zonal certificate's BasicConstraints are not critical",
           "issuers must have them so; verifiers process them anyhow", f"{PKIX} 4.2.1.9; {RIGHTS}",
           _extended(ZONAL, basic=basic(True, 1, critical=False))),
    either("enclave-is-ca", "the enclave's certificate has CA:TRUE",
           "no client's, but it has all that is asked for", USAGE,
           _extended(ENCLAVE, basic=basic(True), usage=usage(SIGNS_ALL))),
    refuse("enclave-path-length", "the enclave's certificate has CA:TRUE and a path length",
           "must be undefined", USAGE, _extended(ENCLAVE, basic=basic(True, 0), usage=usage(SIGNS_ALL))),
    accept("path-more", "the regional certificate allows nine CAs below it", "at most, not exactly", RIGHTS,
           _extended(REGIONAL, basic=basic(True, 9))),
    accept("usage-all-instance", "the instance's certificate may sign data and revocation lists as well",
           "what it needs is there", USAGE, _extended(INSTANCE, usage=usage(SIGNS_ALL))),
    accept("enclave-no-basic", "the enclave's certificate has no BasicConstraints",
           "optional where it is no CA", f"{PKIX} 4.2.1.9", _extended(ENCLAVE, "basic")),
    accept("enclave-critical-usage", "the enclave's KeyUsage is critical", "as issuers should have it",
           f"{PKIX} 4.2.1.3", _extended(ENCLAVE, usage=usage(SIGNS_DATA))),
    refuse("critical-instance", "the instance's certificate has a critical extension that nobody knows",
           "what is critical is processed, or fatal", f"{PKIX} 4.2",
           _extended(INSTANCE, more=_unknown(critical=True))),
    refuse("critical-enclave", "the enclave's certificate has a critical extension that nobody knows",
           "what is critical is processed, or fatal", f"{PKIX} 4.2",
           _extended(ENCLAVE, more=_unknown(critical=True))),
    refuse("names-excluded", "the regional certificate's name constraints exclude what is below it",
           "processed, or fatal", f"{PKIX} 4.2.1.10",
           _extended(REGIONAL, more=_constraints(der.name(("C", "XX"), ("O", "somebody else"))))),
)  # fmt: skip

FORMS = (
    accept("identifiers-none", "only the root has a key identifier",
           "the instance's had none until July 2024, the enclave's has none", "AWS's documents",
           _under(_without_identifiers)),
    accept("identifiers-all", "all have key identifiers, one by its issuer's name and number",
           "they help to find a path", f"{PKIX} 4.2.1.1", _under(_identified)),
    either("identifiers-wrong", "the instance's authority key identifier is not the zonal certificate's",
           "they help to find a path; some insist", f"{PKIX} 4.2.1.1", _under(_identified_wrongly)),
    accept("extension-unknown", "the enclave's certificate has an extension that nobody knows, not critical",
           "ignored", f"{PKIX} 4.2", _extended(ENCLAVE, more=_unknown(critical=False))),
    accept("extension-crl", "regional and zonal certificates name revocation lists, as AWS's do",
           "not looked at", f"{AWS} 3.2.4", _under(_with_lists)),
    accept("extension-ocsp", "the enclave's certificate names an OCSP responder", "not asked", f"{AWS} 3.2.4",
           _extended(ENCLAVE, more=_ocsp(b"http://ocsp.invalid/"))),
    either("extension-purpose", "the enclave's certificate is for TLS clients (EKU)",
           "AWS's has no purpose; none is asked for", f"{PKIX} 4.2.1.12", _extended(ENCLAVE, more=CLIENT)),
    accept("serial-largest", "a serial number of 20 bytes", "the longest", f"{PKIX} 4.1.2.2",
           _changed(INSTANCE, serial=2**159 - 1)),
    accept("serial-one", "the serial number 1", "the smallest", f"{PKIX} 4.1.2.2",
           _changed(INSTANCE, serial=1)),
    either("serial-zero", "the serial number 0", "issuers must not; verifiers should be prepared",
           f"{PKIX} 4.1.2.2", _changed(INSTANCE, serial=0)),
    either("serial-negative", "a negative serial number", "issuers must not; verifiers should be prepared",
           f"{PKIX} 4.1.2.2", _changed(INSTANCE, serial=-5)),
    either("serial-long", "a serial number of 30 bytes", "issuers must not; verifiers should be prepared",
           f"{PKIX} 4.1.2.2", _changed(INSTANCE, serial=2**239 - 1)),
    refuse("version-1", "the zonal certificate is of version 1", "nothing says that it is a CA's",
           f"{PKIX} 6.1.4 (k)", lambda b: b.under(b.with_certificate(ZONAL, version=b"", extensions={}))),
    either("name-other-type", "an issuer's name is a PrintableString, and above it a UTF8String",
           "equal by PKIX, which few follow here", f"{PKIX} 7.1", _under(_other_string_type)),
    refuse("algorithm-outside",
           "the zonal certificate is said to be signed over SHA-256 outside, over SHA-384 inside",
           "both are the same", f"{PKIX} 4.1.1.2",
           _changed(ZONAL, algorithm_outside=certificates.ECDSA_SHA256)),
    either("algorithm-sha256", "the zonal certificate is signed over SHA-256",
           "AWS's are not, but nothing of PKIX is against it", f"{PKIX} 4.1.1.2",
           _changed(ZONAL, algorithm=certificates.ECDSA_SHA256, digest="sha256")),
    either("curve-p256-instance", "the instance's key is on P-256",
           "AWS's are on P-384, but nothing of PKIX is against it", f"{PKIX} 6.1", _p256(INSTANCE)),
    either("curve-p256-enclave", "the enclave's key is on P-256, and signs with 64 bytes",
           "AWS's are on P-384, but ES384 is with any curve", "RFC 9053 2.1", _p256(ENCLAVE)),
    either("point-compressed", "the enclave's public key is a compressed point", "allowed, and seldom known",
           "RFC 5480 2.2", _under(_compressed)),
    refuse("point-off-curve", "the enclave's public key is no point of the curve", "no key at all",
           "SEC 1, 3.2.2", _under(_off_the_curve)),
    refuse("certificate-cut", "the last byte of the zonal certificate is missing", "no DER", f"{PKIX} 4.1",
           _changed(ZONAL, finish=lambda whole: whole[:-1])),
    either("certificate-trailing-byte", "a byte follows the zonal certificate",
           "no part of it, but who signed put it there", f"{PKIX} 4.1",
           _changed(ZONAL, finish=lambda whole: whole + b"\0")),
)  # fmt: skip

ROWS: tuple[Row, ...] = DATES + ISSUERS + CONSTRAINTS + FORMS
