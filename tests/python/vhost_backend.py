# SPDX-License-Identifier: MIT
"""The vsock backend as a process under test: its start with pipes for "ready" and "booted", the programs of
the host that talk to it, its owner, its end. What its front end and the guest do is in vhost_front.py and
vhost_guest.py.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# How long anything may take before a test fails; no test measures time by it.
PATIENCE = 20.0


def fail_after() -> Callable[[str], None]:
    """A function that raises once PATIENCE has passed."""
    end = time.monotonic() + PATIENCE

    def check(what: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"nothing within {PATIENCE:g} s: {what}")

    return check


class Backend:
    """A running backend with its sockets in a folder of its own."""

    def __init__(
        self, binary: Path, *options: str, cid: int = 4, wait: bool = True, owned: bool = False
    ) -> None:
        # Not pytest's folder: its path is long, and a unix socket's is not.
        self.folder = Path(tempfile.mkdtemp(prefix="vuv-"))
        self.socket_path = self.folder / "v"
        self.uds_path = self.folder / "p"
        self.cid = cid
        ready, ready_theirs = os.pipe()
        self.booted, booted_theirs = os.pipe()
        self.stderr_path = self.folder / "stderr"
        self.argv = [
            os.fspath(binary), f"--socket-path={self.socket_path}", f"--guest-cid={cid}",
            f"--uds-path={self.uds_path}", f"--ready-fd={ready_theirs}",
            f"--booted-fd={booted_theirs}", *options,
        ]  # fmt: skip
        self.owner: Owner | None = None
        theirs = [ready_theirs, booted_theirs]
        if owned:  # what its owner holds of it, and may ask it on
            owner, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.owner = Owner(owner)
            theirs.append(lifeline.detach())
            self.argv.append(f"--lifeline-fd={theirs[-1]}")
        with open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
                pass_fds=theirs,
            )  # fmt: skip
        for fd in theirs:
            os.close(fd)
        try:
            if wait:
                line = read_line(ready)
                assert line == b"ready\n", f"not ready but {line!r}: {self.stderr()}"
        except BaseException:
            self.close(check=False)
            raise
        finally:
            os.close(ready)

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def port(self, port: int) -> Path:
        return Path(f"{self.uds_path}_{port}")

    def statistics(self) -> dict[str, int]:
        """What SIGUSR1 prints, with the refusals as further keys."""
        seen = self.stderr().count("\n{")
        seen += self.stderr().startswith("{")
        self.process.send_signal(signal.SIGUSR1)
        patience = fail_after()
        while True:
            lines = [line for line in self.stderr().splitlines(True) if line.startswith("{")]
            if len(lines) > seen and lines[-1].endswith("\n"):
                values = json.loads(lines[-1])
                # What never happened is not in the line, and counts as 0.
                return Counter(values | values.pop("refusals"))
            patience("statistics")
            assert self.process.poll() is None, f"the backend ended: {self.stderr()}"
            time.sleep(0.001)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self, *, check: bool = True) -> None:
        """Ends it by SIGTERM; with `check`, that must go as promised."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            os.close(self.booted)
            if self.owner:
                self.owner.close()
            text = self.stderr()
            left = sorted(p.name for p in self.folder.iterdir() if p.name != "stderr")
            shutil.rmtree(self.folder)
        if check:
            assert status == 0, f"exit status {status}: {text}"
            assert "ERROR: " not in text and "runtime error" not in text, text
            assert "v" not in left and "p" not in left, f"sockets left behind: {left}"

    # Host applications.

    def listen(self, port: int, backlog: int = 128) -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.bind(os.fspath(self.port(port)))
        s.listen(backlog)
        s.settimeout(PATIENCE)
        return s

    def client(self, text: bytes = b"") -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(PATIENCE)
        s.connect(os.fspath(self.uds_path))
        if text:
            s.sendall(text)
        return s


def find_binary() -> Path:
    """The backend to test, or a failure that says where it comes from."""
    path = os.environ.get("VHOST_USER_VSOCK")
    if not path:
        pytest.fail(
            "no vsock backend to test: VHOST_USER_VSOCK=$(nitroctl which vsock), after `nitroctl build`; or "
            "`meson setup b && ninja -C b` and VHOST_USER_VSOCK=b/contrib/vhost-user-vsock/vhost-user-vsock"
        )
    if not os.access(path, os.X_OK):
        pytest.fail(f"VHOST_USER_VSOCK={path} is no program")
    return Path(path)


class Owner:
    """The other end of a backend's lifeline: messages, each of them a line of JSON."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.channel.settimeout(PATIENCE)
        self.events: deque[dict[str, Any]] = deque()

    def say(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.channel.sendmsg([message], control)

    def hear(self) -> dict[str, Any]:
        message = self.channel.recv(1 << 18)
        assert message.endswith(b"\n") and message.count(b"\n") == 1, message
        value = json.loads(message)
        assert isinstance(value, dict)
        return value

    def answer(self) -> dict[str, Any]:
        while "event" in (value := self.hear()):
            self.events.append(value)
        return value

    def ask(self, do: str, *fds: int, **members: Any) -> dict[str, Any]:
        self.say(json.dumps({"id": 7, "do": do, **members}).encode(), fds)
        value = self.answer()
        assert value.pop("id") == 7
        return value

    def hello(self) -> Owner:
        assert self.ask("hello", version=1)["control"] == 1
        return self

    def event(self) -> dict[str, Any]:
        """The next one."""
        if not self.events:
            self.events.append(self.hear())
        value = self.events.popleft()
        assert "event" in value
        return value

    def close(self) -> None:
        self.channel.close()


@contextlib.contextmanager
def running(binary: Path, *options: str, cid: int = 4, owned: bool = False) -> Iterator[Backend]:
    """A backend that must end as promised, unless the test has failed already."""
    b = Backend(binary, *options, cid=cid, owned=owned)
    try:
        yield b
    except BaseException:
        b.close(check=False)
        raise
    b.close()


def read_line(fd: int) -> bytes:
    """A line from a pipe, or what there was before its end."""
    patience = fail_after()
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([fd], [], [], 0.5)[0]:
            patience("a line")
            continue
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return line
