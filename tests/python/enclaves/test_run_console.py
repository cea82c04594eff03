# SPDX-License-Identifier: MIT
"""The console of `nitroctl run`: bytes as they come, outputs that close or take nothing. How a console is
read: test_console.py. With fake programs, as test_run.py.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, assert_nothing_left, steps


def test_bytes_come_as_they_are_written(bench: Bench) -> None:
    """Half a line is shown: nobody waits for its end. Bytes that are no text pass unchanged."""
    with bench.start(**steps(HEARTBEAT, ["print", "a\x00\x1b[1m\xff no newline"])) as run:
        run.until("no newline")
        assert run.out == "a\x00\x1b[1m\xff no newline".encode()
        run.process.terminate()
        run.wait()


def test_a_closed_output_ends_the_enclave(bench: Bench) -> None:
    """As with `nitroctl run … | head -1`."""
    with bench.start(**steps(HEARTBEAT, ["fill"])) as run:
        run.until("0123456789abcde")
        assert run.process.stdout
        run.process.stdout.close()
        assert run.wait() == 1
        assert b"Traceback" not in run.err, run.err.decode()
    assert_nothing_left(bench)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "error: cannot write the console: No space left on device"),
        (("--dry-run",), "error: standard output: No space left on device"),
    ],
)
def test_an_output_that_takes_nothing(bench: Bench, options: tuple[str, ...], said: str) -> None:
    """As with `> file` on a full disk: one line, and nothing goes on."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            bench.command(*options), env=bench.environment(steps(HEARTBEAT, ["fill"])),
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG,
        )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr.splitlines() and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert_nothing_left(bench)


def test_ctrl_c_works_while_nobody_reads_the_output(bench: Bench) -> None:
    with bench.start(**steps(HEARTBEAT, ["fill"])) as run:
        run.until("heartbeat after")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(HANG) == 130
    assert_nothing_left(bench)


def test_standard_input_is_not_read(bench: Bench) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"for somebody else\n")
    process = subprocess.Popen(
        bench.command(), env=bench.environment(steps(HEARTBEAT, RESET)),
        stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.wait(HANG) == 0
    assert os.read(reader, 100) == b"for somebody else\n"
    os.close(reader)
    os.close(writer)
