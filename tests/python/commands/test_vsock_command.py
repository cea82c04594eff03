# SPDX-License-Identifier: MIT
"""`nitroctl vsock` from outside: the real command, the real backend, a guest of our own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_fakes import HANG, Bench
from enclave_world import enclave, served, world
from vhost_backend import fail_after
from vhost_guest import REQUEST, Guest

DATA = os.urandom(1 << 20)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with world(tmp_path) as made:
        yield made


@contextlib.contextmanager
def command(bench: Bench, *arguments: str, tty: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`nitroctl vsock ...` with pipes, or on a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nitroctl", "vsock", *arguments],
        env=bench.environment({}),
        stdin=subprocess.PIPE if tty is None else tty,
        stdout=subprocess.PIPE if tty is None else tty,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def pumping(guest: Guest, process: subprocess.Popen[bytes]) -> int:
    """The guest goes on until the command has ended; its status."""
    patience = fail_after()
    while process.poll() is None:
        guest.pump(0.02)
        patience("the command's end")
    return process.returncode


def test_connect_carries_both_directions(bench: Bench) -> None:
    with enclave(bench) as guest, command(bench, "connect", "hello", "7000") as process:
        guest.listen(7000)
        assert process.stdin and process.stdout
        stream = guest.accept(7000)
        process.stdin.write(DATA[:60000])
        process.stdin.flush()
        assert stream.recv_exactly(60000) == DATA[:60000]
        stream.send(DATA[:50000])
        assert process.stdout.read(50000) == DATA[:50000]
        process.stdin.close()
        assert stream.recv() == b"", "the end of standard input did not arrive"
        stream.send(b"last words")
        stream.close()
        assert process.stdout.read() == b"last words"
        assert process.wait(HANG) == 0
        assert process.stderr and process.stderr.read() == b""
        process.stdin = None


def test_connect_to_nobody(bench: Bench) -> None:
    with enclave(bench) as guest:
        for arguments, words in (
            (("hello", "7001", "-w0"), "error: nobody listens on port 7001 of enclave hello\n"),
            (("16", "7001", "-w2"), "error: nobody listens on port 7001 of enclave 16\n"),
            (("other", "7000"), "no enclave is called 'other'; running: hello (CID 16)"),
            (("hello", "4294967295"), "4294967295 is no vsock port"),
        ):
            with command(bench, "connect", *arguments) as process:
                assert pumping(guest, process) == 1
                assert process.stderr and words in process.stderr.read().decode()


def test_connect_waits_for_a_listener(bench: Bench) -> None:
    """As after `run --detach`: the heartbeat comes before the application listens."""
    with enclave(bench) as guest, command(bench, "connect", "hello", "7000", f"-w{HANG}") as process:
        guest.wait(lambda: guest.counts.get(REQUEST, 0) > 1, "a second try, after a refusal")
        guest.listen(7000)
        guest.accept(7000).close()
        assert process.wait(HANG) == 0


def test_connect_ends_with_the_enclave(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        with enclave(bench) as guest:
            process = stack.enter_context(command(bench, "connect", "hello", "7000", f"-w{HANG}"))
            guest.wait(lambda: guest.counts.get(REQUEST), "a try, which is refused")
        assert process.wait(HANG) == 1
        # And why, as long as there is a record.
        assert process.stderr and process.stderr.read().startswith(b"error: enclave hello has ended")


def test_a_closed_connection_is_no_error(bench: Bench) -> None:
    with enclave(bench) as guest, command(bench, "connect", "hello", "7000") as process:
        guest.listen(7000)
        stream = guest.accept(7000)
        assert process.stdin
        process.stdin.write(b"unread")
        process.stdin.flush()
        assert stream.recv_exactly(6) == b"unread"
        stream.close()
        assert process.wait(HANG) == 0


def test_ctrl_c(bench: Bench) -> None:
    with enclave(bench) as guest:
        guest.listen(7000)
        with command(bench, "connect", "hello", "7000") as process:
            stream = guest.accept(7000)
            stream.send(b"x")
            assert process.stdout and process.stdout.read(1) == b"x"
            process.send_signal(signal.SIGINT)
            assert stream.recv() == b""
            assert process.wait(HANG) == 130
            assert process.stderr and process.stderr.read().strip() in (b"", b"interrupted")
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            with command(bench, "listen", "hello", "5000") as process:
                served(bench, 5000)
                process.send_signal(number)
                assert process.wait(HANG) == status
            assert "16/vsock_5000" not in bench.left()


def test_a_terminal(bench: Bench) -> None:
    main, tty = pty.openpty()
    with enclave(bench) as guest, command(bench, "connect", "hello", "7000", tty=tty) as process:
        os.close(tty)
        guest.listen(7000)
        stream = guest.accept(7000)
        os.write(main, b"a line\n")
        assert stream.recv_exactly(7) == b"a line\n"
        stream.send(b"an answer\n")
        seen = b""
        while b"an answer" not in seen:
            assert select.select([main], [], [], HANG)[0]
            seen += os.read(main, 1000)
        os.write(main, b"\x04")  # Ctrl-D
        assert stream.recv() == b""
        stream.close()
        assert process.wait(HANG) == 0
    os.close(main)


def test_listen_serves_one_connection(bench: Bench) -> None:
    with enclave(bench) as guest, command(bench, "listen", "hello", "5000") as process:
        assert process.stdin and process.stdout
        served(bench, 5000)
        stream = guest.connect(5000)
        stream.send(DATA[:60000])
        assert process.stdout.read(60000) == DATA[:60000]
        assert "16/vsock_5000" not in bench.left(), "a second connection is not taken"
        process.stdin.write(b"answer")
        process.stdin.close()
        assert stream.recv_all() == b"answer"
        stream.close()
        assert process.wait(HANG) == 0
        process.stdin = None


def test_listen_keeps_on(bench: Bench) -> None:
    with enclave(bench) as guest, command(bench, "listen", "hello", "5000", "--keep") as process:
        assert process.stdin and process.stdout
        served(bench, 5000)
        for text in (b"one", b"two", b"three"):
            stream = guest.connect(5000)
            stream.send(text)
            assert process.stdout.read(len(text)) == text
            process.stdin.write(text)
            process.stdin.flush()
            assert stream.recv_exactly(len(text)) == text
            stream.close()
        assert process.poll() is None


def test_listen_ends_with_the_enclave(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        with enclave(bench):
            process = stack.enter_context(command(bench, "listen", "hello", "5000"))
            served(bench, 5000)
        assert process.wait(HANG) == 1
        assert process.stderr
        assert process.stderr.readline() == b"error: enclave hello ended before it connected\n"
        assert process.stderr.read() == b"hint: nitroctl inspect hello\n"
    assert bench.left() == []


def test_a_port_that_is_served_already(bench: Bench) -> None:
    with enclave(bench), command(bench, "listen", "hello", "5000") as first:
        served(bench, 5000)
        with command(bench, "listen", "hello", "5000") as second:
            assert second.wait(HANG) == 1
            assert second.stderr and b"Address already in use" in second.stderr.read()
        assert first.poll() is None
