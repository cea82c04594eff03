# SPDX-License-Identifier: MIT
"""Detached enclaves from outside: their commands, their records, and every way in which somebody dies.

The programs under the supervisor are fakes; the supervisor, the commands and the files are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, install, steps, write_eif
from enclave_life import Life
from jsonpage import answer
from nitroctl.base.errors import BootTimeout, EnclaveError
from nitroctl.enclaves import records, supervised
from nitroctl.enclaves.records import Ending, Party, Record
from nitroctl.enclaves.request import RunRequest

UP = (HEARTBEAT, ["print", "up\r\n"])


def wait_for_end(pid: int) -> None:
    """Of a process that is not ours."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], HANG)[0], f"process {pid} is still there"
        finally:
            os.close(fd)


# ---- the main road


def test_from_start_to_removal(bench: Bench, life: Life) -> None:
    done = bench.run("-d", "--name", "web", **steps(["print", "hello\r\n"], *UP))
    assert done.returncode == 0, done.stderr
    ident = done.stdout.strip()
    assert ident.startswith("i-0000000000000000-enc")
    assert "Enclave web: CID 16, 512 MiB, 1 CPU" in done.stderr
    assert "heartbeat after" in done.stderr

    (row,) = life.ok("ps").splitlines()[1:]
    assert row.split()[:3] == ["web", "16", "running"]
    for name in ("web", ident, "16"):
        record = json.loads(life.ok("inspect", name))
        assert (record["id"], record["cid"], record["uds"]) == (
            ident, 16, str(bench.runtime / "nitroctl/16/vsock"),
        )  # fmt: skip
    assert life.ok("console", "web") == "hello\nup\n"
    assert life.ok("console", "web", "-n", "1") == "up\n"
    assert "running" in life.ok("logs", "web")
    refused = life("rm", "web")
    assert refused.returncode == 1 and "web is running" in refused.stderr

    assert life.ok("stop", "web") == f"{ident}\n"
    assert bench.processes() == {} and bench.left() == []
    assert life.ok("ps").splitlines()[1:] == []
    assert "ended (stopped)" in life.ok("ps", "-a")
    # What it said can be read until it is removed.
    assert life.ok("console", "web") == life.ok("console", "-f", ident) == "hello\nup\n"
    assert "ended: stopped by SIGTERM" in life.ok("logs", "web")
    again = life("stop", "web")
    assert again.returncode == 1 and "has ended already" in again.stderr
    assert "hint: `nitroctl ps --all`" in life("inspect", "wep").stderr
    life.ok("rm", "web")
    assert life.records() == []
    gone = life("inspect", "web")  # and nothing else has ended
    assert "hint" not in gone.stderr
    assert gone.returncode == 1 and "no enclave is called 'web'" in gone.stderr


def test_the_guest_ends_by_itself(bench: Bench, life: Life, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    life.start(**steps(*UP, ["await", str(fifo)], ["print", "bye\r\n"], RESET))
    with subprocess.Popen(
        [sys.executable, "-m", "nitroctl", "console", "-f", "hello"],
        env=bench.environment({}), stdout=subprocess.PIPE,
    ) as following:  # fmt: skip
        assert following.stdout
        assert following.stdout.readline() == b"up\r\n"
        with open(fifo, "wb"):
            pass
        assert following.stdout.read() == b"bye\r\n"
        assert following.wait(HANG) == 0
    done = life("wait", "hello")
    assert done.returncode == 0 and "the guest ended" in done.stderr
    record = life.ended()
    assert answer("nitroctl wait", life.ok("wait", "hello", "--json"))["items"] == [record]
    assert (record["ending"], record["ended_by"], record["status"]) == ("orderly", "guest", 0)
    assert record["tail"] == ["up", "bye"]


def test_how_the_application_ended_stays_in_the_record(life: Life, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    life.start(**steps(*UP, ["await", str(fifo)], ["tell", "killed 11"], RESET))
    assert json.loads(life.ok("inspect", "hello"))["app_status"] is None
    with open(fifo, "wb"):
        pass
    done = life("wait", "hello")
    assert done.returncode == 5
    assert "the application was killed by SIGSEGV (signal 11)" in done.stderr
    assert life("wait", "hello", "--app-status").returncode == 128 + 11
    record = life.ended()
    assert (record["ending"], record["ended_by"], record["status"], record["app_status"]) == (
        "application failed", "guest", 5, 139,
    )  # fmt: skip
    assert "ended (application failed)" in life.ok("ps", "-a")


def test_an_unmeasured_enclave_says_so(life: Life, bench: Bench, tmp_path: Path) -> None:
    """At its start, in its record and in `ps`; QEMU gets one archive of all, which does not stay."""
    over = tmp_path / "over"
    (over / "rootfs").mkdir(parents=True)
    done = bench.run(
        "--detach", "--overlay", str(over), "--overlay", str(over), "--overlay-keep-pcrs", **steps(*UP)
    )
    assert done.returncode == 0, done.stderr
    assert "note: this enclave is unmeasured, because of an overlay: its attestation" in done.stderr
    (record,) = life.records()
    assert (record["unmeasured"], record["keep_pcrs"]) == (True, True)
    machine = Path(f"/proc/{record['qemu_pid']}/cmdline").read_bytes().split(b"\0")
    made = bench.runtime / "nitroctl/16/overlay.cpio"
    assert any(f",overlay={made},overlay-keep-pcrs=on".encode() in word for word in machine)
    assert not made.exists()
    chain = (bench.runtime / "nitroctl/16/chain.pem").read_bytes()
    said = subprocess.run(
        ["openssl", "storeutl", "-noout", "-text", "-certs", "/dev/stdin"], input=chain, capture_output=True
    )
    subjects = [line for line in said.stdout.splitlines() if b"Subject:" in line]
    assert [b"unmeasured" in line for line in subjects] == [False, False, False, True]
    assert "running (unmeasured)" in life.ok("ps")
    life.ok("stop", "hello")
    assert "ended (stopped, unmeasured)" in life.ok("ps", "--all")
    assert bench.left() == []


def test_measurements_are_those_of_the_file(life: Life, bench: Bench) -> None:
    life.start(**steps(*UP))
    described = json.loads(life.ok("eif", "describe", "--json", str(bench.eif)))
    life.ok("stop", "hello")
    pcrs = {f"PCR{number}": value for number, value in life.ended()["pcrs"].items()}
    assert pcrs == {k: v for k, v in described["Measurements"].items() if k != "HashAlgorithm"}


def test_wait_has_a_limit(life: Life) -> None:
    life.start(**steps(*UP))
    done = life("wait", "hello", "--timeout", "0.1")
    # As timeout(1): no enclave ends with that.
    assert done.returncode == 124 and "has not ended within 0.1 s" in done.stderr


def test_names_are_given_as_nitro_cli_gives_them(life: Life) -> None:
    first, second, third = (life.start(**steps(*UP)) for _ in range(3))
    assert [r["name"] for r in (first, second, third)] == ["hello", "hello_1", "hello_2"]
    assert [r["cid"] for r in (first, second, third)] == [16, 17, 18]
    assert len(life.ok("stop", "--all").splitlines()) == 3
    # The name is free again, and means the running one.
    fourth = life.start(**steps(*UP))
    assert fourth["name"] == "hello"
    assert json.loads(life.ok("inspect", "hello"))["id"] == fourth["id"]
    assert json.loads(life.ok("inspect", first["id"]))["state"] == "ended"
    life.ok("rm", "--all")
    assert [r["id"] for r in life.records()] == [fourth["id"]]
    life.ok("rm", "--force", "hello")
    assert life.records() == []


def test_an_enclave_in_the_foreground_is_seen_while_it_runs(bench: Bench, life: Life) -> None:
    with bench.start(**steps(*UP)) as running:
        running.until("up")
        assert [r["detached"] for r in life.records()] == [False]
        assert life.ok("console", "hello") == "up\n"
        done = life("logs", "hello")
        assert done.returncode == 1 and f"process {running.pid}" in done.stderr
        life.ok("stop", "hello")
        assert running.wait() == 143
    assert life.records() == []


def test_json_belongs_to_detach(bench: Bench) -> None:
    done = bench.run("--json")
    assert done.returncode == 2 and "--detach" in done.stderr


# ---- boots that fail


def test_no_heartbeat(bench: Bench, life: Life) -> None:
    done = bench.run("--detach", "--boot-timeout", "2", **steps(["print", "one\r\n"]))
    assert done.returncode == 3
    assert done.stdout == "" and "no heartbeat within 2 s" in done.stderr
    record = life.ended()
    assert (record["ending"], record["ended_by"], record["status"]) == ("no heartbeat", "boot timeout", 3)
    assert record["tail"] == ["one"] and life.ok("console", "hello") == "one\n"
    assert bench.processes() == {} and bench.left() == []


def test_what_is_wrong_from_the_beginning_leaves_nothing(bench: Bench, life: Life) -> None:
    done = bench.run("--detach", "--cid", "3")
    assert done.returncode == 2 and "context ID 3 is reserved" in done.stderr
    done = bench.run("--detach", FAKE_BACKEND="dies")
    assert done.returncode == 1 and "no such luck" in done.stderr
    assert [r["ended_by"] for r in life.records()] == ["vsock backend"]
    life.ok("rm", "--all")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_who_starts_it_dies_before_the_heartbeat(bench: Bench, life: Life, number: int) -> None:
    with bench.start("--detach", **steps(["print", "x"])) as running:
        running.until("CID 16")
        (record,) = life.records()
        running.process.send_signal(number)
        assert running.wait() in (-number, 128 + number)
    wait_for_end(record["supervisor_pid"])
    last = life.ended()
    assert last["ending"] == "stopped" and "process that started it" in last["message"]
    assert bench.processes() == {} and bench.left() == []


# ---- who dies of those that run


@pytest.mark.parametrize(
    ("victim", "by", "said"),
    [
        ("qemu_pid", "QEMU", "QEMU was killed by SIGKILL"),
        ("backend_pid", "vsock backend", "the vsock backend was killed by SIGKILL"),
        ("supervisor_pid", "supervisor", "its supervisor"),
    ],
)
def test_kill_9(bench: Bench, life: Life, victim: str, by: str, said: str) -> None:
    record = life.start(**steps(["print", "last words\r\n"], *UP))
    os.kill(record[victim], signal.SIGKILL)
    wait_for_end(record["supervisor_pid"])
    bench.wait_gone()
    last = life.ended()
    assert (last["ending"], last["ended_by"], last["status"]) == ("failed", by, 1)
    assert said in last["message"]
    assert last["tail"] == ["last words", "up"]
    assert bench.left() == []
    assert life.ok("console", "hello") == "last words\nup\n"
    assert life.start(**steps(*UP))["cid"] == 16


def test_a_stubborn_one_is_killed(bench: Bench, life: Life) -> None:
    record = life.start(**steps(["deaf"], *UP))
    started = time.monotonic()
    life.ok("stop", "--kill", "hello")
    assert time.monotonic() - started < records.STOP_SECONDS
    wait_for_end(record["supervisor_pid"])
    bench.wait_gone()
    assert life.ended()["ended_by"] == "supervisor"


# ---- folders and disks


def test_a_full_disk_ends_no_enclave(bench: Bench, life: Life, tmp_path: Path) -> None:
    """Stood in for by the limit of a file's size, which every write meets in the same way."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    limit = 16 << 10
    line = "0123456789abcde\n"
    script = steps(HEARTBEAT, ["print", line * (limit // 8)], ["await", str(fifo)], RESET)
    done = subprocess.run(
        bench.command("--detach"), env=bench.environment(script), stdin=subprocess.DEVNULL,
        capture_output=True, timeout=HANG,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(fifo, "wb"):
        pass
    record = life.ended()
    assert (record["ending"], record["status"]) == ("orderly", 0)
    assert record["tail"][-1] == line.strip()
    assert life.ok("console", "hello") == (line * limit)[:limit]
    assert "the log will have a gap" in life.ok("logs", "hello")


def test_records_that_cannot_be_written(bench: Bench) -> None:
    """Said before anything starts, and the context ID is given back."""
    (bench.tmp / "file").touch()
    for options in ((), ("--detach",)):
        done = bench.run(*options, XDG_STATE_HOME=str(bench.tmp / "file"), **steps(*UP))
        assert done.returncode == 1
        assert str(bench.tmp / "file") in done.stderr and "Traceback" not in done.stderr
        assert bench.left() == [] and bench.processes() == {}


def test_what_a_crashed_machine_left_is_no_obstacle(bench: Bench, life: Life) -> None:
    record = life.start(**steps(*UP))
    home = Path(record["home"])
    saved = (home / "record.json").read_text()
    life.ok("stop", "hello")
    (home / "record.json").write_text(saved)  # as if nobody had written the end
    for name in (".0123.made", ".4567.removed", "0123"):
        (home.parent / name).mkdir()
    (home.parent / "4567").mkdir()
    (home.parent / "4567" / "record.json").write_text("{")
    assert [r["ended_by"] for r in life.records()] == ["supervisor"]
    assert life.start(**steps(*UP))["name"] == "hello"
    assert not (home.parent / ".0123.made").exists() and not (home.parent / ".4567.removed").exists()
    life.ok("rm", record["id"])


def test_only_their_user_reads_them(life: Life) -> None:
    home = Path(life.start(**steps(*UP))["home"])
    assert stat.S_IMODE(home.parent.stat().st_mode) == stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_RUNTIME_DIR"])
def test_the_folders_of_another_user(bench: Bench, tmp_path: Path, variable: str) -> None:
    """As with `sudo -E`: refused with a word about whose they are, and nothing in them is touched."""
    if os.getuid() != 0:
        pytest.skip("only root can give folders to another user")
    foreign = tmp_path / "foreign"
    for folder in (foreign / "nitroctl/enclaves", foreign):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (foreign, *foreign.rglob("*")):
        os.chown(path, 65534, 65534)
    env: dict[str, Any] = {variable: str(foreign), **steps(*UP)}
    done = bench.run("--detach", **env)
    assert done.returncode == 1
    assert "it has owner 65534" in done.stderr and "Traceback" not in done.stderr
    assert list((foreign / "nitroctl/enclaves").iterdir()) == []
    assert bench.processes() == {} and bench.left() == []


def test_context_ids_are_unique_over_logins(bench: Bench, life: Life, tmp_path: Path) -> None:
    """A job of cron's has another runtime folder than a session, and the same records."""
    other = bench.runtime / "other"
    other.mkdir(mode=0o700)
    env: dict[str, Any] = {"XDG_RUNTIME_DIR": str(other), **steps(*UP)}
    assert life.start(**steps(*UP))["cid"] == 16
    done = bench.run("--detach", "--json", **env)
    assert json.loads(done.stdout)["cid"] == 17
    done = bench.run("--detach", "--cid", "16", **env)
    assert done.returncode == 1 and "context ID 16 is in use" in done.stderr
    assert len(life.ok("stop", "-a").splitlines()) == 2


def test_eight_at_once(bench: Bench, life: Life) -> None:
    env = bench.environment(steps(*UP))
    starting = [
        subprocess.Popen(bench.command("-d", "--json"), env=env, stdout=subprocess.PIPE) for _ in range(8)
    ]
    started = [json.loads(process.communicate(timeout=2 * HANG)[0]) for process in starting]
    assert sorted(r["cid"] for r in started) == list(range(16, 24))
    assert sorted(r["name"] for r in started) == ["hello", *(f"hello_{i}" for i in range(1, 8))]
    assert len(life.ok("ps").splitlines()) == 9
    assert len(life.ok("stop", "-a").splitlines()) == 8
    assert bench.left() == [] and bench.processes() == {}


# ---- as a state machine over real processes


class Machine(RuleBasedStateMachine):
    """Whatever is done to enclaves in whatever order: records, processes and folders agree with a model."""

    def __init__(self) -> None:
        super().__init__()
        self.world = contextlib.ExitStack()
        self.running: dict[str, Record] = {}
        self.ended: dict[str, Party] = {}

    @initialize()
    def begin(self) -> None:
        tmp = Path(self.world.enter_context(tempfile.TemporaryDirectory(prefix="nl-")))
        self.bench = Bench(tmp, tmp / "r", install("fake_qemu.py", tmp), install("fake_backend.py", tmp),
                           write_eif(tmp / "hello.eif"))  # fmt: skip
        self.bench.runtime.mkdir(mode=0o700)
        patch = self.world.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("XDG_RUNTIME_DIR", str(self.bench.runtime))
        patch.setenv("XDG_STATE_HOME", str(tmp / "s"))
        self.patch = patch
        self.started = 0

    def request(self, **more: Any) -> RunRequest:
        programs = {"qemu": self.bench.qemu, "vsock_backend": self.bench.backend}
        return RunRequest(self.bench.eif, **{**programs, "accel": "tcg", "ca_days": None, **more})

    def fifo(self, record: Record) -> Path:
        return self.bench.tmp / record.name

    @precondition(lambda self: len(self.running) < 3)
    @rule()
    def start(self) -> None:
        self.started += 1
        name = f"e{self.started}"
        os.mkfifo(self.bench.tmp / name)
        script = steps(*UP, ["await", str(self.bench.tmp / name)], RESET)
        self.patch.setenv("FAKE_QEMU", script["FAKE_QEMU"])
        record = supervised.start(self.request(name=name))
        self.running[record.id] = record

    @precondition(lambda self: len(self.running) < 3)
    @rule()
    def start_in_vain(self) -> None:
        self.patch.setenv("FAKE_QEMU", "[]")
        before = {r.id for r in records.every()}
        with pytest.raises(BootTimeout):
            supervised.start(self.request(boot_timeout=0.05))
        (new,) = [r for r in records.every() if r.id not in before]
        self.ended[new.id] = Party.TIMEOUT

    def end(self, data: st.DataObject) -> Record:
        ident = data.draw(st.sampled_from(sorted(self.running)))
        return self.running.pop(ident)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        record = self.end(data)
        last = records.stop(record)
        assert last and last.ending is Ending.STOPPED
        self.ended[record.id] = Party.REQUEST

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def guest_ends(self, data: st.DataObject) -> None:
        record = self.end(data)
        with open(self.fifo(record), "wb"):
            pass
        last = records.wait(record, HANG)
        assert last and last.ending is Ending.ORDERLY
        self.ended[record.id] = Party.GUEST

    @precondition(lambda self: self.running)
    @rule(data=st.data(), victim=st.sampled_from(["qemu_pid", "backend_pid", "supervisor_pid"]))
    def kill(self, data: st.DataObject, victim: str) -> None:
        record = self.end(data)
        os.kill(getattr(record, victim), signal.SIGKILL)
        records.wait(record, HANG)
        for pid in (record.qemu_pid, record.backend_pid):
            assert pid
            wait_for_end(pid)
        parties = {"qemu_pid": Party.QEMU, "backend_pid": Party.BACKEND, "supervisor_pid": Party.SUPERVISOR}
        self.ended[record.id] = parties[victim]

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ident = data.draw(st.sampled_from(sorted(self.ended)))
        records.remove(records.find(ident))
        del self.ended[ident]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def refuse_to_remove(self, data: st.DataObject) -> None:
        ident = data.draw(st.sampled_from(sorted(self.running)))
        with pytest.raises(EnclaveError, match="is running"):
            records.remove(records.find(ident))

    @invariant()
    def records_tell_the_truth(self) -> None:
        if not hasattr(self, "bench"):
            return
        found, running = records.every(), records.running()
        while found != (again := records.every()):  # a supervisor has just written its enclave's PCRs
            found, running = again, records.running()
        now = {record.id: record for record in found}
        assert {i for i, r in now.items() if r.running} == set(self.running)
        assert [r for r in found if r.running] == running
        assert {i: r.ended_by for i, r in now.items() if not r.running} == self.ended
        assert len(self.bench.processes()) == 2 * len(self.running)
        cids = {str(record.cid) for record in self.running.values()}
        assert {path.split("/")[0] for path in self.bench.left()} == cids

    def teardown(self) -> None:
        for record in records.every() if hasattr(self, "bench") else ():
            records.stop(record)
        self.world.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    deadline=None,
    max_examples=4,
    stateful_step_count=12,
    suppress_health_check=list(HealthCheck),
)
