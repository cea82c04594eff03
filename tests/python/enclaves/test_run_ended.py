# SPDX-License-Identifier: MIT
"""`nitroctl run` that is told to end, and processes of it that are killed: the status, and that nothing is
left. With fake programs, as test_run.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading

import pytest

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, assert_nothing_left, steps

# ---- being told to end


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("script", [[["print", "up"]], [HEARTBEAT, ["print", "up"]]])
def test_signals_end_it(
    bench: Bench, number: signal.Signals, status: int, script: list[list[object]]
) -> None:
    with bench.start(**steps(*script)) as run:
        run.until("up")
        run.process.send_signal(number)
        assert run.wait() == status
        assert b"Traceback" not in run.err, run.err.decode()
        assert f"stopped by {number.name}".encode() in run.err
    assert_nothing_left(bench)


def test_a_signal_while_the_backend_starts(bench: Bench) -> None:
    with bench.start(FAKE_BACKEND="mute", **steps()) as run:
        run.until("CID 16")
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
    assert_nothing_left(bench)


def test_ctrl_c_at_a_terminal_reaches_only_us(bench: Bench) -> None:
    """The terminal's signal goes to the whole foreground group: QEMU and backend are not in it."""
    main, terminal = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *bench.command()],
        env=bench.environment(steps(HEARTBEAT, ["print", "up\r\n"])),
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    seen = b""

    def read() -> bytes:
        assert select.select([main], [], [], HANG)[0], seen
        with contextlib.suppress(OSError):  # EIO: the last one closed it
            return os.read(main, 4096)
        return b""

    while b"up\r" not in seen:
        data = read()
        assert data, seen
        seen += data
    os.write(main, b"\x03")
    while data := read():
        seen += data
    os.close(main)
    assert process.wait(HANG) == 130
    assert b"stopped by SIGINT" in seen
    assert b"killed" not in seen
    assert_nothing_left(bench)


def test_a_deaf_qemu_is_killed_by_the_second_ctrl_c(bench: Bench) -> None:
    """The first one asks QEMU to end; the second does not wait for the answer."""
    with bench.start(**steps(HEARTBEAT, ["deaf"], ["print", "up"])) as run:
        run.until("up")
        run.process.send_signal(signal.SIGINT)
        threading.Event().wait(0.2)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
    assert_nothing_left(bench)


def test_a_stubborn_backend_is_killed(bench: Bench) -> None:
    with bench.start(FAKE_BACKEND="stubborn", **steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        run.process.send_signal(signal.SIGTERM)
        threading.Event().wait(0.2)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
    assert_nothing_left(bench)


def test_an_ignored_signal_stays_ignored(bench: Bench) -> None:
    """`nohup nitroctl run` survives its terminal."""
    command = shlex.join(bench.command())
    env = bench.environment(steps(HEARTBEAT, ["print", "up"]))
    process = subprocess.Popen(
        ["sh", "-c", f"trap '' HUP; exec {command}"], env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.read(2) == b"up"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 143
    process.stdout.close()


# ---- kill -9


def test_kill_9_of_qemu(bench: Bench) -> None:
    with bench.start(**steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        os.kill(bench.pid_of(bench.qemu), signal.SIGKILL)
        assert run.wait() == 1
        assert b"QEMU was killed by SIGKILL" in run.err
    assert_nothing_left(bench)


def test_kill_9_of_the_backend(bench: Bench) -> None:
    with bench.start(**steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        os.kill(bench.pid_of(bench.backend), signal.SIGKILL)
        assert run.wait() == 1
        assert b"the vsock backend was killed by SIGKILL" in run.err
    assert_nothing_left(bench)


def test_sigterm_to_qemu_is_no_orderly_end(bench: Bench) -> None:
    with bench.start(**steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        os.kill(bench.pid_of(bench.qemu), signal.SIGTERM)
        assert run.wait() == 1
        assert b"QEMU was told to end by somebody else (host-signal)" in run.err
    assert_nothing_left(bench)


def test_sigterm_to_qemu_whose_event_is_lost(bench: Bench) -> None:
    with bench.start(**steps(HEARTBEAT, ["print", "up"], ["terminated"])) as run:
        assert run.wait() == 1
        assert b"QEMU was told to end by somebody else (host-signal)" in run.err
    assert_nothing_left(bench)


@pytest.mark.parametrize("script", [[["print", "up"]], [HEARTBEAT, ["deaf"], ["print", "up"]]])
def test_kill_9_of_nitroctl(bench: Bench, script: list[list[object]]) -> None:
    """QEMU is killed by the kernel; the backend sees its lifeline close and cleans up."""
    with bench.start(**steps(*script)) as run:
        run.until("up")
        assert len(bench.processes()) == 2
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        bench.wait_gone()
    assert_nothing_left(bench)


def test_kill_9_of_nitroctl_before_qemu_runs(bench: Bench) -> None:
    with bench.start(FAKE_BACKEND="mute", **steps()) as run:
        run.until("CID 16")
        # The backend's sockets are there a little later than its process.
        device = bench.runtime / "nitroctl" / "16" / "vsock"
        while not device.exists():
            threading.Event().wait(0.01)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        bench.wait_gone()
    assert_nothing_left(bench)


def test_a_context_id_is_not_given_away_while_the_backend_still_cleans_up(bench: Bench) -> None:
    """The backend holds the folder's lock as well: after kill -9 of us it stays reserved until it is gone."""
    with bench.start(FAKE_BACKEND="stubborn", **steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        backend = bench.pid_of(bench.backend)
        os.kill(backend, signal.SIGSTOP)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        other = bench.run("--cid", "16", FAKE_BACKEND="", **steps(HEARTBEAT, RESET))
        assert "context ID 16 is in use" in other.stderr
        os.kill(backend, signal.SIGCONT)
        bench.wait_gone()
    again = bench.run("--cid", "16", **steps(HEARTBEAT, RESET))
    assert again.returncode == 0, again.stderr
    assert_nothing_left(bench)
