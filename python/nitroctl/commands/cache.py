# SPDX-License-Identifier: MIT
"""`nitroctl cache`: what has been downloaded and built, how large it is, and how to be rid of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from nitroctl.base import output, shown
from nitroctl.base.errors import NitroError
from nitroctl.commands import json_option

if TYPE_CHECKING:
    from nitroctl.toolchain.cache import Entry

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


@click.group()
def cache() -> None:
    """List and clean what has been downloaded and built.

    Keys and certificates are not in the cache and are never touched.
    """


def _age(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def _state(entry: Entry) -> str:
    if not entry.finished:
        return "interrupted"
    return "current" if entry.names else "out of date"


@cache.command()
@json_option()
def ls(as_json: bool) -> None:
    """List the entries: kind, size, age, whether they are in use."""
    from nitroctl.base.config import cache_dir
    from nitroctl.base.progress import amount
    from nitroctl.toolchain import cache as store

    found = store.entries()
    if as_json:
        output.items(
            {"kind": e.kind, "key": e.key, "path": e.path, "size": e.size, "age_seconds": round(e.age),
             "state": _state(e), "names": e.names}
            for e in found
        )  # fmt: skip
        return
    rows = [(e.kind, amount(e.size, "bytes"), _age(e.age), _state(e), e.key) for e in found]
    output.table(rows, head=("KIND", "SIZE", "AGE", "STATE", "KEY"), right={1, 2})
    shown.echo(f"{amount(sum(e.size for e in found), 'bytes')} in {cache_dir()}")


def _report(removed: Sequence[Entry], busy: Sequence[Entry]) -> None:
    from nitroctl.base.progress import amount

    for entry in removed:
        shown.echo(f"removed {entry.kind}/{entry.key} ({amount(entry.size, 'bytes')})")
    shown.echo(f"{amount(sum(e.size for e in removed), 'bytes')} freed")
    if busy:
        names = ", ".join(f"{e.kind}/{e.key}" for e in busy)
        raise NitroError(f"in use by another nitroctl, and kept: {names}", hint="try again when it is done")


@cache.command()
def prune() -> None:
    """Remove what is out of date, and what interrupted builds left."""
    from nitroctl.toolchain import cache as store

    _report(*store.prune())


@cache.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(yes: bool) -> None:
    """Remove everything in the cache. The next build starts from nothing."""
    import sys

    from nitroctl.base.config import cache_dir
    from nitroctl.base.progress import amount
    from nitroctl.toolchain import cache as store

    found = store.entries()
    size = amount(sum(e.size for e in found), "bytes")
    if not yes:
        if not sys.stdin.isatty():
            raise NitroError(
                "nobody to ask: standard input is no terminal", hint="nitroctl cache clean --yes"
            )
        click.confirm(f"Remove {len(found)} entries, {size}, from {cache_dir()}?", abort=True)
    _report(*store.clean())
