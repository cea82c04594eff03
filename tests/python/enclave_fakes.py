# SPDX-License-Identifier: MIT
"""What the tests of qemu, vsock, enclave and run share: fake programs, a small EIF, processes to look at.

No test is here. Everything is event driven: waiting means reading a pipe, a FIFO or a process's end; the
time limits only turn a hang into a failure.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import eifmodel as model

FAKES = Path(__file__).parent / "fakes"
PYTHON = Path(__file__).resolve().parents[2] / "python"
HANG = 30.0  # seconds after which a test is stuck

HEARTBEAT = ["heartbeat"]
RESET = ["reset"]


def steps(*script: Sequence[object]) -> dict[str, Any]:
    return {"FAKE_QEMU": json.dumps(script)}


def install(fake: str, folder: Path) -> Path:
    """The fake program as an executable file in `folder`."""
    path = folder / fake.removesuffix(".py").replace("_", "-")
    source = (FAKES / fake).read_text()
    path.write_text(f"#!{sys.executable} -SE\n{source}")
    path.chmod(0o755)
    return path


def write_eif(path: Path, custom: object = None) -> Path:
    """A version 4 file with a kernel, a command line and metadata, by the published layout."""
    build = dict.fromkeys(
        ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion"), "x"
    )
    metadata = {
        "ImageName": "x", "ImageVersion": "1", "BuildMetadata": build, "DockerInfo": None,
        "CustomMetadata": custom,
    }  # fmt: skip
    sections = [(1, model.bzimage()), (2, b"console=ttyS0"), (5, json.dumps(metadata).encode())]
    offsets, sizes, body = [], [], b""
    for kind, data in sections:
        offsets.append(548 + len(body))
        sizes.append(len(data))
        body += struct.pack(">HHQ", kind, 0, len(data)) + data
    slots = [0] * (32 - len(sections))
    head = struct.pack(
        ">4sHHQQHH64QI", b".eif", 4, 0, 1 << 30, 2, 0, len(sections), *offsets, *slots, *sizes, *slots, 0
    )
    path.write_bytes(head + struct.pack(">I", zlib.crc32(head + body)) + body)
    return path


@dataclass
class Bench:
    """A private world for one test: folders, fake programs, an EIF."""

    tmp: Path
    runtime: Path
    qemu: Path
    backend: Path
    eif: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(PYTHON),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_STATE_HOME": str(self.tmp / "state"),
            **self.env,
            **extra,
        }

    def command(self, *options: str, eif: Path | None = None) -> list[str]:
        return [
            sys.executable, "-m", "nitroctl", "run", str(eif or self.eif),
            "--qemu", str(self.qemu), "--vsock-backend", str(self.backend), *options,
        ]  # fmt: skip

    def run(self, *options: str, eif: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """`nitroctl run` to its end."""
        return subprocess.run(
            self.command(*options, eif=eif),
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG,
        )

    @contextmanager
    def start(self, *options: str, **env: str) -> Iterator[Running]:
        process = subprocess.Popen(
            self.command(*options),
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running = Running(process)
        try:
            yield running
        finally:
            process.kill()
            process.communicate()

    def left(self) -> list[str]:
        """What is in the runtime folder."""
        folder = self.runtime / "nitroctl"
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []

    def processes(self) -> dict[int, str]:
        """Processes of this bench's fake programs, found by their path in the command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                for word in words[:3]:
                    if word in (os.fsencode(self.qemu), os.fsencode(self.backend)) and state != "Z":
                        found[int(entry.name)] = word.decode(errors="replace")
        return found

    def pid_of(self, program: Path) -> int:
        (pid,) = [pid for pid, path in self.processes().items() if path == str(program)]
        return pid

    def wait_gone(self) -> None:
        """Wait for the fakes' ends: those of orphans, whom nobody here can wait for."""
        for pid in self.processes():
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                assert select.select([fd], [], [], HANG)[0], f"process {pid} is still there"
            finally:
                os.close(fd)
        assert not self.processes()


def assert_nothing_left(bench: Bench) -> None:
    assert bench.left() == []
    assert bench.processes() == {}


@contextmanager
def make_bench(tmp: Path, backend: Path) -> Iterator[Bench]:
    """A bench with this program as vsock backend, and the fake QEMU; nothing of it is left afterwards."""
    # Not below tmp, whose name is long under xdist: socket paths end at 107 bytes. Numbers only: a
    # random name in what nitroctl prints can hold the very word that a test waits for.
    runtime = Path(tempfile.gettempdir(), f"n{os.getpid()}-{time.monotonic_ns()}")
    runtime.mkdir(mode=0o700)
    made = Bench(
        tmp=tmp,
        runtime=runtime,
        qemu=install("fake_qemu.py", tmp),
        backend=backend,
        eif=write_eif(tmp / "hello.eif"),
    )
    try:
        yield made
    finally:
        for pid in made.processes():  # only after a failure
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(runtime, ignore_errors=True)


class Running:
    """A started `nitroctl run` whose output is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.out = b""
        self.err = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout and self.process.stderr
        pipes = [p for p in (self.process.stdout, self.process.stderr) if not p.closed]
        ready = select.select(pipes, [], [], HANG)[0]
        assert ready, f"nothing happens\nstdout: {self.out!r}\nstderr: {self.err!r}"
        for pipe in ready:
            data = os.read(pipe.fileno(), 65536)
            if pipe is self.process.stdout:
                self.out += data
            else:
                self.err += data
            if not data:
                pipe.close()

    def until(self, text: str) -> None:
        """Until `text` was seen on stdout or stderr."""
        wanted = text.encode()
        while wanted not in self.out and wanted not in self.err:
            assert self.process.stdout and self.process.stderr
            assert not (self.process.stdout.closed and self.process.stderr.closed), (
                f"ended without {text!r}\nstdout: {self.out!r}\nstderr: {self.err!r}"
            )
            self._read()

    def wait(self) -> int:
        assert self.process.stdout and self.process.stderr
        while not (self.process.stdout.closed and self.process.stderr.closed):
            self._read()
        return self.process.wait(HANG)
