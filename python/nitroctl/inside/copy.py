# SPDX-License-Identifier: MIT
"""Files between a guest and this host, as tars that busybox makes and unpacks in the guest.

What comes out of a guest comes from a stranger. It is taken into a file aside, bounded, and unpacked into a
new folder beside its target, which is then renamed; so nothing that was there before is gone through. A name
that leads out of the copy is refused; links that do, devices and the like are left out, and told. Owners and
set-user-ID bits do not come along.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from nitroctl.base import atomic, shown
from nitroctl.base.errors import EnclaveError, NitroError
from nitroctl.base.memory import MIB
from nitroctl.base.place import place
from nitroctl.eif import tar
from nitroctl.enclaves.records import Record
from nitroctl.inside import agent

ENTRIES_MAX = 1_000_000
_PIECE = 1 << 16

Note = Callable[[str], None]


def guest_path(text: str) -> str:
    """Absolute, without "." and ".."; what is relative is meant from the root."""
    return posixpath.normpath(posixpath.join("/", text)).replace("//", "/")


def out(record: Record, path: str, target: Path, *, limit: int | None = None, note: Note) -> Path:
    """Copy a file or folder out of a guest to `target`, into it if that is a folder; returns what has
    appeared. `limit`: bytes, the enclave's memory unless given. A file that is there is replaced, a folder
    is not. Raises NitroError."""
    whole = guest_path(path)
    parent, base = posixpath.split(whole)
    if target.is_dir():
        if not base:
            raise NitroError("the guest's whole root has no name of its own", hint="name a new folder")
        final = target / base
    else:
        final = target
    if final.is_dir() and not final.is_symlink():
        raise NitroError(f"{final} is a folder that is there already", hint="remove it, or name another one")
    most = record.memory_mib * MIB if limit is None else limit
    aside = atomic.aside(final)
    with place(final):
        aside.mkdir(0o700)
    try:
        with place(final), tempfile.TemporaryFile(dir=aside) as archive:
            _fetch(record, parent, base or ".", archive, most)
            archive.seek(0)
            made = _unpack(
                archive, aside, base or ".", f"what the guest sent of {shown.line(whole, 200)}", note
            )
        if not os.path.lexists(made):
            raise NitroError(f"{shown.line(whole, 200)} is neither a file nor a folder that can be copied")
        with place(final):
            os.replace(made, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _fetch(record: Record, parent: str, base: str, archive: IO[bytes], limit: int) -> None:
    size = 0

    def take(data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > limit:
            raise EnclaveError(
                f"{posixpath.join(parent, base)} of enclave {record.name} has more than {limit / MIB:g} MiB",
                hint="--limit allows more",
                record=record,
            )
        archive.write(data)

    command = agent.Command(record, ["tar", "-C", parent, "-cf", "-", "--", base], busybox=True)
    if command.run(sink=take):
        raise EnclaveError(f"enclave {record.name}: {command.reason}", record=record)


def _unpack(archive: IO[bytes], into: Path, base: str, what: str, note: Note) -> Path:
    """Unpack the archive's only file or folder below a folder that nobody else writes to; where that is."""
    os.mkdir(into / "tree")
    root = os.open(into / "tree", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    modes: list[tuple[bytes, int]] = []
    try:
        members = tar.members(archive)
        for number in itertools.count():
            with tar.damage(what):
                found = next(members, None)
            if found is None:
                break
            if number == ENTRIES_MAX:
                raise NitroError(f"{what} has more than {ENTRIES_MAX} files")
            file, member = found
            if (why := _put(root, _parts(member.name), file, member, modes)) is not None:
                note(f"left out: {member.name}: {why}")
        for name, mode in reversed(modes):  # last, since others are made in them
            os.chmod(name, mode, dir_fd=root)
    finally:
        os.close(root)
    return into / "tree" if base == "." else into / "tree" / base


def _parts(name: str) -> list[bytes]:
    parts = [part for part in os.fsencode(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts or name.startswith("/") or any(len(part) > 255 for part in parts):
        raise NitroError(f"the guest sent a file with the name {shown.line(name, 300)}")
    return parts


def _put(
    root: int,
    parts: list[bytes],
    file: tarfile.TarFile,
    member: tarfile.TarInfo,
    modes: list[tuple[bytes, int]],
) -> str | None:
    """Make one file; why not, if it is left out. Whatever is made is new; no link is gone through."""
    try:
        return _make(root, parts, file, member, modes)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, tarfile.TarError) as e:
        raise NitroError(f"the guest sent {shown.line(member.name, 300)} where it cannot be: {e}") from e


def _make(
    root: int,
    parts: list[bytes],
    file: tarfile.TarFile,
    member: tarfile.TarInfo,
    modes: list[tuple[bytes, int]],
) -> str | None:
    with _parent(root, parts[:-1]) as folder:
        name = parts[-1] if parts else b"."
        if member.isdir():
            if parts:
                os.mkdir(name, 0o700, dir_fd=folder)
            modes.append((b"/".join(parts) or b".", member.mode & 0o777 | 0o700))
        elif member.isreg():
            _put_file(folder, name, file, member)
        elif member.issym():
            target = os.fsencode(member.linkname)
            if not _stays(parts[:-1], target):
                return f"a link to {member.linkname}, which may lead out of the copy"
            os.symlink(target, name, dir_fd=folder)
        elif member.islnk():
            first = _parts(member.linkname)
            with _parent(root, first[:-1]) as other:
                if not first or not stat.S_ISREG(
                    os.stat(first[-1], dir_fd=other, follow_symlinks=False).st_mode
                ):
                    return "a hard link to what is no file"
                os.link(first[-1], name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)
        else:
            return "neither file, folder nor link"
    return None


def _put_file(folder: int, name: bytes, file: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as made:
        content = file.extractfile(member)
        assert content is not None
        shutil.copyfileobj(content, made, _PIECE)
        made.flush()
        os.fchmod(made.fileno(), member.mode & 0o777)
        os.utime(made.fileno(), (tar.seconds(member), tar.seconds(member)))


@contextlib.contextmanager
def _parent(root: int, parts: list[bytes]) -> Iterator[int]:
    """The folder below the root, gone to step by step and through no link. Raises OSError."""
    fd = os.dup(root)
    try:
        for part in parts:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            deeper = os.open(part, flags, dir_fd=fd)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


def _stays(folder: list[bytes], target: bytes) -> bool:
    """Whether a link in this folder of the copy leads to somewhere in it: up first, and then down. What goes
    up after it has gone down may have gone through another link, and be anywhere."""
    steps = [part for part in target.split(b"/") if part not in (b"", b".")]
    up = next((at for at, part in enumerate(steps) if part != b".."), len(steps))
    return not target.startswith(b"/") and up < len(folder) and b".." not in steps[up:]


# --- into the guest --------------------------------------------------------------------------------------


def into(record: Record, source: Path, path: str) -> str:
    """Copy a file or folder into a guest, where it is root's; into `path` if that is a folder there. Links
    stay links. Returns its path there. Raises NitroError."""
    whole = guest_path(path)
    if not os.path.lexists(source):
        raise NitroError(f"{source}: No such file or directory")
    if path.endswith("/") or agent.Command(record, ["test", "-d", whole], busybox=True).run() == 0:
        parent, base = whole, source.resolve().name if source.name in ("", "..") else source.name
    else:
        parent, base = posixpath.split(whole)
    if not base:
        raise NitroError(f"{source} has no name of its own", hint="name a file or a folder in it")
    command = agent.Command(record, ["tar", "-C", parent, "-xf", "-"], busybox=True)
    if command.run(_packed(source, base)):
        raise EnclaveError(f"enclave {record.name}: {command.reason}", record=record)
    return posixpath.join(parent, base)


def _packed(source: Path, base: str) -> Iterator[bytes]:
    """A tar of the file or folder, made while it is read."""
    pieces: list[bytes] = []

    class Sink:
        def write(self, data: bytes) -> int:
            pieces.append(bytes(data))
            return len(data)

    def taken() -> Iterator[bytes]:
        yield from pieces
        pieces.clear()

    with (
        place(source),
        tarfile.open(
            fileobj=Sink(),
            mode="w|",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",  # type: ignore[call-overload]
        ) as archive,
    ):
        for path, name in _below(source, base):
            info = archive.gettarinfo(os.fspath(path), arcname=name)
            if info is None:
                continue  # a socket
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            if info.isreg():
                with open(path, "rb") as file:
                    # addfile copies the content in one go, so that is done here.
                    info.size = os.fstat(file.fileno()).st_size
                    archive.members = []
                    yield from _file(archive, info, file, taken)
            else:
                archive.addfile(info)
                archive.members = []
            yield from taken()
    yield from taken()


def _file(
    archive: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes], taken: Callable[[], Iterator[bytes]]
) -> Iterator[bytes]:
    stream = archive.fileobj
    assert stream is not None
    header = info.tobuf(archive.format, archive.encoding, archive.errors)
    stream.write(header)
    left = info.size
    while left:
        data = file.read(min(_PIECE, left))
        if not data:
            raise NitroError(f"{info.name} became shorter while it was read")
        stream.write(data)
        left -= len(data)
        yield from taken()
    stream.write(bytes(-info.size % tarfile.BLOCKSIZE))


def _below(source: Path, base: str) -> Iterator[tuple[Path, str]]:
    yield source, base
    todo = [(source, base)] if source.is_dir() else []
    while todo:
        folder, name = todo.pop()
        with os.scandir(folder) as found:
            for item in sorted(found, key=lambda item: item.name):
                yield Path(item.path), f"{name}/{item.name}"
                if item.is_dir(follow_symlinks=False):
                    todo.append((Path(item.path), f"{name}/{item.name}"))
