# SPDX-License-Identifier: MIT
"""A host without vsock whose parent programs have the library, and the guest that they talk to.

The library, the backend and the programs are the real ones; the guest is `vhost_guest.Guest`, played by the
test. No test is here.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, fail_after, find_binary
from vhost_guest import OFF_BOTH, OFF_SEND, Guest, Stream, guest

PYTHON = Path(__file__).resolve().parents[2] / "python"


def find(variable: str, target: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.fail(f"`meson setup b && ninja -C b` and {variable}=b/{target}")
    return Path(path)


def library() -> Path:
    return find("VSOCK_PRELOAD", "contrib/vsock-preload/vsock-preload.so")


def parent_program() -> Path:
    return find("VSOCK_PARENT", "tests/unit/vsock-parent")


def preload() -> str:
    """LD_PRELOAD for the library; a sanitizer's runtime wants to be the first."""
    linked = subprocess.run(["ldd", library()], check=True, capture_output=True, text=True).stdout
    runtimes = [line.split()[2] for line in linked.splitlines() if "libasan" in line]
    return ":".join([*runtimes, str(library())])


class Host:
    """A folder as nitroctl's for sockets, with enclaves in it. Programs find the kernel's own vsock, if there
    is one, only with `vsock`."""

    def __init__(self, *, vsock: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vp-"))
        self.preload = preload()
        if not vsock:
            self.preload += f":{find('NO_VSOCK', 'tests/unit/no-vsock.so')}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def port(self, port: int) -> Path:
        return self.folder / "ports" / f"all_{port}"

    @contextlib.contextmanager
    def enclave(self, cid: int = 16, *options: str, start: bool = True) -> Iterator[Guest]:
        backend = Backend(find_binary(), f"--fallback-path={self.folder / 'ports/all'}", *options, cid=cid)
        place = self.folder / str(cid)
        place.mkdir()
        (place / "vsock").symlink_to(backend.uds_path)
        try:
            with guest(backend, start=start) as g:
                yield g
        except BaseException:
            backend.close(check=False)
            raise
        finally:
            shutil.rmtree(place)
        backend.close()

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            **os.environ, "NITROCTL_VSOCK_DIR": str(self.folder), "LD_PRELOAD": self.preload,
            "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(PYTHON), **extra,
        }  # fmt: skip

    def start(self, *argv: str | Path, **extra: str) -> subprocess.Popen[bytes]:
        """A parent program; its errors come with its output."""
        process = subprocess.Popen(
            argv, env=self.environment(**extra), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def c(self, *argv: object) -> subprocess.Popen[bytes]:
        return self.start(parent_program(), *map(str, argv))

    def python(self, code: str, *argv: object, **extra: str) -> subprocess.Popen[bytes]:
        # What an interpreter has not freed at its end is none of our errors.
        options = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "detect_leaks=0"]))
        return self.start(sys.executable, "-c", code, *map(str, argv), ASAN_OPTIONS=options, **extra)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        shutil.rmtree(self.folder)


class Echo:
    """The guest's service on a port: what comes is sent back, and closed when its client sends no more."""

    def __init__(self, guest: Guest, port: int) -> None:
        self.guest = guest
        self.port = port
        self.streams: list[Stream] = []
        self.seen: list[Stream] = []
        guest.listen(port)

    def turn(self) -> None:
        self.guest.pump(0.01)
        while self.guest.listening[self.port]:
            stream = self.guest.listening[self.port].popleft()
            self.streams.append(stream)
            self.seen.append(stream)
        for stream in list(self.streams):
            data = stream.read_some(65536)
            if data:
                stream.send(data)
            elif stream.peer_off & OFF_SEND:
                if stream.state == "open":
                    stream.shutdown(OFF_BOTH)
                self.streams.remove(stream)


def output(guest: Guest, process: subprocess.Popen[bytes], echo: Echo | None = None) -> str:
    """All that the program prints until its end, which must be a good one; meanwhile the guest goes on."""
    patience = fail_after()
    while process.poll() is None:
        if echo:
            echo.turn()
        else:
            guest.pump(0.01)
        patience("the program's end")
    text = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 0, f"status {process.returncode}: {text}"
    return text


def line(guest: Guest, process: subprocess.Popen[bytes]) -> str:
    """The next line that the program prints."""
    assert process.stdout
    patience = fail_after()
    text = b""
    while not text.endswith(b"\n"):
        if select.select([process.stdout], [], [], 0)[0]:
            byte = os.read(process.stdout.fileno(), 1)
            assert byte, f"the program has ended: {text!r}, status {process.wait(PATIENCE)}"
            text += byte
        else:
            guest.pump(0.01)
            patience("a line")
    return text.decode().rstrip("\n")
