# SPDX-License-Identifier: MIT
"""The vsock backend's command line and life: options, its sockets' paths, starts beside others, ends. Driven
by a fake front end: no QEMU, no guest kernel.

What it does with connections is in the files beside this one, each by its subject; events, bytes and wake-ups
are counted there, never milliseconds. The binary is named by VHOST_USER_VSOCK, so that the same tests run on
a build with sanitizers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, running
from vhost_front import Front
from vhost_guest import Guest, guest
from vsock_talk import GOOD, PORT, Folder, heartbeat, pattern, read_all, run

pytestmark = pytest.mark.usefixtures("no_child_is_left")


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
