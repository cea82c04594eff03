# SPDX-License-Identifier: MIT
"""`nitroctl attest`: the local CA, and attestation documents verified and shown. Options and output only."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nitroctl.base import instants, output, shown
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.base.instants import UTC
from nitroctl.commands import NEW_FILE, PATH, enclave_names, json_option
from nitroctl.commands.torture import torture

if TYPE_CHECKING:
    from cryptography import x509

    from nitroctl.attestation import Document


MAX_AGE_SECONDS = 100 * 365 * 24 * 3600  # no document is older


@click.group()
def attest() -> None:
    """Verify and fetch attestation documents, and manage the local CA that they are issued under.

    A local document proves which code was measured, never that hardware protects it.
    """


attest.add_command(torture)


@attest.group()
def ca() -> None:
    """The local root CA: one per user, created on first use."""


def _authority() -> Any:
    from nitroctl.attestation import pki

    authority = pki.load()
    if authority is None:
        raise NitroError(
            f"there is no local CA in {pki.ca_dir()} yet",
            hint="`nitroctl attest ca init` makes it; so does the first `nitroctl run`",
        )
    return authority


def _describe(certificate: x509.Certificate) -> dict[str, str]:
    from cryptography.hazmat.primitives import hashes

    return {
        "subject": certificate.subject.rfc4514_string(),
        "not_before": f"{certificate.not_valid_before_utc:%FT%TZ}",
        "not_after": f"{certificate.not_valid_after_utc:%FT%TZ}",
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def _show_ca(authority: Any, as_json: bool) -> None:
    from nitroctl.attestation import pki

    root, described = pki.ca_dir() / pki.ROOT_FILE, _describe(authority.certificate)
    if as_json:
        output.document({"root": root, **described})
    else:
        titles = ("Root:", "Subject:", "Not before:", "Not after:", "SHA-256:")
        output.table(list(zip(titles, (str(root), *described.values()), strict=True)))


@ca.command("init")
@click.option("--force", is_flag=True, help="Replace an existing CA; the old one is kept beside it.")
@json_option()
def ca_init(force: bool, as_json: bool) -> None:
    """Create the local CA."""
    from nitroctl.attestation import pki

    _show_ca(pki.init(force=force), as_json)


@ca.command("show")
@json_option()
def ca_show(as_json: bool) -> None:
    """Show the local root's name, dates and fingerprint."""
    _show_ca(_authority(), as_json)


@ca.command("export")
@click.argument("output", type=NEW_FILE, required=False)
def ca_export(output: Path | None) -> None:
    """Write the local root certificate as PEM to OUTPUT, or to stdout. The key is never exported."""
    pem: bytes = _authority().pem
    if output is None:
        sys.stdout.buffer.write(pem)
        return
    try:
        output.write_bytes(pem)
    except OSError as e:
        raise NitroError(f"cannot write {output}: {e.strerror}") from e


def _hex(_: click.Context, __: click.Parameter, value: str | None) -> bytes | None:
    if value is None:
        return None
    try:
        return bytes.fromhex(value)
    except ValueError as e:
        raise click.BadParameter(f"{value!r} is not hexadecimal") from e


def _pcrs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for value in values:
        index, equals, digest = value.partition("=")
        try:
            number, pcr = int(index), bytes.fromhex(digest)
        except ValueError as e:
            raise click.BadParameter(f"{value!r} is not N=HEX") from e
        if not equals or not 0 <= number < 32 or len(pcr) != 48:
            raise click.BadParameter(f"{value!r}: N must be 0 to 31, and HEX 96 digits (SHA-384)")
        pcrs[number] = pcr
    return pcrs


def _at(_: click.Context, __: click.Parameter, value: str | None) -> datetime | Literal["document"] | None:
    if value is None or value == "document":
        return value  # type: ignore[return-value]
    try:
        at = instants.parse(value)
    except ValueError as e:
        raise click.BadParameter(f"{value!r} is neither an ISO 8601 time nor the word document") from e
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _seconds(_: click.Context, __: click.Parameter, value: float | None) -> timedelta | None:
    if value is None:
        return None
    if not 0 <= value <= MAX_AGE_SECONDS:  # nor is nan
        raise click.BadParameter(f"{value} is not a number of seconds from 0 to {MAX_AGE_SECONDS}")
    return timedelta(seconds=value)


def _read_document(path: str) -> bytes:
    """The document's bytes, from a file or stdin, as they are or as text."""
    from nitroctl.attestation.document import DOCUMENT_MAX
    from nitroctl.attestation.text import undress

    limit = 3 * DOCUMENT_MAX  # hexadecimal, with line breaks
    try:
        with click.open_file(path, "rb") as f:
            data: bytes = f.read(limit + 1)
    except OSError as e:
        raise NitroError(f"cannot read the document {path}: {e.strerror}") from e
    if len(data) > limit:
        raise NitroError(f"{path} is no attestation document: it has more than {limit} bytes")
    return undress(data)


def _report_json(document: Document, path: list[x509.Certificate], root: str) -> dict[str, Any]:
    return {
        "module_id": document.module_id,
        "timestamp": document.time.isoformat(timespec="milliseconds"),
        "digest": document.digest,
        "root": root,
        "debug_mode": document.debug,
        "unmeasured": document.unmeasured,
        "pcrs": {str(i): pcr for i, pcr in document.pcrs.items()},
        "public_key": document.public_key,
        "user_data": document.user_data,
        "nonce": document.nonce,
        "chain": [_describe(certificate) for certificate in path],
    }


PCR_MEANINGS = {
    0: "whole image",
    1: "kernel, command line, first ramdisk",
    2: "application",
    3: "role of the parent",
    4: "id of the parent",
    8: "signing certificate",
}


def _report(document: Document, path: list[x509.Certificate], *, local: bool) -> None:
    from cryptography.x509.oid import NameOID

    shown.styled(("The attestation document is valid.", "bold green"))
    if local:
        shown.echo("It was issued under a local root: it proves what was measured, not isolation.")
    if document.debug:
        shown.styled(
            ("The enclave runs in debug mode, or unmeasured: its code is not attested.", "bold yellow")
        )
    if document.unmeasured:
        shown.styled(
            ("The enclave is unmeasured: it runs more than its PCRs tell of, which are kept.", "bold yellow")
        )
    age = timedelta(seconds=round((datetime.now(UTC) - document.time).total_seconds()))
    shown.echo(
        "",
        f"module      {shown.line(document.module_id, 200)}",
        f"issued      {document.time:%F %T} UTC, {age} ago",
    )
    for field, value in (
        ("public key", document.public_key), ("user data", document.user_data), ("nonce", document.nonce),
    ):  # fmt: skip
        if value is not None:
            start = value.hex() if len(value) <= 32 else value[:32].hex() + "..."
            shown.echo(f"{field:<11} {start} ({len(value)} bytes)")
    shown.echo()
    for i, pcr in document.pcrs.items():
        if any(pcr):
            shown.styled(f"{f'PCR{i}':<6} {pcr.hex()}  ", (PCR_MEANINGS.get(i, "application"), "dim"))
    zeros = [str(i) for i, pcr in document.pcrs.items() if not any(pcr)]
    if zeros:
        shown.echo(f"zero: PCR {', '.join(zeros)}")
    shown.echo()
    for certificate in path:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value) if names else certificate.subject.rfc4514_string()
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        shown.echo(f"{begin:%F %T} to {end:%F %T} UTC  {shown.line(name, 200)}")


@attest.command()
@click.argument("name", shell_complete=enclave_names)
@click.option("--nonce", metavar="HEX", callback=_hex, help="Nonce for the document.")
@click.option("--user-data", metavar="HEX", callback=_hex, help="User data for the document.")
@click.option("--public-key", metavar="HEX", callback=_hex, help="Public key for the document.")
@click.option("-o", "--output", type=NEW_FILE, help="Write the document to FILE, in binary.")
def get(
    name: str, nonce: bytes | None, user_data: bytes | None, public_key: bytes | None, output: Path | None
) -> None:
    """Fetch a document from the running enclave NAME (or CID); without -o, print it in base64.

    The enclave must carry nitroctl's test agent, as `nitroctl eif test-image agent` makes it. Your own
    applications ask their NSM themselves.
    """
    import base64

    from nitroctl.enclaves import records
    from nitroctl.testing.agent import Agent

    found = records.find(name, running=True)
    with Agent(found.uds, refused=lambda _: records.check_runs(found)) as agent:
        document = agent.attestation(nonce=nonce, user_data=user_data, public_key=public_key)
    if output is None:
        shown.data(base64.b64encode(document).decode())
        return
    try:
        output.write_bytes(document)
    except OSError as e:
        raise NitroError(f"cannot write {output}: {e.strerror}") from e


@attest.command()
@click.argument("document", type=click.Path(readable=False, allow_dash=True))
@click.option("--root", metavar="PEM|aws", help="Trusted root: a PEM file, or AWS's. Default: the local CA.")
@click.option("--pcr", "pcrs", multiple=True, metavar="N=HEX", callback=_pcrs, help="Expected PCR.")
@click.option("--eif", type=PATH, help="Expect the PCRs of this EIF.")
@click.option("--nonce", metavar="HEX", callback=_hex, help="Expected nonce.")
@click.option("--user-data", metavar="HEX", callback=_hex, help="Expected user data.")
@click.option("--public-key", metavar="HEX", callback=_hex, help="Expected public key.")
@click.option(
    "--at", metavar="TIME|document", callback=_at,
    help="Check validity at this time (ISO 8601, UTC), or at the document's own. Default: now.",
)  # fmt: skip
@click.option(
    "--max-age", type=float, callback=_seconds, metavar="S", help="Refuse documents older than S seconds."
)
@click.option(
    "--field-max", type=click.IntRange(0), default=4096, show_default=True, metavar="BYTES",
    help="Refuse a longer public key, user data or nonce; AWS's guide says 1024.",
)  # fmt: skip
@click.option("--allow-debug", is_flag=True, help="Accept enclaves in debug mode.")
@click.option(
    "--allow-unmeasured",
    is_flag=True,
    help="Accept unmeasured enclaves, which run code that their PCRs do not cover.",
)
@json_option()
def verify(
    document: str,
    root: str | None,
    pcrs: dict[int, bytes],
    eif: Path | None,
    nonce: bytes | None,
    user_data: bytes | None,
    public_key: bytes | None,
    at: datetime | Literal["document"] | None,
    max_age: timedelta | None,
    field_max: int,
    allow_debug: bool,
    allow_unmeasured: bool,
    as_json: bool,
) -> None:
    """Verify an attestation document (a file, or - for stdin; raw, base64 or hex) and show what it says."""
    from nitroctl.attestation.verification import Policy, load_root, verify_chain

    if at == "document" and max_age is not None:
        raise UsageError("--at document and --max-age contradict each other: at its own time it has no age")
    expected = dict(pcrs)
    if eif is not None:
        from nitroctl.eif import measure

        measured = measure.measure(eif)
        for index, pcr in ((0, measured.pcr0), (1, measured.pcr1), (2, measured.pcr2), (8, measured.pcr8)):
            if pcr is None:
                continue
            if expected.setdefault(index, pcr) != pcr:
                raise UsageError(f"--pcr {index}=… and --eif {eif} name different values for PCR{index}")
    policy = Policy(
        at=at,
        pcrs=expected,
        nonce=nonce,
        user_data=user_data,
        public_key=public_key,
        max_age=max_age,
        allow_debug=allow_debug,
        allow_unmeasured=allow_unmeasured,
        field_max=field_max,
    )
    data = _read_document(document)
    found, path = verify_chain(data, _authority().certificate if root is None else root, policy)
    if as_json:
        output.document(_report_json(found, path, root or "local"))
    else:
        _report(found, path, local=path[0] != load_root("aws"))
