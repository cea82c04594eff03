# SPDX-License-Identifier: MIT
"""The Python API over fake programs: what a parent program or a test can do with an Enclave object.

The supervisor, the records and the sockets are real. Connections are in test_api_vsock, asyncio is in
test_api_asyncio, real guests are in tests/boot.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import eifmodel
import nitroctl
from api_world import Make, maker, records_left
from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, steps
from nitroctl import attestation
from nitroctl.enclaves import records
from nitroctl.enclaves.records import Ending, Party
from nitroctl.vsock import sockets


@pytest.fixture
def make(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Make:
    return maker(bench, monkeypatch)


def test_a_block_is_a_life(bench: Bench, make: Make) -> None:
    enclave = make(HEARTBEAT, ["print", "up\r\n"], name="api", memory="600M", cpus=2, cid=77)
    assert enclave.name == "api"
    assert not enclave.running
    with enclave as entered:
        assert entered is enclave and entered.running
        assert (enclave.name, enclave.cid, enclave.record.memory_mib, enclave.record.cpus) == (
            "api", 77, 600, 2,
        )  # fmt: skip
        assert records.find("api", running=True).id == enclave.id
        enclave.console.wait_for("^up$")
    assert enclave.record.ending is Ending.STOPPED and enclave.record.ended_by is Party.REQUEST
    assert enclave.console.text == "up\n"
    assert bench.processes() == {} and bench.left() == [] and records_left() == []


def test_names_are_there_without_the_cost() -> None:
    code = """
import sys, nitroctl
assert "nitroctl.api" not in sys.modules
nitroctl.Enclave, nitroctl.build_eif
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG)
    with pytest.raises(AttributeError, match="no attribute 'Enclaves'"):
        nitroctl.Enclaves  # noqa: B018


def test_documents_are_judged_as_the_enclave_runs(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file's PCRs unless they are zero, and whatever it was told to run besides."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    asked: list[attestation.Policy] = []
    monkeypatch.setattr(attestation, "verify", lambda document, root, policy: asked.append(policy))
    over = {"overlay": [tmp_path]}
    options: list[dict[str, Any]] = [
        {}, {"debug_mode": True}, over, {**over, "overlay_keep_pcrs": True}, {"append": "init=/x"},
    ]  # fmt: skip
    for one in options:
        make(**one).verify(b"")
    assert [(bool(p.pcrs), p.allow_debug, p.allow_unmeasured) for p in asked] == [
        (True, False, False),
        (False, True, False),
        (False, True, True),
        (True, False, True),
        (False, True, True),
    ]


def test_once(make: Make) -> None:
    enclave = make()
    with pytest.raises(nitroctl.UsageError, match="has not been started"):
        enclave.wait()
    with enclave, pytest.raises(nitroctl.UsageError, match="once"):
        enclave.start()
    with pytest.raises(nitroctl.UsageError, match="once"):
        enclave.start()


def test_start_and_close_by_hand(bench: Bench, make: Make) -> None:
    enclave = make().start()
    with enclave:
        assert enclave.running
    enclave.close()
    assert bench.processes() == {}


@pytest.mark.parametrize(
    ("script", "options", "error"),
    [
        ([["print", "[    0.5] nothing\r\n"]], {"boot_timeout": 2.0}, nitroctl.BootTimeout),
        ([["print", "[    0.500000] Kernel panic - not syncing: oh\r\n"]], {}, nitroctl.GuestPanic),
        ([["exit", 9]], {}, nitroctl.EnclaveError),
    ],
)
def test_what_does_not_boot(
    bench: Bench,
    make: Make,
    script: list[list[Any]],
    options: dict[str, Any],
    error: type[nitroctl.EnclaveError],
) -> None:
    enclave = make(*script, **options)
    with pytest.raises(error) as caught, enclave:
        pytest.fail("it is up")
    e = caught.value
    assert e.record.id == enclave.id and e.record.ending and not e.record.running
    assert (e.cause, e.hint, e.tail) == (e.record.cause, e.record.hint, e.record.tail)
    assert [line for line in e.tail if line] == [text.strip() for step, text in script if step == "print"]
    printed = [text for step, text in script if step == "print"]
    assert enclave.console.read().decode() == "".join(printed)
    assert bench.processes() == {} and records_left() == []


def test_what_is_wrong_from_the_beginning(bench: Bench, make: Make) -> None:
    for options in ({"memory": "lots"}, {"cid": 3}, {"proxy": ["80=nowhere"]}):
        with pytest.raises(nitroctl.UsageError), make(**options):
            pytest.fail("it is up")
    with pytest.raises(nitroctl.UsageError, match="qemu_build"):
        make(qemu_build="tree")
    assert records_left() == []


def test_the_guest_ends_by_itself(make: Make, tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    with make(HEARTBEAT, ["await", str(fifo)], RESET) as enclave:
        with pytest.raises(TimeoutError, match="has not ended within 0.05 s") as caught:
            enclave.wait(0.05)
        assert isinstance(caught.value, nitroctl.EnclaveTimeout) and caught.value.record.id == enclave.id
        os.close(os.open(fifo, os.O_WRONLY))
        record = enclave.wait(HANG)
        assert record.ending is Ending.ORDERLY and not enclave.running
        record.check()
        with pytest.raises(sockets.PortRefused, match="has ended"):
            enclave.connect(5000)


def test_how_the_application_ended(make: Make) -> None:
    with make(HEARTBEAT, ["tell", "exited 7"], RESET) as enclave:
        record = enclave.wait(HANG)
        assert record.ending is Ending.APPLICATION and record.app_status == 7
        with pytest.raises(nitroctl.ApplicationFailed, match="ended with status 7"):
            record.check()


def test_it_ends_with_its_process(bench: Bench) -> None:
    code = f"""
import os, nitroctl
e = nitroctl.Enclave({str(bench.eif)!r}, qemu={str(bench.qemu)!r}, vsock_backend={str(bench.backend)!r})
print(e.start().record.supervisor_pid, flush=True)
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=bench.environment(steps(HEARTBEAT)), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        supervisor = os.pidfd_open(int(process.stdout.readline()))
        assert process.wait(HANG) == -signal.SIGKILL
    try:
        assert select.select([supervisor], [], [], HANG)[0]
    finally:
        os.close(supervisor)
    assert bench.processes() == {} and bench.left() == []


def test_the_console(make: Make, tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    before, after = ["print", "one\r\ntwo\r\nlog\x1bin: "], ["print", "x\r\n"]
    with make(before, HEARTBEAT, ["await", str(fifo)], after, RESET) as enclave:
        assert enclave.console.wait_for("t(w)o")[1] == "w"
        enclave.console.wait_for(re.compile("in: $"))  # a line without an end
        assert enclave.console.tail(2) == ["two", "log in:"]
        assert enclave.console.path.read_bytes() == b"one\r\ntwo\r\nlog\x1bin: "
        with pytest.raises(TimeoutError, match="did not print 'three' within 0.05 s\n  one\n  two") as caught:
            enclave.console.wait_for("three", timeout=0.05)
        assert isinstance(caught.value, nitroctl.EnclaveTimeout)
        assert caught.value.tail == ("one", "two", "log in:") and caught.value.record.running
        lines = enclave.console.lines(timeout=HANG)
        assert [next(lines), next(lines)] == ["one", "two"]
        os.close(os.open(fifo, os.O_WRONLY))
        assert list(lines) == ["log\x1bin: x"]
        with pytest.raises(nitroctl.EnclaveError, match="did not print 'three' until its end: ") as end:
            enclave.console.wait_for("three")
        assert not isinstance(end.value, TimeoutError) and end.value.record.ending is Ending.ORDERLY
        with pytest.raises(nitroctl.EnclaveError, match="did not print 'three' until its end: "):
            enclave.console.wait_for("three", timeout=HANG)


def test_reading_the_console_keeps_no_file_open(make: Make) -> None:
    with make(HEARTBEAT, ["print", "up\r\n"]) as enclave:
        enclave.console.wait_for("up")
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            assert enclave.console.text == "up\n"
        assert os.listdir("/proc/self/fd") == before


def test_logs_can_be_kept(make: Make, tmp_path: Path) -> None:
    with make(HEARTBEAT, ["print", "up\r\n"], ["stderr", "QEMU speaks"], log_dir=tmp_path / "a/b") as enclave:
        enclave.console.wait_for("up")
    assert (tmp_path / "a/b/console.log").read_bytes() == b"up\r\n"
    assert "running" in (tmp_path / "a/b/supervisor.log").read_text()
    assert records_left() == []
    with make(name="kept", keep=True) as enclave:
        pass
    assert records_left() == ["kept"]
    records.remove(records.find("kept"))
    (tmp_path / "file").touch()
    with pytest.raises(nitroctl.NitroError) as caught:
        nitroctl.api._copy_logs(tmp_path / "a/b", tmp_path / "file")
    assert str(caught.value) == f"cannot copy the enclave's logs to {tmp_path}/file: File exists"


def test_measurements(bench: Bench, make: Make) -> None:
    from nitroctl.eif.measure import measure

    measured = measure(bench.eif)
    enclave = make()
    assert enclave.pcrs() == {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}  # before the start
    with enclave:
        assert enclave.pcrs() == {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}


def test_two_at_once(make: Make) -> None:
    with make(name="two") as first, make(name="two") as second:
        assert first.cid != second.cid
        assert (first.name, second.name) == ("two", "two_1")


def test_an_enclave_leaves_nothing_in_its_process(make: Make) -> None:
    """No object of ours, descriptor or thread, however it ended; what stays is made by the first one."""

    def left() -> Counter[str]:
        gc.collect()
        ours = [type(one) for one in gc.get_objects() if str(type(one).__module__).startswith("nitroctl")]
        found = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in ours)
        found.update({"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()})
        return found

    def live(*script: list[Any], **options: Any) -> None:
        enclave = make(*script, **options)
        enclave.listen(9001)
        with contextlib.suppress(nitroctl.EnclaveError), enclave:
            enclave.console.read()
            enclave.pcrs()

    live()
    before = left()
    live(HEARTBEAT, RESET)
    live(["exit", 9])
    assert left() - before == Counter()  # what other tests had left may go


def test_an_eif_is_of_one_thing(tmp_path: Path) -> None:
    with pytest.raises(nitroctl.UsageError, match="either an image or a directory"):
        nitroctl.build_eif(tmp_path / "o.eif")
    with pytest.raises(nitroctl.UsageError, match="^cmd is for directory$"):
        nitroctl.build_eif(tmp_path / "o.eif", image="a.tar", cmd=["/x"])


def test_to_make_an_object_touches_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No QEMU is looked for or built, no name resolved, no file opened, before `start`."""

    def never(*given: Any, **more: Any) -> Any:
        raise AssertionError("too early")

    with monkeypatch.context() as patch:
        patch.setattr("nitroctl.toolchain.choice.choose", never)
        patch.setattr("nitroctl.toolchain.places.locate", never)
        patch.setattr(socket, "getaddrinfo", never)
        patch.setattr("nitroctl.base.proc.run", never)
        patch.setattr("builtins.open", never)
        patch.setattr(os, "open", never)
        patch.setattr(os, "stat", never)
        nitroctl.Enclave("absent.eif", proxy=["80=nowhere.invalid:80"], listen_port=["1=/absent/s"])
        enclave = nitroctl.Enclave("absent.eif", qemu="absent", vsock_backend="absent")
    with pytest.raises(nitroctl.NitroError, match="absent"):
        enclave.start()
    asked = nitroctl.Enclave(bench.eif, vsock_backend=bench.backend)
    monkeypatch.setattr("nitroctl.toolchain.choice.choose", lambda kind, arch: Path("/asked/now"))
    with pytest.raises(nitroctl.EnclaveError, match="/asked/now"):
        asked.start()


def test_wrong_arguments_are_named(bench: Bench) -> None:
    wrong: dict[str, Any] = {
        "cpus": "2", "memory": 1.5, "boot_timeout": "3", "name": 7, "debug_mode": "yes", "accel": "hvf",
        "publish": "8080=80", "wait_for_port": "5000", "wait_for_log": 7, "wait_timeout": "60",
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(nitroctl.UsageError, match=f"^{name}.*{value}"):
            nitroctl.Enclave(bench.eif, **{name: value})
    with pytest.raises(nitroctl.UsageError, match="^eif=None: eif takes a path"):
        nitroctl.Enclave(None)  # type: ignore[arg-type]
    with pytest.raises(nitroctl.UsageError, match="no regular expression"):
        nitroctl.Enclave(bench.eif, wait_for_log="(")
    with pytest.raises(TypeError, match=r"^Enclave\(\) got .* 'memry'; did you mean 'memory'\?"):
        nitroctl.Enclave(bench.eif, memry=1)  # type: ignore[call-arg]


def test_what_an_object_says_of_itself(make: Make) -> None:
    enclave = make(name="web")
    assert repr(enclave) == "<Enclave web: not started>"
    with enclave:
        assert repr(enclave) == f"<Enclave web: CID {enclave.cid}, running>"
        enclave.stop()
        assert enclave.record.message == "stopped by a call of stop()"
        assert repr(enclave) == "<Enclave web: ended: stopped by a call of stop()>"
        with pytest.raises(sockets.PortRefused, match=r"has ended: stopped by a call of stop\(\)"):
            enclave.connect(5000)
    with make() as enclave:
        pass
    assert "with its Enclave object's `with` block" in (enclave.record.message or "")


def test_a_start_can_wait_for_the_application(make: Make) -> None:
    """For its port and for what it says; what does not come ends the enclave."""
    up = ["print", "listening on 5000\r\n"]
    with make(HEARTBEAT, up, ports="5000:3", wait_for_port=5000, wait_for_log="on (5000)") as enclave:
        enclave.connect(5000, retry=False).close()
    enclave = make(HEARTBEAT, up, wait_for_log=["on 5000", re.compile("on 6000")], wait_timeout=0.5)
    with pytest.raises(TimeoutError, match="did not print 'on 6000' within"), enclave:
        pytest.fail("it is up")
    assert not enclave.running and enclave.record.message == "stopped, because its start failed"
    with pytest.raises(sockets.PortRefused, match="port 7000"), make(wait_for_port=[7000], wait_timeout=0.2):
        pytest.fail("it is up")


def test_what_is_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, measurements and warnings; a program that is not there is an error, unless that was meant."""
    from nitroctl.eif.measure import measure
    from nitroctl.toolchain import guest

    (tmp_path / "bzImage").write_bytes(eifmodel.bzimage())
    (tmp_path / "init").write_bytes(b"init")
    monkeypatch.setattr(guest, "build_init", lambda *_: tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    output, kernel = tmp_path / "o.eif", tmp_path / "bzImage"
    with pytest.raises(nitroctl.NitroError, match="root: the image has no program '/app'") as e:
        nitroctl.build_eif(output, directory=root, cmd=["/app"], kernel=kernel)
    assert e.value.hint and "--allow-missing-program" in e.value.hint and not output.exists()
    made = nitroctl.build_eif(output, directory=root, cmd=["/app"], kernel=kernel, allow_missing_program=True)
    assert made.path == output == Path(made) and made.measurements == measure(output)
    assert [warning for warning in made.warnings if "has no program '/app'" in warning]
    (root / "app").write_bytes(b"#!/bin/sh\n")
    (root / "app").chmod(0o755)
    made = nitroctl.build_eif(output, directory=root, cmd=["/app"], kernel=kernel)
    assert made.warnings == () and nitroctl.Enclave(made).name == "o.eif"
    parts = nitroctl.build_eif(output, kernel=kernel, cmdline="quiet", ramdisk=[tmp_path / "init"])
    assert parts.measurements == measure(output) != made.measurements
