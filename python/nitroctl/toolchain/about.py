# SPDX-License-Identifier: MIT
"""Which nitroctl this is, and which QEMU it takes: from files, nothing is started for it."""

from __future__ import annotations

from pathlib import Path

from nitroctl.base.errors import NitroError
from nitroctl.toolchain import bundle, plugin, tree

ROOT = Path(__file__).resolve().parents[3]


def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout, or the one that the wheel was made from; None where nothing tells."""
    try:
        return bundle.commit() or _head(root / ".git")
    except (OSError, NitroError, UnicodeDecodeError):
        return None


def _head(git: Path) -> str | None:
    """What HEAD is, as gitrepository-layout(5) has it; of a worktree as well."""
    if git.is_file():
        git = git.parent / git.read_text().removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
    for place in (git, common):
        if (place / name).is_file():
            return (place / name).read_text().strip()
    for line in (common / "packed-refs").read_text().splitlines():
        if line.endswith(f" {name}"):
            return line.split()[0]
    return None


def qemu() -> str:
    """Where it is and of which version, or what makes one."""
    try:
        path = plugin.in_use()
    except NitroError as e:
        return f"none yet: {e.hint or e.message}"
    return f"{_version(path)}, {path}" if _version(path) else str(path)


def _version(path: Path) -> str | None:
    built, other, own = plugin.manifest(), bundle.installed_qemu(), tree.manifest()
    if built and built.launcher == path:
        return f"{built.package} {built.version} with the plugin"
    if other and other.path == path:
        return f"{other.version}, came with nitroctl"
    if own and own.qemu == path:
        return own.version
    return None
