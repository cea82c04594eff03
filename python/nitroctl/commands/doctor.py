# SPDX-License-Identifier: MIT
"""`nitroctl doctor`: the findings of `nitroctl.toolchain.doctor` as lines or JSON, and as an exit status."""

from __future__ import annotations

import click

from nitroctl.base import shown
from nitroctl.base.errors import EXIT_FAILURE


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def doctor(as_json: bool) -> int:
    """Say what this host has and lacks, and what mends it.

    Exit status 1 if something is missing that `nitroctl run` needs.
    """
    from nitroctl.toolchain.doctor import examine

    findings = examine()
    if as_json:
        import dataclasses
        import json

        shown.data(json.dumps([dataclasses.asdict(f) for f in findings], indent=2))
    else:
        width = max(len(f.topic) for f in findings)
        for finding in findings:
            mark = {"ok": "ok   ", "slow": "note ", "lacks": "LACKS"}[finding.state]
            shown.echo(f"{mark}  {finding.topic:{width}}  {finding.text}")
            if finding.mend:
                shown.echo(f"       {'':{width}}  -> {finding.mend}")
    lacking = any(f.state == "lacks" and f.needed_to_run for f in findings)
    return EXIT_FAILURE if lacking else 0
