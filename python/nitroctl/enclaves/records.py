# SPDX-License-Identifier: MIT
"""Records of enclaves, running and ended: where one nitroctl process finds what another one runs.

    state_dir()/enclaves/NUMBER/     NUMBER: the enclave's own 64-bit number, in 16 hex digits
        record.json                  what is known about it, whole at any moment
        console.log, console.0.log   what its serial console said; the second is the older half
        supervisor.log               what its supervisor, QEMU and the backend said (detached ones)
        core.N/                      a core dump of an enclave with --tools (`cores`)
        lock                         held by the supervisor as long as it lives

The lock is the truth about life: the kernel drops it with its holder, so a record without an end whose lock
is free belongs to an enclave whose supervisor was killed, and is read as ended. Only its supervisor writes a
record, and whoever finds the lock free may remove it. How an enclave is run is `lifecycle`'s business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nitroctl.base import atomic, config, locks, shown
from nitroctl.base.errors import (
    ApplicationFailed,
    BootTimeout,
    EnclaveError,
    EnclaveTimeout,
    GuestPanic,
    NitroError,
)
from nitroctl.enclaves import logs
from nitroctl.enclaves.console import ConsoleWatch

# A supervisor that was told to stop an enclave needs its own limits for QEMU and the backend, and some.
STOP_SECONDS = 20.0
_RECORD_MAX = 1 << 20  # bytes; ours have some kilobytes


class _StrEnum(str, enum.Enum):
    """enum.StrEnum of Python 3.11."""

    __str__ = str.__str__


class State(_StrEnum):
    STARTING = "starting"
    BOOTING = "booting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class Ending(_StrEnum):
    """How an enclave ended. ORDERLY: it had its heartbeat, and the guest reset or halted itself; APPLICATION:
    so it did, after its application had failed."""

    ORDERLY = "orderly"
    APPLICATION = "application failed"
    PANIC = "panic"
    NO_HEARTBEAT = "no heartbeat"
    STOPPED = "stopped"
    FAILED = "failed"


class Party(_StrEnum):
    """Who ended first: everything else that ends is a consequence."""

    GUEST = "guest"
    QEMU = "QEMU"
    BACKEND = "vsock backend"
    KMS = "local KMS"
    SUPERVISOR = "supervisor"
    REQUEST = "request"  # somebody asked for it: a signal, `nitroctl stop`, the Python API
    TIMEOUT = "boot timeout"


_ERRORS = {
    Ending.APPLICATION: ApplicationFailed,
    Ending.PANIC: GuestPanic,
    Ending.NO_HEARTBEAT: BootTimeout,
    Ending.FAILED: EnclaveError,
}


def exit_status(ending: Ending, signum: int | None = None) -> int:
    """What `nitroctl run` ends with; `signum`: the signal that stopped the enclave."""
    if ending is Ending.STOPPED:
        return 128 + (signum or signal.SIGTERM)
    return _ERRORS[ending].exit_status if ending in _ERRORS else 0


@dataclass(frozen=True)
class Record:
    """An enclave at one moment. Times in seconds since the epoch.

    `id` is nitro-cli's EnclaveID, whose number has no leading zeros. `pcrs` are the file's, lower-case hex by
    "0" and so on, and None until it has been measured. `unmeasured`: it runs what no PCR has; with
    `keep_pcrs` its PCRs are those of the file all the same. `milestones` of the boot are those of `timeline`,
    in seconds since the epoch, `loading` what QEMU spent on loading the EIF, in microseconds; `faults` those
    that were asked for (`faults`). All from `ending` on is None until the end: `status` is the exit status
    that `nitroctl run` has for it, `app_status` the application's own (128 and the signal that killed it),
    None where that is not known, `cause` names a likely cause (`diagnosis`), `tail` is the console's last
    lines.
    """

    id: str
    name: str
    state: State
    cid: int
    eif: Path
    memory_mib: int
    cpus: int
    accel: str  # "kvm" or "tcg", and why
    accel_reason: str
    debug: bool
    detached: bool
    folder: Path  # of the sockets; gone after the end
    uds: Path
    home: Path  # of this record
    supervisor_pid: int
    qemu_pid: int | None
    backend_pid: int | None
    started: float
    unmeasured: bool = False
    keep_pcrs: bool = False
    tools: bool = False  # `shell` and its kin can be used
    cores: tuple[dict[str, Any], ...] = ()  # core dumps that it left, as `cores.Core` has them
    booted: float | None = None
    ended: float | None = None
    pcrs: dict[str, str] | None = None
    milestones: dict[str, float] = dataclasses.field(default_factory=dict)
    loading: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()
    ending: Ending | None = None
    ended_by: Party | None = None
    status: int | None = None
    app_status: int | None = None
    message: str | None = None
    cause: str | None = None
    hint: str | None = None
    tail: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        return self.state is not State.ENDED

    def check(self) -> None:
        """Raise the error that fits the end, if there was one that was neither orderly nor asked for."""
        if self.ending in _ERRORS:
            message, *lines = (self.message or "").split("\n")
            cited = [line.removeprefix("  ") for line in lines]
            raise _ERRORS[self.ending](message, lines=cited, record=self)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order above."""
        value: dict[str, Any] = json.loads(self.to_text())
        return value

    def to_text(self) -> str:
        return json.dumps(vars(self), default=os.fspath)

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """Raises KeyError, TypeError or ValueError for what no Record has written."""
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: content for key, content in value.items() if key in known}
        for name, kind in (("state", State), ("ending", Ending), ("ended_by", Party)):
            if fields.get(name) is not None:
                fields[name] = kind(fields[name])
        for name in ("eif", "folder", "uds", "home"):
            fields[name] = Path(fields[name])
        for name in ("tail", "cores", "faults"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


RECORD = "record.json"
_LOCK = "lock"


def _base() -> Path:
    """The folder of all records."""
    try:
        config.state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise NitroError(
            f"cannot make the folder {config.state_dir()} for the records of enclaves: {e.strerror}",
            hint="set XDG_STATE_HOME to a folder that you can write to",
        ) from e
    return config.private_dir(config.state_dir() / "enclaves")


# ---- for the supervisor ------------------------------------------------------------------------------


class Home:
    """A record's folder as its supervisor has it: locked until `close` or `remove`."""

    def __init__(self, path: Path, name: str, lock: int) -> None:
        self.path = path
        self.name = name
        self._lock = lock
        self._complained = False

    def write(self, record: Record) -> None:
        """Replace the record. A full disk must not end an enclave: the old record stays, with a warning."""
        try:
            _write(self.path, record)
        except OSError as e:
            if not self._complained:
                self._complained = True
                shown.say(f"warning: cannot write {self.path / RECORD}: {e.strerror}")

    def close(self) -> None:
        os.close(self._lock)

    def remove(self) -> None:
        _remove(self.path)
        self.close()


def _write(home: Path, record: Record) -> None:
    atomic.write(home / RECORD, f"{record.to_text()}\n".encode())


def create(record: Record, number: str) -> tuple[Home, Record]:
    """Make the folder for an enclave that begins, with its first record; also returns that record with the
    fields that are decided here: `home`, and a `name` that no running enclave has (nitro-cli's rule: `_1`,
    `_2`, ... is appended)."""
    base = _base()
    path = base / number
    with _exclusively(base):
        _sweep(base)
        names = {other.name for other in running()}
        name, count = record.name, 0
        while name in names:
            count += 1
            name = f"{record.name}_{count}"
        record = dataclasses.replace(record, name=name, home=path)
        lock = None
        try:
            with atomic.folder(path, mode=0o700) as aside:
                lock = locks.take(aside / _LOCK)
                _write(aside, record)
        except OSError as e:
            if lock is not None:
                os.close(lock)
            raise NitroError(f"cannot make the record {path}: {e.strerror}") from e
    return Home(path, name, lock), record


@contextlib.contextmanager
def _exclusively(base: Path) -> Iterator[None]:
    """One at a time gives names."""
    try:
        fd = locks.take(base / ".lock")
    except OSError as e:
        raise NitroError(f"cannot write into {base}: {e.strerror}") from e
    try:
        yield
    finally:
        os.close(fd)


def _sweep(base: Path) -> None:
    """What was being made or removed when somebody was killed."""
    for path in base.glob(".*.*"):  # of `atomic`; nobody makes one now: we hold the lock
        shutil.rmtree(path, ignore_errors=True)


def _remove(home: Path) -> None:
    """At once for all who look, whatever happens to us on the way."""
    try:
        atomic.remove(home)
    except FileNotFoundError:
        pass
    except OSError as e:
        raise NitroError(f"cannot remove {home}: {e.strerror}") from e


# ---- for everybody -----------------------------------------------------------------------------------


def _alive(home: Path) -> bool:
    """Whether the supervisor lives. Raises OSError if the folder is gone."""
    return locks.taken(home / _LOCK)


def _read(home: Path, *, running: bool = False) -> Record | None:
    """The record in this folder, None if there is none (any more) that we understand; with `running` also
    where the lock alone says that its enclave has ended."""
    try:
        # In this order: a supervisor writes the end before it lets go of the lock.
        alive = _alive(home)
        if running and not alive:
            return None
        with open(home / RECORD, encoding="utf-8") as file:
            record = Record.from_json(json.loads(file.read(_RECORD_MAX)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if record.running and not alive:
        return _lost(record)
    return record


def _lost(record: Record) -> Record:
    """What a killed supervisor could not write down."""
    console = ConsoleWatch()
    with contextlib.suppress(OSError):
        console.feed(logs.read_tail(record.home, logs.CONSOLE, 1 << 16))
    return dataclasses.replace(
        record,
        state=State.ENDED,
        ending=Ending.FAILED,
        ended_by=Party.SUPERVISOR,
        status=1,
        message=f"its supervisor (process {record.supervisor_pid}) was killed, and all else with it",
        tail=tuple(console.tail()),
    )


def every() -> list[Record]:
    """All records of this user, the oldest first."""
    return sorted(filter(None, map(_read, _homes())), key=lambda record: record.started)


def running() -> list[Record]:
    """Those of enclaves that have not ended, the oldest first. The others, of which there may be thousands,
    are not even opened."""
    found = (_read(home, running=True) for home in _homes())
    return sorted((r for r in found if r and r.running), key=lambda record: record.started)


def _homes() -> list[Path]:
    base = config.state_dir() / "enclaves"
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise NitroError(
            f"cannot read the records of enclaves in {base}: {e.strerror}",
            hint="set XDG_STATE_HOME to a folder of your own",
        ) from e
    return [base / name for name in names if not name.startswith(".")]


def find(text: str, *, running: bool = False) -> Record:
    """The enclave with this name, ID, or context ID. With the same name a running one goes before ended ones,
    and of these the last one counts. Raises EnclaveError; with `running` also for one that has ended."""
    records = every()
    for key in ("name", "id", "cid"):
        fitting = [r for r in records if str(getattr(r, key)) == text and (r.running or key != "cid")]
        if fitting:
            # The stable order of time among those that are alike.
            record = max(fitting, key=lambda r: (r.running, r.started))
            if running and not record.running:
                raise EnclaveError(f"the enclave {text!r} has ended: {record.message}", record=record)
            return record
    known = ", ".join(f"{r.name} (CID {r.cid})" for r in records if r.running) or "none"
    ended = any(not r.running for r in records)
    hint = "`nitroctl ps --all` lists those that have ended as well" if ended else None
    raise EnclaveError(f"no enclave is called {text!r}; running: {known}", hint=hint)


def again(record: Record) -> Record | None:
    """The same enclave now; None if its record has been removed."""
    return _read(record.home)


def latest(record: Record) -> Record:
    """The same enclave now, or as it was last known if its record has been removed."""
    return again(record) or record


def check_runs(record: Record) -> None:
    """Raises EnclaveError if it has ended meanwhile."""
    now = again(record)
    if not now or not now.running:
        raise ended_meanwhile(record, now)


def ended_meanwhile(record: Record, last: Record | None) -> EnclaveError:
    """The error of one that was running as `record` says; `last`: its last record, if it has not been
    removed. One in the foreground leaves none."""
    why = f": {last.message}" if last and last.message else ""
    return EnclaveError(f"enclave {record.name} has ended meanwhile{why}", record=last or record)


def supervisor_fd(record: Record) -> int | None:
    """A pidfd of the enclave's living supervisor, None if it is gone."""
    try:
        fd = os.pidfd_open(record.supervisor_pid)
    except ProcessLookupError:
        return None
    # The process number may belong to somebody else by now, unless the lock says that it does not.
    with contextlib.suppress(OSError):
        if _alive(record.home):
            return fd
    os.close(fd)
    return None


def follow(record: Record, log: str, *, timeout: float | None = None) -> Iterator[bytes]:
    """A log of the enclave from its beginning, as it grows, until the enclave has ended (`logs.follow`).
    Raises EnclaveTimeout if it has not after `timeout` seconds."""
    fd = supervisor_fd(record)
    try:
        yield from logs.follow(record.home, log, fd, timeout=timeout)
    except TimeoutError:
        message = f"enclave {record.name} has not ended within {timeout:g} s"
        raise EnclaveTimeout(message, record=record) from None
    finally:
        if fd is not None:
            os.close(fd)


def wait(record: Record, timeout: float | None = None) -> Record | None:
    """Wait until the enclave has ended and return its last record, None if that has been removed (an enclave
    in the foreground leaves none). Raises EnclaveTimeout."""
    fd = supervisor_fd(record)
    if fd is not None:
        try:
            if not select.select([fd], [], [], timeout)[0]:
                message = f"enclave {record.name} has not ended within {timeout:g} s"
                raise EnclaveTimeout(message, record=again(record))
        finally:
            os.close(fd)
    return again(record)


def stop(record: Record, *, kill: bool = False) -> Record | None:
    """End a running enclave: its supervisor is told to, and killed (taking QEMU and the backend with it) if
    it does not within STOP_SECONDS. Returns as `wait` does."""
    fd = supervisor_fd(record)
    if fd is not None:
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL if kill else signal.SIGTERM)
            if not select.select([fd], [], [], STOP_SECONDS)[0]:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [])
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)
    return again(record)


def remove(record: Record) -> None:
    """Remove the record and logs of an ended enclave. Raises EnclaveError if it still runs."""
    with contextlib.suppress(FileNotFoundError):
        if _alive(record.home):
            raise EnclaveError(
                f"enclave {record.name} is {record.state}", hint="stop it first, or use `nitroctl rm --force`"
            )
        _remove(record.home)
