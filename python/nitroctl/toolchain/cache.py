# SPDX-License-Identifier: MIT
"""The cache of what can be made again: folders named by kind and by the content that went into them.

    cache_dir()/KIND/KEY/        one finished entry; or a folder that its owner keeps up to date in place
    cache_dir()/KIND/.KEY.*/     being built, or left by a build that was killed; the next one removes it
    cache_dir()/.locks/          one file per entry, locked (`locks`) while it is built
    cache_dir()/.current/NAME    "KIND/KEY": the entry that NAME means today; `prune` keeps exactly these
    cache_dir()/.logs/           logs of failed and finished steps

An entry appears by one rename, so it is either whole or absent, whatever was killed and when. Nothing here
knows what the entries hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nitroctl.base import atomic, files, locks, progress
from nitroctl.base.arch import Arch
from nitroctl.base.config import cache_dir, data_dir
from nitroctl.base.errors import NitroError
from nitroctl.base.place import place

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

_NAME = r"[A-Za-z0-9][A-Za-z0-9._+~:@=-]*"


def _checked(name: str) -> str:
    """A kind or key is one plain path component; anything else is a bug of the caller's."""
    if not re.fullmatch(_NAME, name) or len(name) > 200:
        raise ValueError(f"not a cache name: {name!r}")
    return name


def named(what: str, arch: Arch) -> str:
    """The name of a kind of the cache's for this architecture."""
    return what if arch == "x86_64" else f"{what}-{arch}"


def entry(kind: str, key: str) -> Path:
    """Where the entry is, or will be."""
    return cache_dir() / _checked(kind) / _checked(key)


def log_path(name: str) -> Path:
    """A log file of its own, which outlives a failed build. The folder is made, the file is not."""
    path = cache_dir() / ".logs" / f"{_checked(name)}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# --- locks -----------------------------------------------------------------------------------------------


def _lock_file(kind: str, key: str) -> Path:
    return cache_dir() / ".locks" / f"{_checked(kind)}@{_checked(key)}"


@contextlib.contextmanager
def lock(kind: str, key: str, *, wait: bool = True) -> Iterator[int]:
    """Hold the entry's lock while the body runs; yields its descriptor, -1 if it is taken and not `wait`."""
    path = _lock_file(kind, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = locks.take(path, wait=False)
    if fd is None and wait:
        progress.say(f"waiting for another nitroctl that works on {kind}/{key}")
        fd = locks.take(path)
    if fd is None:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)  # a child that was given it goes on holding it


# --- entries ---------------------------------------------------------------------------------------------


def set_current(name: str, kind: str, key: str) -> None:
    """Say that `name` now means this entry, so that `prune` keeps it and drops its predecessors."""
    pointer = cache_dir() / ".current" / _checked(name)
    text = f"{kind}/{key}\n"
    with contextlib.suppress(OSError):
        if pointer.read_text() == text:
            return
    write_text(pointer, text)


def current(name: str) -> Path | None:
    """The entry that `name` means, if it is there."""
    with contextlib.suppress(OSError):
        kind, _, key = (cache_dir() / ".current" / _checked(name)).read_text().strip().partition("/")
        path = entry(kind, key)
        if path.is_dir():
            return path
    return None


def _remains(kind: str, key: str) -> list[Path]:
    """What killed builds of this entry left. To be touched only under its lock."""
    folder = cache_dir() / kind
    return [p for p in folder.glob(f".{key}.*") if p.name.removeprefix(f".{key}.").count(".") == 0]


def build_entry(kind: str, key: str, fill: Callable[[Path], None], *, name: str | None = None) -> Path:
    """The entry's folder, made by `fill(folder)` if it is not there yet.

    `fill` works in a folder aside on the same file system; when it returns, the folder is renamed into
    place. When it raises, nothing is left. One process builds, others wait for it. `name` is what stays
    the same when the key changes (the kind, unless given): `prune` keeps the entry that a name used last.
    """
    final = entry(kind, key)
    if not final.is_dir():
        with lock(kind, key):
            if not final.is_dir():
                for old in _remains(kind, key):
                    with progress.task(f"Removing {old.name}, which a build left that was killed"):
                        shutil.rmtree(old)
                final.parent.mkdir(parents=True, exist_ok=True)
                with place(final), atomic.folder(final, mode=0o700) as aside:
                    fill(aside)
                    aside.chmod(0o755)
    set_current(name or kind, kind, key)
    return final


# --- keys and small files --------------------------------------------------------------------------------


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            if child.name != "__pycache__":
                yield from _files_of(child)
    else:
        yield path


def digest_files(paths: Iterable[Path], *, root: Path | None = None) -> str:
    """SHA-256 (hex) of names, execute bits and contents of files, folders included with all they hold.

    Names are taken relative to `root` where it is given, so that two checkouts with one content agree.
    """
    import hashlib

    digest = hashlib.sha256()
    for path in paths:
        for file in _files_of(path):
            name = os.fspath(file.relative_to(root) if root else file).encode()
            content = file.read_bytes()
            mode = b"x" if os.access(file, os.X_OK) else b"-"
            digest.update(b"%d:%s%s%d:" % (len(name), name, mode, len(content)))
            digest.update(content)
    return digest.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of one file's content, streamed."""
    with open(path, "rb") as f:
        return files.digest(f, "sha256").hexdigest()


def digest_text(*parts: str) -> str:
    """SHA-256 (hex) of a list of strings; no two different lists have the same text."""
    import hashlib

    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none: aside, then renamed over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with place(path):
        atomic.write(path, text.encode(), mode=0o644)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if it is not there or is not one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_record(kind: type[Record], path: Path) -> Record | None:
    """A dataclass from the JSON object that holds its fields; None where one is missing, or the file is."""
    data = read_json(path)
    if data is None:
        return None
    try:
        return kind(**{field.name: data[field.name] for field in dataclasses.fields(kind)})
    except KeyError:
        return None


# --- disk ------------------------------------------------------------------------------------------------


def free_space(path: Path | None = None) -> int:
    """Bytes that we may still write where `path` (the cache, unless given) is or will be."""
    where = path or cache_dir()
    while not where.exists():
        where = where.parent
    return shutil.disk_usage(where).free


def need_space(size: int, *, what: str = "this", path: Path | None = None) -> None:
    """Raise NitroError unless `size` bytes fit on the cache's disk."""
    free = free_space(path)
    if free < size:
        where = path or cache_dir()
        raise NitroError(
            f"{what} needs {progress.amount(size, 'bytes')} of disk; {where} has "
            f"{progress.amount(free, 'bytes')} free",
            hint="make room (`nitroctl cache prune` drops what is out of date), or set XDG_CACHE_HOME "
            "to a folder on a larger disk",
        )


# --- listing and cleaning --------------------------------------------------------------------------------


class Entry(NamedTuple):
    kind: str
    key: str
    size: int  # bytes on disk
    modified: float  # seconds since the epoch, when it was finished or last kept up to date
    names: tuple[str, ...]  # what means this entry today; empty: prune would remove it
    finished: bool  # False: what a killed build left

    @property
    def path(self) -> Path:
        return cache_dir() / self.kind / self.key

    @property
    def age(self) -> float:
        return max(0.0, time.time() - self.modified)


def _size(path: Path) -> int:
    """Bytes on disk below `path`; a file that disappears meanwhile counts nothing."""
    total = 0
    pending = [os.fspath(path)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as children:
            for child in children:
                with contextlib.suppress(OSError):
                    total += child.stat(follow_symlinks=False).st_blocks * 512
                    if child.is_dir(follow_symlinks=False):
                        pending.append(child.path)
    return total


def _names() -> dict[str, list[str]]:
    """KIND/KEY -> the names that mean it."""
    names: dict[str, list[str]] = {}
    folder = cache_dir() / ".current"
    if folder.is_dir():
        for pointer in sorted(folder.iterdir()):
            if not pointer.name.startswith("."):
                names.setdefault(pointer.read_text().strip(), []).append(pointer.name)
    return names


def entries() -> list[Entry]:
    """All entries, and what killed builds left, sorted by kind and key."""
    names = _names()
    found = []
    root = cache_dir()
    for kind in sorted(root.iterdir()) if root.is_dir() else []:
        if kind.name.startswith(".") or not kind.is_dir():
            continue
        for path in sorted(kind.iterdir()):
            found.append(
                Entry(
                    kind=kind.name,
                    key=path.name,
                    size=_size(path) if path.is_dir() else path.lstat().st_size,
                    modified=path.lstat().st_mtime,
                    names=tuple(names.get(f"{kind.name}/{path.name}", ())),
                    finished=not path.name.startswith("."),
                )
            )
    return found


def _remove(path: Path) -> None:
    """Remove an entry so that it is gone at once: renamed out of sight first, then deleted."""
    if path.is_dir() and not path.is_symlink():
        if path.name.startswith("."):
            shutil.rmtree(path)
        else:
            atomic.remove(path)
    else:
        path.unlink()


def remove(items: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries; returns those removed, and those that a running nitroctl is working on."""
    cache = cache_dir().resolve()
    data = data_dir().resolve()
    if data == cache or cache in data.parents:
        raise NitroError(
            f"the keys in {data} lie inside the cache {cache}; nothing was removed",
            hint="set XDG_CACHE_HOME and XDG_DATA_HOME to different folders",
        )
    removed, busy = [], []
    for item in items:
        # ".KEY.random" is locked by KEY.
        key = item.key if item.finished else item.key[1:].rpartition(".")[0]
        with lock(item.kind, key or item.key.strip("."), wait=False) as held:
            if held < 0:
                busy.append(item)
                continue
            with contextlib.suppress(FileNotFoundError):
                _remove(item.path)
            removed.append(item)
    for kind in {item.kind for item in removed}:
        with contextlib.suppress(OSError):
            (cache_dir() / kind).rmdir()
    return removed, busy


def prune() -> tuple[list[Entry], list[Entry]]:
    """Remove what no name means any more, and what killed builds left."""
    return remove([e for e in entries() if not e.names])


def clean() -> tuple[list[Entry], list[Entry]]:
    """Remove every entry."""
    removed, busy = remove(entries())
    if not busy:
        for folder in (".current", ".logs"):
            shutil.rmtree(cache_dir() / folder, ignore_errors=True)
    return removed, busy
