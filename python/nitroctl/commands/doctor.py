# SPDX-License-Identifier: MIT
"""`nitroctl doctor`: the findings of `nitroctl.toolchain.doctor` as lines or JSON, and as an exit status."""

from __future__ import annotations

import click

from nitroctl.base import output
from nitroctl.base.errors import EXIT_FAILURE
from nitroctl.commands import json_option


@click.command()
@json_option()
def doctor(as_json: bool) -> int:
    """Check what this host has and what it lacks; each finding comes with the command that fixes it.

    Exit status 1 if something is missing that `nitroctl run` needs.
    """
    from nitroctl.toolchain.doctor import examine

    findings = examine()
    if as_json:
        import dataclasses

        output.items(dataclasses.asdict(f) for f in findings)
    else:
        rows: list[tuple[str, str, str]] = []
        for finding in findings:
            mark = {"ok": "ok", "slow": "note", "lacks": "LACKS"}[finding.state]
            rows.append((mark, finding.topic, finding.text))
            if finding.mend:
                rows.append(("", "", f"-> {finding.mend}"))
        output.table(rows)
    lacking = any(f.state == "lacks" and f.needed_to_run for f in findings)
    return EXIT_FAILURE if lacking else 0
