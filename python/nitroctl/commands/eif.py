# SPDX-License-Identifier: MIT
"""`nitroctl eif ...`: arguments and output of the EIF tools. The work is done in `nitroctl.eif`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nitroctl.base import output, shown
from nitroctl.base.arch import ARCHES, Arch
from nitroctl.base.errors import EXIT_USAGE, NitroError
from nitroctl.commands import PATH, image_references, json_option
from nitroctl.commands.options import asked, requested
from nitroctl.eif.request import BuildRequest

if TYPE_CHECKING:
    from nitroctl.eif.build import Built
    from nitroctl.eif.pcr import Measurements
    from nitroctl.eif.sign import SigningKey


@click.group()
def eif() -> None:
    """Build, measure, check, compare and sign Enclave Image Files (EIF)."""


def _show_built(built: Built, as_json: bool) -> None:
    for warning in built.warnings:
        shown.say(f"warning: {warning}")
    for note in built.notes:
        shown.say(f"note: {note}")
    if as_json:
        output.document({
            "path": built.path, "size": built.size, "pcrs": built.measurements.by_number(),
            "warnings": built.warnings, "notes": built.notes,
        })  # fmt: skip
        return
    from nitroctl.base.progress import amount

    shown.echo(f"Wrote {built.path} ({amount(built.size, 'bytes')}).")
    _show_measurements(built.measurements)


def _show_measurements(measurements: Measurements) -> None:
    for name, value in measurements.items():
        shown.echo(f"{name:9}  {value}")


def _signing_key(certificate: Path, key: Path | None, command: str | None) -> SigningKey:
    if (key is None) == (command is None):
        raise click.UsageError("to sign takes --signing-certificate, and --private-key or --signer")
    from nitroctl.eif import sign

    return sign.load(certificate, key=key, command=command)


def _size(text: str) -> int:
    """400M, 2G, or bytes."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    digits, shift = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 0)
    if not digits.isascii() or not digits.isdigit():
        raise click.BadParameter(f"{text!r} is not a size like 400M")
    return int(digits) << shift


@eif.command()
@requested(BuildRequest)
@json_option()
def build(as_json: bool, **given: Any) -> None:
    """Build an EIF and print its measurements.

    \b
    From parts:             --kernel K --cmdline S --ramdisk R [--ramdisk R]...
    From a container image: --image app.tar     (of several: --image app.tar:NAME)
    From a folder:          --directory DIR --cmd /app

    The first ramdisk is the bootstrap's (measured into PCR1), the others are the application's (PCR2). An
    image or folder is packed with nitroctl's init and kernel, or with those of --blobs.

    An image's ENTRYPOINT, CMD, ENV, WORKDIR and USER take effect as in a container. AWS's build-enclave
    ignores WORKDIR and USER, and drops the ENTRYPOINT if there is a CMD; --aws-cmd does the same, for images
    that rely on it. --as-aws makes the ramdisks byte for byte as AWS does: PCR2 is production's, and with
    AWS's --blobs PCR0 and PCR1 are too.
    """
    from nitroctl.eif.make import make

    _show_built(make(asked(BuildRequest, given)), as_json)


@eif.command()
@click.argument("image", shell_complete=image_references)
@click.option("--blobs", type=PATH, help="AWS's kernel and init: their folder, a checkout of "
              "aws-nitro-enclaves-cli, or Amazon Linux's package aws-nitro-enclaves-cli-devel (RPM).  "
              "[default: where that package installs them]")  # fmt: skip
@click.option(
    "--arch", type=click.Choice(ARCHES),
    help="Architecture of the enclave.  [default: that of --platform or --blobs, else this host's]",
)  # fmt: skip
@click.option("--platform", help="Platform to take from a multi-platform image, such as linux/amd64/v3.")
@click.option("--no-kernel-check", is_flag=True, help="Do not check that the kernel can be booted.")
@click.pass_context
def predict(
    ctx: click.Context,
    image: str,
    blobs: Path | None,
    arch: Arch | None,
    platform: str | None,
    no_kernel_check: bool,
) -> None:
    """Print the PCRs of the EIF that AWS's build-enclave would make from IMAGE, as nitro-cli prints them.

    No EIF is written. PCR0 and PCR1 depend on AWS's kernel and init; without those only PCR2 is printed,
    which depends on the image alone.
    """
    from nitroctl.base import progress
    from nitroctl.eif import as_aws, compose, reference
    from nitroctl.eif.image import platform_arch
    from nitroctl.toolchain import aws_blobs

    ctx.with_resource(progress.quiet())
    arch = arch or platform_arch(platform)
    aws = blobs or aws_blobs.installed(arch)
    start = compose.from_blobs(aws, arch=arch) if aws else compose.bootstrap(arch=arch)
    with reference.fetched(image, platform=platform, arch=start.kernel.arch) as found:
        choice = as_aws.Choice(found.path, found.name, platform)
        measured, warnings = as_aws.predict(
            choice, start, compose.Options(), check_kernel=not no_kernel_check
        )
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    values = measured.to_json()
    if not start.aws:
        click.echo("note: without AWS's blobs (--blobs) only PCR2 can be told", err=True)
        values = {key: value for key, value in values.items() if key not in ("PCR0", "PCR1")}
    output.as_aws({"Measurements": values})


@eif.command()
@click.argument("file", type=PATH)
@click.option("--file-rules-only", is_flag=True, help="Do not check that the kernel can be booted.")
@json_option("Print what `nitro-cli describe-eif` prints.")
def describe(file: Path, file_rules_only: bool, as_json: bool) -> None:
    """Print what an EIF contains: sections, metadata, checksum, signature, PCRs.

    A wrong checksum or signature is only shown. Anything else for which the machine would refuse the file is
    an error after the description, with exit status 1.
    """
    from nitroctl.eif.describe import describe, rows

    description = describe(file, file_rules_only=file_rules_only)
    if as_json:
        for note in description.notes:
            shown.say(f"warning: {note}")
        if description.metadata_error:
            shown.say(f"warning: the metadata are not readable: {description.metadata_error}")
        output.as_aws(description.to_json())
    else:
        output.table(rows(description))
    if description.refusal:
        raise description.refusal


@eif.command()
@click.argument("file", type=PATH)
@click.option("--signing-certificate", type=PATH, required=True, help="PEM certificate with an EC key.")
@click.option("--private-key", type=PATH, help="Its PEM key, on P-256, P-384 or P-521.")
@click.option("--signer", help="Command that signs its standard input, instead of a key file.")
@click.option("-o", "--output", type=PATH, help="EIF to write.  [default: FILE itself]")
@json_option()
def sign(
    file: Path,
    signing_certificate: Path,
    private_key: Path | None,
    signer: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Sign an EIF; an existing signature is replaced.

    \b
    --signer takes a command line; it is given the bytes to sign and writes the
    signature in DER or as r || s. For a P-384 key:
      --signer "openssl dgst -sha384 -sign key.pem"
    """
    from nitroctl.eif import sign as signing

    key = _signing_key(signing_certificate, private_key, signer)
    _show_built(signing.sign(file, key, output or file), as_json)


def _pcr_values(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[int, bytes]:
    """N=HEX, for the registers that come from a file."""
    found = {}
    for text in values:
        number, _, value = text.partition("=")
        try:
            index, expected = int(number.upper().removeprefix("PCR")), bytes.fromhex(value)
        except ValueError:
            index, expected = -1, b""
        if index not in (0, 1, 2, 8) or len(expected) != 48:
            raise click.BadParameter(f"{text!r} is not N=HEX, N being 0, 1, 2 or 8 and HEX 96 digits")
        found[index] = expected
    return found


@eif.command()
@click.argument("file", type=PATH)
@click.option(
    "--pcr",
    "pcrs",
    multiple=True,
    callback=_pcr_values,
    metavar="N=HEX",
    help="Expected PCR; may be repeated.",
)
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]),
    metavar="TIME",
    help="Check the certificate's dates at this time, such as 2026-01-31T12:00:00Z.  [default: now]",
)
@click.option("--file-rules-only", is_flag=True, help="Do not check that the kernel can be booted.")
@json_option()
def verify(
    file: Path, pcrs: dict[int, bytes], at: datetime | None, file_rules_only: bool, as_json: bool
) -> None:
    """Check every rule that the machine asks of an EIF: structure, checksum, kernel, signature.

    Exit status 0 only for a good file that has the expected PCRs.
    """
    from nitroctl.eif.boot import NOT_ON_AWS
    from nitroctl.eif.peek import peek
    from nitroctl.eif.verify import verify

    measurements = verify(file, now=at, pcrs=pcrs, file_rules_only=file_rules_only)
    warnings = [] if file_rules_only or peek(file).kernel.boots_on_aws else [NOT_ON_AWS]
    if as_json:
        signed = measurements.pcr8 is not None
        values = measurements.by_number()
        output.document({"path": file, "signed": signed, "pcrs": values, "warnings": warnings})
        return
    for warning in warnings:
        shown.say(f"warning: {warning}")
    shown.echo(f"{file}: good, {'signed' if measurements.pcr8 else 'not signed'}")
    _show_measurements(measurements)


@eif.command()
@click.argument("file", type=PATH)
@click.option("-C", "--directory", type=PATH, required=True, help="Folder to make, or an empty one.")
@json_option()
def extract(file: Path, directory: Path, as_json: bool) -> None:
    """Write kernel, command line, metadata, ramdisks and signature of an EIF into a folder."""
    from nitroctl.eif.extract import extract

    paths = extract(file, directory)
    if as_json:
        output.items({"path": path} for path in paths)
        return
    for path in paths:
        shown.bare(path)


@eif.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@json_option()
def diff(a: Path, b: Path, as_json: bool) -> int:
    """Compare two EIFs: PCRs, sections, files in ramdisks, and which PCRs each difference changes. If AWS's
    builder made one of them (`nitro-cli build-enclave`, or --as-aws), it is also said which of its rules
    explains the difference.

    Exit status: 0 if they are the same, 1 if they differ, 2 in case of trouble, as of diff(1).
    """
    from nitroctl.eif.diff import diff, is_consequence

    try:
        found = diff(a, b)
    except NitroError as e:
        e.exit_status = EXIT_USAGE
        raise
    if as_json:
        numbers = [[int(name.removeprefix("PCR")) for name in d.pcrs] for d in found]
        output.items(
            {"where": d.where, "a": d.a, "b": d.b, "moves": moves, "rule": d.rule, "why": d.why}
            for d, moves in zip(found, numbers, strict=True)
        )
        return int(bool(found))
    for d in found:
        shown.echo(d.where + (f"  (moves {' and '.join(d.pcrs)})" if d.pcrs else ""))
        for sign, value in (("-", d.a), ("+", d.b)):
            if value is not None:
                shown.styled((f"  {sign} {shown.line(value)}", "red" if sign == "-" else "green"))
        if d.why:
            shown.echo(f"  = {d.why} [{d.rule}]")
    if any(d.rule == "archive-form" for d in found):
        details = [d for d in found if not is_consequence(d)]
        explained = sum(d.rule is not None for d in details)
        shown.echo(
            f"AWS's builder made one of them: {explained} of {len(details)} differences are its rules."
        )
    return int(bool(found))


@eif.command()
@click.argument("file", type=PATH)
@click.option("--memory", help="Memory that the enclave will get: 512, 512M, 4G.  [default: enough]")
@click.option("--ignore", "ignored", multiple=True, metavar="RULE", help="Leave a rule out; may be repeated.")
@click.option("--fail-on", type=click.Choice(["note", "warning", "error", "never"]), default="warning",
              show_default=True, help="The lowest severity that ends in exit status 1.")  # fmt: skip
@json_option()
def lint(file: Path, memory: str | None, ignored: tuple[str, ...], fail_on: str, as_json: bool) -> int:
    """Say what AWS would refuse in an EIF or do differently, and what to do about it.

    "on AWS" is about this very file; "AWS's build" is about an EIF that nitro-cli build-enclave makes from
    the same container image. The rules are in docs/lint.md. Nothing is booted.

    Exit status: 1 if there is a finding of --fail-on or worse, else 0; 2 in case of trouble.
    """
    from nitroctl.base.memory import parse_memory
    from nitroctl.eif import lint as linting

    if unknown := set(ignored) - {rule.name for rule in linting.RULES}:
        raise click.UsageError(f"there is no rule {sorted(unknown)[0]!r}")
    try:
        found = linting.lint(file, memory=parse_memory(memory) if memory else None)
    except NitroError as e:
        e.exit_status = EXIT_USAGE
        raise
    found = [finding for finding in found if finding.rule not in ignored]
    if as_json:
        output.items(finding.to_json() for finding in found)
    else:
        for finding in found:
            where = {"run": "on AWS", "build": "AWS's build"}[finding.when]
            style = {"error": "bold red", "warning": "yellow", "note": ""}[finding.severity]
            shown.styled((f"{finding.severity:8}", style), f"{where}: {finding.text} [{finding.rule}]")
            shown.echo(f"        -> {finding.mend}")
    worst = max((linting.SEVERITIES.index(finding.severity) for finding in found), default=-1)
    limits = [*linting.SEVERITIES, "never"]
    return int(worst >= limits.index(fail_on))


@eif.command()
@click.option("--input", "file", type=PATH, help="Any file: SHA384(48 zeros || SHA384(content)).")
@click.option("--signing-certificate", type=PATH, help="PEM certificate: PCR8.")
@click.option("--role", help="ARN of an IAM role: PCR3.")
@click.option("--instance-id", help="Id of a parent instance: PCR4.")
def pcr(
    file: Path | None, signing_certificate: Path | None, role: str | None, instance_id: str | None
) -> None:
    """Compute PCRs from what is measured into them; prints JSON, as nitro-cli does."""
    from nitroctl.eif import measure
    from nitroctl.eif.pcr import DIGEST_SIZE, extend

    found: dict[str, bytes] = {}
    if file:
        found["PCR"] = measure.measure_file(file)
    if role is not None:
        found["PCR3"] = extend(bytes(DIGEST_SIZE), role.encode())
    if instance_id is not None:
        found["PCR4"] = extend(bytes(DIGEST_SIZE), instance_id.encode())
    if signing_certificate:
        from nitroctl.eif import sign

        found["PCR8"] = sign.read_certificate(signing_certificate).pcr8
    if not found:
        raise click.UsageError("name --input, --signing-certificate, --role or --instance-id")
    output.as_aws({name: value.hex() for name, value in found.items()})


@eif.command("test-image")
@click.argument("kind")
@click.option("-o", "--output", type=PATH, required=True, help="EIF to write.")
@click.option("--arch", type=click.Choice(ARCHES), help="Architecture of the enclave.  "
              "[default: that of the kernel file, else this host's]")  # fmt: skip
@click.option("--kernel", help="own, prebuilt, or a path.  [default: own if it was built, "
              "else prebuilt]")  # fmt: skip
@click.option(
    "--programs", type=PATH, help="Folder with static init and applications.  [default: nitroctl's]"
)
@click.option("--cmdline", help="Kernel command line.  [default: AWS's, but panic=1]")
@click.option("--size", default="400M", show_default=True, help="File size of the kind big.")
@json_option()
def test_image(
    kind: str,
    output: Path,
    arch: Arch | None,
    kernel: str | None,
    programs: Path | None,
    cmdline: str | None,
    size: str,
    as_json: bool,
) -> None:
    """Build one of the EIFs that the demo and the tests boot.

    \b
    KIND is one of
      hello         prints the PCRs that its NSM reports, and ends
      agent         obeys the tests, on vsock port 7000
      features      prints what its kernel offers, and ends
      big           the agent, and filling up to --size
      halt          halts after the heartbeat, without a reset
      panic         has an init that ends at once: the kernel panics
      late-panic    has no cmd: init dies after the heartbeat
      no-heartbeat  runs, but never sends a heartbeat
      no-init       has no init: the kernel panics
      no-app        names an application that is not there
    """
    from nitroctl.eif import testimage

    built = testimage.make(
        kind,
        output,
        kernel=kernel,
        programs=testimage.Programs.in_folder(programs) if programs else None,
        cmdline=cmdline,
        size=_size(size),
        arch=arch,
    )
    _show_built(built, as_json)
