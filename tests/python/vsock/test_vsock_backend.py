# SPDX-License-Identifier: MIT
"""The vsock backend, driven by a fake front end: no QEMU, no guest kernel.

The numbered acceptance tests of a vsock backend are here by their subjects; events, bytes and wake-ups are
counted, never milliseconds. The binary is named by VHOST_USER_VSOCK, so that the same tests run on a build
with sanitizers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vhost_front import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    LINUX_BUFFER,
    OFF_BOTH,
    OFF_RECV,
    OFF_SEND,
    PATIENCE,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    Backend,
    Front,
    Guest,
    Packet,
    Refused,
    Reset,
    Stream,
    dial,
    drain,
    fail_after,
    find_binary,
    guest,
    linked,
    read_line,
    read_ok,
    running,
)

PORT = 5000


@pytest.fixture(autouse=True)
def no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that fails half-way leaves no process behind either."""
    started: list[subprocess.Popen[Any]] = []

    class Recorded(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_binary()


@pytest.fixture
def backend(binary: Path) -> Iterator[Backend]:
    with running(binary) as b:
        yield b


def pattern(n: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n)


def read_exactly(s: socket.socket, n: int) -> bytes:
    out = bytearray()
    while len(out) < n:
        more = s.recv(n - len(out))
        if not more:
            raise EOFError(f"end after {len(out)} of {n} bytes")
        out += more
    return bytes(out)


def read_all(s: socket.socket, g: Guest | None = None) -> bytes:
    """To the end, while the guest goes on."""
    out = bytearray()
    patience = fail_after()
    while True:
        if g is not None:
            g.pump()
            if not select.select([s], [], [], 0.01)[0]:
                patience("end of stream")
                continue
        more = s.recv(1 << 20)
        if not more:
            return bytes(out)
        out += more


def wakeups_while_idle(backend: Backend) -> int:
    """Loop turns in a while with nothing to do; the question itself is one."""
    before = backend.statistics()["wakeups"]
    select.select([], [], [], 0.25)
    return backend.statistics()["wakeups"] - before


# --- command line and life --------------------------------------------------------------------------------


def run(binary: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary, *args], capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_help_and_version(binary: Path) -> None:
    helped = run(binary, "--help")
    assert helped.returncode == 0 and helped.stderr == ""
    for option in (
        "--socket-path", "--guest-cid", "--uds-path", "--vm", "--no-cid2", "--once", "--ready-fd",
        "--booted-fd", "--lifeline-fd", "--cleanup-dir", "--log-level", "--version", "--help",
        "--max-connections", "--driver-timeout",
    ):  # fmt: skip
        assert option in helped.stdout
    version = run(binary, "--version")
    assert version.returncode == 0 and version.stdout.startswith("vhost-user-vsock ")


SOURCE = Path(__file__).parents[3] / "contrib/vhost-user-vsock"


def test_the_manual_is_complete(binary: Path) -> None:
    """Every option that --help names, and every limit with the value that the code has."""
    import re

    manual = (SOURCE / "vhost-user-vsock.1").read_text().replace("\\-", "-")
    options = set(re.findall(r"--[a-z0-9-]+", run(binary, "--help").stdout))
    assert len(options) > 20
    assert not {o for o in options if o not in manual}
    code = "".join(p.read_text() for p in sorted(SOURCE.glob("*.h")))
    known: dict[str, int] = {}
    for name, value, shift in re.findall(r"^#define (\w+) \(?(\w+?)u?(?: << (\d+)\))?(?:\s*/\*.*)?$", code,
                                         re.MULTILINE):  # fmt: skip
        with contextlib.suppress(ValueError):
            known[name] = int(value, 0) << int(shift or 0)
    factor = {"": 1, " s": 1000, " ms": 1, " us": 1, " MiB": 1 << 20}  # times in the unit of the name
    listed = {
        name: float(value) * factor[unit]
        for name, value, unit in re.findall(r"^([A-Z_]+)\|([0-9.]+)( [mu]?s| MiB)?\|", manual, re.MULTILINE)
    }
    # Not limits but numbers that virtio, Linux and AWS have given out.
    facts = re.compile(
        r"VSOCK_(HDR_SIZE|TYPE_STREAM|(CID|PORT|OFF|EV)_\w+)|(HOST_HEARTBEAT|APP_STATUS|PCAP)_\w+"
    )
    assert listed == {name: value for name, value in known.items() if not facts.fullmatch(name)}


GOOD = ("--socket-path=/tmp/vuv-no", "--guest-cid=4", "--uds-path=/tmp/vuv-nothing")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--socket-path is missing"),
        (GOOD[:2], "--uds-path is missing"),
        ((GOOD[0], GOOD[2]), "--guest-cid is missing"),
        ((*GOOD, "--guest-cid=3"), "--guest-cid=3"),
        ((*GOOD, "--guest-cid=4294967295"), "4294967295"),
        ((*GOOD, "--guest-cid=99999999999999999999"), "99999999999999999999"),
        ((*GOOD, "--guest-cid=0x10"), "0x10"),
        ((*GOOD, "--guest-cid="), "--guest-cid="),
        ((*GOOD, "--uds-path=/tmp/" + "x" * 92), "97 bytes"),
        ((*GOOD, "--socket-path=/tmp/" + "x" * 103), "108 bytes"),
        ((*GOOD, "--frobnicate"), "--frobnicate"),
        ((*GOOD, "-x"), "-x"),
        ((*GOOD, "more"), "more"),
        ((*GOOD, "--guest-cid"), "--guest-cid needs a value"),
        (("--vm", "guest-cid=4,socket=/tmp/a"), "--uds-path is missing"),
        (("--vm", "guest-cid=4,socket=/tmp/a,uds-path=/tmp/b,groups=x"), '"groups"'),
        (("--vm", "guest-cid"), '"guest-cid" is not KEY=VALUE'),
        ((*GOOD, "--ready-fd=77"), "--ready-fd=77"),
        ((*GOOD, "--lifeline-fd=x"), "--lifeline-fd=x"),
        ((*GOOD, "--cleanup-dir=/tmp"), "--lifeline-fd"),
        ((*GOOD, "--lifeline-fd=0", "--cleanup-dir=/nonexistent/x"), "/nonexistent/x"),
        ((*GOOD, "--log-level=loud"), "loud"),
        ((*GOOD, "--max-connections=0"), "--max-connections=0"),
        ((*GOOD, "--max-connections=8193"), "8193"),
        ((*GOOD, "--driver-timeout=0"), "--driver-timeout=0"),
        ((*GOOD, "--proxy=8000"), "8000"),
        ((*GOOD, "--proxy=8000=localhost"), '"localhost" is not HOST:PORT'),
        ((*GOOD, "--proxy=8000=127.0.0.1:0"), "--proxy=0"),
        ((*GOOD, "--proxy=x=127.0.0.1:1"), "--proxy=x"),
        ((*GOOD, "--proxy=8000=no.such.name.invalid:1"), "no.such.name.invalid"),
        ((*GOOD, "--proxy=8000=127.0.0.1:1", "--listen-port=8000=/tmp/x"), "8000 is given twice"),
        ((*GOOD, "--listen-port=8000=" + "x" * 108), "108 bytes"),
        ((*GOOD, "--fallback-path=/tmp/" + "x" * 92), "97 bytes"),
        ((*GOOD, "--fallback-path="), "--fallback-path is missing"),
        ((*GOOD, "--publish=127.0.0.1:0"), "is not ADDR=PORT"),
        ((*GOOD, "--publish=127.0.0.1:99999=7000"), "99999"),
        ((*GOOD, "--connect-port=7000"), "7000"),
        ((*GOOD, "--socket-fd=0"), "--socket-fd"),
        ((*GOOD, "--forward-cid=0"), "--forward-cid=0"),
        ((*GOOD, "--forward-cid=4294967295"), "4294967295"),
        ((*GOOD, "--forward-listen=9001"), "--forward-listen needs --forward-cid"),
        ((*GOOD, "--forward-cid=1", "--forward-listen=9001++9002"), "--forward-listen="),
        ((*GOOD, "--forward-cid=1", "--forward-listen=9001+x"), "--forward-listen=x"),
        ((*GOOD, "--forward-cid=1", "--forward-listen=" + "+".join(map(str, range(65)))), "64 times"),
        ((*GOOD, "--forward-cid=1", "--forward-listen=9001+9001"), "CID 1 port 9001 is published twice"),
        ((*GOOD, "--publish=127.0.0.1:81=1", "--publish=127.0.0.1:81=2"), "127.0.0.1:81 is published twice"),
        ((*GOOD, "--publish=/tmp/x=1", "--connect-port=2=/tmp/x"), "/tmp/x is published twice"),
        ((*GOOD, "--guest-cid=a\nb\x1b[m"), "--guest-cid=a?b?[m"),
        ((*GOOD, "--log-level=" + "x" * 5000), "--log-level=xxx"),
        (("--vm", "guest-cid=4,socket=/tmp/a,forward-cid=x"), "--vm forward-cid=x"),
        (("--socket-path=/tmp/vuv-x", "--guest-cid=4", "--uds-path=/tmp/vuv-x"), "/tmp/vuv-x"),
    ],
)
def test_wrong_options(binary: Path, args: tuple[str, ...], words: str) -> None:
    result = run(binary, *args)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and words in result.stderr
    assert result.stdout == ""


def test_paths_that_no_socket_can_have(binary: Path) -> None:
    """Each is one line that names it, and nothing is made."""
    with Folder() as folder:
        for path, words in (
            (f"{folder}/none/s", "cannot open the folder"),
            (f"{folder}/{'x' * 110}", "a unix socket's path allows 107"),
        ):
            result = run(binary, "--guest-cid=4", f"--socket-path={path}", f"--uds-path={folder}/u")
            assert result.returncode in (1, 2) and result.stdout == ""
            assert result.stderr.count("\n") == 1 and words in result.stderr, result.stderr
        assert list(folder.iterdir()) == []


def test_short_options(binary: Path) -> None:
    assert run(binary, "-h").stdout == run(binary, "--help").stdout
    with Folder() as folder:
        taken = run(binary, "-q", "--guest-cid=4", f"--socket-path={folder}/none/s", f"--uds-path={folder}/u")
        assert taken.returncode == 1 and "cannot open the folder" in taken.stderr  # quiet, but not about that


@pytest.mark.parametrize("option", ["--uds-path", "--socket-path"])
def test_a_path_stays_text_in_the_log(binary: Path, option: str) -> None:
    """A line break in it begins no line, and nothing of it steers the terminal."""
    with Folder() as folder:
        paths = {"--socket-path": f"{folder}/s", "--uds-path": f"{folder}/u"}
        paths[option] = f"{folder}/no/a\nvhost-user-vsock: error: \x1b[2J\x7f\x9b\u00fc"
        result = run(binary, "--guest-cid=4", *(f"{name}={path}" for name, path in paths.items()))
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert f"{folder}/no/a?vhost-user-vsock: error: ?[2J???\u00fc" in result.stderr


def test_longest_path_is_accepted(binary: Path) -> None:
    with Folder() as folder:
        uds = folder / ("u" * (96 - len(os.fspath(folder)) - 1))
        assert len(os.fspath(uds)) == 96
        process = subprocess.Popen(
            [binary, f"--socket-path={folder}/s", "--guest-cid=4", f"--uds-path={uds}"],
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            # Its listeners' paths are as long as they can be, and work.
            s = socket.socket(socket.AF_UNIX)
            s.bind(f"{uds}_4294967294")
            s.listen()
            s.settimeout(PATIENCE)
            with contextlib.closing(s):
                front = Front(folder / "s")
                with contextlib.closing(front):
                    g = Guest(front)
                    front.start()
                    g.connect(4294967294)
                    s.accept()[0].close()
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
            assert process.stdout is not None
            process.stdout.close()


class Folder:
    """A short-named folder, removed at the end with what is in it."""

    def __enter__(self) -> Path:
        import tempfile

        self.temporary = tempfile.TemporaryDirectory(prefix="vuv-")
        return Path(self.temporary.name)

    def __exit__(self, *exc: object) -> None:
        self.temporary.cleanup()


def test_vm_form_and_lines_on_stdout(binary: Path) -> None:
    with Folder() as folder:
        process = subprocess.Popen(
            [binary, "--vm", f"guest-cid=16,socket={folder}/s,uds-path={folder}/p"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            front = Front(folder / "s")
            with contextlib.closing(front):
                assert front.cid == 16
                g = Guest(front)
                front.start()
                heartbeat(g)
            assert process.stdout.readline() == b"booted\n"
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
            process.stdout.close()
        assert list(folder.iterdir()) == []


def test_sockets_are_private(backend: Backend) -> None:
    for path in (backend.socket_path, backend.uds_path):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly(binary: Path, how: signal.Signals) -> None:
    with running(binary) as b:
        b.process.send_signal(how)
        assert b.process.wait(PATIENCE) == 0
        assert not b.socket_path.exists() and not b.uds_path.exists()


def test_stale_sockets_are_replaced(binary: Path) -> None:
    with running(binary) as b:
        b.process.kill()
        b.process.wait()
        assert b.socket_path.exists() and b.uds_path.exists()
        again = subprocess.Popen(
            [binary, f"--socket-path={b.socket_path}", "--guest-cid=4", f"--uds-path={b.uds_path}"],
            stdout=subprocess.PIPE,
        )
        assert again.stdout is not None
        with again.stdout:
            assert again.stdout.readline() == b"ready\n"
        with contextlib.closing(Front(b.socket_path)):
            pass
        again.terminate()
        assert again.wait(PATIENCE) == 0
        b.process.returncode = 0  # killed by us


@pytest.mark.parametrize("taken", ["socket-path", "uds-path"])
def test_live_sockets_are_refused(backend: Backend, binary: Path, taken: str) -> None:
    with Folder() as folder:
        paths = {"socket-path": folder / "s", "uds-path": folder / "u"}
        paths[taken] = backend.socket_path if taken == "socket-path" else backend.uds_path
        options = [f"--{name}={path}" for name, path in paths.items()]
        result = run(binary, "--guest-cid=5", *options)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1 and str(paths[taken]) in result.stderr
        assert "in use" in result.stderr
        assert list(folder.iterdir()) == []
    with guest(backend) as g:
        heartbeat(g)


def test_a_file_in_the_way_is_left_alone(binary: Path) -> None:
    with Folder() as folder:
        (folder / "u").write_text("precious")
        result = run(binary, "--guest-cid=5", f"--socket-path={folder}/s", f"--uds-path={folder}/u")
        assert result.returncode == 1 and "not a socket" in result.stderr
        assert (folder / "u").read_text() == "precious" and not (folder / "s").exists()


def test_nobody_else_holds_up_the_start(binary: Path) -> None:
    """A lock on the folder, which anybody may hold on /tmp, and what a starter left that was killed."""
    with Folder() as folder:
        (folder / "s.lock").touch()
        folder_fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(folder_fd, fcntl.LOCK_EX)
            started = time.monotonic()
            process = subprocess.Popen(
                [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u"],
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            with process.stdout:
                assert process.stdout.readline() == b"ready\n"
            assert time.monotonic() - started < 4, "it has waited for the lock"
            assert {p.name for p in folder.iterdir()} == {"s", "u"}
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            os.close(folder_fd)


def test_a_lock_that_is_no_file_of_ours_is_an_error(binary: Path) -> None:
    with Folder() as folder:
        (folder / "s.lock").symlink_to(folder / "precious")
        result = run(binary, "--guest-cid=5", f"--socket-path={folder}/s", f"--uds-path={folder}/u")
        assert result.returncode == 1 and result.stderr.count("\n") == 1
        assert f"cannot lock {folder}/s.lock: " in result.stderr
        assert [p.name for p in folder.iterdir()] == ["s.lock"]


def test_of_two_starters_one_wins(binary: Path) -> None:
    for _ in range(5):
        with Folder() as folder:
            # A stale socket makes the race: both find it dead, and both want to remove it.
            for name in ("s", "u"):
                with socket.socket(socket.AF_UNIX) as s:
                    s.bind(os.fspath(folder / name))
            args = [os.fspath(binary), "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u"]
            both = [subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
            lines = []
            for p in both:
                assert p.stdout is not None
                lines.append(p.stdout.readline())
            assert sorted(lines) == [b"", b"", b"ready\n"]
            with contextlib.closing(Front(folder / "s")) as front:
                g = Guest(front)
                front.start()
                heartbeat(g)
            for p, line in zip(both, lines, strict=True):
                p.terminate()
                p.communicate(timeout=PATIENCE)
                assert p.returncode == (0 if line else 1)


OWNER = r"""
import os, subprocess, sys
read, write = os.pipe()
p = subprocess.Popen([*sys.argv[1:], f"--lifeline-fd={read}"], pass_fds=(read,), stdout=subprocess.PIPE)
assert p.stdout.readline() == b"ready\n"
print(p.pid, flush=True)
os.read(0, 1)
"""


def test_it_does_not_outlive_its_owner(binary: Path) -> None:
    with Folder() as folder:
        run_dir = folder / "run"
        run_dir.mkdir()
        (run_dir / "console.log").write_text("x")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.fspath(run_dir / "u_8000"))
        owner = subprocess.Popen(
            [
                sys.executable, "-c", OWNER, os.fspath(binary), "--guest-cid=4", f"--socket-path={run_dir}/s",
                f"--uds-path={run_dir}/u", f"--cleanup-dir={run_dir}/",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert owner.stdout is not None and owner.stdin is not None
        with owner.stdout, owner.stdin:
            pid = int(owner.stdout.readline())
            pidfd = os.pidfd_open(pid)
            try:
                owner.kill()
                owner.wait()
                assert select.select([pidfd], [], [], PATIENCE)[0], "still running"
            finally:
                os.close(pidfd)
        assert not run_dir.exists()


def test_cleanup_spares_what_is_no_file(binary: Path) -> None:
    read, write = os.pipe()
    with Folder() as folder:
        run_dir = folder / "run"
        (run_dir / "deeper").mkdir(parents=True)
        (run_dir / "file").write_text("x")
        (run_dir / "link").symlink_to(folder / "elsewhere")
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-path={run_dir}/s", f"--uds-path={run_dir}/u",
             f"--cleanup-dir={run_dir}", f"--lifeline-fd={read}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(read,),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.close(read)
        os.write(write, b"bytes are no end")
        os.close(write)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert sorted(p.name for p in run_dir.iterdir()) == ["deeper", "link"]
        assert b"cannot remove" in err


def test_once_ends_with_its_front_end(binary: Path) -> None:
    with running(binary, "--once") as b:
        # Looking whether it is alive is no front end.
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(os.fspath(b.socket_path))
        with guest(b) as g:
            heartbeat(g)
        assert b.process.wait(PATIENCE) == 0
        assert not b.socket_path.exists() and not b.uds_path.exists()


def test_once_delivers_the_last_words(binary: Path) -> None:
    """A guest that ends right after writing, and a host application that reads late."""
    data = pattern(200_000)
    with running(binary, "--once") as b:
        listener = b.listen(PORT)
        with guest(b) as g:
            s = g.connect(PORT)
            peer, _ = listener.accept()
            s.send(data)
        with peer, listener:
            assert read_all(peer) == data
        assert b.process.wait(PATIENCE) == 0


# --- sandbox ----------------------------------------------------------------------------------------------


def filters(b: Backend) -> int:
    """Seccomp filters of the process, beyond our own."""

    def count(pid: int | str) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nSeccomp_filters:")[2].partition("\n")[0])

    return count(b.process.pid) - count("self")


def is_sanitized(binary: Path) -> bool:
    return b"__asan_init" in binary.read_bytes()


def test_it_serves_in_a_sandbox(binary: Path) -> None:
    """As all the other tests here do; what the sandbox forbids is in tests/unit/test-sandbox.c."""
    for options in ((), ("--no-sandbox", "-v")):
        with running(binary, *options) as b, guest(b) as g:
            if options:
                assert filters(b) == 0 and "no sandbox, as asked" in b.stderr()
            elif is_sanitized(binary):
                assert filters(b) == 0 and "built with a sanitizer" in b.stderr()
            else:
                assert filters(b) == 1 and b.stderr() == ""
            assert heartbeat(g) == b"\xb7"


def seccomp_fails(how: int, *, only_with_a_program: bool = False) -> Callable[[], None]:
    """For a process that is to be: seccomp() fails with this error in it, by a filter of ours."""
    import ctypes

    number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]  # seccomp()
    load, equal, answer = (struct.Struct("=HBBI"),) * 3
    refuse, allow = 0x00050000 | how, 0x7FFF0000
    code = load.pack(0x20, 0, 0, 0)  # the call's number
    code += equal.pack(0x15, 0, 3 if only_with_a_program else 1, number)
    if only_with_a_program:
        code += load.pack(0x20, 0, 0, 32) + equal.pack(0x15, 1, 0, 0)  # the program's address
    code += answer.pack(0x06, 0, 0, refuse)
    code += answer.pack(0x06, 0, 0, allow)
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        there = ctypes.create_string_buffer(code)
        program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(there)))
        # PR_SET_NO_NEW_PRIVS, and PR_SET_SECCOMP with a filter.
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
            raise OSError(ctypes.get_errno(), "no filter")

    return enter


@pytest.mark.parametrize("how", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_a_kernel_without_seccomp(binary: Path, how: int) -> None:
    """One that says so; the backend serves all the same, after a word about it."""
    with Folder() as folder:
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=seccomp_fails(how),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.closing(Front(folder / "s")) as front:
            g = Guest(front)
            front.start()
            assert heartbeat(g) == b"\xb7"
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert err.count(b"\n") == 1 and b"no sandbox" in err


def test_a_filter_that_the_kernel_refuses_is_an_error(binary: Path) -> None:
    """EINVAL from a kernel that has filters is what a malformed one gets: not a reason to serve without."""
    if is_sanitized(binary):
        pytest.skip("no sandbox in a build with a sanitizer")
    with Folder() as folder:
        done = subprocess.run(
            [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u"],
            capture_output=True, timeout=PATIENCE, check=False,
            preexec_fn=seccomp_fails(errno.EINVAL, only_with_a_program=True),
        )  # fmt: skip
        assert done.returncode == 1 and done.stdout == b""
        assert done.stderr.count(b"\n") == 1 and b"cannot enter the sandbox: Invalid argument" in done.stderr
        assert list(folder.iterdir()) == []


# --- heartbeat --------------------------------------------------------------------------------------------


def heartbeat(g: Guest, byte: bytes = b"\xb7") -> bytes:
    s = g.connect(9000)
    s.send(byte)
    answer = s.recv_exactly(1)
    s.close()
    return answer


def booted(backend: Backend) -> int:
    """How often it said so by now."""
    text = b""
    while select.select([backend.booted], [], [], 0)[0]:
        more = os.read(backend.booted, 4096)
        if not more:
            break
        text += more
    assert text == b"booted\n" * (len(text) // 7)
    return len(text) // 7


def test_heartbeat_is_answered_and_told_once_a_boot(backend: Backend) -> None:
    with guest(backend) as g:
        assert booted(backend) == 0
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
        assert heartbeat(g) == b"\xb7"
        assert booted(backend) == 0
        g.reboot()
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
    with guest(backend) as g:
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"


def test_a_wrong_heartbeat_is_reset(backend: Backend) -> None:
    with guest(backend) as g:
        s = g.connect(9000)
        s.send(b"\x00")
        s.wait(lambda: s.state == "reset", "RST")
        assert booted(backend) == 0
        assert heartbeat(g) == b"\xb7"


def test_a_listener_on_9000_comes_first(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(9000) as listener:
        s = g.connect(9000)
        peer, _ = listener.accept()
        with peer:
            s.send(b"\xb7")
            assert peer.recv(10) == b"\xb7"
            peer.sendall(b"\x17")
            assert s.recv_exactly(1) == b"\x17"
        assert booted(backend) == 0


def test_a_heartbeat_that_a_listener_answers_is_told(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(9000) as listener:
        s = g.connect(9000)
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"\xb7")  # not an answer yet: nothing was said
            assert s.recv_exactly(1) == b"\xb7"
            assert booted(backend) == 0
            s.send(b"\xb7")
            assert peer.recv(10) == b"\xb7"
            assert booted(backend) == 0
            peer.sendall(b"\xb7more")
            assert s.recv_exactly(5) == b"\xb7more"
        assert read_line(backend.booted) == b"booted\n"


def test_statistics_tell_what_became_of_a_heartbeat(backend: Backend) -> None:
    with guest(backend) as g:
        assert backend.statistics()["drivers"] == 1
        g.reboot()
        for cid, port in ((3, 9001), (5, 9000)):
            with pytest.raises(Refused):
                g.connect(port, cid)
            seen = backend.statistics()
            assert (seen["refused_cid"], seen["refused_port"]) == (cid, port)
        s = g.connect(9000)
        s.send(b"\x00")
        s.wait(lambda: s.state == "reset", "RST")
        with backend.listen(9000) as listener:
            s = g.connect(9000)
            peer, _ = listener.accept()
            with peer:
                s.send(b"\xb7")
                assert peer.recv(10) == b"\xb7"
        seen = backend.statistics()
        assert (seen["drivers"], seen["wrong_heartbeats"], seen["relayed_heartbeats"]) == (2, 1, 1)


def test_a_dead_listener_on_9000_is_none(backend: Backend) -> None:
    backend.listen(9000).close()
    with guest(backend) as g:
        assert heartbeat(g) == b"\xb7"


def test_heartbeat_channel_closed_is_no_harm(binary: Path) -> None:
    with running(binary) as b:
        os.close(b.booted)
        b.booted = os.open(os.devnull, os.O_RDONLY)
        with guest(b) as g:
            assert heartbeat(g) == b"\xb7"
            g.reboot()
            assert heartbeat(g) == b"\xb7"


# --- the application's status -----------------------------------------------------------------------------

APP_STATUS_PORT = 4294958295  # app-status.h: 9000 below the last one


SAID = {b"E\x00": b"exited 0\n", b"E\x07": b"exited 7\n", b"E\xff": b"exited 255\n", b"K\x0b": b"killed 11\n"}


@pytest.mark.parametrize(("said", "told"), SAID.items())
def test_an_init_tells_how_the_application_ended(backend: Backend, said: bytes, told: bytes) -> None:
    with guest(backend) as g:
        s = g.connect(APP_STATUS_PORT)
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
        s.send(said[:1])
        assert backend.statistics()["connections"] >= 1  # time to take the first byte alone
        s.send(said[1:])
        assert s.recv_exactly(1) == said[:1]
        # It was told before it was answered: an init may reset the machine at once.
        assert select.select([backend.booted], [], [], 0)[0]
        assert read_line(backend.booted) == told
        s.send(b"E\x00")
        s.close()
        assert booted(backend) == 0


def test_what_is_no_status_is_reset(backend: Backend) -> None:
    with guest(backend) as g:
        s = g.connect(APP_STATUS_PORT)
        s.send(b"X\x00")
        s.wait(lambda: s.state == "reset", "RST")
        assert booted(backend) == 0


def test_only_who_comes_before_the_heartbeat_tells_a_status(backend: Backend) -> None:
    """An application cannot: there is one before it, or it is too late. The port is one like every other."""
    with guest(backend) as g:
        g.connect(APP_STATUS_PORT)
        with pytest.raises(Refused):
            g.connect(APP_STATUS_PORT)
    with guest(backend) as g:
        assert heartbeat(g) == b"\xb7"
        assert read_line(backend.booted) == b"booted\n"
        with pytest.raises(Refused):
            g.connect(APP_STATUS_PORT)
        g.reboot()  # what rebinds the driver is no new boot
        with pytest.raises(Refused):
            g.connect(APP_STATUS_PORT)
        with backend.listen(APP_STATUS_PORT) as listener:
            s = g.connect(APP_STATUS_PORT)
            peer, _ = listener.accept()
            with peer:
                s.send(b"E\x00")
                assert peer.recv(10) == b"E\x00"
        assert booted(backend) == 0


# --- connections from the guest ---------------------------------------------------------------------------


def test_guest_connects_to_the_parent(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"hello")
        assert peer.recv(100) == b"hello"
        peer.sendall(b"world")
        assert s.recv() == b"world"
        s.close()
        assert peer.recv(100) == b""


def test_refusals_come_as_rst(backend: Backend) -> None:
    with guest(backend) as g:
        for cid, port in ((3, PORT), (2, PORT), (5, PORT), (0, 10004), (1 << 33 | 3, PORT), (4, PORT)):
            with pytest.raises(Refused):
                g.connect(port, cid)
            assert g.seen[-1].op == RST
            assert (g.seen[-1].src_cid, g.seen[-1].src_port) == (cid, port)
        with pytest.raises(Refused):
            g.connect(0xFFFFFFFF)
        # Each was answered, and nothing more came.
        assert g.pump(0.1) == 0 and g.counts == {RST: 7}


def test_cid_2_is_the_parent_too_unless_switched_off(binary: Path) -> None:
    with running(binary) as b, guest(b) as g, b.listen(PORT) as listener:
        # The same ports to both CIDs are two connections.
        s2, s3 = g.connect(PORT, 2, source=2000), g.connect(PORT, 3, source=2000)
        p2, p3 = listener.accept()[0], listener.accept()[0]
        with p2, p3:
            s2.send(b"two")
            s3.send(b"three")
            assert (p2.recv(10), p3.recv(10)) == (b"two", b"three")
            p2.sendall(b"2")
            p3.sendall(b"3")
            assert (s2.recv(), s3.recv()) == (b"2", b"3")
    with running(binary, "--no-cid2") as b, guest(b) as g, b.listen(PORT) as listener:
        with pytest.raises(Refused):
            g.connect(PORT, 2)
        g.connect(PORT, 3)
        listener.accept()[0].close()


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("layout", ["linux", "single", "pages", "odd"])
def test_guest_writes_of_every_size(backend: Backend, layout: str, event_idx: bool) -> None:
    with guest(backend, event_idx=event_idx) as g, backend.listen(PORT) as listener:
        g.layout = layout
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            for size in (1, 3732, 16384, 32768, 32769, 65535, 65536, 1 << 20):
                data = pattern(size, size)
                got = bytearray()
                view = memoryview(data)
                patience = fail_after()
                while len(got) < size:
                    if view:
                        view = view[s.send_some(bytes(view[:65536])) :]
                    g.pump()
                    if select.select([peer], [], [], 0 if view else 0.1)[0]:
                        got += peer.recv(1 << 20)
                    patience(f"{size} bytes")
                assert bytes(got) == data
            assert not select.select([peer], [], [], 0.05)[0]


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("rx", [Guest.MODERN, Guest.OLD, (45,), (20, 30, 1000), (44, 65536)])
def test_host_writes_of_every_size(backend: Backend, rx: tuple[int, ...], event_idx: bool) -> None:
    with linked(backend, rx=rx, event_idx=event_idx) as (g, s, peer):
        peer.setblocking(False)
        for size in (1, 2, 1000) if rx == (45,) else (1, 3732, 3733, 65536, 1 << 20):
            data = pattern(size, size)
            got = bytearray()
            sent = 0
            patience = fail_after()
            while len(got) < size:
                if sent < size:
                    with contextlib.suppress(BlockingIOError):
                        sent += peer.send(data[sent:])
                g.pump(0.02)
                while more := s.read_some(65536):
                    got += more
                patience(f"{size} bytes")
            assert bytes(got) == data


def test_a_slow_reader_stops_the_guest_without_loss(backend: Backend) -> None:
    data = pattern(1 << 20)
    with linked(backend) as (g, s, peer):
        sent = 0
        # Until the host's socket and the backend's window are full.
        for _ in range(3):
            while n := s.send_some(data[sent : sent + 65536]):
                sent += n
            g.flush()
            g.pump(0.1)
        assert sent < len(data)
        assert 262144 <= sent - 0 <= 262144 + 2 * 425984, "buffered without bound"
        stalled = backend.statistics()
        assert wakeups_while_idle(backend) <= 2
        got = bytearray()
        patience = fail_after()
        while len(got) < len(data):
            if select.select([peer], [], [], 0.1)[0]:
                got += peer.recv(1 << 16)
            g.pump()
            if sent < len(data):
                sent += s.send_some(data[sent : sent + 65536])
            patience("the rest")
        assert bytes(got) == data
        assert stalled["connections"] == 1


def test_the_fwd_count_is_what_the_host_took(backend: Backend) -> None:
    """Exactly: bytes in the buffer are not consumed."""
    with linked(backend) as (g, s, peer):
        sent = 0
        while True:
            n = s.send_some(bytes(65536))
            sent += n
            g.flush()
            s.put(CREDIT_REQUEST)
            count = s.updates
            g.wait(lambda count=count: s.updates > count, "CREDIT_UPDATE")  # type: ignore[misc]
            if not n:
                break
        in_backend = (s.tx_cnt - s.peer_fwd) & 0xFFFFFFFF
        assert in_backend == s.peer_buf_alloc
        in_socket = sent - in_backend
        peer.setblocking(False)
        total = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                total += len(peer.recv(1 << 20))
        assert total >= in_socket
        patience = fail_after()
        while s.peer_fwd != sent:
            with contextlib.suppress(BlockingIOError):
                total += len(peer.recv(1 << 20))
            s.put(CREDIT_REQUEST)
            g.pump(0.05)
            patience("fwd_cnt of all bytes")
        assert total <= sent


def test_rst_from_the_guest_ends_it(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.send(b"last words")
            s.put(RST)
            s.gone()
            assert read_all(peer, g) == b"last words"
        g.flush()
        # An RST is never answered, not even for a stranger.
        s.put(RST)
        g.flush()
        assert g.pump(0.1) == 0 and not g.strays
        assert backend.statistics()["connections"] == 0


def test_guest_close_delivers_everything(backend: Backend) -> None:
    data = pattern(200_000)
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.send(data)
            s.close()
            # The tuple can be used again at once.
            again = g.connect(PORT, source=s.port)
            peer2, _ = listener.accept()
            with peer2:
                again.send(b"new")
                assert peer2.recv(10) == b"new"
                assert read_all(peer, g) == data


def test_data_after_shutdown_is_a_violation(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.shutdown(OFF_SEND)
        s.send(b"x")
        s.wait(lambda: s.state == "reset", "RST")
        assert backend.statistics()["violation"] == 1


def test_guest_beyond_its_credit_is_reset(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.honest = False
        for _ in range(30):
            if s.state == "open":
                s.tx_cnt += 65536
                s.put(RW, bytes(65536))
                g.flush()
                g.pump()
        s.wait(lambda: s.state == "reset", "RST")
        assert backend.statistics()["overrun"] == 1
        # The same guest may go on with others.
        assert heartbeat(g) == b"\xb7"


def test_reused_tuple_is_reset(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.put(REQUEST)
            s.wait(lambda: s.state == "reset", "RST")
            assert peer.recv(10) == b""
        again = g.connect(PORT, source=s.port)
        listener.accept()[0].close()
        again.wait(lambda: again.peer_off == OFF_BOTH, "end")


# --- half-close -------------------------------------------------------------------------------------------


def test_guest_ends_its_half_and_reads_the_answer(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"question")
        s.shutdown(OFF_SEND)
        assert read_all(peer, g) == b"question"
        assert s.state == "open" and not s.peer_off
        peer.sendall(b"answer")
        assert s.recv_exactly(6) == b"answer"
        peer.close()
        assert s.recv_all() == b""
        s.wait(lambda: s.state == "reset", "the end")


def test_host_ends_its_half_and_reads_the_answer(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        peer.sendall(b"question")
        peer.shutdown(socket.SHUT_WR)
        assert s.recv_all() == b"question"
        assert s.peer_off == OFF_SEND, "only this half"
        s.send(b"answer")
        s.shutdown(OFF_SEND)
        assert read_all(peer, g) == b"answer"
        # Both halves are done, so it is over without a word of the host's.
        s.wait(lambda: s.state == "reset", "the end")


def test_shutdown_send_waits_for_the_buffer(backend: Backend) -> None:
    data = pattern(600_000)
    with linked(backend) as (g, s, peer):
        sent = 0
        while n := s.send_some(data[sent : sent + 65536]):
            sent += n
            g.flush()
            g.pump()
        s.shutdown(OFF_SEND)
        g.flush()
        assert read_all(peer, g) == data[:sent]


def test_guest_reads_no_more(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.shutdown(OFF_RECV)
        g.flush()
        s.send(b"still writing")
        assert peer.recv(100) == b"still writing"
        patience = fail_after()
        with pytest.raises(BrokenPipeError):
            while True:
                peer.send(b"x")
                patience("EPIPE")
        s.close()


def test_host_close_is_both_halves(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        peer.sendall(b"bye")
        peer.close()
        assert s.recv_all() == b"bye"
        assert s.peer_off == OFF_BOTH
        s.wait(lambda: s.state == "reset", "our RST is out")
        g.flush()
        assert g.pump(0.1) == 0
        assert backend.statistics()["connections"] == 0


def test_host_closes_while_the_guest_writes(backend: Backend) -> None:
    """What the host wrote before still arrives, whatever the guest sends meanwhile."""
    data = pattern(300_000)
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        sender = peer.dup()
        peer.close()
        sender.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += sender.send(data[sent:])
        sender.close()
        with contextlib.suppress(BrokenPipeError, Reset):
            for _ in range(20):
                s.send(bytes(1000))
        got = bytearray()
        with contextlib.suppress(Reset):
            got += s.recv_all()
        assert bytes(got) == data[:sent]


def test_host_closes_with_unread_data(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        s.send(bytes(100_000))
        g.flush()
        assert select.select([peer], [], [], PATIENCE)[0]
        peer.close()
        s.wait(lambda: s.state == "reset", "the guest is told")
        assert backend.statistics()["connections"] == 0


def test_no_rst_from_the_guest_after_the_end(backend: Backend) -> None:
    """The backend waits for it without doing anything."""
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        g.streams[s.key].maybe_closed = lambda: None  # type: ignore[method-assign]
        listener.accept()[0].close()
        s.wait(lambda: s.peer_off == OFF_BOTH, "SHUTDOWN")
        assert wakeups_while_idle(backend) <= 2
        # Data that was under way is not answered; a close is.
        s.tx_cnt += 4
        s.put(RW, b"late")
        s.put(SHUTDOWN, flags=OFF_BOTH)
        s.wait(lambda: s.state == "reset", "RST")


# --- connections from the host ----------------------------------------------------------------------------


def test_host_connects_to_the_guest(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        client, s = dial(backend, g, 7000)
        with client:
            assert s.cid == 3 and s.peer_port >= 1 << 30
            client.sendall(b"hello")
            assert s.recv() == b"hello"
            s.send(b"world")
            assert client.recv(10) == b"world"
            s.close()
            assert client.recv(10) == b""


def test_nobody_listens_in_the_guest(backend: Backend) -> None:
    with guest(backend) as g:
        with backend.client(b"CONNECT 7001\n") as client:
            g.wait(lambda: REQUEST in g.counts, "REQUEST")
            g.flush()
            assert client.recv(10) == b""


@pytest.mark.parametrize(
    "pieces",
    [
        (b"CONNECT 7000\nhello",),
        (b"CONN", b"ECT 7", b"000", b"\n", b"hello"),
        (b"connect 7000\n", b"hel", b"lo"),
        (b"Connect  7000\r\nhello",),
        tuple(bytes([c]) for c in b"CONNECT 7000\nhello"),
    ],
)
def test_connect_line_in_pieces(backend: Backend, pieces: tuple[bytes, ...]) -> None:
    with guest(backend) as g, backend.client() as client:
        g.listen(7000)
        for piece in pieces:
            client.sendall(piece)
            g.pump(0.01)
        s = g.accept(7000)
        assert read_ok(client) == s.peer_port
        assert s.recv_exactly(5) == b"hello"


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n", b"CONNECT\n", b"CONNECT \n", b"CONNECT 7000 \n", b"CONNECT x\n",
        b"CONNECT -1\n", b"CONNECT 4294967295\n", b"CONNECT 4294967296\n", b"CONNECT 7000\r\r\n",
        b"CONNECT" + b" " * 50 + b"7000\n", b"\n", b"\0" * 8, b"CONNECT7000\n", b"CONNECTX 7000\n",
        b"CONNECT 18446744073709558616\n",
        b"OPEN 7000\n", b"OPEN 7000 1\n", b"OPEN 7000 1 \n", b"OPEN 7000 4294967295 9\n", b"OPEN 7000 x 9\n",
        b"OPEN 7000 1 4294967295\n", b"OPEN 7000 1 9 2\n", b"OPEN7000 1 9\n", b"OPEN\n", b"OPENER 7000 1 9\n",
        b"CONNECT 7000 1\n",
    ],
)  # fmt: skip
def test_wrong_lines_close_the_connection(backend: Backend, line: bytes) -> None:
    with guest(backend) as g:
        g.listen(7000)
        with backend.client(line) as client:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(10) == b""
        assert g.pump(0.02) == 0
        dial(backend, g, 7000)[0].close()


def opening(backend: Backend, line: bytes) -> socket.socket:
    """A client that cannot write any more before the outcome is there."""
    client = backend.client()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.setblocking(False)
    assert client.send(line.ljust(36000, b"\0")) == 36000
    return client


def outcome(client: socket.socket, g: Guest) -> int:
    """What a program does after EINPROGRESS."""
    g.wait(lambda: select.select([], [client], [], 0)[1], "the outcome")
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_open_is_told_by_the_kernel(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        with opening(backend, b"OPEN 7000 50000 20000\n") as client:
            # The guest has not looked yet, so there is no outcome.
            assert not select.select([], [client], [], 0.02)[1]
            # Who does not wait for that loses nothing either.
            client.send(b"early")
            s = g.accept(7000)
            assert (s.cid, s.peer_port) == (3, 50000)
            assert outcome(client, g) == 0
            data = pattern(50_000)
            client.send(data[:10])
            assert s.recv_exactly(15) == b"early" + data[:10], "what filled the socket was taken for data"
            s.send(data)
            g.flush()
            client.settimeout(PATIENCE)
            assert read_exactly(client, len(data)) == data
            client.shutdown(socket.SHUT_WR)
            assert s.recv() == b""
        with opening(backend, b"open  7001 50000 20000\r\n") as client:
            assert outcome(client, g) == errno.ECONNRESET


def test_open_from_a_port_that_is_taken(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        with opening(backend, b"OPEN 7000 50000 20000\n") as client:
            assert outcome(client, g) == 0
            with opening(backend, b"OPEN 7000 50000 20000\n") as second:
                assert outcome(second, g) == errno.ECONNRESET
            g.listen(7001)
            with opening(backend, b"OPEN 7001 50000 20000\n") as other:
                assert outcome(other, g) == 0


@pytest.mark.parametrize("start", [True, False])
def test_an_open_that_nobody_answers(backend: Backend, start: bool) -> None:
    """It ends when its client wants it to, whether the guest's driver is up or not."""
    with guest(backend, start=start), opening(backend, b"OPEN 7000 50000 300\n") as client:
        began = time.monotonic()
        assert select.select([], [client], [], PATIENCE)[1]
        assert time.monotonic() >= began + 0.25, "before its time"
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_an_open_that_is_given_up(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        opening(backend, b"OPEN 7000 50000 20000\n").close()
        patience = fail_after()
        while not backend.statistics()["client-gone"]:
            g.pump(0.01)
            patience("the client's end")
        with opening(backend, b"OPEN 7000 50001 20000\n") as client:
            assert outcome(client, g) == 0


def test_highest_port(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(4294967294)
        dial(backend, g, 4294967294)[0].close()


def test_clients_that_leave_without_a_word(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        dial(backend, g, 7000)[0].close()
        fds = backend.fds()
        for i in range(300):
            backend.client(b"CONN" if i % 3 == 0 else b"").close()
        patience = fail_after()
        while backend.statistics()["client-gone"] < 300:
            patience("300 clients gone")
        assert wakeups_while_idle(backend) <= 2
        assert backend.fds() <= fds
        dial(backend, g, 7000)[0].close()


def test_clients_that_leave_at_once_after_connect(backend: Backend) -> None:
    with guest(backend) as g:
        g.listen(7000)
        for _ in range(50):
            backend.client(b"CONNECT 7000\n").close()
            g.pump()
        client, s = dial_skipping(backend, g, 7000)
        with client:
            client.sendall(b"alive")
            assert s.recv_exactly(5) == b"alive"
        patience = fail_after()
        while backend.statistics()["connections"] > 1:
            g.pump(0.05)
            patience("all forgotten")


def dial_skipping(backend: Backend, g: Guest, port: int) -> tuple[socket.socket, Stream]:
    """As `dial`, past connections of clients that have left."""
    client = backend.client(b"CONNECT %d\n" % port)
    patience = fail_after()
    client.setblocking(False)
    line = b""
    while not line.endswith(b"\n"):
        g.pump(0.02)
        with contextlib.suppress(BlockingIOError):
            line += client.recv(1)
        patience("OK")
    client.settimeout(PATIENCE)
    number = int(line.split()[1])
    while True:
        s = g.accept(port)
        if s.peer_port == number:
            return client, s


def test_clients_before_the_guest(backend: Backend) -> None:
    """They wait for the guest's driver, through the start of the front end and of the driver."""
    with backend.client(b"CONNECT 7000\n") as early, guest(backend, start=False) as g:
        g.listen(7000)
        with backend.client(b"CONNECT 7000\n") as late:
            g.front.start()
            g.post()
            a, b = g.accept(7000), g.accept(7000)
            assert {read_ok(early), read_ok(late)} == {a.peer_port, b.peer_port}


def test_guest_that_never_answers(backend: Backend) -> None:
    with guest(backend) as g:
        g.streams[(3, 1 << 30, 7000)] = Stream(g, 3, 1 << 30, 7000, state="open")
        g.on_1 = lambda s, p: None  # type: ignore[method-assign]
        with backend.client(b"CONNECT 7000\n") as client:
            g.wait(lambda: RST in g.counts, "RST after the time-out")
            assert client.recv(10) == b""
            assert backend.statistics()["guest-silent"] == 1


def test_response_nobody_asked_for(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT)
        peer, _ = listener.accept()
        with peer:
            s.put(RESPONSE)
            s.wait(lambda: s.state == "reset", "RST")
            assert peer.recv(1) == b""
        g.put(Packet(g.cid, 3, 7000, 1 << 30, RESPONSE, buf_alloc=LINUX_BUFFER))
        g.wait(lambda: g.strays, "RST for a stranger")


def test_unfinished_lines_are_bounded(backend: Backend) -> None:
    """128 clients that say nothing; the next ones wait, and get their turn when those leave."""
    with guest(backend) as g, contextlib.ExitStack() as stack:
        g.listen(7000)
        idle = [stack.enter_context(backend.client()) for _ in range(140)]
        patience = fail_after()
        while backend.statistics()["connections"] < 128:
            patience("128 clients")
        late = stack.enter_context(backend.client(b"CONNECT 7000\n"))
        assert backend.statistics()["connections"] == 128
        assert wakeups_while_idle(backend) <= 2
        for s in idle:
            s.close()
        stream = g.accept(7000)
        assert read_ok(late) == stream.peer_port


# --- other ways in and out ---------------------------------------------------------------------------------


def tcp_listener(address: str = "127.0.0.1") -> socket.socket:
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(PATIENCE)
    s.bind((address, 0))
    s.listen()
    return s


def test_proxy_to_tcp(binary: Path) -> None:
    with tcp_listener() as service, tcp_listener() as gone:
        there, dead = service.getsockname()[1], gone.getsockname()[1]
        gone.close()
        options = [f"--proxy=8000=127.0.0.1:{there}", f"--proxy=8001=127.0.0.1:{dead}"]
        with running(binary, *options) as b, guest(b) as g:
            data = pattern(300_000)
            s = g.connect(8000)
            peer, _ = service.accept()
            with peer:
                sent, got = 0, bytearray()
                patience = fail_after()
                while len(got) < len(data):
                    sent += s.send_some(data[sent : sent + 65536])
                    g.pump()
                    if select.select([peer], [], [], 0.02)[0]:
                        got += peer.recv(1 << 20)
                    patience("all bytes")
                assert bytes(got) == data
                peer.sendall(b"answer")
                assert s.recv_exactly(6) == b"answer"
                s.shutdown(OFF_SEND)
                assert read_all(peer, g) == b""
                peer.sendall(b"more")
                peer.close()
                assert s.recv_all() == b"more"
                s.close()
            # Nobody there, and nothing that is not listed.
            for port in (8001, there, dead):
                with pytest.raises(Refused):
                    g.connect(port)
            assert b.statistics()["connections"] == 0


def test_proxy_to_ipv6(binary: Path) -> None:
    try:
        service = tcp_listener("::1")
    except OSError:
        # A host without it: a refusal, and no more.
        with running(binary, "--proxy=8000=[::1]:1") as b, guest(b) as g, pytest.raises(Refused):
            g.connect(8000)
        return
    with service, running(binary, f"--proxy=8000=[::1]:{service.getsockname()[1]}") as b, guest(b) as g:
        s = g.connect(8000)
        peer, _ = service.accept()
        with peer:
            s.send(b"six")
            assert peer.recv(10) == b"six"


def test_listen_port_is_a_path(binary: Path) -> None:
    with Folder() as folder:
        with socket.socket(socket.AF_UNIX) as service:
            service.bind(os.fspath(folder / "svc"))
            service.listen()
            service.settimeout(PATIENCE)
            options = [f"--listen-port=5000={folder}/svc", f"--listen-port=9000={folder}/none"]
            with running(binary, *options) as b, guest(b) as g, b.listen(PORT) as usual:
                s = g.connect(PORT)
                peer, _ = service.accept()
                with peer:
                    s.send(b"here")
                    assert peer.recv(10) == b"here"
                assert not select.select([usual], [], [], 0)[0]
                # A heartbeat that was given a place is not answered by the backend.
                with pytest.raises(Refused):
                    g.connect(9000)


def test_a_fallback_for_ports_that_nobody_serves(binary: Path) -> None:
    with Folder() as folder:
        options = [f"--fallback-path={folder}/port"]
        with running(binary, *options) as b, guest(b) as g, socket.socket(socket.AF_UNIX) as service:
            service.bind(os.fspath(folder / f"port_{PORT}"))
            with pytest.raises(Refused):
                g.connect(PORT)
            service.listen()
            service.settimeout(PATIENCE)
            s = g.connect(PORT, source=4000)
            peer, name = service.accept()
            with peer:
                # Who connects can be told from the name: CID and port, of the guest and of the parent.
                assert name.startswith(b"\0nitro-vsock/4:4000/3:%d/" % PORT)
                s.send(b"here")
                assert peer.recv(10) == b"here"
            with b.listen(PORT) as own:
                g.connect(PORT)
                peer, name = own.accept()
                peer.close()
                assert name.startswith(b"\0nitro-vsock/4:1025/3:%d/" % PORT)
                assert not select.select([service], [], [], 0)[0], "the enclave's own comes first"
            with pytest.raises(Refused):
                g.connect(PORT + 1)


def test_the_heartbeat_falls_back_too(binary: Path) -> None:
    with Folder() as folder:
        options = [f"--fallback-path={folder}/port"]
        with running(binary, *options) as b, guest(b) as g, socket.socket(socket.AF_UNIX) as service:
            service.bind(os.fspath(folder / "port_9000"))
            service.listen()
            service.settimeout(PATIENCE)
            g.connect(9000)
            service.accept()[0].close()
            service.close()
            s = g.connect(9000)
            s.send(b"\xb7")
            assert s.recv(1) == b"\xb7"
            assert read_line(b.booted) == b"booted\n"


def test_published_ports(binary: Path) -> None:
    with tcp_listener() as free:
        number = free.getsockname()[1]
    with Folder() as folder:
        options = [
            f"--publish=127.0.0.1:{number}=7000", f"--publish={folder}/a=7001",
            f"--connect-port=7002={folder}/b",
        ]  # fmt: skip
        with running(binary, *options) as b:
            assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
            with guest(b) as g:
                for port in (7000, 7001, 7002):
                    g.listen(port)
                    if port == 7000:
                        client = socket.create_connection(("127.0.0.1", number))
                    else:
                        client = socket.socket(socket.AF_UNIX)
                        client.connect(os.fspath(folder / ("a" if port == 7001 else "b")))
                    client.settimeout(PATIENCE)
                    with client:
                        client.sendall(b"CONNECT 7000\n")
                        s = g.accept(port)
                        assert s.recv_exactly(13) == b"CONNECT 7000\n", "no line is parsed here"
                        s.send(b"raw")
                        assert client.recv(10) == b"raw"
        assert list(folder.iterdir()) == []


# AF_VSOCK of the host: the backend's program, linked with a host whose AF_VSOCK is made of unix sockets,
# which shows all but what the kernel itself does; and the real thing, as far as this host has it.


@pytest.fixture
def vsock(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """The program, and the folder where the socket CID:PORT is the unix socket CID_PORT."""
    program = os.environ.get("VSOCK_ON_UNIX")
    if not program:
        pytest.fail("VSOCK_ON_UNIX must name the build's tests/unit/vsock-on-unix")
    with Folder() as folder:
        monkeypatch.setenv("VSOCK_FOLDER", os.fspath(folder))
        yield Path(program), folder


def host_listens(folder: Path, cid: int, port: int) -> socket.socket:
    s = socket.socket(socket.AF_UNIX)
    s.bind(os.fspath(folder / f"{cid}_{port}"))
    s.listen()
    s.settimeout(PATIENCE)
    return s


def host_connects(folder: Path, cid: int, port: int, own: int | None = None) -> socket.socket:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(PATIENCE)
    if own is not None:
        s.bind(os.fspath(folder / f"client_{own}"))
    s.connect(os.fspath(folder / f"{cid}_{port}"))
    return s


def test_guest_to_the_hosts_vsock(vsock: tuple[Path, Path]) -> None:
    program, folder = vsock
    with running(program, "--forward-cid=1") as b, guest(b) as g, host_listens(folder, 1, PORT) as service:
        data = pattern(300_000)
        s = g.connect(PORT)
        peer, _ = service.accept()
        with peer:
            s.send(data[:100_000])
            assert read_exactly(peer, 100_000) == data[:100_000]
            peer.sendall(data[:100_000])
            assert s.recv_exactly(100_000) == data[:100_000]
            s.shutdown(OFF_SEND)
            assert read_all(peer, g) == b""
            peer.sendall(b"more")
            peer.close()
            assert s.recv_all() == b"more"
        # CID 2 is the parent too; and who listens on a unix socket comes first.
        g.connect(PORT, 2)
        service.accept()[0].close()
        with b.listen(PORT) as own:
            g.connect(PORT)
            own.accept()[0].close()
            assert not select.select([service], [], [], 0)[0]
        with pytest.raises(Refused):
            g.connect(PORT + 1)
        assert b.statistics()["no-listener"] == 1


def test_heartbeat_by_the_hosts_vsock(vsock: tuple[Path, Path]) -> None:
    program, folder = vsock
    with running(program, "--forward-cid=1") as b, guest(b) as g:
        # Nobody there, which shows only later: the backend's own answer.
        assert heartbeat(g) == b"\xb7"
        assert read_line(b.booted) == b"booted\n"
        g.reboot()
        with host_listens(folder, 1, 9000) as service:
            s = g.connect(9000)
            peer, _ = service.accept()
            with peer:
                s.send(b"\xb7")
                assert peer.recv(10) == b"\xb7"
                assert booted(b) == 0
                peer.sendall(b"\xb7")
                assert s.recv_exactly(1) == b"\xb7"
            assert read_line(b.booted) == b"booted\n"
    # The same where there is not even such a CID, and a refusal elsewhere.
    with running(program, "--forward-cid=77") as b, guest(b) as g:
        assert heartbeat(g) == b"\xb7"
        with pytest.raises(Refused):
            g.connect(PORT)


def test_the_hosts_vsock_to_the_guest(vsock: tuple[Path, Path]) -> None:
    program, folder = vsock
    with running(program, "--forward-cid=1", "--forward-listen=7001+7002") as b, guest(b) as g:
        for port in (7001, 7002):
            g.listen(port)
            with host_connects(folder, 1, port) as client:
                client.sendall(b"CONNECT 1\n")
                s = g.accept(port)
                assert s.recv_exactly(10) == b"CONNECT 1\n", "no line is parsed here"
                s.send(b"raw")
                assert client.recv(10) == b"raw"
        # The unix socket is still there.
        dial(b, g, 7001)[0].close()
        # Nobody listens in the guest any more.
        g.listening.clear()
        with host_connects(folder, 1, 7001) as client:
            g.wait(lambda: REQUEST in g.counts, "REQUEST")
            g.flush()
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(10) == b""


def test_other_machines_are_not_the_parent(vsock: tuple[Path, Path]) -> None:
    """With the parent at another CID we listen where everybody can reach us."""
    program, folder = vsock
    with running(program, "--forward-cid=7", "--forward-listen=7001", "-v") as b, guest(b) as g:
        g.listen(7001)
        with host_connects(folder, 0xFFFFFFFF, 7001, own=8) as stranger:
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(10) == b""
        assert "another CID" in b.stderr()
        with host_connects(folder, 0xFFFFFFFF, 7001, own=7) as parent:
            s = g.accept(7001)
            s.send(b"yours")
            assert parent.recv(10) == b"yours"


def test_the_hosts_vsock_instead_of_unix_sockets(vsock: tuple[Path, Path]) -> None:
    """As vhost-device-vsock spells it."""
    program, folder = vsock
    process = subprocess.Popen(
        [program, "--vm", f"guest-cid=4,socket={folder}/s,forward-cid=1,forward-listen=9001+9002"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with contextlib.closing(Front(folder / "s")) as front, host_listens(folder, 1, PORT) as service:
        g = Guest(front)
        front.start()
        assert heartbeat(g) == b"\xb7"
        s = g.connect(PORT)
        peer, _ = service.accept()
        with peer:
            s.send(b"out")
            assert peer.recv(10) == b"out"
        g.listen(9002)
        with host_connects(folder, 1, 9002) as client:
            g.accept(9002).send(b"in")
            assert client.recv(10) == b"in"
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not (folder / "s").exists()


def loopback_listener() -> socket.socket:
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        s.settimeout(PATIENCE)
        s.bind((1, socket.VMADDR_PORT_ANY))
        s.listen()
    except OSError:
        s.close()
        raise
    return s


def test_real_vsock_loopback(binary: Path) -> None:
    """Bytes where the kernel has it; elsewhere the word about it, before anything is served."""
    try:
        service = loopback_listener()
    except OSError:
        with Folder() as folder:
            result = run(binary, "--guest-cid=4", f"--socket-path={folder}/s", "--forward-cid=1")
            assert result.returncode == 1 and result.stderr.count("\n") == 1
            assert "vsock" in result.stderr.partition("--forward-cid=1: ")[2].lower()
            assert list(folder.iterdir()) == []
        return
    with loopback_listener() as free:
        port = free.getsockname()[1]
    with service, running(binary, "--forward-cid=1", f"--forward-listen={port}") as b, guest(b) as g:
        s = g.connect(service.getsockname()[1])
        peer, _ = service.accept()
        with peer:
            s.send(b"out")
            assert peer.recv(10) == b"out"
        g.listen(port)
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE)
            client.connect((1, port))
            g.accept(port).send(b"in")
            assert client.recv(10) == b"in"


def test_real_vsock_without_anybody(binary: Path) -> None:
    """The kernel's own AF_VSOCK, towards a CID that nobody has: refused in time, and the backend lives."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        with Folder() as folder:
            result = run(binary, "--guest-cid=4", f"--socket-path={folder}/s", "--forward-cid=4294967294")
            assert result.returncode == 1 and "no AF_VSOCK" in result.stderr
        return
    with running(binary, "--forward-cid=4294967294") as b, guest(b) as g:
        with pytest.raises(Refused):
            g.connect(PORT)
        assert b.statistics()["no-listener"] == 1
        assert b.statistics()["connections"] == 0
        # Whether the kernel says so or nothing at all, the heartbeat is answered.
        assert heartbeat(g) == b"\xb7"


def test_handed_in_listeners(binary: Path) -> None:
    with Folder() as folder, contextlib.ExitStack() as stack:
        listeners = []
        for name in ("s", "u"):
            s = stack.enter_context(socket.socket(socket.AF_UNIX))
            s.bind(os.fspath(folder / name))
            s.listen()
            listeners.append(s)
        # The front end connects before there is a backend: nobody has to wait for it.
        early = stack.enter_context(socket.socket(socket.AF_UNIX))
        early.connect(os.fspath(folder / "s"))
        early.close()
        fds = [s.fileno() for s in listeners]
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-fd={fds[0]}", f"--uds-fd={fds[1]}",
             f"--uds-path={folder}/u"],
            pass_fds=fds, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.closing(Front(folder / "s")) as front:
            g = Guest(front)
            front.start()
            heartbeat(g)
            g.listen(7000)
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(os.fspath(folder / "u"))
            client.sendall(b"CONNECT 7000\n")
            stream = g.accept(7000)
            assert read_ok(client) == stream.peer_port
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert (folder / "s").exists() and (folder / "u").exists(), "not its own to remove"


def test_a_handed_in_file_is_no_listener(binary: Path) -> None:
    result = run(binary, *GOOD[1:], "--socket-fd=1")
    assert result.returncode == 1 and "not a listening socket" in result.stderr


# --- credit and packets -----------------------------------------------------------------------------------


def test_small_messages_to_a_busy_guest(backend: Backend) -> None:
    """900 messages, each a packet of its own, while the guest's program sleeps. Guest checks the limit."""
    message = [pattern(200, i) for i in range(900)]
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        left = list(reversed(message))
        with contextlib.suppress(BlockingIOError):
            while left:
                peer.send(left[-1])
                left.pop()
                before = len(s.queue)
                if before < 256:
                    g.wait(lambda n=before: len(s.queue) > n, "the message")  # type: ignore[misc]
        g.pump(0.2)
        assert len(s.queue) == 256, "the packet limit was reached, and not passed"
        got = bytearray()
        patience = fail_after()
        while len(got) < 180_000:
            with contextlib.suppress(BlockingIOError, IndexError):
                peer.send(left[-1])
                left.pop()
            g.pump(0.0 if left else 0.1)
            got += s.read_some(2000)
            patience("all messages")
        assert bytes(got) == b"".join(message)
        # Asked at half the limit, and then at intervals that grow from 20 ms.
        assert s.requests < 20


def test_the_packet_limit_follows_a_small_buffer(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s = g.connect(PORT, buf_alloc=8192)
        peer, _ = listener.accept()
        with peer:
            for i in range(50):
                peer.sendall(b"%03d" % i)
                g.pump(0.005)
            assert 2 <= len(s.queue) <= 8
            assert s.recv_exactly(150) == b"".join(b"%03d" % i for i in range(50))


def test_an_old_kernel_that_does_not_tell(backend: Backend) -> None:
    """Linux before 6.8 tells of consumed bytes only when little room is left; small packets go on."""
    with linked(backend) as (g, s, peer):
        got = 0
        for i in range(700):
            peer.sendall(bytes([i & 0xFF]) * 10)
            patience = fail_after()
            while got < 10 * (i + 1):
                g.pump(0.02)
                while s.queue:  # consumed, and nothing said
                    packet = s.queue.popleft()
                    got += len(packet)
                    s.fwd_cnt += len(packet)
                patience(f"message {i}")
        assert s.requests <= 700 // 128 + 3


def test_one_credit_request_then_silence(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        sent = 0
        patience = fail_after()
        while not s.requests:
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(bytes(65536))
            g.pump(0.02)
            patience("CREDIT_REQUEST")
        g.pump(0.1)
        assert s.requests == 1
        in_flight = s.received
        assert LINUX_BUFFER - 3732 < in_flight <= LINUX_BUFFER
        # Answers with nothing new in them are not answered by another question.
        for _ in range(20):
            s.put(CREDIT_UPDATE)
        g.flush()
        g.pump(0.1)
        assert s.requests == 1 and s.received == in_flight
        assert wakeups_while_idle(backend) <= 2


def test_no_crumbs(backend: Backend) -> None:
    """A guest that reads 600 bytes at a time gets full packets, and few questions."""
    total = 1 << 20
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        data = pattern(total)
        sent, got = 0, bytearray()
        before = backend.statistics()
        patience = fail_after()
        while len(got) < total:
            with contextlib.suppress(BlockingIOError):
                if sent < total:
                    sent += peer.send(data[sent:])
            if g.pump(0.0 if s.queue else 0.05) == 0:
                got += s.read_some(600)
                patience("the rest") if not s.queue else None
        assert bytes(got) == data
        after = backend.statistics()
        packets = after["packets_to_guest"] - before["packets_to_guest"]
        assert packets < 1.25 * total / 3732 + 20
        # One for each stretch of a quarter of the buffer, and of what a late host cuts in pieces.
        assert after["credit_requests"] - before["credit_requests"] <= 4 * total // 65536
        assert after["wakeups"] - before["wakeups"] < 3000


def test_guest_lowers_its_buffer(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        peer.sendall(bytes(100_000))
        g.wait(lambda: s.received == 100_000, "bytes")
        s.buf_alloc = 1000
        s.put(CREDIT_UPDATE)
        g.flush()
        peer.sendall(b"more")
        g.pump(0.1)
        assert s.received == 100_000
        s.buf_alloc = LINUX_BUFFER
        assert s.recv_exactly(100_004)[-4:] == b"more"


def test_credit_going_backwards(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for fwd in (0xFFFFFFFF, 0x80000000, 5, 0, 0x7FFFFFFF):
            g.put(Packet(g.cid, 3, s.port, PORT, CREDIT_UPDATE, buf_alloc=fwd, fwd_cnt=fwd))
            peer.sendall(b"x")
        g.flush()
        s.put(CREDIT_UPDATE)
        assert s.recv_exactly(5) == b"xxxxx"
    assert backend.process.poll() is None


def test_credit_request_is_answered(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.send(b"12345")
        assert peer.recv(10) == b"12345"
        for _ in range(100):
            s.put(CREDIT_REQUEST)
        g.flush()
        g.wait(lambda: s.updates >= 1, "CREDIT_UPDATE")
        g.pump(0.05)
        assert s.peer_fwd == 5 and s.updates <= 100


def test_tx_goes_on_without_rx_buffers(backend: Backend) -> None:
    with guest(backend, start=False) as g, backend.listen(PORT) as listener:
        g.muted = True
        g.front.start()
        s = g.connect_start(PORT)
        peer, _ = listener.accept()
        with peer:
            # RESPONSE cannot be sent, but what the guest sends is taken.
            s.peer_buf_alloc = LINUX_BUFFER
            s.send(bytes(50_000))
            g.flush()
            assert read_exactly(peer, 50_000) == bytes(50_000)
            # Any number of questions costs no memory, and RSTs for strangers stop at their bound.
            for i in range(3000):
                s.put(CREDIT_REQUEST)
                if i < 900:
                    g.put(Packet(g.cid, 3, 40000 + i, 9, RW))
            g.flush()
            assert backend.statistics()["reserved_bytes"] == LINUX_BUFFER
            g.muted = False
            g.post()
            g.wait(lambda: s.state == "open" and len(g.strays) == 900, "all answers")


def test_rsts_for_strangers_stop_the_ring_when_full(backend: Backend) -> None:
    with guest(backend, start=False, buffers=64) as g:
        g.muted = True
        g.front.start()
        sent = 0
        with contextlib.suppress(TimeoutError):
            # Until it takes no more: the bound, and what the ring itself holds.
            while sent < 1024 + 64:
                g.put(Packet(g.cid, 3, 10000 + sent, 9, RW))
                sent += 1
        g.pump(0.1)
        assert len(g.tx_at) == 64, "the rest waits in the ring"
        g.muted = False
        g.post()
        g.wait(lambda: len(g.strays) == 1088, "an RST for each")
        assert {p.dst_port for p in g.strays} == set(range(10000, 10000 + 1088))


def test_listener_that_does_not_accept(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT, backlog=0) as lazy, backend.listen(PORT + 1) as busy:
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with filler:
            filler.connect(os.fspath(backend.port(PORT)))
            waiting = [g.connect_start(PORT) for _ in range(10)]
            # Another port is not held up.
            s = g.connect(PORT + 1)
            peer, _ = busy.accept()
            with peer:
                s.send(b"through")
                assert peer.recv(10) == b"through"
            # One place becomes free: one of them gets through, by the retry.
            lazy.accept()[0].close()
            g.wait(lambda: any(w.state == "open" for w in waiting), "the first of those that wait")
            # The others are refused before a Linux guest gives up.
            g.wait(lambda: sum(w.state == "reset" for w in waiting) == 9, "nine refusals")
            assert backend.statistics()["backlog"] == 9


def test_thousands_that_wait_for_one_listener(backend: Backend) -> None:
    """It is asked for all of them together, at most every 20 ms: each would be a quarter of a processor."""
    with guest(backend, buffers=900) as g, backend.listen(PORT, backlog=0), backend.listen(PORT + 1) as busy:
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with filler:
            filler.connect(os.fspath(backend.port(PORT)))
            s = g.connect(PORT + 1)
            peer, _ = busy.accept()
            with peer:
                waiting = [g.connect_start(PORT) for _ in range(4000)]
                g.flush()
                began, before = time.monotonic(), backend.statistics()["dials"]
                patience = fail_after()
                while all(w.state == "connecting" for w in waiting[-10:]):
                    s.send(b"x")
                    assert peer.recv(1) == b"x"
                    g.pump(0.05)
                    patience("the refusals")
                asked = backend.statistics()["dials"] - before
                assert 0 < asked <= (time.monotonic() - began) / 0.019 + 1
            g.wait(lambda: all(w.state == "reset" for w in waiting), "4000 refusals")
            assert backend.statistics()["backlog"] == 4000


def test_guest_gives_up_while_waiting(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT, backlog=0):
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with filler:
            filler.connect(os.fspath(backend.port(PORT)))
            s = g.connect_start(PORT)
            g.flush()
            s.put(RST)
            s.gone()
            g.flush()
            assert backend.statistics()["connections"] == 0


# --- packets that a guest must not send -------------------------------------------------------------------


def test_hostile_headers(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        me, src = g.cid, s.port
        # Not the guest's CID: not answered.
        for cid in (0, 3, 5, me + (1 << 32), 0xFFFFFFFF):
            g.put(Packet(cid, 3, src, PORT, RW, b"evil"))
        g.flush()
        assert g.pump(0.1) == 0
        # Unknown type: an RST of that type, which is not the stream's.
        g.streams.pop(s.key)
        g.put(Packet(me, 3, src, PORT, RW, b"evil", kind=2))
        g.wait(lambda: g.strays and g.strays[-1].kind == 2, "RST with type 2")
        g.streams[s.key] = s
        s.send(b"good")
        assert peer.recv(100) == b"good"
        # Unknown operations of strangers.
        for op in (0, 4, 5, 6, 7, 8, 0xFFFF):
            n = len(g.strays)
            g.put(Packet(me, 3, 999, PORT, op))
            g.wait(lambda n=n: len(g.strays) == n + 1, f"RST for op {op}")  # type: ignore[misc]
        # A length that is not there.
        g.put(Packet(me, 3, src, PORT, RW, b"evil", length=5))
        s.wait(lambda: s.state == "reset", "RST")
        assert peer.recv(10) == b""


@pytest.mark.parametrize(
    "bad",
    [
        {"op": RW, "length": 65537},
        {"op": RW, "length": 0xFFFFFFFF},
        {"op": CREDIT_UPDATE, "payload": b"x"},
        {"op": SHUTDOWN, "length": 1},
        {"op": 0},
        {"op": 8},
        {"op": REQUEST},
    ],
)
def test_violations_reset_one_connection(backend: Backend, bad: dict[str, object]) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        s, other = g.connect(PORT), g.connect(PORT)
        peer, other_peer = listener.accept()[0], listener.accept()[0]
        with peer, other_peer:
            g.put(Packet(g.cid, 3, s.port, PORT, **bad))  # type: ignore[arg-type]
            s.wait(lambda: s.state == "reset", "RST")
            assert peer.recv(10) == b""
            other.send(b"unharmed")
            assert other_peer.recv(10) == b"unharmed"


def test_zero_length_rw_is_ignored(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        s.put(RW)
        s.send(b"x")
        assert peer.recv(10) == b"x"


def test_shutdown_twice(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for flags in (0, OFF_SEND, OFF_SEND, 0xFFFFFFFC, OFF_RECV, OFF_BOTH):
            s.put(SHUTDOWN, flags=flags)
        s.wait(lambda: s.state == "reset", "RST")
        assert peer.recv(1) == b""
        g.flush()
        # The last one is a stranger's, unless it came before the RST was out.
        g.pump(0.05)
        assert len(g.strays) <= 1
        assert backend.statistics()["connections"] == 0


# --- hostile rings ----------------------------------------------------------------------------------------


def still_serving(g: Guest) -> None:
    assert heartbeat(g) == b"\xb7"


def chains(g: Guest, ring_index: int) -> dict[str, tuple[list[tuple[int, int, int, int]], int]]:
    """name: descriptors (address, length, flags, next), head"""
    good = g.tx_memory[0] if ring_index else g.rx_memory[0]
    write = DESC_WRITE if ring_index == 0 else 0
    return {
        "zero length": ([(good, 0, write, 0)], 0),
        "zero length in the middle": ([(good, 44, write | DESC_NEXT, 1), (good, 0, write, 0)], 0),
        "indirect": ([(good, 64, write | DESC_INDIRECT, 0)], 0),
        "wrong direction": ([(good, 3776, write ^ DESC_WRITE, 0)], 0),
        "mixed direction": ([(good, 44, write | DESC_NEXT, 1), (good, 4096, write ^ DESC_WRITE, 0)], 0),
        "loop of one": ([(good, 44, write | DESC_NEXT, 0)], 0),
        "loop of two": ([(good, 44, write | DESC_NEXT, 1), (good, 44, write | DESC_NEXT, 0)], 0),
        "next out of range": ([(good, 44, write | DESC_NEXT, 0xFFFF)], 0),
        "no memory": ([(1 << 40, 100, write, 0)], 0),
        "in the hole": ([(0xF0000, 100, write, 0)], 0),
        "across the hole": ([(0xEFFFF, 2, write, 0)], 0),
        "behind the end": ([(g.front.memory.size - 10, 100, write, 0)], 0),
        "wraps": ([(0xFFFFFFFFFFFFFFF0, 0x20, write, 0)], 0),
        "wraps far": ([(good, 0xFFFFFFFF, write, 0)], 0),
        "too short": ([(good, 43 if ring_index else 44, write, 0)], 0),
        "too many pieces": ([(good + i, 1, write | DESC_NEXT, i + 1) for i in range(70)], 0),
    }


CHAINS = [
    "zero length", "zero length in the middle", "indirect", "wrong direction", "mixed direction",
    "loop of one", "loop of two", "next out of range", "no memory", "in the hole", "across the hole",
    "behind the end", "wraps", "wraps far", "too short", "too many pieces",
]  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("ring_index", [0, 1], ids=["rx", "tx"])
def test_bad_chains_are_given_back(backend: Backend, ring_index: int, name: str) -> None:
    with guest(backend, queue=128, buffers=8) as g:
        still_serving(g)
        g.flush()
        ring = g.front.rings[ring_index]
        descriptors, head = chains(g, ring_index)[name]
        # Free descriptors, so that the good chains stay as they are.
        ids = [ring.free.pop() for _ in descriptors]
        for i, (addr, length, flags, follow) in zip(ids, descriptors, strict=True):
            in_range = flags & DESC_NEXT and follow < len(ids)
            ring.set_desc(i, addr, length, flags, ids[follow] if in_range else follow)
        before = backend.statistics()["bad_chains"]
        if ring_index == 0:
            # All good ones are used up first, then it meets the bad one.
            g.muted = True
        ring.offer(ids[head])
        ring.show()
        ring.kick(event_idx=True, force=True)
        patience = fail_after()
        while True:
            got = ring.take() if ring_index == 1 else None
            if got:
                assert got == (ids[head], 0)
                break
            if ring_index == 0:
                # Something to send, so that buffers are wanted; the bad one comes back with length 0.
                g.put(Packet(g.cid, 3, 999, 9, RW))
                found = None
                while taken := ring.take():
                    if taken[0] == ids[head]:
                        found = taken
                if found:
                    assert found == (ids[head], 0)
                    break
            patience("the bad chain")
            g.front.wait(0.01)
        assert backend.statistics()["bad_chains"] == before + 1
        assert backend.process.poll() is None
    with guest(backend) as g:
        still_serving(g)


@pytest.mark.parametrize("ring_index", [0, 1], ids=["rx", "tx"])
def test_heads_out_of_range_are_skipped(backend: Backend, ring_index: int) -> None:
    with guest(backend, queue=64, buffers=16) as g:
        ring = g.front.rings[ring_index]
        for head in (64, 0xFFFF):
            ring.offer(head)
        ring.show()
        ring.kick(event_idx=True, force=True)
        for _ in range(20):
            still_serving(g)
        assert backend.statistics()["bad_chains"] == 2


@pytest.mark.parametrize("ring_index", [0, 1], ids=["rx", "tx"])
def test_an_index_that_runs_away_stops_the_ring(backend: Backend, ring_index: int) -> None:
    with guest(backend, queue=64, buffers=16) as g:
        still_serving(g)
        g.flush()
        ring = g.front.rings[ring_index]
        ring.memory.u16[ring.avail // 2 + 1] = (ring.avail_idx + 1000) & 0xFFFF
        os.eventfd_write(ring.kick_fd, 1)
        if ring_index == 0:
            # Looked at when something is to be sent.
            for i in range(30):
                g.put(Packet(g.cid, 3, 2000 + i, 9, RW))
        patience = fail_after()
        while backend.statistics()["bad_chains"] == 0:
            patience("it was seen")
        # The front end is told of this ring, once.
        assert [drain(r.err_fd) for r in g.front.rings] == [ring_index == 0, ring_index == 1]
        assert wakeups_while_idle(backend) <= 2
        assert not drain(ring.err_fd)
        # Until the next reset of the guest.
        g.reboot()
        still_serving(g)


def test_rings_that_change_under_our_hands(backend: Backend) -> None:
    """Random bytes over descriptors and indexes while traffic goes on: it lives, whatever it answers."""
    rng = random.Random(7)
    for _ in range(8):
        front = Front(backend.socket_path, queue=64)
        with contextlib.closing(front):
            front.start()
            for ring in front.rings:
                for _ in range(200):
                    at = rng.choice([ring.desc + rng.randrange(1024), ring.avail + rng.randrange(134)])
                    front.memory.map[at] = rng.randrange(256)
                    struct.pack_into("<Q", front.memory.map, ring.desc + 16 * rng.randrange(64),
                                     0x100000 + rng.randrange(1 << 22))  # fmt: skip
                    os.eventfd_write(ring.kick_fd, 1)
    with guest(backend) as g:
        still_serving(g)


def test_tiny_rings(backend: Backend) -> None:
    with linked(backend, queue=4, buffers=4) as (g, s, peer):
        g.layout = "single"
        for i in range(50):
            s.send(pattern(1000, i))
            assert read_exactly(peer, 1000) == pattern(1000, i)
            peer.sendall(pattern(10_000, i))
            assert s.recv_exactly(10_000) == pattern(10_000, i)


# --- the front end ----------------------------------------------------------------------------------------


def test_guest_reboot_ends_its_connections(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT) as listener:
        g.listen(7000)
        fds = backend.fds()
        for _ in range(5):
            s = g.connect(PORT)
            peer, _ = listener.accept()
            client, served = dial(backend, g, 7000)
            with peer, client:
                s.send(b"x")
                served.send(b"y")
                assert (peer.recv(1), client.recv(1)) == (b"x", b"y")
                g.reboot()
                g.listen(7000)
                assert peer.recv(10) == b"" and client.recv(10) == b""
        assert backend.statistics()["connections"] == 0
        assert backend.fds() == fds


def test_pause_keeps_connections(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for i in range(5):
            s.send(b"before %d" % i)
            g.flush()
            assert peer.recv(20) == b"before %d" % i
            g.front.stop()
            assert g.front.base[1] == g.front.tx.avail_idx
            peer.sendall(b"while paused %d" % i)
            g.front.start()
            assert s.recv_exactly(14) == b"while paused %d" % i
        s.close()
        assert peer.recv(1) == b""


def test_pause_under_load_loses_nothing(backend: Backend) -> None:
    data = pattern(1 << 20)
    with linked(backend) as (g, s, peer):
        peer.setblocking(False)
        sent, got, turn = 0, bytearray(), 0
        patience = fail_after()
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                if sent < len(data):
                    sent += peer.send(data[sent : sent + 50_000])
            turn += 1
            if turn % 5 == 0:
                g.front.stop()
                g.front.start()
            g.pump(0.01)
            got += s.read_some(100_000)
            patience("the rest")
        assert bytes(got) == data


def test_last_packets_before_a_stop_are_taken(backend: Backend) -> None:
    """What stands in the ring when the guest resets was sent, even if the kick was not seen."""
    with linked(backend) as (g, s, peer):
        g.flush()
        g.front.tx.kick = lambda **kw: None  # type: ignore[method-assign]
        s.send_some(b"last words")
        g.reboot()
        assert read_all(peer) == b"last words"


def test_memory_table_may_change_while_running(backend: Backend) -> None:
    with linked(backend) as (g, s, peer):
        for i in range(10):
            g.front.set_memory()
            s.send(pattern(5000, i))
            assert read_exactly(peer, 5000) == pattern(5000, i)
            peer.sendall(pattern(5000, i))
            assert s.recv_exactly(5000) == pattern(5000, i)


def test_150_front_ends(backend: Backend) -> None:
    with guest(backend) as g:
        still_serving(g)
    fds = backend.fds()
    for i in range(150):
        if i % 3 == 0:
            Front(backend.socket_path).close()
        elif i % 3 == 1:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(os.fspath(backend.socket_path))
                s.send(os.urandom(i))
        else:
            with guest(backend, buffers=16) as g:
                still_serving(g)
    with guest(backend) as g:
        still_serving(g)
    patience = fail_after()
    while backend.fds() > fds:
        patience("descriptors closed")


def test_a_second_front_end_is_refused(backend: Backend) -> None:
    with guest(backend) as g:
        with pytest.raises((EOFError, ConnectionError)):
            Front(backend.socket_path)
        still_serving(g)


def test_front_end_killed_in_the_middle(backend: Backend) -> None:
    with backend.listen(PORT) as listener:
        for _ in range(5):
            with guest(backend) as g:
                s = g.connect(PORT)
                peer, _ = listener.accept()
                s.send_some(b"under way")
            with peer:
                assert read_all(peer) == b"under way"
    assert backend.process.poll() is None


def test_messages_that_make_no_sense(backend: Backend) -> None:
    front = Front(backend.socket_path)
    with contextlib.closing(front):
        pairs = [
            (8, struct.pack("=II", 2, 64)), (8, struct.pack("=II", 0, 63)), (8, struct.pack("=II", 0, 0)),
            (8, struct.pack("=II", 0, 65536)), (8, b""), (8, bytes(9)), (10, struct.pack("=II", 9, 0)),
            (10, struct.pack("=II", 0, 65536)), (9, struct.pack("=IIQQQQ", 0, 0, 1, 2, 3, 4)),
            (9, struct.pack("=IIQQQQ", 7, 0, 1, 2, 3, 4)), (12, struct.pack("=Q", 0)),
            (12, struct.pack("=Q", 5)), (12, struct.pack("=Q", 0x100)), (13, struct.pack("=Q", 3)),
            (18, struct.pack("=II", 2, 1)), (5, b""), (5, struct.pack("=II", 9, 0) + bytes(288)),
            (5, struct.pack("=II", 1, 0) + bytes(32)), (2, struct.pack("=Q", 1 << 28)),
            (16, struct.pack("=Q", 1 << 60)), (25, bytes(20)), (99, b""), (0, b""), (99, bytes(4000)),
        ]  # fmt: skip
        for request, payload in pairs:
            assert front.do(request, payload) != 0, f"request {request} with {len(payload)} bytes accepted"
        for offset, size in ((0, 9), (8, 1), (9, 0), (4, 0xFFFFFFFF)):
            assert front.ask(24, struct.pack("=III", offset, size, 0) + bytes(8)) == b""
        assert front.ask(24, struct.pack("=III", 0, 4, 0) + bytes(4))[12:] == struct.pack("<I", 4)
        assert front.ask_u64(1) & (1 << 30)
        g = Guest(front, buffers=16)
        front.start()
        still_serving(g)


def test_bad_memory_tables(backend: Backend) -> None:
    front = Front(backend.socket_path)
    fd = front.memory.fd
    with contextlib.closing(front):
        for region in (
            (0, 33 << 20, 0, 0),  # longer than the file
            (0, 4096, 0, 32 << 20),
            (0, 1 << 63, 0, 1 << 63),
            (0, 0, 0, 0),
            ((1 << 64) - 1, 4096, 0, 0),
            (0, 4096, (1 << 64) - 1, 0),
        ):
            assert front.do(5, struct.pack("=IIQQQQ", 1, 0, *region), (fd,)) != 0
        read, write = os.pipe()
        assert front.do(5, struct.pack("=IIQQQQ", 1, 0, 0, 4096, 0, 0), (read,)) != 0
        os.close(read)
        os.close(write)
        # Too many files, and files where none belong.
        assert front.do(5, struct.pack("=IIQQQQ", 1, 0, 0, 4096, 0, 0), (fd, fd)) != 0
        assert front.do(3, b"", (fd, fd, fd)) == 0
        g = Guest(front, buffers=16)
        front.start()
        still_serving(g)


def test_messages_in_pieces(backend: Backend) -> None:
    front = Front(backend.socket_path)
    with contextlib.closing(front):
        message = struct.pack("=III", 24, 1, 20) + struct.pack("=III", 0, 8, 0) + bytes(8)
        for byte in message:
            front.socket.send(bytes([byte]))
        assert front.reply(24)[12:] == struct.pack("<Q", 4)


@pytest.mark.parametrize("junk", [b"\0" * 12, b"GET / HTTP/1.0\r\n\r\n", struct.pack("=III", 1, 1, 1 << 31)])
def test_a_broken_stream_is_closed(backend: Backend, junk: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(PATIENCE)
        s.connect(os.fspath(backend.socket_path))
        s.sendall(junk)
        with contextlib.suppress(ConnectionResetError):
            assert s.recv(1) == b""
    with guest(backend) as g:
        still_serving(g)


# --- many, and limits -------------------------------------------------------------------------------------


def test_thousand_connections_echo(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT, backlog=4096) as listener, contextlib.ExitStack() as stack:
        streams, peers = [], {}
        for i in range(1000):
            s = g.connect(PORT)
            peer = stack.enter_context(listener.accept()[0])
            streams.append(s)
            peers[i] = peer
        for i, s in enumerate(streams):
            s.send(b"ping %d" % i)
        for i, peer in peers.items():
            got = read_exactly(peer, len(b"ping %d" % i))
            assert got == b"ping %d" % i
            peer.sendall(b"pong %d" % i)
        for i, s in enumerate(streams):
            assert s.recv_exactly(len(b"pong %d" % i)) == b"pong %d" % i
        numbers = backend.statistics()
        assert numbers["connections"] == 1000
        assert numbers["reserved_bytes"] <= 64 << 20
        for s in streams:
            s.close()
        assert backend.statistics()["reserved_bytes"] == 0


def test_table_limit_is_an_rst(binary: Path) -> None:
    with running(binary, "--max-connections=8") as b, guest(b) as g, b.listen(PORT) as listener:
        g.listen(7000)
        streams = [g.connect(PORT) for _ in range(8)]
        peers = [listener.accept()[0] for _ in range(8)]
        for _ in range(5):
            with pytest.raises(Refused):
                g.connect(PORT)
        # A client waits until there is room.
        with b.client(b"CONNECT 7000\n") as client:
            assert g.pump(0.1) == 0
            streams[0].close()
            s = g.accept(7000)
            assert read_ok(client) == s.peer_port
        for p in peers:
            p.close()


def test_descriptor_limit_is_an_rst(binary: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running(binary) as b, guest(b) as g:
        resource.prlimit(b.process.pid, resource.RLIMIT_NOFILE, (b.fds() + 10, hard))
        with b.listen(PORT) as listener, contextlib.ExitStack() as stack:
            opened, refused = 0, 0
            for _ in range(30):
                try:
                    g.connect(PORT)
                    stack.enter_context(listener.accept()[0])
                    opened += 1
                except Refused:
                    refused += 1
            assert opened >= 8 and refused >= 18 and opened + refused == 30
            # The clients' listener neither spins nor dies; it goes on when there is room.
            g.listen(7000)
            client = stack.enter_context(b.client(b"CONNECT 7000\n"))
            before = b.statistics()["wakeups"]
            select.select([], [], [], 0.5)
            assert b.statistics()["wakeups"] - before < 20
            resource.prlimit(b.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
            s = g.accept(7000)
            assert read_ok(client) == s.peer_port


@pytest.mark.parametrize(("limit", "published", "expected"), [(256, 0, 192), (256, 30, 132), (90, 0, 45)])
def test_a_low_limit_of_files_is_respected(binary: Path, limit: int, published: int, expected: int) -> None:
    import resource

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with Folder() as folder:
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u",
             *(f"--connect-port={i}={folder}/p{i}" for i in range(published))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lower,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.closing(Front(folder / "s")) as front, contextlib.ExitStack() as stack:
            g = Guest(front)
            front.start()
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{folder}/u_{PORT}")
            listener.listen(4096)
            opened = 0
            for _ in range(300):
                with contextlib.suppress(Refused):
                    g.connect(PORT)
                    stack.enter_context(listener.accept()[0])
                    opened += 1
            assert opened == expected
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and b"%d connections" % expected in err


def test_memory_of_all_connections_is_bounded(binary: Path) -> None:
    """Many connections, whose host ends do not read: their windows together stay below the cap."""
    with running(binary, "--max-connections=512") as b, guest(b) as g, b.listen(PORT, 1024) as listener:
        streams = []
        peers = []
        for _ in range(400):
            streams.append(g.connect(PORT))
            peers.append(listener.accept()[0])
        numbers = b.statistics()
        assert numbers["reserved_bytes"] <= 64 << 20
        windows = {s.peer_buf_alloc for s in streams}
        assert max(windows) == 262144 and min(windows) >= 65536
        for p in peers:
            p.close()


def test_logs_are_limited(binary: Path) -> None:
    with running(binary, "--log-level=debug") as b, guest(b) as g:
        for i in range(3000):
            g.put(Packet(g.cid, 3, 1000 + i, 9, RW))
            g.pump()
        g.wait(lambda: len(g.strays) == 3000, "RSTs")
        assert b.stderr().count("\n") < 200
        assert "unknown connection" in b.stderr()


def test_the_guests_noise_hides_no_error_of_the_host(backend: Backend) -> None:
    with guest(backend) as g, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(os.fspath(backend.port(PORT)))
        for _ in range(50):
            g.put(Packet(g.cid + 1, 3, 1000, 9, RW))
        with pytest.raises(Refused):
            g.connect(PORT)
        assert "foreign source" in backend.stderr()
        assert f"cannot connect to {backend.port(PORT)}: Protocol wrong type" in backend.stderr()


def test_what_others_do_over_and_over_is_no_flood(binary: Path) -> None:
    """Front ends that come and go, drivers that start again, heartbeats that nobody is told of."""
    started = time.monotonic()
    with running(binary, "-v", "-v") as b:
        os.close(b.booted)
        b.booted = os.open(os.devnull, os.O_RDONLY)
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(os.fspath(b.socket_path))
                s.send(b"\0" * 12)
                with contextlib.suppress(ConnectionResetError):
                    assert s.recv(1) == b""
        with guest(b, buffers=16) as g:
            for _ in range(100):
                g.reboot()
                assert heartbeat(g) == b"\xb7"
        lines = b.stderr().count("\n")
        assert lines < 11 * (time.monotonic() - started + 2)
        # What was dropped is told with the next line that may pass.
        patience = fail_after()
        while "more lines like these were dropped" not in b.stderr():
            Front(b.socket_path).close()
            patience("a word about what was dropped")


def test_a_log_that_nobody_reads_stops_nothing(binary: Path) -> None:
    read, write = os.pipe()
    with Folder() as folder, os.fdopen(read, "rb", buffering=0) as reader:
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u", "-v", "-v"],
            stdout=subprocess.PIPE, stderr=write,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with os.fdopen(write, "wb", buffering=0) as filler:
            os.set_blocking(filler.fileno(), False)
            while filler.write(bytes(1 << 20)):
                pass
            # The flag is the pipe's, and so was the backend's.
            os.set_blocking(filler.fileno(), True)
            with contextlib.closing(Front(folder / "s")) as front:
                g = Guest(front)
                front.start()
                process.send_signal(signal.SIGUSR1)
                g.put(Packet(9, 3, 1, 9, RW))
                assert heartbeat(g) == b"\xb7"
            reader.read(1 << 16)
            # And it goes on once there is room.
            process.send_signal(signal.SIGUSR1)
            text = b""
            patience = fail_after()
            while b'{"connections"' not in text:
                text += reader.read(1 << 20)
                patience("statistics")
            assert b'"bad-source": 1' in text
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_fair_among_streams(backend: Backend) -> None:
    """Hosts that all have plenty to say are served alike."""
    count, share = 20, 400_000
    with guest(backend, buffers=512) as g, backend.listen(PORT) as listener:
        streams = [g.connect(PORT) for _ in range(count)]
        peers = [listener.accept()[0] for _ in range(count)]
        queued = [0] * count
        got = [0] * count
        patience = fail_after()
        while min(got) < share:
            for i, p in enumerate(peers):
                p.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    queued[i] += p.send(bytes(100_000))
            g.pump(0.01)
            for i, s in enumerate(streams):
                got[i] += len(s.read_some(1 << 20))
            patience("shares")
        assert max(got) <= 2 * min(got)
        for p in peers:
            p.close()


def test_killed_clients_at_any_moment(backend: Backend) -> None:
    """Client processes that die by SIGKILL while they talk."""
    code = (
        "import socket,sys\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'CONNECT 7000\\n')\n"
        "print(s.recv(20), flush=True)\n"
        "while True: s.sendall(bytes(10000))\n"
    )
    with guest(backend) as g:
        g.listen(7000)
        base = backend.fds()
        for i in range(10):
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", code, backend.uds_path], stdout=subprocess.PIPE
            )
            s = g.accept(7000)
            if i % 2:
                s.recv()
                s.send(b"answer")
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            with contextlib.suppress(Reset):
                s.recv_all()
        dial_skipping(backend, g, 7000)[0].close()
        patience = fail_after()
        while backend.statistics()["connections"]:
            g.pump(0.05)
            for queue in g.listening.values():
                for stream in queue:
                    stream.read_some(1 << 20)
            patience("all gone")
        assert backend.fds() == base


def test_interrupts_are_batched(backend: Backend) -> None:
    with linked(backend, buffers=1000) as (g, s, peer):
        g.pump(0.05)
        drain(g.front.rx.call_fd)
        before = backend.statistics()
        peer.setblocking(False)
        sent = peer.send(bytes(200_000))
        time.sleep(0.1)
        g.pump(0.1)
        after = backend.statistics()
        packets = after["packets_to_guest"] - before["packets_to_guest"]
        assert s.received == sent and packets >= sent // 3732
        assert after["interrupts"] - before["interrupts"] <= 4
