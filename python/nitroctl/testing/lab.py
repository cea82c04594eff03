# SPDX-License-Identifier: MIT
"""Where the boot checks start real guests: images, command lines by hand, `nitroctl run`, and evidence.

A Lab has a private folder with short paths, makes each image once, and knows every guest of the running
check, so that a failure shows what their consoles and programs said. Guests are used as context managers:
nothing that was started outlives its block. What is claimed about guests stands in `checks`.

All waiting is for events: text on a console, a line of the backend, a process's end. LIMIT only turns a hang
into a failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base import accelerator, proc
from nitroctl.base.arch import Arch
from nitroctl.base.arch import qemu as emulator
from nitroctl.base.errors import NitroError
from nitroctl.enclaves.qemu import escape
from nitroctl.testing import agent
from nitroctl.vsock import sockets

if TYPE_CHECKING:
    from nitroctl.eif.compose import Bootstrap, Kernel

LIMIT = 120.0  # seconds
TAIL = 40  # lines of a console in a failure
CID = 4


class CheckFailed(NitroError):
    """A claim does not hold, or what it needs did not happen."""


def arch_of(qemu: Path) -> Arch:
    """What enclaves a QEMU runs, by the name of its program."""
    return "aarch64" if qemu.name == emulator("aarch64") else "x86_64"


def check(fact: object, message: str) -> None:
    if not fact:
        raise CheckFailed(message)


def check_equal(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise CheckFailed(f"{what}: {got!r} instead of {expected!r}")


def _hear_ctrl_c() -> None:
    # In the background of a script we ignore SIGINT, and a child would too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Console:
    """A pty with a program on it; pexpect, with failures that say what was there instead."""

    def __init__(self, lab: Lab, title: str, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        import pexpect

        self._eof, self._timeout, self._failed = pexpect.EOF, pexpect.TIMEOUT, pexpect.ExceptionPexpect
        self.title = title
        self.seen = b""
        lab.consoles.append(self)
        self.child: Any = pexpect.spawn(
            argv[0], list(argv[1:]), timeout=LIMIT, dimensions=(24, 400), env=env,
            cwd=os.fspath(lab.folder), preexec_fn=_hear_ctrl_c,
        )  # fmt: skip
        self.child.logfile_read = self

    def write(self, data: bytes) -> None:  # pexpect's log
        self.seen += data

    def flush(self) -> None:
        pass

    def expect(self, pattern: bytes) -> Any:
        """Wait for a regular expression; returns the match."""
        index = self.child.expect([pattern, self._eof, self._timeout])
        if index:
            why = "ended" if index == 1 else f"said nothing more for {LIMIT:g} s"
            wanted = pattern.decode(errors="replace")
            raise CheckFailed(f"{self.title} {why}; expected {wanted!r} on the console")
        return self.child.match

    def status(self) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        if self.child.expect([self._eof, self._timeout]):
            raise CheckFailed(f"{self.title} does not end")
        self.child.wait()
        if self.child.signalstatus is not None:
            return -int(self.child.signalstatus)
        return int(self.child.exitstatus)

    def close(self) -> None:
        """End it. What it said until now is kept."""
        with contextlib.suppress(self._eof, self._timeout, OSError, ValueError):
            while True:
                self.child.read_nonblocking(65536, timeout=0)
        try:
            self.child.close(force=True)
        except self._failed:
            # It waits for tenths of a second, and memory takes longer to give back on an emulated host.
            self.child.kill(signal.SIGKILL)
            self.child.wait()

    def tail(self) -> str:
        lines = self.seen.decode(errors="replace").replace("\r", "").split("\n")
        return "\n".join(lines[-TAIL:])


class Guest:
    """Backend and QEMU with command lines as one would type them, the console on a terminal."""

    def __init__(self, lab: Lab, eif: Path, options: GuestOptions) -> None:
        self.lab = lab
        self.eif = eif
        self.options = options
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Guest:
        with contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="g", dir=self.lab.folder)
            self.folder = Path(stack.enter_context(folder))
            self.uds = self.folder / "p"
            self.backend = stack.enter_context(Backend(self.lab, self.backend_argv()))
            self.backend.expect("ready")
            self._stack = stack.pop_all()
        try:
            self.console = Console(self.lab, "QEMU", self.qemu_argv())
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(self.console.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def backend_argv(self) -> list[str]:
        socket, uds, cid = self.folder / "s", self.uds, self.options.cid
        program = os.fspath(self.lab.backend)
        if self.options.vm_form:
            return [program, "--vm", f"guest-cid={cid},socket={socket},uds-path={uds}"]
        return [program, f"--socket-path={socket}", f"--guest-cid={cid}", f"--uds-path={uds}"]

    def qemu_argv(self) -> list[str]:
        """The documentation's line, then what this guest needs beside it."""
        kvm = ["--enable-kvm", "-cpu", "host"] if self.lab.accel.name == "kvm" else []
        machine = "nitro-enclave,vsock=c,id=hello-world" + self.options.machine
        return [
            os.fspath(self.lab.qemu), "-M", machine, "-kernel", os.fspath(self.eif),
            "-nographic", "-m", self.options.memory, *kvm,
            "-chardev", f"socket,id=c,path={escape(self.folder / 's')}", *self.options.args,
        ]  # fmt: skip

    def expect(self, pattern: bytes) -> Any:
        return self.console.expect(pattern)

    def agent(self) -> agent.Agent:
        self.expect(agent.READY_LINE.encode())
        return agent.Agent(self.uds, timeout=LIMIT)

    def check_ends(self, status: int = 0) -> None:
        check_equal(self.console.status(), status, "QEMU's exit status")


@dataclass(frozen=True)
class GuestOptions:
    machine: str = ""  # further machine options, each with its comma in front
    args: tuple[str, ...] = ()
    memory: str = "4G"
    cid: int = CID
    vm_form: bool = False


class Backend:
    """vhost-user-vsock with its lines on a pipe."""

    def __init__(self, lab: Lab, argv: Sequence[str]) -> None:
        self.log = lab.log()
        with open(self.log, "wb") as log:
            self.process = proc.start(argv, stdout=subprocess.PIPE, stderr=log)

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        proc.stop(self.process)
        assert self.process.stdout
        self.process.stdout.close()

    def expect(self, word: str) -> None:
        """Wait for a line."""
        assert self.process.stdout
        fd = self.process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([fd], [], [], LIMIT)[0]:
                raise CheckFailed(f"the backend does not say {word!r}")
            byte = os.read(fd, 1)
            if not byte:
                raise CheckFailed(f"the backend ended; expected {word!r}")
            line += byte
        check_equal(line.decode().strip(), word, "the backend's line")


class Run:
    """`nitroctl run` on a terminal of its own, in the lab's runtime folder."""

    def __init__(self, lab: Lab, eif: Path, options: Sequence[str]) -> None:
        self.lab = lab
        argv = [
            sys.executable, "-m", "nitroctl", "run", os.fspath(eif),
            "--qemu", os.fspath(lab.qemu), "--vsock-backend", os.fspath(lab.backend), *options,
        ]  # fmt: skip
        self.console = Console(lab, "nitroctl run", argv, lab.environment())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        # SIGTERM first: killed, it would leave its cleaning up to the others.
        self.terminate()
        with contextlib.suppress(CheckFailed):
            self.console.status()
        self.console.close()

    @property
    def pid(self) -> int:
        return int(self.console.child.pid)

    def expect(self, pattern: bytes) -> Any:
        return self.console.expect(pattern)

    def status(self) -> int:
        return self.console.status()

    def check_ends(self, status: int) -> None:
        check_equal(self.status(), status, "nitroctl's exit status")

    def terminate(self) -> None:
        """SIGTERM, if it is still there."""
        if self.console.child.isalive():
            self.console.child.kill(signal.SIGTERM)

    def uds(self) -> Path:
        return Path(os.fsdecode(self.expect(rb"vsock (/\S+)\r\n")[1]))

    def agent(self, uds: Path) -> agent.Agent:
        self.expect(agent.READY_LINE.encode())
        return agent.Agent(uds, timeout=LIMIT)


@dataclass
class Lab:
    """What is checked: a QEMU, whose name says for which architecture, a backend, optionally a user's EIF.
    With `blobs` the images that would have our kernel have AWS's kernel, command line and init; for aarch64
    they have Debian's where ours was not built. A context manager: owns a folder."""

    qemu: Path
    backend: Path
    eif: Path | None = None
    kernels: dict[str, str | Kernel] = field(default_factory=lambda: {"own": "own", "prebuilt": "prebuilt"})
    blobs: Bootstrap | None = None

    def __post_init__(self) -> None:
        self.arch: Arch = arch_of(self.qemu)
        self.accel = accelerator.choose(self.arch)
        if self.arch == "aarch64":
            from nitroctl.toolchain import guest

            self.kernels["own"] = guest.default_kernel(self.arch)
        if self.blobs:
            self.kernels["own"] = self.blobs.kernel
        self.consoles: list[Console] = []
        self._logs: list[Path] = []
        self._images: dict[tuple[object, ...], Path] = {}

    def __enter__(self) -> Lab:
        # Not under pytest's or the user's TMPDIR by choice: socket paths end at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="nitro-"))
        self.runtime = self.folder / "r"
        self.runtime.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        paths = [os.fspath(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "XDG_RUNTIME_DIR": os.fspath(self.runtime),
            "XDG_DATA_HOME": os.fspath(self.folder / "data"),
            "XDG_STATE_HOME": os.fspath(self.folder / "state"),
            "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        }

    # -- images

    def image(self, kind: str, *, kernel: str = "own", cmdline: str | None = None, size: int = 0) -> Path:
        """A test image, made once in this lab."""
        from nitroctl.eif import testimage

        key = (kind, kernel, cmdline, size)
        if key not in self._images:
            path = self.folder / f"{kind}-{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}.eif"
            more: dict[str, Any] = {"cmdline": self.cmdline if cmdline is None else cmdline}
            if self.blobs and kernel == "own":
                programs = testimage.locate_programs(self.arch)
                more["programs"] = replace(programs, init=self.blobs.init)
            if size:
                more["size"] = size
            testimage.make(kind, path, kernel=self.kernels[kernel], arch=self.arch, **more)
            self._images[key] = path
        return self._images[key]

    @property
    def cmdline(self) -> str:
        """That of images; a test that waits for the reset after a panic need not wait half a minute."""
        from nitroctl.eif import testimage

        if self.blobs is None:
            return testimage.CMDLINES[self.arch]
        return re.sub(r"\bpanic=\d+", "panic=1", self.blobs.cmdline)

    @property
    def acpi(self) -> str:
        """What the machine of a guest with Debian's kernel needs."""
        return ",acpi=on" if self.arch == "x86_64" else ""

    @property
    def patience(self) -> int:
        """Seconds in which a guest that would send a heartbeat surely has: an emulated arm64 takes longer."""
        return 12 if self.arch == "x86_64" else 60

    # -- guests

    def guest(self, eif: Path, **options: Any) -> Guest:
        return Guest(self, eif, GuestOptions(**options))

    def run(self, eif: Path, *options: str) -> Run:
        return Run(self, eif, options)

    @contextlib.contextmanager
    def agent(self, **options: Any) -> Iterator[tuple[Guest, agent.Agent]]:
        """A guest with the test agent, and a connection to it."""
        with self.guest(self.image("agent"), **options) as guest, guest.agent() as client:
            yield guest, client

    # -- what is left

    def processes(self) -> dict[int, str]:
        """Live processes that were started with the lab's folder on their command line."""
        found = {}
        mark = os.fsencode(self.folder)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if mark in command:  # a zombie has no command line
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def process(self, program: Path) -> int:
        """The one process of this program."""
        pids = [pid for pid, command in self.processes().items() if command.startswith(f"{program} ")]
        check_equal(len(pids), 1, f"number of processes of {program}")
        return pids[0]

    def wait_gone(self) -> None:
        """Wait for the end of processes that are nobody's children any more."""
        for pid, command in self.processes().items():
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                check(select.select([fd], [], [], LIMIT)[0], f"still there: {command}")
            finally:
                os.close(fd)

    def check_nothing_left(self) -> None:
        self.wait_gone()
        folder = self.runtime / "nitroctl"
        left = sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []
        check(not left, f"left in the runtime folder: {', '.join(left)}")

    # -- evidence

    def log(self) -> Path:
        path = self.folder / f"backend-{len(self._logs)}.log"
        self._logs.append(path)
        return path

    def forget(self) -> None:
        """A new check begins."""
        self.consoles.clear()
        self._logs.clear()

    def evidence(self) -> str:
        """What the guests of this check said last, and the backends."""
        parts = []
        for number, console in enumerate(self.consoles, 1):
            parts.append(f"--- {console.title} {number}, the console's last lines\n{console.tail()}")
        for path in self._logs:
            text = path.read_text(errors="replace").rstrip() if path.exists() else ""
            if text:
                parts.append(f"--- backend\n{text}")
        return "\n".join(parts)


def heartbeat_listener(guest_uds: Path) -> sockets.Listener:
    """A parent that answers the heartbeat itself; the backend then does not."""
    listener = sockets.listen(guest_uds, sockets.HEARTBEAT_PORT)
    listener.socket.settimeout(LIMIT)
    return listener


def openssl(lab: Lab, *arguments: str, input: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], cwd=lab.folder, input=input, capture_output=True)
    check(done.returncode == 0, f"openssl {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
    return done.stdout
