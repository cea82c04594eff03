# SPDX-License-Identifier: MIT
"""`nitroctl stats`, `vsock dump`, `fault` and `run --pcap` from outside: the real commands and backend, and a
guest of ours. What each fault does is in vsock/test_vsock_faults.py, a capture's bytes in
vsock/test_vsock_dump.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import jsonpage
from enclave_fakes import HANG, Bench, steps
from enclave_world import enclave, world
from vhost_backend import fail_after
from vhost_front import Front
from vhost_guest import Guest, Refused

PORT = 5000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with world(tmp_path) as made:
        yield made


def nitroctl(bench: Bench, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nitroctl", *arguments],
        env=bench.environment({}), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip


@contextlib.contextmanager
def dumping(bench: Bench, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`nitroctl vsock dump`, which has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nitroctl", "vsock", "dump", "hello", *arguments],
        env=bench.environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refused(guest: Guest, port: int = PORT, count: int = 1) -> None:
    for _ in range(count):
        with pytest.raises(Refused):
            guest.connect(port)


def records_of(data: bytes) -> int:
    """How many records a capture has; all of them whole."""
    assert struct.unpack_from("<I", data)[0] == 0xA1B2C3D4
    at, count = 24, 0
    while at < len(data):
        at += 16 + struct.unpack_from("<IIII", data, at)[2]
        count += 1
    assert at == len(data)
    return count


def appears(path: Path) -> None:
    patience = fail_after()
    while not path.exists() or not path.stat().st_size:
        patience(f"a capture in {path}")
        time.sleep(0.005)


def test_dump_writes_a_file_until_ctrl_c(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"what was there before")
    path.chmod(0o644)
    with enclave(bench) as guest, dumping(bench, "-w", str(path), "--snaplen", "0") as process:
        patience = fail_after()
        while path.read_bytes()[:4] != b"\xd4\xc3\xb2\xa1":
            patience("a capture's head")
        refused(guest, count=3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
        assert (process.returncode, err) == (0, b"6 packets, %d bytes\n" % (24 + 6 * 92))
        assert records_of(path.read_bytes()) == 6
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_dump_prints_packets_until_the_enclave_ends(bench: Bench) -> None:
    with enclave(bench) as guest, dumping(bench) as process:
        # It has begun once the first line comes.
        lines: list[bytes] = []
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        patience = fail_after()
        while not lines:
            refused(guest)
            lines += process.stdout.readlines()
            patience("a line")
        os.set_blocking(process.stdout.fileno(), True)
        words = lines[0].split()
        assert words[2] == b">" and b"3:5000" in (words[1], words[3]) and words[5] == b"credit"
        guest.put(guest.connect_start(PORT).packet(5, b"\x1b[2Jtext"))
        refused(guest)
        guest.flush()
        for pid, path in bench.processes().items():
            if path == str(bench.qemu):
                os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=HANG)
        assert process.returncode == 0 and err.startswith(b"the enclave has ended; ")
        assert b"  RW  8 bytes  credit 262144, taken 0  |.[2Jtext|\n" in out
        assert b"\x1b" not in out and out.count(b"  RST  ") >= 2


def test_dump_ends_at_its_limit_and_with_its_reader(bench: Bench) -> None:
    with enclave(bench) as guest:
        with dumping(bench, "-w", "-", "--limit", "1M") as process:
            assert process.stdout
            head = process.stdout.read(24)
            data = bytes(60_000)
            stream = guest.connect_start(PORT)
            for _ in range(20):
                guest.put(stream.packet(5, data))
            out, err = process.communicate(timeout=HANG)
            assert process.returncode == 0 and err.startswith(b"1M are reached; ")
            assert records_of(head + out) > 10 and len(head + out) <= 1 << 20
        with dumping(bench, "-w", "-") as process:
            assert process.stdout
            process.stdout.read(24)
            process.stdout.close()
            patience = fail_after()
            while process.poll() is None:
                refused(guest)
                patience("the end of a command without a reader")
            process.stdout = None
            assert process.stderr and process.stderr.read() == b""


def test_stats(bench: Bench) -> None:
    with enclave(bench) as guest:
        refused(guest, count=2)
        found = jsonpage.answer("nitroctl stats", nitroctl(bench, "stats", "hello", "--json").stdout)
        assert [row["name"] for row in found["processes"]] == ["QEMU", "vsock backend", "supervisor"]
        for row in found["processes"]:
            assert row["memory_bytes"] > 1 << 16 and row["cpu_seconds"] >= 0
            assert Path(f"/proc/{row['pid']}/stat").exists()
        assert found["ports"] == [
            {"side": "parent", "port": PORT, "connections": 0, "open": 0, "refused": 2,
             "cause": "no-listener", "bytes_from_guest": 0, "bytes_to_guest": 0},
        ]  # fmt: skip
        text = nitroctl(bench, "stats", "hello").stdout
        assert "supervisor" in text and "parent 5000            0     0        2" in text, text
    done = nitroctl(bench, "stats", "hello")
    assert done.returncode == 1 and "no enclave is called 'hello'" in done.stderr


def test_faults(bench: Bench) -> None:
    with enclave(bench) as guest:
        for arguments, words in (
            (("refuse", "hello", "--port", "-1"), "-1 is no vsock port"),
            (("hello", "latency"), "a latency needs ms or jitter"),
            (("hello", "latency", "--ms", "60001"), "ms is a whole number from 0 to 60000"),
            (("hello", "refuse", "--rate", "1.5"), "a rate is a number from 0 to 1"),
            (("hello", "reset", "--nth", "0"), "nth is a whole number from 1"),
            (("hello", "reset", "--seed", "-1"), "seed is a whole number from 0"),
            (("hello", "clear", "7"), "there is no fault 7"),
            (("nobody", "list"), "no enclave is called 'nobody'"),
        ):
            done = nitroctl(bench, "fault", *arguments)
            assert done.returncode and words in done.stderr, done.stderr
        port = ("--port", str(PORT))
        assert nitroctl(bench, "fault", "hello", "refuse", *port, "--times", "1").stdout == "1\n"
        more = ("--after", "5", "--rate", "0.5", "--seed", "9")
        assert nitroctl(bench, "fault", "reset", "hello", *more).stdout == "2\n"
        assert nitroctl(bench, "fault", "hello", "latency", "--jitter", "20").stdout == "3\n"
        assert nitroctl(bench, "fault", "hello", "stop-reading", "--nth", "2").stdout == "4\n"
        refused(guest, count=1)
        listed = nitroctl(bench, "fault", "hello", "list")
        assert listed.stdout.splitlines() == [
            "1: refuse, port 5000, times 1; 1 of 1 connections",
            listed.stdout.splitlines()[1],
            "3: latency, any port, jitter 20, rate 1 seed 0; 1 of 1 connections",
            "4: stop-reading, any port, nth 2; 0 of 1 connections",
        ]
        assert listed.stdout.splitlines()[1].startswith("2: reset, any port, after 5, rate 0.5 seed 9; ")
        found = jsonpage.answer(
            "nitroctl fault list", nitroctl(bench, "fault", "hello", "list", "--json").stdout
        )
        assert [row["kind"] for row in found["items"]] == ["refuse", "reset", "latency", "stop-reading"]
        assert nitroctl(bench, "fault", "hello", "clear", "1").returncode == 0
        assert nitroctl(bench, "fault", "hello", "clear").returncode == 0
        empty = nitroctl(bench, "fault", "hello", "list")
        assert (empty.stdout, empty.stderr) == ("", "none\n")


def test_run_pcap(bench: Bench, tmp_path: Path) -> None:
    """From before the guest runs to its end, whole, and said where it ends before."""
    path = tmp_path / "x.pcap"
    script = steps(["print", "QEMU is there\n"])
    with bench.start("--pcap", str(path), "--snaplen", "3", FAKE_QEMU_NO_VSOCK="1", **script) as run:
        run.until("QEMU is there")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        front = Front(bench.runtime / "nitroctl/16/device")
        front.start()
        guest = Guest(front)
        guest.put(guest.connect_start(PORT).packet(5, b"secret"))
        refused(guest, PORT + 1)
        front.close()
        run.process.terminate()
        run.wait()
    data = path.read_bytes()
    assert records_of(data) >= 4 and b"sec" in data and b"secret" not in data
    for arguments, words in (
        (("--pcap", str(tmp_path)), "is no file"),
        (("--pcap", str(tmp_path / "no/x")), "there is no folder"),
        (("--snaplen", "65537"), "a packet has from 0 to 65536 bytes"),
        (("--pcap-limit", "0"), "is not an amount"),
    ):
        done = bench.run(*arguments, **script)
        assert done.returncode and words in done.stderr, done.stderr
