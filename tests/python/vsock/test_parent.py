# SPDX-License-Identifier: MIT
"""`nitroctl parent`: which programs it takes, what it gives them, and one that talks to its enclave.

What the library does for a program is test_vsock_preload's; real guests are in tests/boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_fakes import HANG, Bench
from enclave_world import echo, enclave, listens, world
from nitroctl.base import elf
from nitroctl.base.errors import NitroError
from nitroctl.vsock import parent, sockets
from preload_host import library, line, output, parent_program

GLIBC = "/lib64/ld-linux-x86-64.so.2"
X86_64 = 62


def program(
    *, linker: str | None = GLIBC, machine: int = X86_64, bits: int = 64, notes: bytes = b""
) -> bytes:
    """The beginning of an ELF program (elf(5)), which is all that is looked at."""
    segments = [(3, linker.encode() + b"\0")] if linker else []
    if notes:
        segments.append((4, notes))
    at = 64 + 56 * len(segments)
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1])
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    table = body = b""
    for kind, data in segments:
        table += struct.pack("<IIQQQQQQ", kind, 4, at + len(body), 0, 0, len(data), len(data), 1)
        body += data
    return head + table + body


def note(name: bytes, kind: int, description: bytes) -> bytes:
    pad = bytes(-len(name) % 4), bytes(-len(description) % 4)
    return struct.pack("<III", len(name), len(description), kind) + name + pad[0] + description + pad[1]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """What stands for the library: of it, only the machine counts."""
    path = tmp_path / "vsock-preload.so"
    path.write_bytes(program(linker=None))
    return path


def make(path: Path, content: bytes | str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o755)
    return str(path)


def test_what_can_be_run(tmp_path: Path, ours: Path) -> None:
    gnu = note(b"GNU\0", 3, bytes(20))
    plain = make(tmp_path / "plain", program(notes=gnu))
    assert parent.check([plain, "argument"], ours) == plain
    assert parent.check(["plain"], ours, str(tmp_path)) == plain
    script = make(tmp_path / "script", f"#! {plain} -u\n")
    assert parent.check([script], ours) == script
    nested = make(tmp_path / "nested", f"#!{script}\n")
    assert parent.check([nested], ours) == nested
    # The very interpreter of these tests, as its scripts name it.
    real = make(tmp_path / "real", "#!/usr/bin/env python3\n")
    assert parent.check([real], library()) == real


def test_what_env_runs(tmp_path: Path, ours: Path) -> None:
    """env(1): -S splits its argument, assignments come before the program; with -i there is no library."""
    static = make(tmp_path / "static", program(linker=None))
    env = make(tmp_path / "env", program())
    for words in (
        static,
        f"-S {static} -x",
        f"-S A=1 {static}",
        f"--split-string='{static}' -x",
        f"-SB=2 {static}",
    ):
        script = make(tmp_path / "script", f"#!{env} {words}\n")
        with pytest.raises(NitroError, match="static is statically linked"):
            parent.check([script], ours)
    for arguments in (["-S", static], ["A=1", "B=2", static]):
        with pytest.raises(NitroError, match="static is statically linked"):
            parent.check([env, *arguments], ours)
    for arguments in ([], ["-i", static], ["-u", "A", static], ["A=1"], ["-S"], ["-S", "'"]):
        assert parent.check([env, *arguments], ours) == env


def unsuitable() -> dict[str, tuple[bytes, str]]:
    go = note(b"Go\0\0", 4, b"id")
    gnu = note(b"GNU\0", 3, bytes(20))
    return {
        "static": (program(linker=None), "is statically linked"),
        "static, with notes": (program(linker=None, notes=gnu), "is statically linked"),
        "musl": (
            program(linker="/lib/ld-musl-x86_64.so.1"),
            "uses the dynamic linker /lib/ld-musl-x86_64.so.1",
        ),
        "32 bits": (
            program(machine=3, bits=32),
            "is a program for 32-bit x86, but the library is for x86-64",
        ),
        "arm64": (program(machine=183), "is a program for arm64"),
        "other": (program(machine=8), "is a program for ELF machine 8, 64 bits"),
        "go": (program(linker=None, notes=go), "is written in Go"),
        "go, with cgo": (program(notes=gnu + go), "is written in Go"),
    }


@pytest.mark.parametrize("name", unsuitable())
def test_what_cannot(tmp_path: Path, ours: Path, name: str) -> None:
    """By its name and the reason, also when it is a script's interpreter, or env's."""
    content, words = unsuitable()[name]
    path = make(tmp_path / "program", content)
    env = make(tmp_path / "env", program())
    ways = [
        [path],
        [make(tmp_path / "a", f"#!{path}\n"), "argument"],
        [make(tmp_path / "b", f"#!{env} {path}\n")],
        [make(tmp_path / "c", f"#!{env} -S A=1 {path} -u\n")],
        [make(tmp_path / "d", f"#!{tmp_path / 'a'}")],
        [env, "A=1", "B=2", path, "-x"],
        [env, "-S", f"{path} -x"],
    ]
    for argv in ways:
        with pytest.raises(parent.UnsuitableProgram) as caught:
            parent.check(argv, ours)
        assert str(caught.value).startswith(f"{path} {words}"), argv
        assert caught.value.hint and "docs/parent.md" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("echo hello\n", "is neither an ELF program nor a script that begins with #!"),
        ("", "is neither"),
        ("#!\n", "is a script without an interpreter"),
        ("#!/no/such/interpreter\n", "there is no program /no/such/interpreter"),
        (b"\x7fELF", "damaged ELF file"),
        (program()[:70], "damaged ELF file"),
    ],
)
def test_what_is_no_program(tmp_path: Path, ours: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(NitroError, match=words):
        parent.check([make(tmp_path / "x", content)], ours)


def test_scripts_without_an_end(tmp_path: Path, ours: Path) -> None:
    path = make(tmp_path / "x", f"#!{tmp_path / 'x'}\n")
    with pytest.raises(NitroError, match="too many scripts"):
        parent.check([path], ours)


def test_what_is_not_there(tmp_path: Path, ours: Path) -> None:
    (tmp_path / "file").write_bytes(program())
    for name, words in (
        ("nope", "there is no program nope in PATH"),
        (f"{tmp_path}/nope", f"there is no program {tmp_path}/nope"),
        (f"{tmp_path}/file", "is not an executable file"),
        (str(tmp_path), "is not an executable file"),
    ):
        with pytest.raises(NitroError, match=words):
            parent.check([name], ours)


def test_what_has_more_rights(tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "x", program())
    owner = os.stat(path)
    os.chmod(path, 0o4755)
    assert parent.check([path], ours) == path  # its own user's
    monkeypatch.setattr(os, "getuid", lambda: owner.st_uid + 1)
    with pytest.raises(parent.UnsuitableProgram, match="is set-user-ID"):
        parent.check([path], ours)
    os.chmod(path, 0o2755)
    assert os.stat(path).st_mode & stat.S_ISGID
    monkeypatch.setattr(os, "getgid", lambda: owner.st_gid + 1)
    with pytest.raises(parent.UnsuitableProgram, match="is set-group-ID"):
        parent.check([path], ours)
    os.chmod(path, 0o755)
    monkeypatch.setattr(os, "getxattr", lambda path, name: {"security.capability": b""}[name])
    with pytest.raises(parent.UnsuitableProgram, match="has file capabilities"):
        parent.check([path], ours)


@settings(deadline=None, derandomize=bool(os.environ.get("CI")))
@given(at=st.integers(0, 300), value=st.binary(min_size=1, max_size=8), cut=st.integers(0, 400))
def test_damaged_programs(tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes, cut: int) -> None:
    """An answer or ValueError, whatever the file says, and without reading as much as it says."""
    content = bytearray(program(notes=note(b"GNU\0", 3, bytes(20))))
    content[at : at + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[:cut])
    with open(path, "rb") as file, contextlib.suppress(ValueError):
        elf.read(file)


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    mine = Path("/cache/vsock-preload.so")
    made = parent.environment(mine, {"HOME": "/h"})
    assert made == {
        "HOME": "/h", "LD_PRELOAD": str(mine), "NITROCTL_VSOCK_DIR": f"{tmp_path}/nitroctl",
    }  # fmt: skip
    for before, after in (
        ("/a.so", f"/a.so:{mine}"), ("/a.so /b.so", f"/a.so:/b.so:{mine}"), ("", str(mine)),
        (f"{mine}:/a.so", f"/a.so:{mine}"),
    ):  # fmt: skip
        assert parent.environment(mine, {"LD_PRELOAD": before})["LD_PRELOAD"] == after
    for path in ("/my cache/vsock-preload.so", "/a:b/vsock-preload.so"):
        with pytest.raises(NitroError, match="space or colon"):
            parent.environment(Path(path), {})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with world(tmp_path) as made:
        yield made


def command(bench: Bench, *argv: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "nitroctl", "parent", "--library", library(), "--", *map(str, argv)],
        env=bench.environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ports(bench: Bench) -> list[str]:
    return [name for name in bench.left() if name.startswith("ports")]


def test_a_program_and_its_enclave(bench: Bench) -> None:
    with enclave(bench) as guest:
        guest.listen(7000)
        process = command(bench, parent_program(), "connect", 16, 7000, "hello")
        echo(guest, 7000)
        assert output(guest, process) == "peer 16:7000, family 40, length 16\nown CID -1\nhello\n"
        with command(bench, parent_program(), "fork", 5000) as server:
            try:
                assert line(guest, server) == "listening"
                stream = guest.connect(5000)
                stream.send(b"x")
                assert stream.recv_exactly(1) == b"x"
                stream.close()
            finally:
                server.kill()
        assert ports(bench) == ["ports", "ports/all_5000"]
        assert command(bench, "true").wait(HANG) == 0
        assert ports(bench) == [], "what a killed program left is still there"


def test_ports_in_use_stay(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(bench.runtime))
    with sockets.serve_shared(5000), sockets.serve_shared(5001) as other:
        # Bound and not listening yet is in use as well.
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(sockets.port_path(sockets.shared_ports(), 5002)))
        other.socket.close()  # as if its process had been killed
        assert command(bench, "true").wait(HANG) == 0
        assert ports(bench) == ["ports", "ports/all_5000", "ports/all_5002"]
        listens(sockets.port_path(sockets.shared_ports(), 5000))
        bound.close()
    sockets.sweep_shared()
    assert ports(bench) == []
    sockets.sweep_shared()


def test_a_child_keeps_no_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is forked while the folder of the ports is locked has the locked descriptor as well."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(bench.runtime))
    end, theirs = os.pipe()
    with sockets._shared_folder() as folder:
        if not (child := os.fork()):
            os.close(theirs)
            os.read(end, 1)
            os._exit(0)
    try:
        fd = os.open(folder, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    finally:
        os.close(theirs)
        os.close(end)
        assert os.waitpid(child, 0)[1] == 0


def test_it_is_replaced_by_the_program(bench: Bench) -> None:
    """Exit status, signals, arguments and descriptors are the program's."""
    assert command(bench, "sh", "-c", "exit 7").wait(HANG) == 7
    process = command(bench, "sh", "-c", "echo $$; kill -TERM $$")
    out = process.communicate(timeout=HANG)[0]
    assert process.returncode == -signal.SIGTERM
    assert int(out) == process.pid
    process = command(bench, "printf", "%s,", "--help", "-h", "--", "--library", "a b")
    out = process.communicate(timeout=HANG)[0]
    assert out == b"--help,-h,--,--library,a b,"
    # SIGPIPE, which Python ignores, ends a program again.
    process = command(bench, "sh", "-c", "grep SigIgn /proc/$$/status")
    ignored = int(process.communicate(timeout=HANG)[0].split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_programs_of_ours_are_not_parents(bench: Bench) -> None:
    """QEMU and the backend of an enclave that such a program starts: their AF_VSOCK is the host's."""
    code = (
        "import os; from nitroctl.base import proc\n"
        "os.environ['LD_PRELOAD'] = '/a.so:' + os.environ['LD_PRELOAD']\n"
        "made = proc._environment()\n"
        "assert made.pop('LD_PRELOAD') == '/a.so' and 'NITROCTL_VSOCK_DIR' in os.environ\n"
        "assert os.environ.keys() - made.keys() == {'LD_PRELOAD', 'NITROCTL_VSOCK_DIR'}\n"
        "del os.environ['LD_PRELOAD']\n"
        "print(proc.run(['sh', '-c', 'echo $NITROCTL_VSOCK_DIR,$LD_PRELOAD']).stdout)\n"
    )
    out = command(bench, sys.executable, "-c", code).communicate(timeout=HANG)[0]
    assert out == b"b',\\n'\n"


def test_refusals_of_the_command(bench: Bench) -> None:
    static = make(bench.tmp / "static", program(linker=None))
    process = command(bench, static)
    out = process.communicate(timeout=HANG)[0].decode()
    assert process.returncode == 1
    assert out == (
        f"error: {static} is statically linked: no library can be preloaded into it\n"
        "hint: docs/parent.md has ways for such programs: unix sockets, TCP, the host's own vsock\n"
    )
