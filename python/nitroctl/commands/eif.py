# SPDX-License-Identifier: MIT
"""`nitroctl eif ...`: arguments and output of the EIF tools. The work is done in `nitroctl.eif`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nitroctl.eif.build import Built
    from nitroctl.eif.measure import Measurements

_FILE = click.Path(path_type=Path)  # existence is judged where the file is opened, with the reason


@click.group()
def eif() -> None:
    """Make, measure and describe Enclave Image Files."""


def _show_json(value: Any) -> None:
    """As nitro-cli prints: two spaces of indentation, text as it is."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair in somebody's metadata
        text = json.dumps(value, indent=2)
    click.echo(text)


def _show_built(built: Built, as_json: bool) -> None:
    for warning in built.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        _show_json({"Measurements": built.measurements.to_json()})
        return
    from nitroctl.progress import amount

    click.echo(f"Wrote {built.path} ({amount(built.size, 'bytes')}).")
    _show_measurements(built.measurements)


def _show_measurements(measurements: Measurements) -> None:
    for name, value in measurements.items():
        click.echo(f"{name:9}  {value}")


def _size(text: str) -> int:
    """400M, 2G, or bytes."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    digits, shift = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 0)
    if not digits.isascii() or not digits.isdigit():
        raise click.BadParameter(f"{text!r} is not a size like 400M")
    return int(digits) << shift


@eif.command()
@click.option("--kernel", type=_FILE, required=True, help="An x86 bzImage.")
@click.option("--cmdline", required=True, help="The kernel's command line.")
@click.option("--ramdisk", "ramdisks", type=_FILE, multiple=True, help="A cpio archive; may be repeated.")
@click.option("-o", "--output", type=_FILE, required=True, help="The file to make.")
@click.option("--name", help="The image's name in its metadata.  [default: the kernel's file name]")
@click.option("--version", default="1.0", show_default=True, help="The image's version in its metadata.")
@click.option("--metadata", type=_FILE, help="JSON file (up to 4 KiB) for the image's custom metadata.")
@click.option(
    "--build-time", help='RFC 3339 or "now".  [default: SOURCE_DATE_EPOCH, else 1970, so that builds repeat]'
)
@click.option("--no-kernel-check", is_flag=True, help="Take any file for the kernel.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as nitro-cli does.")
def build(
    kernel: Path,
    cmdline: str,
    ramdisks: tuple[Path, ...],
    output: Path,
    name: str | None,
    version: str,
    metadata: Path | None,
    build_time: str | None,
    no_kernel_check: bool,
    as_json: bool,
) -> None:
    """Put kernel, command line and ramdisks into an EIF and print its measurements.

    The first ramdisk is the bootstrap's (PCR1), the others are the application's (PCR2).
    """
    import os

    from nitroctl import progress
    from nitroctl.eif import build as building

    progress.set_quiet(as_json)
    kernel_version = "Unknown" if no_kernel_check else building.read_kernel(kernel).version
    request = building.BuildRequest(
        kernel=kernel,
        cmdline=os.fsencode(cmdline),
        ramdisks=ramdisks,
        metadata=building.Metadata(
            image_name=kernel.name if name is None else name,
            image_version=version,
            build_time=building.parse_build_time(build_time) if build_time else "",
            kernel_version=kernel_version,
            custom=building.read_custom_metadata(metadata) if metadata else None,
        ),
        check_kernel=not no_kernel_check,
    )
    _show_built(building.build(request, output), as_json)


@eif.command()
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print what `nitro-cli describe-eif` prints.")
def describe(file: Path, as_json: bool) -> None:
    """Say what an EIF is: sections, metadata, checksum, signature, PCRs."""
    from nitroctl import progress
    from nitroctl.eif.describe import describe, table

    progress.set_quiet(as_json)
    description = describe(file)
    if as_json:
        if description.metadata_error:
            click.echo(f"warning: the metadata are not readable: {description.metadata_error}", err=True)
        _show_json(description.to_json())
        return
    import sys

    from rich.console import Console

    # The PCRs are longer than a terminal is wide; printed plainly they can still be copied.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table(description))
    _show_measurements(description.measurements)


@eif.command("test-image")
@click.argument("kind")
@click.option("-o", "--output", type=_FILE, required=True, help="The file to make.")
@click.option("--kernel", default="own", show_default=True, help="own, prebuilt, or the path of a bzImage.")
@click.option("--programs", type=_FILE, help="Folder with static init, hello and agent.  [default: ours]")
@click.option("--cmdline", help="The kernel's command line.  [default: AWS's, but panic=1]")
@click.option("--size", default="400M", show_default=True, help="Size of the kind big.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as nitro-cli does.")
def test_image(
    kind: str, output: Path, kernel: str, programs: Path | None, cmdline: str | None, size: str, as_json: bool
) -> None:
    """Make one of the EIFs that the demo and the tests boot.

    \b
    KIND is one of
      hello         prints the PCRs that its NSM reports, and ends
      agent         obeys the tests, on vsock port 7000
      big           the agent, and filling up to --size
      halt          halts after the heartbeat, without a reset
      panic         has an init that ends at once: the kernel panics
      late-panic    has no cmd: init dies after the heartbeat
      no-heartbeat  runs, but never sends a heartbeat
      no-init       has no init: the kernel panics
      no-app        names an application that is not there
    """
    from nitroctl import progress
    from nitroctl.eif import testimage

    progress.set_quiet(as_json)
    built = testimage.make(
        kind,
        output,
        kernel=kernel,
        programs=testimage.Programs.in_folder(programs) if programs else None,
        cmdline=testimage.CMDLINE if cmdline is None else cmdline,
        size=_size(size),
    )
    _show_built(built, as_json)
