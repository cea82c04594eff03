# SPDX-License-Identifier: MIT
"""`nitroctl completion`, and what a shell can be offered: enclaves, image files, references of images.

click writes the scripts, knows commands and options, and asks us for the rest. What is offered here is found
in no time or not at all: nobody waits for a key.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess

import click
from click.shell_completion import CompletionItem, get_completion_class

from nitroctl.base import shown

SHELLS = ("bash", "zsh", "fish")
WHERE = {
    "bash": 'eval "$(nitroctl completion bash)"     # in ~/.bashrc',
    "zsh": 'eval "$(nitroctl completion zsh)"      # in ~/.zshrc, behind compinit',
    "fish": "nitroctl completion fish > ~/.config/fish/completions/nitroctl.fish",
}
LISTING_SECONDS = 2.0
# Where skopeo can look on this machine, and what lists it.
LISTERS = {"docker-daemon:": "docker", "containers-storage:": "podman"}
TRANSPORTS = ("docker://", "oci:", "oci-archive:", "docker-archive:", "dir:", *LISTERS)


@click.command(epilog="\b\n" + "\n".join(WHERE.values()))
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, names of enclaves, image files and references."""
    kind = get_completion_class(shell)
    assert kind
    shown.data(kind(ctx.find_root().command, {}, "nitroctl", "_NITROCTL_COMPLETE").source().strip())


def enclaves(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names; those of enclaves that have ended where the command takes them."""
    from nitroctl.base.errors import NitroError
    from nitroctl.enclaves import records

    ended = ctx.command.name in ("inspect", "console", "logs", "wait", "rm")
    try:
        found = records.every() if ended else records.running()
    except NitroError:
        return []
    names = {r.name: f"CID {r.cid}, {r.state}" if r.running else f"{r.state} ({r.ending})" for r in found}
    return [CompletionItem(name, help=help) for name, help in names.items() if name.startswith(incomplete)]


def eifs(incomplete: str) -> list[CompletionItem]:
    """*.eif; any file where there is none."""
    start = os.path.expanduser(incomplete)
    found = [path for path in sorted(glob.glob(f"{glob.escape(start)}*.eif")) if os.path.isfile(path)]
    names = [incomplete + path[len(start) :] for path in found]
    return [*map(CompletionItem, names)] or [CompletionItem(incomplete, type="file")]


def images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Transports; behind those of local engines their images; else files."""
    for transport, program in LISTERS.items():
        if incomplete.startswith(transport) and shutil.which(program):
            return [
                CompletionItem(transport + name)
                for name in _listed(program)
                if (transport + name).startswith(incomplete)
            ]
    found = [CompletionItem(name) for name in TRANSPORTS if incomplete and name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _listed(program: str) -> list[str]:
    argv = [program, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LISTING_SECONDS
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return [name for name in done.stdout.split() if "<none>" not in name]
