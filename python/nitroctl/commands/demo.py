# SPDX-License-Identifier: MIT
"""`nitroctl demo`: run `nitroctl.commands.demonstration` and show its comparison."""

from __future__ import annotations

from pathlib import Path

import click

from nitroctl.base import shown
from nitroctl.base.errors import EXIT_FAILURE
from nitroctl.commands import NEW_FILE


@click.command()
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    default=Path("hello.eif"),
    show_default=True,
    help="Where to write the image.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Parallel compile jobs.")
def demo(output: Path, jobs: int | None) -> int:
    """Build what is missing, run a hello enclave, and check its measurements.

    Exit status 0 only if the PCRs that it read from its NSM are those computed from its file, and its
    attestation document verifies under the local CA.
    """
    from nitroctl.commands import demonstration as steps

    steps.prepare(output, jobs=jobs)
    outcome = steps.run(output)
    shown.echo()
    shown.echo(f"What the application read from its NSM, and what `nitroctl eif describe {output}` computes:")
    for pcr in outcome.pcrs:
        shown.echo(f"{pcr.name}  NSM   {pcr.enclave or 'not printed'}")
        shown.echo(f"      file  {pcr.file}  {'equal' if pcr.equal else 'DIFFERENT'}")
    if not all(pcr.equal for pcr in outcome.pcrs):
        return EXIT_FAILURE
    shown.echo("All equal, and its attestation document verifies under your local CA. By hand:")
    shown.echo(f"  nitroctl run {output}")
    shown.echo(f"  nitroctl attest verify {outcome.path} --eif {output}")
    return 0
