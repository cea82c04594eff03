# SPDX-License-Identifier: MIT
"""Where things are: our own sources, and the user's folders for caches, keys, records and sockets.

Only paths. Nothing here creates a file except `private_dir`, which makes a folder that only the user can
enter. The folders follow the XDG Base Directory specification.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs

from nitroctl.base.errors import NitroError

APP = "nitroctl"

# sockaddr_un.sun_path is 108 bytes with its NUL (unix(7)).
UNIX_PATH_MAX = 107


def cache_dir() -> Path:
    """What can be made again: sources, builds, kernels, images."""
    return _own(platformdirs.user_cache_path)


def data_dir() -> Path:
    """What must not be lost: the local CA and its keys."""
    return _own(platformdirs.user_data_path)


def state_dir() -> Path:
    """Logs and records of enclaves."""
    return _own(platformdirs.user_state_path)


def _own(folder: Callable[[str], Path]) -> Path:
    try:
        return folder(APP)
    except RuntimeError as e:  # a container's user without a name
        raise NitroError(f"user {os.getuid()} has no home folder", hint="set HOME to one") from e


def runtime_dir() -> Path:
    """Sockets of running enclaves: short, private, gone with the session.

    `$XDG_RUNTIME_DIR/nitroctl`; where that is not set (CI runners, su), `/tmp/nitroctl-UID`. The
    folder is made if needed and refused if somebody else owns it or can enter it.
    """
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(value) and os.path.isdir(value) and os.access(value, os.W_OK | os.X_OK):
        return private_dir(Path(value) / APP)
    import tempfile

    return private_dir(Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}")


def private_dir(path: Path) -> Path:
    """Make `path` with mode 0700 and return it; raise NitroError if it is not safely ours."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as e:
        hint = "`nitroctl doctor` says which folders can be written to, and what mends that"
        raise NitroError(f"cannot make the folder {path}: {e.strerror}", hint=hint) from e
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise NitroError(
            f"{path} must be a folder of user {os.getuid()} with mode 0700; it has owner "
            f"{status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            hint="remove it, or set XDG_RUNTIME_DIR to a private folder",
        )
    return path


def source_root() -> Path:
    """The folder that holds hw/, contrib/, guest/ and graft/: the checkout, or the copy in the wheel."""
    here = Path(__file__).resolve().parents[1]
    for root in (here.parents[1], here / "source"):
        if (root / "graft").is_dir() and (root / "Kconfig").is_file():
            return root
    raise NitroError(
        f"nitroctl's C sources are neither in {here.parents[1]} nor in {here / 'source'}",
        hint="reinstall nitroctl, or run it from a checkout",
    )


def in_checkout() -> bool:
    """True where nitroctl runs from a source checkout, whose files may change between two calls."""
    return source_root() == Path(__file__).resolve().parents[3]


def default_prefix() -> Path:
    """Where `nitroctl build` links programs: the virtual environment, else ~/.local."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix)
    return Path.home() / ".local"
