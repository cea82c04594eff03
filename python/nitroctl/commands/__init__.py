# SPDX-License-Identifier: MIT
"""One module per command: options and output only; the work is in the package's other modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from nitroctl.base.arch import ARCHES, Arch, named

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from click.shell_completion import CompletionItem


# A path of the user's. What is wrong with it is said where it is opened, with the reason and always the same
# status, be it missing, unreadable or a folder; click would judge some of that as wrong usage.
class _NewFile(click.Path):
    """A pathlib.Path, which is imported when there is one."""

    def coerce_path_result(self, value: str | os.PathLike[str]) -> Path:
        from pathlib import Path

        return Path(value)


class _File(_NewFile):
    """A path; where it is an image's, a shell is offered those first."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if param.name in ("file", "eif", "eifs", "a", "b"):
            from nitroctl.commands.completion import eifs

            return eifs(incomplete)
        return super().shell_complete(ctx, param, incomplete)


PATH = _File(readable=False)
NEW_FILE = _NewFile(readable=False, dir_okay=False)
# A text, as it was typed: a Path forgets the slash of "./name", and a name without one is looked for in PATH.
PROGRAM = click.Path(readable=False)


def enclave_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell is offered for the name of an enclave."""
    from nitroctl.commands.completion import enclaves

    return enclaves(ctx, param, incomplete)


def image_references(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """And for a container image."""
    from nitroctl.commands.completion import images

    return images(ctx, param, incomplete)


Command = TypeVar("Command", bound=Callable[..., object])


def _arch(ctx: click.Context, _: click.Parameter, value: str | None) -> Arch | None:
    if value is None:
        return None
    if (found := named(value)) is None:
        raise click.BadParameter(f"{value!r} is neither of {', '.join(ARCHES)}")
    return found


def arch_option(command: Command) -> Command:
    """The option --arch, `arch` for the command; amd64 and arm64 are taken, too."""
    return click.option(
        "--arch",
        metavar=f"[{'|'.join(ARCHES)}]",
        callback=_arch,
        help="What enclaves it is for. Default: those of this host's architecture.",
    )(command)


class Session:
    """What `cli` and the command that it runs know of each other: `ctx.obj`."""

    def __init__(self) -> None:
        self.as_json = False  # whoever called wants JSON, of a failure as well


def answers_json(ctx: click.Context) -> None:
    """The command's answer is JSON: until it ends no progress is shown, and `cli` tells a failure in JSON."""
    from nitroctl.base import progress

    ctx.with_resource(progress.quiet())
    if isinstance(ctx.obj, Session):
        ctx.obj.as_json = True


def _json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        answers_json(ctx)
    return value


def json_option(help: str = "JSON on standard output.") -> Callable[[Command], Command]:
    """The option --json, `as_json` for the command. It comes first: what is wrong with another option is told
    in JSON already."""
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=_json, help=help)
