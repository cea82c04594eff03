# SPDX-License-Identifier: MIT
"""Describes an EIF: a table for people, the JSON of `nitro-cli describe-eif` for programs. Changes nothing.

The structure is checked strictly. Two faults are reported and not refused, as nitro-cli does: a checksum that
does not match ("CheckCRC": false) and a signature over another PCR0 ("SignatureCheck": false). Any other
reason for which the machine refuses the file is in `Description.refusal`. If the metadata cannot be read,
their keys are left out with a warning, because nothing in an enclave depends on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base.errors import EifError
from nitroctl.base.instants import UTC
from nitroctl.base.output import Cell
from nitroctl.eif import measure as measuring
from nitroctl.eif import verify
from nitroctl.eif.about import custom, metadata_json, parse_metadata, wants_acpi
from nitroctl.eif.certificate import holds_private_key
from nitroctl.eif.format import Layout
from nitroctl.eif.pcr import Measurements

if TYPE_CHECKING:
    from nitroctl.eif.certificate import Signer
    from nitroctl.eif.signature import Signature

# OpenSSL's names, which nitro-cli prints: months regardless of locale.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class SignatureInfo:
    """A signature that was made with its certificate's key. `covers_pcr0`: whether it is over this file's
    PCR0."""

    signature: Signature
    signer: Signer
    covers_pcr0: bool

    def to_json(self) -> dict[str, Any]:
        signer = self.signer
        issuer = dict(signer.issuer)
        return {
            "IssuerName": dict(sorted(issuer.items())),
            "Algorithm": signer.algorithm_name,
            "NotBefore": _openssl_time(signer.not_before),
            "NotAfter": _openssl_time(signer.not_after),
            "Signature": signer.signature.hex(":").upper(),
        }


@dataclass(frozen=True)
class Description:
    """All that one pass over a file finds out. `metadata` is the parsed section; None if there is none, or if
    it is not what AWS's tools write: then `metadata_error` says why."""

    path: Path
    layout: Layout
    measurements: Measurements
    crc_matches: bool
    crc32: int
    cmdline: bytes
    metadata: dict[str, Any] | None
    metadata_error: str | None
    signature: SignatureInfo | None
    refusal: EifError | None

    @property
    def notes(self) -> list[str]:
        """Sentences about what is accepted but unusual."""
        found = []
        if gap := self.layout.gap_size:
            found.append(f"{gap} bytes lie between the sections: the checksum covers them, no PCR does")
        if self.signature and holds_private_key(self.signature.signature.pem):
            found.append(
                "the signature section also contains a PRIVATE KEY: whoever has the image has that key"
            )
        return found

    @property
    def needs_acpi(self) -> bool:
        return wants_acpi(self.metadata)

    def to_json(self) -> dict[str, Any]:
        """nitro-cli's keys in nitro-cli's order."""
        value: dict[str, Any] = {
            "EifVersion": self.layout.header.version,
            "Measurements": self.measurements.to_json(),
            "IsSigned": self.signature is not None,
        }
        if self.signature:
            value["SigningCertificate"] = self.signature.to_json()
        value["CheckCRC"] = self.crc_matches
        if self.signature:
            value["SignatureCheck"] = self.signature.covers_pcr0
        if self.metadata:
            value.update(metadata_json(self.metadata))
        return value


def _openssl_time(t: datetime) -> str:
    """ASN1_TIME_print(3): "Oct 28 13:28:05 2019 GMT", the day padded with a space."""
    return f"{_MONTHS[t.month - 1]} {t.day:2} {t:%H:%M:%S} {t.year} GMT"


def describe(path: Path, *, file_rules_only: bool = False) -> Description:
    """Read a file once and describe it; with `file_rules_only` without checking that its kernel can be
    booted. Raises EifError for a broken file, and, as nitro-cli does, for a signature that cannot be read or
    was not made with its certificate's key."""
    scan = measuring.scan(path)
    metadata, problem = parse_metadata(scan.metadata) if scan.metadata is not None else (None, None)
    measurements = scan.measurements
    info = None
    if scan.signature is not None:
        from nitroctl.eif import certificate, signature

        decoded = signature.decode(scan.signature, path)
        signer = certificate.read_certificate(decoded.pem, path)
        signature.check_cose(decoded, signer, path)
        measurements = signature.with_pcr8(measurements, decoded, path)
        covers = decoded.register_index == 0 and decoded.register_value == measurements.pcr0
        info = SignatureInfo(decoded, signer, covers)
    return Description(
        path=path,
        layout=scan.layout,
        measurements=measurements,
        crc_matches=scan.crc_matches,
        crc32=scan.crc32,
        cmdline=scan.cmdline,
        metadata=metadata,
        metadata_error=problem,
        signature=info,
        refusal=verify.refusal(scan, path, file_rules_only=file_rules_only),
    )


# ---- for people ----


def rows(d: Description) -> list[tuple[Cell, Cell]]:
    """The description as a table's rows, for `output.table`."""
    from nitroctl.base.progress import amount

    result: list[tuple[Cell, Cell]] = []

    def row(name: str, value: str, style: str = "") -> None:
        result.append((name, (value, style)))

    header = d.layout.header
    row("File", str(d.path))
    row("Format", f"EIF version {header.version}, {amount(d.layout.file_size, 'bytes')}")
    if d.metadata:
        build = d.metadata["BuildMetadata"]
        row("Image", f"{d.metadata['ImageName']} {d.metadata['ImageVersion']}")
        row("Built", f"{build['BuildTime']} by {build['BuildTool']} {build['BuildToolVersion']}")
        row("System", f"{build['OperatingSystem']} {build['KernelVersion']}")
        for key, value in custom(d.metadata).items():
            row("Metadata", f"{key}: {json.dumps(value, ensure_ascii=False)}")
    elif d.metadata_error:
        row("Metadata", f"not readable: {d.metadata_error}", "yellow")
    row("Cmdline", d.cmdline.decode("utf-8", "backslashreplace"))
    for i, section in enumerate(d.layout.sections):
        where = f"{section.type.name.lower():9} {amount(section.size, 'bytes'):>9} at {section.data_offset}"
        row("Sections" if i == 0 else "", where)
    if d.crc_matches:
        row("CRC-32", f"{d.crc32:08x}, matches", "green")
    else:
        row("CRC-32", f"{d.crc32:08x} DOES NOT MATCH the header's {header.crc32:08x}: damaged", "bold red")
    if d.signature is None:
        row("Signature", "none")
    else:
        signer = d.signature.signer
        row("Signature", f"{signer.curve.alg_name}, certificate {signer.subject}")
        begin, end = signer.not_before, signer.not_after
        valid = begin <= datetime.now(UTC) <= end
        dates = f"valid {begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"
        row("", dates if valid else f"{dates}, NOT NOW: it does not start", "" if valid else "bold red")
        if d.signature.covers_pcr0:
            row("", "covers this image's PCR0", "green")
        else:
            row("", "DOES NOT COVER this image's PCR0: changed after signing", "bold red")
    for note in d.notes:
        row("Note", note, "yellow")
    if d.refusal:
        row("Verdict", "the machine REFUSES it", "bold red")
    for name, value in d.measurements.items():
        row(name, value)
    return result
