# SPDX-License-Identifier: MIT
"""`nitroctl attest torture`: the torture kit given to a verifier, or as files. Options and output only."""

from __future__ import annotations

import contextlib
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from nitroctl.base import instants, output, progress, shown
from nitroctl.base.errors import UsageError
from nitroctl.base.instants import UTC
from nitroctl.commands import json_option

if TYPE_CHECKING:
    from nitroctl.torture.kit import Kit
    from nitroctl.torture.trial import Judgement, Trial

ADVICE = "It accepted every document: is its exit status (over HTTP, the response's) its verdict?"


def _at(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        at = instants.parse(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as e:
        raise click.BadParameter(f"{value!r} is no time (ISO 8601)") from e


def _checks(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [word for word in value.split(",") if word]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--by", type=click.Choice(["file", "stdin", "http"]), help="How the verifier gets a document.")
@click.option("--url", metavar="URL", help="Post the documents to URL; implies --by http.")
@click.option(
    "--encoding", type=click.Choice(["raw", "base64", "hex"]), default="raw", show_default=True,
    help="Encoding of the documents.",
)  # fmt: skip
@click.option(
    "--only",
    multiple=True,
    metavar="CASE",
    help="Run only this case or pattern, such as 'header-*'; may be repeated.",
)
@click.option(
    "--checks", metavar="LIST", callback=_checks,
    help="What else the verifier compares: time, nonce, pcr0. Default: those that COMMAND or URL contains.",
)  # fmt: skip
@click.option(
    "--allow",
    multiple=True,
    metavar="CASE",
    help="A known fault: report it, but do not fail; may be repeated.",
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=10, show_default=True, metavar="S",
    help="Time limit for each document.",
)  # fmt: skip
@click.option(
    "--seed",
    metavar="TEXT",
    help="Derive the keys from TEXT; with --at the documents are the same bytes each time.",
)
@click.option(
    "--at", metavar="TIME", callback=_at, help="Time at which the documents are valid. Default: now."
)
@click.option("--list", "listed", is_flag=True, help="List the cases, with the expected verdict and why.")
@click.option(
    "--output", "folder", type=click.Path(path_type=Path, readable=False, file_okay=False), metavar="DIR",
    help="Write the documents, the root and an index to a new folder.",
)  # fmt: skip
@json_option()
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
def torture(
    by: str | None,
    url: str | None,
    encoding: str,
    only: tuple[str, ...],
    checks: list[str] | None,
    allow: tuple[str, ...],
    timeout: float,
    seed: str | None,
    at: datetime | None,
    listed: bool,
    folder: Path | None,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Test a verifier of attestation documents with documents that are wrong in one way each, or unusual but
    right, and report what it wrongly accepts and wrongly refuses.

    COMMAND is run once for each document; {document} in it is the document's file, {root} the root
    certificate's, {time}, {nonce} and {pcr0} what to expect. Its exit status is its verdict: 0 accepts. With
    --url, COMMAND is the server, if it is not running.

    Exit status: 0 if every verdict was right, else 1.
    """
    from nitroctl.torture import kit as kits
    from nitroctl.torture import ways

    given = ways.needs(command, url) if checks is None else checks
    everything = kits.names(only)
    kits.names(allow)  # which have to be there
    if listed:
        _list(everything, as_json)
        return 0
    by = by or ("http" if url else "file")
    if (by == "http") != bool(url):
        raise UsageError("--by http and --url URL go together")
    if not command and not url and folder is None:
        raise UsageError(
            "there is no verifier to give documents to",
            hint="nitroctl attest torture -- ./verify {document} --root {root}; or --output DIR for files",
        )
    chosen = kits.names(only, given)
    kit = kits.Kit(seed, at)
    if folder is not None:
        _write(kit, everything, folder, as_json and not (command or url))
    if not command and not url:
        return 0
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nitroctl-torture-")))
        files = ways.Folder(place, kit, cast("ways.Encoding", encoding))
        verifier: ways.Server | ways.Program
        if url:
            verifier = ways.Server(url, files, timeout)
            stack.enter_context(ways.serving(command, files, verifier))
        else:
            verifier = ways.Program(command, files, timeout, stdin=by == "stdin")
        done = _try(kit, chosen, verifier, allow)
    left_out = [name for name in everything if name not in chosen]
    if as_json:
        _report_json(done, kit, by, [*command, *([url] if url else [])], left_out)
    else:
        _report(done, left_out)
    return int(done.failed)


def _try(kit: Kit, chosen: list[str], verifier: Any, allow: tuple[str, ...]) -> Trial:
    from nitroctl.torture import kit as kits
    from nitroctl.torture import trial

    with progress.task("Giving documents to the verifier", unit="steps", total=len(chosen)) as task:
        return trial.run(kit, chosen, verifier, allowed=kits.names(allow) if allow else (), on_case=task.set)


def _list(names: list[str], as_json: bool) -> None:
    from nitroctl.torture.files import described
    from nitroctl.torture.kit import TABLE

    rows = [TABLE[name] for name in names]
    if as_json:
        output.items(described(row) for row in rows)
        return
    output.table(
        [(row.name, row.expected, f"{row.what}: {row.reason} ({row.source})") for row in rows],
        head=("CASE", "EXPECTED", "DOCUMENT"),
    )


def _write(kit: Kit, names: list[str], folder: Path, as_json: bool) -> None:
    from nitroctl.torture import files

    count = files.write(kit, names, folder)
    if as_json:
        path = folder.absolute()
        output.document({"path": path, "index": path / files.INDEX, "documents": count})
    else:
        shown.say(f"{count} documents, their root and {files.INDEX} are in {folder}")


FAULTS = {
    "wrongly accepted": "Accepted, and to be refused",
    "wrongly refused": "Refused, and to be accepted",
    "no verdict": "Neither accepted nor refused",
}


def _report(done: Trial, left_out: list[str]) -> None:
    for kind, title in FAULTS.items():
        for forged, what in ((True, f"{title}: forgeries"), (False, title)):
            _section(what, "bold red", [one for one in done.faults(kind) if one.case.forged == forged])
    _section("Wrong, and allowed", "bold", done.tolerated)
    if either := done.either:
        _section("Either is right; what it said", "bold", either, brief=True)
    if left_out:
        shown.styled((f"Left out ({len(left_out)})", "bold"), ": it is not given what to compare")
        shown.echo(f"  {', '.join(left_out)}", "  {time}, {nonce}, {pcr0} in the command, or --checks", "")
    wrong = sum(len(done.faults(kind)) for kind in FAULTS)
    style = "bold red" if wrong else "bold green"
    shown.styled(
        (f"{len(done.right)} right, {wrong} wrong", style), f", {len(done.either)} where either is right"
    )
    if done.accepts_everything:
        shown.echo(ADVICE)


def _section(title: str, style: str, judgements: list[Judgement], *, brief: bool = False) -> None:
    if not judgements:
        return
    shown.styled((f"{title} ({len(judgements)})", style))
    if brief:
        output.table([(f"  {one.case.name}", one.answer.verdict, one.case.what) for one in judgements])
    else:
        for one in judgements:
            case, answer = one.case, one.answer
            shown.styled("  ", (case.name, "bold"), f": {case.what}")
            shown.echo(f"    {case.expected}: {case.reason} ({case.source})")
            said = f", saying: {shown.line(answer.said, 200)}" if answer.said else ""
            shown.echo(f"    {answer.how}{said}")
    shown.echo()


def _report_json(done: Trial, kit: Kit, by: str, verifier: list[str], left_out: list[str]) -> None:
    from nitroctl.torture.files import described

    output.document(
        {
            "verifier": verifier,
            "by": by,
            "time": f"{kit.time:%FT%TZ}",
            "right": len(done.right),
            **{kind.replace(" ", "_"): [one.case.name for one in done.faults(kind)] for kind in FAULTS},
            "allowed": [one.case.name for one in done.tolerated],
            "either": [one.case.name for one in done.either],
            "left_out": left_out,
            "items": [
                {
                    **described(one.case),
                    "verdict": one.answer.verdict,
                    "fault": one.fault,
                    "how": one.answer.how,
                    "said": one.answer.said,
                    "seconds": round(one.answer.seconds, 3),
                }
                for one in done.judgements
            ],
        }
    )
