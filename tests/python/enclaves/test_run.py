# SPDX-License-Identifier: MIT
"""`nitroctl run` from outside, with fake programs for QEMU and backend: every way to end by itself, several
at once, folders and names.

Each test starts the real command in a process of its own, with a private runtime folder, and looks what is
left. Real guests are in tests/boot; other subjects of a run are beside this file: test_run_*.py.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from enclave_fakes import HEARTBEAT, RESET, Bench, assert_nothing_left, steps

PANIC = (
    "[    1.500000] Kernel panic - not syncing: Attempted to kill init!\r\n"
    "[    1.500001] CPU: 0 PID: 1 Comm: init\r\n"
)


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
