# SPDX-License-Identifier: MIT
"""Core dumps of an enclave with `--tools`: whoever listens when its agent sends one (guest/tools-protocol.h),
and what becomes of it.

    HOME/core.N/core         the core, mode 0600
    HOME/core.N/PROGRAM      the file of the program that died, by its name in the guest, which gdb compares

in the folder of the enclave's record, so that `nitroctl rm` removes them. They hold whatever the application
held, secrets too. A guest may send what it likes: CORES_MAX of them are kept, each with at most as many bytes
on disk as the enclave has memory; blocks of zeros are holes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base import atomic, elf, shown
from nitroctl.base.memory import MIB
from nitroctl.enclaves import tools
from nitroctl.vsock import sockets

CORES_MAX = 4
HEAD_MAX = 8192
LENGTH_MAX = 64 << 30  # bytes with holes, which take time but no disk
_PIECE = 1 << 16

_NT_GNU_BUILD_ID = 3
_PT_LOAD = 1


@dataclass(frozen=True)
class Core:
    """What is known of a core. `program` is the path in the guest, `complete` whether all that the core's own
    headers speak of is there."""

    path: Path
    pid: int
    signal: int
    program: str
    program_file: Path | None  # None: it was not sent
    build_id: str | None  # of the program, as hex
    size: int
    complete: bool
    gdb: str  # a command line

    def to_json(self) -> dict[str, object]:
        fields = dict(self.__dict__)
        fields["path"] = os.fspath(self.path)
        fields["program_file"] = os.fspath(self.program_file) if self.program_file else None
        return fields


class _Refused(Exception):
    pass


class CoreServer:
    """Serves the parent's port for cores of one enclave; `changed` is called after each."""

    def __init__(self, uds: Path, home: Path, memory_mib: int, changed: Callable[[], None]) -> None:
        self.cores: list[Core] = []
        self._home = home
        self._limit = memory_mib * MIB
        self._changed = changed
        self._count = 0
        self._listener = sockets.listen(uds, tools.CORE_PORT)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._accept, sock=self._listener.socket, limit=HEAD_MAX
        )

    async def stop(self) -> None:
        """The backend is gone, and so what comes is at its end."""
        if self._server:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._listener.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            core = await self._take(reader)
        except (_Refused, OSError, EOFError, asyncio.LimitOverrunError, ValueError) as e:
            shown.say(f"warning: a core dump of the enclave is not kept: {e}")
        else:
            self.cores.append(core)
            shown.say(*describe(core))
            self._changed()
        finally:
            writer.close()  # the agent waits for it

    async def _take(self, reader: asyncio.StreamReader) -> Core:
        head = parse_head(await reader.readuntil(b"\n\n"))
        if self._count == CORES_MAX:
            raise _Refused(f"{CORES_MAX} are there already")
        self._count += 1
        final = self._home / f"core.{self._count}"
        with atomic.folder(final, mode=0o700) as aside:
            name = _file_name(head.program)
            if head.size:
                with _Sparse(aside / name, self._limit) as file:
                    await _copy(reader, file, head.size)
            with _Sparse(aside / "core", self._limit) as file:
                await _copy(reader, file, None)
        return _about(final / "core", final / name if head.size else None, head)


def _file_name(path: str) -> str:
    """The name of a program's file in the guest, if it is a plain one."""
    name = path.rpartition("/")[2]
    return name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", name) and name != "core" else "program"


@dataclass(frozen=True)
class Head:
    pid: int
    signal: int
    program: str
    size: int


def parse_head(text: bytes) -> Head:
    """The lines before a core. Raises ValueError."""
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "backslashreplace").rstrip("\n").split("\n"):
        key, _, value = line.partition(" ")
        if key in fields:
            raise ValueError(f"its head has {key[:40]!r} twice")
        fields[key] = value
    if fields.get("version") != str(tools.VERSION):
        raise ValueError(f"its head is of version {fields.get('version', 'none')[:40]!r}")

    def number(key: str, most: int) -> int:
        value = fields.get(key, "")
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
            raise ValueError(f"its head has no {key} from 0 to {most}, but {value[:40]!r}")
        return int(value)

    return Head(
        number("pid", 1 << 22), number("signal", 64), fields.get("program", ""), number("size", 512 << 20)
    )


class _Sparse:
    """A new private file, bounded in the bytes that it takes on disk."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._left = limit
        self.length = 0

    def __enter__(self) -> _Sparse:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return self

    def write(self, data: bytes) -> None:
        if self.length + len(data) > LENGTH_MAX:
            raise _Refused(f"it has more than {LENGTH_MAX >> 30} GiB")
        if data.count(0) != len(data):
            self._left -= len(data)
            if self._left < 0:
                raise _Refused("it has more bytes than the enclave has memory")
            view, at = memoryview(data), self.length
            while view:
                count = os.pwrite(self._fd, view, at)
                view, at = view[count:], at + count
        self.length += len(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                os.ftruncate(self._fd, self.length)
        finally:
            os.close(self._fd)


async def _copy(reader: asyncio.StreamReader, file: _Sparse, size: int | None) -> None:
    """`size` bytes, or all to the end."""
    while size is None or file.length < size:
        data = await reader.read(_PIECE if size is None else min(_PIECE, size - file.length))
        if not data:
            if size is not None:
                raise EOFError("its program ends before its end")
            return
        file.write(data)


def _about(path: Path, program: Path | None, head: Head) -> Core:
    gdb = ["gdb", "-q", *([os.fspath(program)] if program else []), "-c", os.fspath(path)]
    return Core(
        path=path,
        pid=head.pid,
        signal=head.signal,
        program=head.program,
        program_file=program,
        build_id=_build_id(program) if program else None,
        size=path.stat().st_size,
        complete=_complete(path),
        gdb=shlex.join(gdb),
    )


def _build_id(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        found = elf.read(file)
        if found and (note := found.notes.get((b"GNU", _NT_GNU_BUILD_ID))):
            return note[:64].hex()
    return None


def _complete(path: Path) -> bool:
    """Whether each segment of the core lies within the file (elf(5), 64 bits)."""
    with contextlib.suppress(OSError, struct.error), open(path, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return False
        (at,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        if size != 56 or at > LENGTH_MAX:
            return False
        file.seek(at)
        table = file.read(size * count)
        end = 0
        for index in range(count):
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", table, index * size)
            end = max(end, offset + length if kind == _PT_LOAD else 0)
        return count > 0 and end <= path.stat().st_size
    return False


def describe(core: Core) -> list[str]:
    """For people, line by line."""
    try:
        name = signal.Signals(core.signal).name
    except ValueError:
        name = f"signal {core.signal}"
    cut = "" if core.complete else ", cut short"
    return [
        f"core dump: {core.program or 'a program'} (process {core.pid}) died of {name}{cut}; build-id "
        f"{core.build_id or 'none'}",
        f"  {core.gdb}",
    ]
