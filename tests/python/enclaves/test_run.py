# SPDX-License-Identifier: MIT
"""`nitroctl run` from outside, with fake programs for QEMU and backend: every way to end, and what is left.

Each test starts the real command in a process of its own, with a private runtime folder. Real guests are in
tests/boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, steps, write_eif
from nitroctl.base.instants import UTC

PANIC = (
    "[    1.500000] Kernel panic - not syncing: Attempted to kill init!\r\n"
    "[    1.500001] CPU: 0 PID: 1 Comm: init\r\n"
)


def assert_nothing_left(bench: Bench) -> None:
    assert bench.left() == []
    assert bench.processes() == {}


# ---- every way to end by itself


def test_heartbeat_and_reset(bench: Bench) -> None:
    done = bench.run(**steps(["print", "hello\r\n"], HEARTBEAT, ["print", "bye"], RESET))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\nbye"  # text mode turns \r\n into \n
    assert "CID 16, 512 MiB, 1 CPU" in done.stderr
    assert "heartbeat after" in done.stderr
    assert_nothing_left(bench)


@pytest.mark.parametrize("text", ["System halted", "Power down"])
def test_halt_is_an_orderly_end(bench: Bench, text: str) -> None:
    """A halt without reset leaves QEMU running: only the console tells."""
    done = bench.run(**steps(HEARTBEAT, ["print", f"[    2.000000] reboot: {text}\r\n"]))
    assert done.returncode == 0, done.stderr
    assert text in done.stdout
    assert_nothing_left(bench)


# ---- how the application ended


INIT_SAYS = "init: child exited with error: status 7\r\n"
AWS_SAYS = "child exited with error\n"
NOT_STARTED = "init: execvpe: /x: Exec format error\r\n"
RESETS = "[    2.000000] reboot: Restarting system\r\n"


@pytest.mark.parametrize(
    ("script", "status", "own", "said"),
    [
        ([["tell", "exited 0"]], 0, 0, "the guest ended"),
        ([["tell", "exited 7"]], 5, 7, "the application ended with status 7"),
        ([["tell", "killed 9"]], 5, 137, "the application was killed by SIGKILL (signal 9)"),
        ([["tell", "killed 40"]], 5, 168, "the application was killed by signal 40"),
        # Nobody was told: init's line on the console, without a number, if nothing came after it.
        ([["print", AWS_SAYS]], 5, 5, "the application failed; with what status, "),
        ([["print", AWS_SAYS + RESETS]], 5, 5, "the application failed; with what status, "),
        ([["print", f"no newline{AWS_SAYS}"]], 5, 5, "the application failed; with what status, "),
        ([["print", AWS_SAYS + "by the application\n"]], 0, 0, "the guest ended"),
        ([["print", AWS_SAYS + "unfinished"]], 0, 0, "the guest ended"),
        # Who was told does not believe the console.
        ([["print", INIT_SAYS], ["tell", "exited 0"]], 0, 0, "the guest ended"),
        ([["print", NOT_STARTED], ["tell", "exited 0"]], 0, 0, "the guest ended"),
        ([["print", NOT_STARTED], ["tell", "exited 3"]], 5, 3, "the application ended with status 3"),
        ([["print", NOT_STARTED], ["tell", "exited 127"]], 1, 1, "the application /x could not be started"),
    ],
)
def test_how_the_application_ended(
    bench: Bench, script: list[list[str]], status: int, own: int, said: str
) -> None:
    for option, expected in ((), status), (("--app-status",), own):
        done = bench.run(*option, **steps(HEARTBEAT, *script, RESET))
        assert done.returncode == expected, done.stderr
        assert said in done.stderr
    assert_nothing_left(bench)


def test_one_that_was_stopped_has_not_failed(bench: Bench) -> None:
    """What the application does about it is nobody's failure."""
    with bench.start(**steps(HEARTBEAT, ["tell", "exited 7"], ["print", "up"])) as run:
        run.until("up")
        run.process.terminate()
        assert run.wait() == 143


def test_the_applications_status_is_for_the_end(bench: Bench) -> None:
    done = bench.run("--detach", "--app-status", **steps(HEARTBEAT))
    assert done.returncode == 2 and "`nitroctl wait`" in done.stderr


def test_panic_is_seen_at_once(bench: Bench) -> None:
    """The kernel would wait 30 seconds: its announcement to do so ends the enclave."""
    more = "[    1.600000] Rebooting in 30 seconds..\r\n"
    done = bench.run(**steps(["print", "init: heartbeat: connect: refused\r\n" + PANIC + more]))
    assert done.returncode == 4
    assert "kernel panicked: Attempted to kill init!" in done.stderr
    assert "init: heartbeat: connect: refused" in done.stderr
    assert "Rebooting in 30 seconds" in done.stdout
    assert_nothing_left(bench)


def test_panic_that_says_no_more(bench: Bench) -> None:
    done = bench.run(**steps(HEARTBEAT, ["print", PANIC]))
    assert done.returncode == 4
    assert_nothing_left(bench)


def test_panic_then_reset_is_a_panic(bench: Bench) -> None:
    """With panic=-1 on the command line the guest resets at once: QEMU ends as after an orderly reset."""
    done = bench.run(**steps(HEARTBEAT, ["print", PANIC], RESET))
    assert done.returncode == 4
    assert "Comm: init" in done.stdout
    assert_nothing_left(bench)


def test_no_heartbeat_in_time(bench: Bench) -> None:
    done = bench.run("--boot-timeout", "2", **steps(["print", "one\r\ntwo\r\n"]))
    assert done.returncode == 3
    assert "no heartbeat within 2 s" in done.stderr
    assert "one | two" in done.stderr
    assert_nothing_left(bench)


def test_a_silent_guest_is_called_silent(bench: Bench) -> None:
    done = bench.run("--boot-timeout", "0.3", **steps())
    assert done.returncode == 3
    assert "console stayed silent" in done.stderr


def test_the_boot_timeout_ends_with_the_heartbeat(bench: Bench) -> None:
    with bench.start("--boot-timeout", "2", **steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        threading.Event().wait(2.5)  # longer than the limit: nothing may happen
        assert run.process.poll() is None
        run.process.terminate()
        assert run.wait() == 143


@pytest.mark.parametrize("last", [RESET, ["print", "[    2.000000] reboot: System halted\r\n"]])
def test_an_end_without_heartbeat(bench: Bench, last: list[object]) -> None:
    done = bench.run(**steps(["print", "x"], last))
    assert done.returncode == 3
    assert "without having sent its heartbeat" in done.stderr
    assert_nothing_left(bench)


def test_qemu_that_dies_at_once(bench: Bench) -> None:
    done = bench.run(**steps(["stderr", "qemu: -m: no such memory"], ["exit", 1]))
    assert done.returncode == 1
    assert "QEMU ended with status 1: qemu: -m: no such memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_left(bench)


def test_qemu_without_the_machine(bench: Bench) -> None:
    """Or with one that lacks what is asked for."""
    for said, hint in (
        ('qemu-system-x86_64: unsupported machine type: "nitro-enclave"', "`nitroctl build` makes one"),
        ("qemu: Property 'nitro-enclave-machine.overlay' not found", "`nitroctl build --plugin`"),
    ):
        done = bench.run(**steps(["stderr", said], ["exit", 1]))
        assert done.returncode == 1
        assert said in done.stderr and hint in done.stderr


def test_a_program_that_is_no_qemu(bench: Bench) -> None:
    bench.qemu = Path("/bin/true")
    done = bench.run()
    assert done.returncode == 1
    assert "QEMU ended with status 0 before the guest ran" in done.stderr
    assert bench.left() == []


def test_qemu_that_fails_later(bench: Bench) -> None:
    done = bench.run(**steps(HEARTBEAT, ["stderr", "qemu: giving up"], ["exit", 5]))
    assert done.returncode == 1
    assert "QEMU ended with status 5" in done.stderr
    assert done.stderr.count("qemu: giving up") == 1
    assert_nothing_left(bench)


def test_a_guest_that_qemu_stopped(bench: Bench) -> None:
    done = bench.run(**steps(HEARTBEAT, ["fail-run"]))
    assert done.returncode == 1
    assert "'internal-error'" in done.stderr
    assert_nothing_left(bench)


@pytest.mark.parametrize("which", ["qemu", "backend"])
def test_a_missing_program(bench: Bench, which: str) -> None:
    missing = bench.tmp / "missing program"
    setattr(bench, which, missing)
    done = bench.run()
    assert done.returncode == 1
    assert f"{missing}: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_left(bench)


def test_a_backend_that_dies(bench: Bench) -> None:
    done = bench.run(FAKE_BACKEND="dies")
    assert done.returncode == 1
    assert "the vsock backend ended with status 7: fake backend: no such luck" in done.stderr
    assert done.stderr.count("no such luck") == 1
    assert_nothing_left(bench)


def test_a_broken_eif_starts_nothing(bench: Bench) -> None:
    bench.eif.write_bytes(b".eif")
    done = bench.run()
    assert done.returncode == 1
    assert "[file-too-short]" in done.stderr
    assert not (bench.runtime / "nitroctl").exists()


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


# ---- several


def test_two_at_once_get_two_context_ids(bench: Bench) -> None:
    script = steps(HEARTBEAT, ["print", "up"])
    with bench.start(**script) as first, bench.start(**script) as second:
        first.until("up")
        second.until("up")
        assert sorted((b"CID 16," in first.err, b"CID 17," in first.err)) == [False, True]
        assert (b"CID 16," in first.err) != (b"CID 16," in second.err)
        assert {p.split("/")[0] for p in bench.left()} == {"16", "17"}
        first.process.terminate()
        assert first.wait() == 143
        assert second.process.poll() is None
        second.process.terminate()
        assert second.wait() == 143
    assert_nothing_left(bench)


def test_a_context_id_in_use_is_refused(bench: Bench) -> None:
    with bench.start("--cid", "4000000000", **steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        second = bench.run("--cid", "4000000000")
        assert second.returncode == 1
        assert "context ID 4000000000 is in use" in second.stderr
        run.process.terminate()
        run.wait()
    assert_nothing_left(bench)


# ---- the console


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


# ---- folders and names


def test_a_runtime_folder_that_is_too_deep(bench: Bench) -> None:
    deep = bench.tmp / ("d" * 90)
    deep.mkdir()
    done = bench.run(XDG_RUNTIME_DIR=str(deep))
    assert done.returncode == 1
    assert "at most 107" in done.stderr
    assert "XDG_RUNTIME_DIR" in done.stderr
    assert bench.processes() == {}


def test_a_folder_that_cannot_be_made(bench: Bench) -> None:
    """A file where the runtime folder should be: as good as a read-only place, and true for root as well."""
    (bench.runtime / "nitroctl").write_text("in the way")
    done = bench.run()
    assert done.returncode == 1
    assert f"cannot make the folder {bench.runtime}/nitroctl" in done.stderr
    (bench.runtime / "nitroctl").unlink()
    (bench.runtime / "nitroctl").mkdir(mode=0o700)
    (bench.runtime / "nitroctl" / "16").write_text("in the way")
    done = bench.run()
    assert done.returncode == 1
    assert f"cannot make the folder {bench.runtime}/nitroctl/16" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["a b", "x,y=z", "über", "$(touch x)", "-rf", "'\"\\"])
def test_odd_names(bench: Bench, name: str) -> None:
    eif = bench.eif.rename(bench.tmp / f"{name}.eif")
    done = bench.run(eif=eif, **steps(HEARTBEAT, RESET))
    assert done.returncode == 0, done.stderr
    assert f"Enclave {name}: CID 16" in done.stderr
    assert_nothing_left(bench)


def test_usage_errors_exit_with_2(bench: Bench) -> None:
    for options in (["--memory", "many"], ["--cid", "3"], ["--cpus", "0"], ["--nonsense"]):
        done = bench.run(*options)
        assert done.returncode == 2, (options, done.stderr)
        assert "Traceback" not in done.stderr


# ---- dry run


def test_dry_run_starts_and_leaves_nothing(bench: Bench) -> None:
    done = bench.run("--dry-run", "--memory", "1g", "--role", "arn:aws:iam::1:role/x,y")
    assert done.returncode == 0, done.stderr
    backend, qemu = (shlex.split(line) for line in done.stdout.splitlines())
    folder = bench.runtime / "nitroctl"
    assert backend == [
        str(bench.backend), f"--socket-path={folder}/16.device", "--guest-cid=16",
        f"--uds-path={folder}/16.vsock", f"--fallback-path={folder}/ports/all", "--once",
    ]  # fmt: skip
    assert qemu[0] == str(bench.qemu)
    assert qemu[qemu.index("-kernel") + 1] == str(bench.eif)
    assert qemu[qemu.index("-m") + 1] == "1024M"
    machine = qemu[qemu.index("-M") + 1]
    module_id = r"i-0000000000000000-enc[0-9a-f]{16}"
    rest = "parent-id=i-0000000000000000,parent-role=arn:aws:iam::1:role/x,,y"
    assert re.fullmatch(rf"nitro-enclave,vsock=vsock,id={module_id},{re.escape(rest)}", machine)
    assert_nothing_left(bench)


def test_forwards_are_the_backends(bench: Bench) -> None:
    done = bench.run(
        "--dry-run", "--publish", "127.0.0.1:8080=80", "--publish", f"{bench.tmp}/s=81", "--proxy",
        "443=127.0.0.1:443", "--listen-port", f"5000={bench.tmp}/l", "--connect-port", f"82={bench.tmp}/c",
    )  # fmt: skip
    backend = shlex.split(done.stdout.splitlines()[0])
    expected = [
        "--publish=127.0.0.1:8080=80", f"--publish={bench.tmp}/s=81", "--proxy=443=127.0.0.1:443",
        f"--listen-port=5000={bench.tmp}/l", f"--connect-port=82={bench.tmp}/c",
    ]  # fmt: skip
    assert [argument for argument in backend if argument in expected] == expected


def test_a_wrong_forward_ends_the_run_before_anything_starts(bench: Bench) -> None:
    done = bench.run("--proxy", "8000=nowhere", **steps(HEARTBEAT, RESET))
    assert done.returncode == 2
    assert "error: --proxy 8000=nowhere: 'nowhere' is not HOST:PORT" in done.stderr
    twice = ("--proxy", "1=127.0.0.1:1", "--listen-port", f"1={bench.tmp}/x")
    done = bench.run(*twice, **steps(HEARTBEAT, RESET))
    assert done.returncode == 2
    assert "the parent's port 1 is served by more than one" in done.stderr
    assert_nothing_left(bench)


# ---- attestation


def test_a_chain_is_minted_from_the_users_ca(bench: Bench) -> None:
    done = bench.run(
        "--instance-id", "i-1234567890abcdef0", "--ca-days", "2",
        **steps(["show", "cert-chain"], ["show", "cert-key"], HEARTBEAT, RESET),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chain = x509.load_pem_x509_certificates(done.stdout.encode())
    key = serialization.load_pem_private_key(done.stdout.encode(), None)
    assert key.public_key() == chain[-1].public_key()
    for issuer, certificate in zip(chain, chain[1:], strict=False):
        certificate.verify_directly_issued_by(issuer)
    root = Path(os.environ["XDG_DATA_HOME"], "nitroctl/ca/root.pem").read_bytes()
    assert chain[0] == x509.load_pem_x509_certificate(root)
    assert "CN=i-1234567890abcdef0.local" in chain[3].subject.rfc4514_string()
    left = chain[3].not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=1, hours=23) < left <= timedelta(days=2)
    assert_nothing_left(bench)


def test_a_qemu_that_signs_nothing_gets_no_chain(bench: Bench) -> None:
    done = bench.run(**steps(["show", "cert-chain"], HEARTBEAT, RESET), FAKE_QEMU_UNSIGNED="1")
    assert (done.returncode, done.stdout) == (0, "none\n")
    assert "cannot sign attestation documents" in done.stderr


def test_debug_mode_and_a_bad_signature_are_passed_on(bench: Bench) -> None:
    done = bench.run("--dry-run", "--debug-mode", "--ignore-signature")
    assert ",debug-mode=on,eif-signature=ignore" in done.stdout
    assert "document-form" not in done.stdout


def test_the_form_of_documents_is_passed_on_and_the_chains(bench: Bench) -> None:
    assert ",document-form=2023" in bench.run("--dry-run", "--document-form", "2023").stdout
    shown = steps(["show", "cert-chain"], HEARTBEAT, RESET)
    for form, identified in (("2023", False), ("2025", True)):
        done = bench.run("--document-form", form, **shown)
        instance = x509.load_pem_x509_certificates(done.stdout.encode())[3]
        oids = [extension.oid for extension in instance.extensions]
        assert (x509.SubjectKeyIdentifier.oid in oids) == identified, done.stderr
    assert_nothing_left(bench)


def test_a_damaged_ca_ends_the_run_before_anything_starts(bench: Bench) -> None:
    ca = bench.tmp / "data" / "nitroctl" / "ca"
    ca.mkdir(parents=True)
    (ca / "root.pem").write_text("garbage")
    (ca / "root.key").write_text("garbage")
    done = bench.run(**steps(HEARTBEAT, RESET), XDG_DATA_HOME=str(bench.tmp / "data"))
    assert done.returncode == 1
    assert "the local CA" in done.stderr and "Traceback" not in done.stderr
    assert_nothing_left(bench)


def test_a_running_enclave_leaves_a_record_for_others(bench: Bench) -> None:
    with bench.start(**steps(HEARTBEAT, ["print", "up"])) as running:
        running.until("heartbeat after")
        (path,) = (bench.tmp / "state/nitroctl/enclaves").glob("*/record.json")
        record = json.loads(path.read_text())
        assert (record["name"], record["cid"], record["state"]) == ("hello", 16, "running")
        assert record["uds"] == str(bench.runtime / "nitroctl/16/vsock")
        running.process.terminate()
        running.wait()
    assert not path.parent.exists(), "one in the foreground leaves nothing"
    assert_nothing_left(bench)


def test_dry_run_shows_acpi(bench: Bench) -> None:
    write_eif(bench.eif, {"nitroctl": {"acpi": True}})
    assert ",acpi=on " in bench.run("--dry-run").stdout


@pytest.mark.parametrize("name", ["plain", "it's $HOME; a test"])
def test_the_printed_command_lines_can_be_pasted(bench: Bench, name: str) -> None:
    """Two shells, as two terminals: the first backend, then QEMU, whose console is the terminal."""
    eif = bench.eif.rename(bench.tmp / f"{name}.eif")
    printed = bench.run("--dry-run", eif=eif)
    backend_line, qemu_line = printed.stdout.splitlines()
    env = bench.environment(steps(["print", "hello from the guest\n"], HEARTBEAT, RESET))
    backend = subprocess.Popen(
        ["sh", "-c", backend_line], env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert backend.stdout
    assert backend.stdout.readline() == b"ready\n"
    qemu = subprocess.run(
        ["sh", "-c", qemu_line], env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=HANG
    )
    assert qemu.stdout == b"hello from the guest\n"
    assert qemu.returncode == 0
    assert backend.stdout.read() == b"booted\n"
    assert backend.wait(HANG) == 0
    backend.stdout.close()
    assert_nothing_left(bench)


def test_a_manual_enclave_and_a_run_do_not_meet(bench: Bench) -> None:
    """Pasted command lines hold no lock: a run at the same time must leave their sockets alone."""
    printed = bench.run("--dry-run").stdout
    socket_path = shlex.split(printed.splitlines()[0])[1].partition("=")[2]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(socket_path)
        done = bench.run(**steps(HEARTBEAT, RESET))
        assert done.returncode == 0, done.stderr
        assert os.path.exists(socket_path)
