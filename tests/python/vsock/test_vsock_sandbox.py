# SPDX-License-Identifier: MIT
"""The vsock backend serves in its sandbox, or says why it has none. What the sandbox forbids is in
tests/unit/test-sandbox.c; behind a fake front end, as test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, running
from vhost_front import Front
from vhost_guest import Guest, guest
from vsock_talk import Folder, heartbeat

pytestmark = pytest.mark.usefixtures("no_child_is_left")


def filters(b: Backend) -> int:
    """Seccomp filters of the process, beyond our own."""

    def count(pid: int | str) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nSeccomp_filters:")[2].partition("\n")[0])

    return count(b.process.pid) - count("self")


def is_sanitized(binary: Path) -> bool:
    return b"__asan_init" in binary.read_bytes()


def test_it_serves_in_a_sandbox(binary: Path) -> None:
    """As in all the other tests behind a fake front end."""
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
