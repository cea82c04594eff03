# SPDX-License-Identifier: MIT
"""Core dumps as they come from a guest, or from whatever calls itself one: what is kept, and what is not.
That gdb reads a real one is for the boot tests."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitroctl.enclaves import cores
from nitroctl.enclaves.cores import Core

PORT = 4294958297


def head(program: str = "/usr/bin/app", size: int = 0, **more: object) -> bytes:
    fields = {"version": 1, "pid": 32, "signal": 11, "program": program, "size": size, **more}
    return "".join(f"{key} {value}\n" for key, value in fields.items()).encode() + b"\n"


def core(memory: bytes, *, cut: int = 0) -> bytes:
    """An ELF core of one segment (elf(5)): e_type 4 is ET_CORE, p_type 1 PT_LOAD."""
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 6, 4096, 0x1000, 0, len(memory), len(memory), 4096)
    whole = elf.ljust(4096, b"\0") + memory
    return whole[: len(whole) - cut]


def sent(tmp_path: Path, *streams: bytes, memory_mib: int = 1) -> tuple[list[Core], Path]:
    """What is kept of these streams, one after the other; and the enclave's home."""
    home = tmp_path / "home"
    home.mkdir()
    told: list[int] = []

    async def main() -> list[Core]:
        server = cores.CoreServer(tmp_path / "v", home, memory_mib, lambda: told.append(len(server.cores)))
        await server.start()
        for stream in streams:
            reader, writer = await asyncio.open_unix_connection(tmp_path / f"v_{PORT}")
            try:
                writer.write(stream)
                await writer.drain()
                writer.write_eof()
                assert await reader.read() == b""  # it closes: the dead program may go
            except ConnectionError:
                pass  # it has heard enough
            writer.close()
        await server.stop()
        assert not (tmp_path / f"v_{PORT}").exists()
        return server.cores

    kept = asyncio.run(main())
    assert told == list(range(1, len(kept) + 1))
    return kept, home


def test_a_core_and_its_program(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int main(void) { return 0; }")
    subprocess.run(["cc", "-Wl,--build-id=0x0123456789abcdef", "-o", tmp_path / "app", source], check=True)
    program = (tmp_path / "app").read_bytes()
    whole = core(os.urandom(5000) + bytes(300_000) + b"end")
    (kept,), home = sent(tmp_path, head(size=len(program)) + program + whole)
    assert kept.path == home / "core.1/core" and kept.path.read_bytes() == whole
    assert kept.program_file == home / "core.1/app" and kept.program_file.read_bytes() == program
    assert (kept.pid, kept.signal, kept.program) == (32, 11, "/usr/bin/app")
    assert (kept.build_id, kept.size, kept.complete) == ("0123456789abcdef", len(whole), True)
    assert shlex.split(kept.gdb) == ["gdb", "-q", str(kept.program_file), "-c", str(kept.path)]
    for path in (kept.path, kept.program_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Memory that is all zeros is a hole.
    assert kept.path.stat().st_blocks * 512 < 200_000


def test_what_is_cut_short_is_kept_and_told(tmp_path: Path) -> None:
    (cut, no_elf), _ = sent(tmp_path, head() + core(b"memory", cut=1), head("x\x1b[m") + b"no core at all")
    assert (cut.complete, cut.program_file, cut.build_id) == (False, None, None)
    assert not no_elf.complete
    assert "cut short" in cores.describe(cut)[0]


def test_four_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, home = sent(tmp_path, *[head() + core(b"%d" % number) for number in range(5)])
    assert [one.path.parent.name for one in kept] == ["core.1", "core.2", "core.3", "core.4"]
    assert sorted(os.listdir(home)) == ["core.1", "core.2", "core.3", "core.4"]
    assert "is not kept: 4 are there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", "0 bytes read"),
        (b"pid 1\n" * 5000, "limit"),
        (head(version=2), "of version '2'"),
        (head(pid="+1"), "no pid from 0"),
        (head(size=1 << 40), "no size from 0"),
        (head(signal="\u0661"), "no signal from 0"),
        (b"pid 1\npid 2\n\n", "has 'pid' twice"),
        (head(size=10) + b"short", "its program ends before its end"),
        (head() + core(b"\1" * (1 << 20)), "more bytes than the enclave has memory"),
        (head(size=2 << 20) + b"\1" * (2 << 20), "more bytes than the enclave has memory"),
    ],
)
def test_what_is_not_kept_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stream: bytes, why: str
) -> None:
    kept, home = sent(tmp_path, stream)
    assert kept == [] and os.listdir(home) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a core dump of the enclave is not kept: ") and why in line


@pytest.mark.parametrize(
    ("program", "name"),
    [("/a/b-1.2+x", "b-1.2+x"), ("/core", "program"), ("/..", "program"), ("/-x", "program"), ("", "program"),
     ("/a b", "program"), ("/x\x1b", "program"), ("/" + "x" * 300, "program")],
)  # fmt: skip
def test_the_programs_name_is_a_plain_one(program: str, name: str) -> None:
    assert cores._file_name(program) == name


@given(st.binary(max_size=200))
def test_any_head_is_read_or_refused(text: bytes) -> None:
    for whole in (text, b"version 1\npid 1\nsignal 6\n" + text):
        try:
            cores.parse_head(whole)
        except ValueError:
            pass


def test_it_listens_before_anybody_comes(tmp_path: Path) -> None:
    """The socket is there once the server has been made, and only for its user."""
    server = cores.CoreServer(tmp_path / "v", tmp_path, 1, lambda: None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / f"v_{PORT}"))
    assert stat.S_IMODE((tmp_path / f"v_{PORT}").stat().st_mode) == 0o600
    asyncio.run(server.stop())


def test_a_core_for_people_and_programs(tmp_path: Path) -> None:
    """A signal without a name; headers that promise what no core has."""
    odd = bytearray(core(b"memory"))
    odd[54:56] = struct.pack("<H", 57)  # e_phentsize, 56 in each ELF of 64 bits
    far = bytearray(core(b"memory"))
    far[32:40] = struct.pack("<Q", 1 << 62)  # e_phoff
    kept, _ = sent(tmp_path, head(signal=40) + bytes(odd), head() + bytes(far), head() + core(b"memory"))
    assert [one.complete for one in kept] == [False, False, True]
    assert "(process 32) died of signal 40, cut short; build-id none" in cores.describe(kept[0])[0]
    told = kept[2].to_json()
    assert told["path"] == str(kept[2].path) and told["program_file"] is None and told["signal"] == 11
    assert json.loads(json.dumps(told)) == told
