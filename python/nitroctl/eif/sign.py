# SPDX-License-Identifier: MIT
"""Signs EIFs: with a private key in a PEM file, or through a program that holds the key.

What is signed is PCR0, as a COSE_Sign1 (RFC 9052) in the form that AWS's tools write and `signature` reads.
Signing an EIF rewrites it: everything except an old signature is copied in order, the new signature comes
last, and all sizes, offsets and the checksum are computed from what was written.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from isal.isal_zlib import crc32

from nitroctl.base import files, proc
from nitroctl.base.errors import EifError, NitroError
from nitroctl.base.instants import UTC
from nitroctl.eif import certificate as certificates
from nitroctl.eif import signature
from nitroctl.eif.boot import cmdline_nul
from nitroctl.eif.build import Built, Writer, crc32_combine
from nitroctl.eif.certificate import Signer, holds_private_key
from nitroctl.eif.format import (
    CRC_OFFSET,
    MAX_SECTIONS,
    SECTION_HEADER,
    SIGNATURE_MAX,
    Hints,
    Layout,
    SectionType,
    open_eif,
    read_layout,
)
from nitroctl.eif.measure import CHUNK, Digests, crc_mismatch, crc_of_gap, shown
from nitroctl.eif.output import replacing
from nitroctl.eif.pcr import Measurements
from nitroctl.eif.signature import Signature

PEM_MAX = 1 << 20  # bytes of a key or certificate file


@dataclass(frozen=True)
class SigningKey:
    """A certificate and a function that signs for it: `sign` returns r || s for a message. `notes` are
    warnings about the certificate's file."""

    signer: Signer
    sign: Callable[[bytes], bytes]
    notes: tuple[str, ...] = ()

    def section(self, pcr0: bytes) -> bytes:
        """The data of a signature section. Raises NitroError if the signer returns no valid signature."""
        import cbor2

        curve = self.signer.curve
        protected = cbor2.dumps({signature.ALG: curve.alg})
        payload = cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})
        # Only the certificate, whatever else its file has: an image is public.
        pem = self.signer.pem
        unsigned = Signature(pem, protected, payload, b"", curve.alg, 0, pcr0)
        made = replace(unsigned, raw=self.sign(unsigned.signed_bytes))
        try:
            signature.check_cose(made, self.signer)
        except EifError as e:
            raise NitroError(
                f"the signature does not verify with the certificate: {e}",
                hint=f"does the key belong to it, and is the digest {curve.hash_algorithm().name}?",
            ) from None
        cose = cbor2.dumps([protected, {}, payload, made.raw])
        data = cbor2.dumps([{"signing_certificate": list(pem), "signature": list(cose)}])
        if len(data) > SIGNATURE_MAX:
            raise NitroError(
                f"the signature section would have {len(data)} bytes; at most {SIGNATURE_MAX} are allowed",
                hint="use a smaller signing certificate",
            )
        return data

    def append(self, writer: Writer, measurements: Measurements) -> Measurements:
        data = self.section(measurements.pcr0)
        writer.begin(SectionType.SIGNATURE)
        writer.write(data)
        return replace(measurements, pcr8=self.signer.pcr8)

    def warnings(self) -> list[str]:
        """`notes`, and a warning if the certificate is not valid now: an enclave then does not start."""
        begin, end = self.signer.not_before, self.signer.not_after
        now = datetime.now(UTC)
        found = list(self.notes)
        if now > end:
            found.append(f"the signing certificate expired at {end}: the image will not start")
        if now < begin:
            found.append(f"the signing certificate is valid from {begin} on: the image will not start before")
        return found


def read_certificate(path: Path) -> Signer:
    """The first certificate of a PEM file; raises NitroError."""
    return _signer(_read(path), path)


def _signer(pem: bytes, path: Path) -> Signer:
    try:
        return certificates.read_certificate(pem)
    except EifError as e:
        raise NitroError(f"{path}: {e}") from None


def load(certificate: Path, *, key: Path | None = None, command: str | None = None) -> SigningKey:
    """A PEM certificate with its PEM key, or with a shell-quoted command that signs.

    The command reads the bytes to sign from its standard input and writes the signature, in DER or as r || s:
    `openssl dgst -sha384 -sign key.pem` is one for a key on P-384.
    """
    assert (key is None) != (command is None)
    pem = _read(certificate)
    signer = _signer(pem, certificate)
    notes: tuple[str, ...] = ()
    if holds_private_key(pem):
        notes = (f"{certificate} has a private key beside the certificate: only the certificate is written",)
    if key is not None:
        return SigningKey(signer, _with_key(key, certificate, signer), notes)
    assert command is not None
    try:
        argv = shlex.split(command)
    except ValueError as e:
        raise NitroError(f"the signing command {command!r} cannot be split into words: {e}") from None
    if not argv:
        raise NitroError("the signing command is empty")
    return SigningKey(signer, lambda message: _raw(_run(argv, message), signer, argv[0]), notes)


def _run(argv: list[str], message: bytes) -> bytes:
    return proc.run(argv, input=message).stdout


def _read(path: Path) -> bytes:
    return files.read_at_most(path, PEM_MAX, over=f"{path} is too large for a PEM file")


def _with_key(path: Path, certificate: Path, signer: Signer) -> Callable[[bytes], bytes]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    digest = signer.curve.hash_algorithm().name
    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError:
        hint = f'let a program ask for the passphrase: --signer "openssl dgst -{digest} -sign {path}"'
        raise NitroError(f"the key {path} is encrypted", hint=hint) from None
    except (ValueError, UnsupportedAlgorithm) as e:
        raise NitroError(f"{path} is not a PEM private key: {e}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != signer.key:
        raise NitroError(
            f"the key {path} does not belong to the certificate {certificate}",
            hint="openssl pkey -pubout -in KEY must print what openssl x509 -noout -pubkey -in CERT prints",
        )
    algorithm = ec.ECDSA(signer.curve.hash_algorithm())
    return lambda message: _raw(key.sign(message, algorithm), signer, str(path))


def _raw(made: bytes, signer: Signer, who: str) -> bytes:
    """A signature as r || s, from that form or from DER."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    half = signer.curve.half
    if len(made) == 2 * half and made[:1] != b"\x30":
        return made
    try:
        r, s = decode_dss_signature(made)
        return r.to_bytes(half, "big") + s.to_bytes(half, "big")
    except (ValueError, OverflowError):
        if len(made) == 2 * half:
            return made
        raise NitroError(
            f"{who} returned {len(made)} bytes; a signature for {signer.curve.alg_name} is DER, or r || s of "
            f"{2 * half} bytes"
        ) from None


def _check_data(fd: int, layout: Layout, writer: Writer, path: Path) -> None:
    """Check the rules about the data that were copied: crc-mismatch, cmdline-nul. Signing a damaged file
    would make it look intact."""
    crc = crc32(layout.header.raw[:CRC_OFFSET])
    copied = iter(writer.parts)
    for section, gap in zip(layout.sections, layout.gaps, strict=True):
        crc = crc32(section.header, crc_of_gap(crc, fd, gap, path))
        if section.type is SectionType.SIGNATURE:
            crc = crc32(os.pread(fd, section.size, section.data_offset), crc)
        else:
            part = next(copied)
            crc = crc32_combine(crc, part.crc, part.size)
    if crc != layout.header.crc32:
        raise crc_mismatch(crc, layout.header.crc32, path)
    cmdline = layout.of_type(SectionType.CMDLINE)[0]
    for at in range(cmdline.data_offset, cmdline.end, CHUNK):
        nul = os.pread(fd, min(CHUNK, cmdline.end - at), at).find(0)
        if nul >= 0:
            raise cmdline_nul(at + nul, path)


def sign(path: Path, key: SigningKey, output: Path) -> Built:
    """Write `path` with a new signature to `output`, which may be the same.

    An old signature is dropped unchecked; everything else must keep the rules. Raises NitroError; then
    `output` is unchanged.
    """
    with ExitStack() as stack:
        fd, size = stack.enter_context(open_eif(path))
        layout = read_layout(fd, size, path)
        kept = [s for s in layout.sections if s.type is not SectionType.SIGNATURE]
        if len(kept) == MAX_SECTIONS:
            raise EifError("section-count", f"all {MAX_SECTIONS} sections are in use", path=path, offset=26)
        advance = stack.enter_context(shown(f"Signing {path.name}", size))
        out = stack.enter_context(replacing(output))
        writer = Writer(out, stack.enter_context(Digests()), advance, name=str(output))
        for section in kept:
            writer.begin(section.type, flags=SECTION_HEADER.unpack(section.header)[1])
            os.lseek(fd, section.data_offset, os.SEEK_SET)
            writer.copy(fd, section.size, str(path))
        measurements = writer.measurements()
        _check_data(fd, layout, writer, path)
        measurements = key.append(writer, measurements)
        header = layout.header
        # Signatures were added in version 3, which has the same layout as version 2.
        version = max(3, header.version)
        total = writer.finish(Hints(version, header.flags, header.default_mem, header.default_cpus))
    warnings = key.warnings()
    if layout.gap_size:
        warnings.append(f"{layout.gap_size} bytes between the sections of {path} were left out")
    return Built(output, total, measurements, tuple(warnings))
