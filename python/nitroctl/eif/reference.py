# SPDX-License-Identifier: MIT
"""Where a container image is, as users write it: a path, perhaps followed by a name, or a reference.

app.tar, oci:DIR and dir:DIR are read in place; app.tar:1.2 and oci-archive:FILE:NAME choose one of several
images; docker://NAME and the like are fetched by skopeo first (containers-transports(5)).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base import proc, progress
from nitroctl.base.arch import Arch, facts
from nitroctl.base.errors import NitroError

# Transports whose reference is a path, which are read without skopeo.
_PATHS = re.compile(r"(?:dir|docker-archive|oci|oci-archive):(.+)")
_REMOTE = re.compile(r"[a-z-]+://|(?:containers-storage|docker-daemon):")


@dataclass(frozen=True)
class Located:
    """An image's file or folder, and which of several in it."""

    path: Path
    name: str | None = None


def is_reference(text: str) -> bool:
    """Whether the text begins with one of skopeo's transports."""
    return bool(_PATHS.match(text) or _REMOTE.match(text))


def located(text: str) -> Located:
    """Split a path, perhaps after a transport and perhaps followed by :NAME. Raises NitroError if there is
    nothing at a path that follows a transport; a plain path need not exist."""
    if os.path.exists(text):
        return Located(Path(text))
    match = _PATHS.fullmatch(text)
    rest = match[1] if match else text
    if match and os.path.exists(rest):
        return Located(Path(rest))
    for colon in re.finditer(":", rest):
        path = Path(rest[: colon.start()])
        if colon.start() and (path.exists() if match else _holds_images(path)):
            return Located(path, rest[colon.end() :] or None)
    if match:
        raise NitroError(f"cannot read the image {text}: there is no file or folder {rest}")
    return Located(Path(text))


def _holds_images(path: Path) -> bool:
    """Whether the path is an OCI layout or a tar. If not, app:1.2 is an image's name, and app may be a
    program."""
    if path.is_dir():
        return (path / "oci-layout").is_file() or (path / "index.json").is_file()
    if not path.is_file():
        return False  # opening a pipe would wait
    try:
        with open(path, "rb") as f:
            return f.read(262)[257:] == b"ustar"
    except OSError:
        return False


@contextmanager
def fetched(
    text: str, scratch: Path | None = None, *, platform: str | None = None, arch: Arch | None = None
) -> Iterator[Located]:
    """The image's place; an image that skopeo fetches is below `scratch` during the `with` body. `arch` says
    which of several architectures to fetch, by default the host's."""
    if not _REMOTE.match(text) or os.path.exists(text):
        yield located(text)
        return
    if not shutil.which("skopeo"):
        raise NitroError(
            f"fetching {text} needs skopeo", hint="apt-get install skopeo, or save the image to a file"
        )
    hint = None
    if text.startswith("docker://"):
        hint = "for a registry without TLS see registries.conf(5), for a password `skopeo login`"
    copy = ["skopeo", "copy", "--override-os=linux"]
    copy.append(f"--override-arch={facts(arch or arches.default()).debian}")
    if platform and platform.count("/") == 2:
        copy.append(f"--override-variant={platform.rpartition('/')[2]}")
    with tempfile.TemporaryDirectory(prefix="nitroctl-", dir=scratch) as folder:
        layout = Path(folder) / "image"
        with progress.task(f"Fetching {text}") as task:
            argv = [*copy, text, f"oci:{layout}:{_tagged(text)}"]
            proc.run(argv, on_line=lambda line: task.set(task.done, note=line), hint=hint)
        yield Located(layout)


def _tagged(reference: str) -> str:
    """The image's own name in a reference, for the layout that it is copied to: NAME:TAG, or "image"."""
    name = reference.partition("@")[0]
    for transport in ("docker://", "docker-daemon:", "containers-storage:"):
        if name.startswith(transport):
            name = name.removeprefix(transport)
            return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return "image"
