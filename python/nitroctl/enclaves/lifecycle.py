# SPDX-License-Identifier: MIT
"""The life of one enclave: a private folder, the vsock backend, QEMU, and all that is watched of them.

    starting ──> booting ──> running ──> stopping ──> ended
    (backend)    (QEMU up)   (heartbeat)

Starts the two programs, carries the console to its sinks, notices every way an enclave can end, and leaves
nothing behind. It decides nothing about what runs (`plan`), and whose process it lives in is not its business
(`foreground`, `supervisor`).

Events only, no polling: the backend says "ready" and "booted" on pipes, QEMU talks QMP over an inherited
socket, its standard output is the console, processes end on pidfds. Nothing outlives us, however we die: QEMU
gets SIGKILL from the kernel when the thread that started it ends (so run enclaves from a thread that lives as
long as they do), and the backend, which holds the lock of the folder as well, sees its lifeline close and
removes sockets and folder itself. Both are in sessions of their own: a terminal's Ctrl-C reaches only us.
What others need to find it is in its record (`records`), from before the first program starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base import shown
from nitroctl.base.errors import NitroError
from nitroctl.enclaves import (
    application,
    backend,
    chain,
    diagnosis,
    logs,
    monitor,
    overlay,
    qemu_process,
    records,
)
from nitroctl.enclaves.backend import Backend
from nitroctl.enclaves.child import Child
from nitroctl.enclaves.chronicle import Chronicle
from nitroctl.enclaves.console import ConsoleWatch
from nitroctl.enclaves.control import Control
from nitroctl.enclaves.drain import drained
from nitroctl.enclaves.folder import Folder, release, reserve
from nitroctl.enclaves.monitor import Qmp
from nitroctl.enclaves.plan import Plan, first_record
from nitroctl.enclaves.records import Ending, Home, Party, Record, State
from nitroctl.enclaves.result import Result
from nitroctl.enclaves.sink import Sink
from nitroctl.enclaves.waiting import Pipe, resolve

if TYPE_CHECKING:
    from nitroctl.enclaves.cores import CoreServer

CONSOLE_BUFFER = 1 << 20  # bytes; what an ordinary user's pipe can have (/proc/sys/fs/pipe-max-size)
PANIC_SECONDS = 1.0  # for the rest of a panic's text
LAST_WORDS_SECONDS = 1.0  # for slow readers when we were told to stop
QMP_SECONDS = 5.0  # for the last events of a QEMU that is gone


class EnclaveRun:
    """One enclave, once: `await run()` from its start to its end. `stop()` ends it from outside.

    `on_state` is called with a Record after each change of state. Of one that is `detached` the record and
    the logs stay after the end. Not thread-safe: everything happens in the loop that runs it.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        sinks: Iterable[Sink] = (),
        on_state: Callable[[Record], None] | None = None,
        detached: bool = False,
    ) -> None:
        self.plan = plan
        self._clues = diagnosis.Clues()
        self.console = ConsoleWatch(self._console_line)
        self._application = application.Watch()
        self._outcome: application.Outcome | None = None  # told by init
        self.state = State.STARTING
        self._sinks = list(sinks)
        self._on_state = on_state
        self._detached = detached
        self._home: Home | None = None
        self._first: Record | None = None
        self._pcrs: dict[str, str] | None = None
        self._failure: NitroError | None = None  # that of our own part in it
        self._qemu: Child | None = None
        self._backend: Backend | None = None
        self._kms: Child | None = None
        self._cores: CoreServer | None = None
        self._fds = contextlib.ExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._panic_timer: asyncio.TimerHandle | None = None
        self._booted: float | None = None
        self._chronicle: Chronicle | None = None
        self._control: Control | None = None
        self._ended: float | None = None
        # QMP's SHUTDOWN event: why QEMU is about to end.
        self._shutdown: dict[str, Any] | None = None
        # Set when somebody who asked for the end asks again.
        self._hurry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._explaining = False
        self._pump: asyncio.Task[None] | None = None
        self._monitoring: asyncio.Task[None] | None = None
        self._end: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    # -- outside view

    def record(self) -> Record:
        assert self._first is not None, "no record before the enclave has a context ID"
        record = dataclasses.replace(
            self._first,
            state=self.state,
            qemu_pid=self._qemu.pid if self._qemu else None,
            backend_pid=self._backend.pid if self._backend else None,
            booted=self._booted,
            ended=self._ended,
            pcrs=self._pcrs,
            cores=tuple(core.to_json() for core in self._cores.cores) if self._cores else (),
            **self._chronicle.facts() if self._chronicle else {},
        )
        if self.state is not State.ENDED:
            return record
        if self._end.cancelled() or self._end.exception():
            message, hint = "nitroctl failed", None
            if self._failure:
                message, hint = str(self._failure), self._failure.hint
            return dataclasses.replace(
                record, ending=Ending.FAILED, ended_by=Party.SUPERVISOR, status=1, message=message, hint=hint,
                tail=tuple(self.console.tail()),
            )  # fmt: skip
        result = self._end.result()
        return dataclasses.replace(
            record, ending=result.ending, ended_by=result.by, status=result.status,
            app_status=result.app_status, message=result.message, cause=result.cause, hint=result.hint,
            tail=result.tail,
        )  # fmt: skip

    def stop(self, message: str = "stopped", *, signum: int | None = None) -> None:
        """End the enclave. A second call does not wait for QEMU's consent any more."""
        if self._end.done():
            resolve(self._hurry)
            for child in (self._qemu, self._backend):
                if child:
                    child.signal(signal.SIGKILL)
        self._finish(Ending.STOPPED, Party.REQUEST, message, signum=signum)

    async def run(self) -> Record:
        """Start it, watch it, and return its last record when it is gone and cleaned up.

        Raises NitroError when it cannot be started, and whatever a sink raises.
        """
        folder = reserve(self.plan.request.cid, {record.cid for record in records.running()})
        try:
            self._begin_record(folder)
        except BaseException:
            release(folder)
            raise
        try:
            await self._live(folder)
        except NitroError as e:
            self._failure = e
            raise
        finally:
            await self._clean_up(folder)
            if self._failure:
                self._failure.record = self.record()
                self._failure.tail = self._failure.record.tail
        return self.record()

    async def _live(self, folder: Folder) -> None:
        self._set_state(State.STARTING)
        chain.write(self.plan.request, folder)
        if self.plan.request.kms:
            from nitroctl.enclaves import kms

            self._kms = kms.start(folder, self.plan.request)
            self._spawn(self._watch_server(self._kms, Party.KMS))
        if self.plan.request.tools:
            from nitroctl.enclaves.cores import CoreServer

            home, memory = self._home, self.plan.memory_mib
            assert home
            self._cores = CoreServer(folder.uds, home.path, memory, self._write_record)
            await self._cores.start()
        await self._start_backend(folder)
        self._open_control(folder)
        await self._capture()
        made = None
        if found := self.plan.overlays:
            made = await asyncio.to_thread(overlay.prepare, found, self.plan.request.eif, folder.overlay)
        if not self._end.done():
            self._start_qemu(folder, made)
        await self._end

    # -- start

    async def _start_backend(self, folder: Folder) -> None:
        self._backend = Backend(self.plan, folder, self._fds, on_told=self._on_told, on_event=self._on_event)
        self._spawn(self._watch_server(self._backend, Party.BACKEND))
        line = await self._backend.ready(self._end)
        if line is None and not self._end.done():
            limit = f"{backend.READY_SECONDS:g} s"
            self._finish(
                Ending.FAILED, Party.BACKEND, f"the vsock backend did not start to listen within {limit}"
            )
        if line and self._chronicle:
            self._chronicle.reach("backend")
        if line != b"":
            self._backend.forward()  # else it has ended, and the message about that has its words

    async def _capture(self) -> None:
        request = self.plan.request
        if request.pcap and self._backend and not self._end.done():
            from nitroctl.enclaves import capture

            limit = request.pcap_limit
            await capture.begin(self._backend.ask, request.pcap, snaplen=request.snaplen, limit_mib=limit)

    def _open_control(self, folder: Folder) -> None:
        """From here on others of its user can ask it."""
        assert self._home and self._first and self._backend
        about = {"name": self.plan.name, "id": self._first.id, "pid": os.getpid()}
        self._control = Control(folder.control, about)
        assert self._chronicle
        self._chronicle.offer(self._control, self._backend)

    def _start_qemu(self, folder: Folder, made: Path | None) -> None:
        console, console_theirs = os.pipe2(os.O_CLOEXEC)
        # Linux waits 10 ms for the serial port and then drops characters: a full pipe loses text.
        with contextlib.suppress(OSError):
            fcntl.fcntl(console, fcntl.F_SETPIPE_SZ, CONSOLE_BUFFER)
        qmp, qmp_theirs = socket.socketpair()
        with qmp_theirs:
            try:
                self._qemu = qemu_process.start(self.plan, folder, made, qmp_theirs, console_theirs)
            except BaseException:
                os.close(console)
                qmp.close()
                raise
            finally:
                os.close(console_theirs)
        if self._chronicle:
            self._chronicle.reach("qemu")
        self._pump = pump = self._spawn(self._pump_console(console))
        self._monitoring = monitoring = self._spawn(self._monitor(qmp, folder))
        self._spawn(self._watch_qemu(self._qemu, pump, monitoring))
        loop = asyncio.get_running_loop()
        if self.plan.request.boot_timeout or not self.plan.request.gdb:
            self._timer = loop.call_later(self.plan.boot_timeout, self._boot_timeout)
        if self._detached:
            self._measure()

    # -- watch

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and not self._end.done():
                self._end.set_exception(error)

        task.add_done_callback(done)
        return task

    def _on_told(self, line: bytes) -> None:
        """The backend tells a line about the guest."""
        if line == b"booted" and self._booted is None:
            self._on_booted()
        self._outcome = application.told(line) or self._outcome

    def _on_event(self, event: dict[str, Any]) -> None:
        """Something happened that a user may want to see: `nitroctl events`."""
        if event.get("event") == "dump-ended":
            from nitroctl.enclaves import capture

            if text := capture.ended(event):
                shown.say(f"warning: {text}")
        if self._chronicle:
            self._chronicle.vsock(event)

    def _on_booted(self) -> None:
        self._booted = time.time()
        if self._timer:
            self._timer.cancel()
        if self._chronicle:
            self._chronicle.moments.reach("heartbeat", self._booted)
        if not self._end.done():
            self._set_state(State.RUNNING)
        if self._chronicle:
            self._chronicle.booted()

    def _console_line(self, line: bytes) -> None:
        self._clues.line(line)
        if self._chronicle:
            self._chronicle.console_line(line)

    def _die(self, why: str) -> None:
        """A fault wants it: at once, and without a word to anybody."""
        if self._qemu:
            self._qemu.signal(signal.SIGKILL)
        self._finish(Ending.FAILED, Party.REQUEST, why, cause="fault")

    def _boot_timeout(self) -> None:
        said = [line for line in self.console.tail(8) if line][-4:]
        last = "the console's last lines: " + " | ".join(said) if said else "the console stayed silent"
        message = f"no heartbeat within {self.plan.boot_timeout:g} s"
        self._explain(Ending.NO_HEARTBEAT, Party.TIMEOUT, message, last)

    async def _pump_console(self, console: int) -> None:
        """Bytes from the serial port to every sink as they come, and to the watch first."""
        pipe = Pipe(console)
        try:
            while data := await pipe.read():
                if self._chronicle:
                    self._chronicle.reach("console")
                self.console.feed(data)
                self._application.feed(data)
                self._judge_console()
                for sink in self._sinks:
                    await sink.write(data)
        finally:
            pipe.close()

    def _judge_console(self) -> None:
        if self.console.panic is not None:
            if self.console.panic_over:
                self._finish_panic()
            elif self._panic_timer is None:
                loop = asyncio.get_running_loop()
                self._panic_timer = loop.call_later(PANIC_SECONDS, self._finish_panic)
        elif self.console.halted is not None:
            self._finish_by_guest(f"the guest halted ({self.console.halted})")

    def _finish_panic(self) -> None:
        last = self.console.last_word
        before = f" (last line before it: {last})" if last and self._booted is None else ""
        self._explain(Ending.PANIC, Party.GUEST, f"the guest's kernel panicked: {self.console.panic}{before}")

    def _finish_by_guest(self, how: str) -> None:
        outcome = self._outcome
        if outcome is None and self._application.failed:
            outcome = application.UNTOLD
        if self._booted is None:
            self._explain(Ending.NO_HEARTBEAT, Party.GUEST, f"{how} without having sent its heartbeat")
        elif application.may_not_have_started(outcome) and (cause := diagnosis.not_started(self._clues)):
            self._finish(Ending.FAILED, Party.GUEST, cause.text, cause=cause.name, hint=cause.hint)
        elif outcome and outcome.failed:
            self._finish(Ending.APPLICATION, Party.GUEST, outcome.text, app_status=outcome.status)
        else:
            self._finish(Ending.ORDERLY, Party.GUEST, how, app_status=outcome.status if outcome else None)

    def _explain(self, ending: Ending, by: Party, message: str, last: str = "") -> None:
        """Finish, with the likely cause, for which the backend is asked what it saw."""

        async def work() -> None:
            statistics = None
            if self._backend and self._booted is None:
                statistics = await self._backend.statistics()
            if ending is Ending.NO_HEARTBEAT and self._booted is not None:
                self._explaining = False
                return  # it came after all
            cause = diagnosis.diagnose(
                diagnosis.Evidence(
                    clues=self._clues,
                    received=self.console.received,
                    booted=self._booted is not None,
                    cmdline=self.plan.cmdline,
                    acpi=self.plan.acpi,
                    arch=self.plan.accel.arch,
                    statistics=statistics,
                    panic=self.console.panic,
                )
            )
            parts = [message, f"likely cause: {cause.text}" if cause else "", last]
            self._finish(
                ending,
                by,
                "; ".join(filter(None, parts)),
                cause=cause.name if cause else None,
                hint=cause.hint if cause else None,
            )

        # What happens while the backend is asked is a consequence.
        if not self._explaining:
            self._explaining = True
            self._spawn(work())

    async def _monitor(self, sock: socket.socket, folder: Folder) -> None:
        """QEMU is up, why it ends, and a virtual machine that stopped by itself. Ends with QEMU."""

        def up(qmp: Qmp) -> None:
            if self._chronicle:
                self._spawn(self._chronicle.up(qmp))
            if self._qemu:
                self._qemu.forward()
            with contextlib.suppress(FileNotFoundError):
                folder.overlay.unlink()
            if self.state is State.STARTING and not self._end.done():
                self._set_state(State.BOOTING)

        def shutdown(data: dict[str, Any]) -> None:
            self._shutdown = data

        def stopped(status: str) -> None:
            self._finish(Ending.FAILED, Party.QEMU, f"QEMU stopped the guest with the state {status!r}")

        await monitor.follow(sock, self.plan.name, up=up, shutdown=shutdown, stopped=stopped)

    async def _watch_server(self, server: Child, by: Party) -> None:
        await asyncio.shield(server.exited)
        self._finish(Ending.FAILED, by, server.ended_how())

    async def _watch_qemu(
        self, process: Child, pump: asyncio.Task[None], monitoring: asyncio.Task[None]
    ) -> None:
        status = await asyncio.shield(process.exited)
        if self._timer:
            self._timer.cancel()
        # What it said last decides, so that comes first. A slow reader of the console may take its time.
        await asyncio.wait((pump,))
        await asyncio.wait((monitoring,), timeout=QMP_SECONDS)
        if self._backend:
            self._backend.read_told()
        if self.console.panic is not None:
            self._finish_panic()
        elif self._chronicle and (why := self._chronicle.died_by_itself(self._shutdown)):
            self._finish(Ending.FAILED, Party.REQUEST, why, cause="fault")
        elif status != 0:
            self._finish(
                Ending.FAILED, Party.QEMU, process.ended_how(), hint=_hint(process.tail, self.plan.confined)
            )
        elif self._shutdown is None and self.state is State.STARTING:
            self._finish(Ending.FAILED, Party.QEMU, process.ended_how() + " before the guest ran")
        elif why := self._told_to_end(process):
            message = f"QEMU was told to end by somebody else ({why})"
            self._finish(Ending.FAILED, Party.QEMU, message)
        else:
            self._finish_by_guest("the guest ended")

    def _told_to_end(self, process: Child) -> str | None:
        """The reason, if QEMU's orderly end was not the guest's doing."""
        if self._shutdown is None:
            return qemu_process.said_why(process.tail)
        reason: str = self._shutdown.get("reason", "no reason given")
        return None if self._shutdown.get("guest") else reason

    # -- end

    def _finish(
        self,
        ending: Ending,
        by: Party,
        message: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        signum: int | None = None,
        app_status: int | None = None,
    ) -> None:
        """The first cause is the cause; later ones are its consequences."""
        if not self._end.done():
            tail = tuple(self.console.tail())
            self._end.set_result(Result(ending, message, by, tail, cause, hint, signum, app_status))

    def _set_state(self, state: State) -> None:
        assert self._home
        self.state = state
        record = self.record()
        self._home.write(record)
        if self._chronicle:
            self._chronicle.state(record)
            if state is State.ENDED:
                self._chronicle.close()
        if state is State.ENDED:
            # Waiters look at the record once our process has ended, so nothing is in a hurry here.
            kept = self._detached or record.cores
            self._home.close() if kept else self._home.remove()
        if self._on_state:
            self._on_state(record)

    def _write_record(self) -> None:
        if self._home and self.state is not State.ENDED:
            self._home.write(self.record())

    def _begin_record(self, folder: Folder) -> None:
        """The first record, which also decides the name."""
        first = first_record(self.plan, folder, detached=self._detached)
        self._home, self._first = records.create(first, self.plan.number)
        self.plan = dataclasses.replace(self.plan, name=self._home.name)
        self._log = logs.LogSink(self._home.path, logs.CONSOLE)
        self._sinks.insert(0, self._log)
        self._fds.callback(self._log.close)
        self._chronicle = Chronicle(
            self._first, changed=self._write_record, die=self._die, nsm_log=self.plan.request.nsm_log
        )

    def _measure(self) -> None:
        """PCRs for the record, beside the boot, as nitro-cli does it."""
        from nitroctl.eif import measure

        loop = asyncio.get_running_loop()

        def take(found: dict[str, str]) -> None:
            self._pcrs = found
            self._write_record()

        def work() -> None:
            with contextlib.suppress(NitroError, RuntimeError):  # RuntimeError: the loop is closed
                loop.call_soon_threadsafe(take, measure.measure(self.plan.request.eif).by_number())

        threading.Thread(target=work, daemon=True).start()

    async def _clean_up(self, folder: Folder) -> None:
        for timer in (self._timer, self._panic_timer):
            if timer:
                timer.cancel()
        if not self._end.done():
            self._end.cancel()
        self._set_state(State.STOPPING)
        try:
            if self._control:
                await self._control.close()
            if self._qemu:
                self._qemu.hush()
                await self._qemu.stop()
            await self._last_words()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            if self._backend:
                if self._qemu:
                    await self._deliver(self._backend)
                await self._backend.stop()
            if self._cores:
                await self._cores.stop()
            if self._kms:
                self._kms.hush()
                self._kms.signal(signal.SIGKILL)  # its store bears that, and nobody waits for it
                await self._kms.stop()
        finally:
            self._fds.close()
            release(folder)
            self._ended = time.time()
            self._set_state(State.ENDED)

    async def _last_words(self) -> None:
        """QEMU is gone: take what is still in its sockets."""
        if self._monitoring:
            await asyncio.wait((self._monitoring,), timeout=QMP_SECONDS)
        if self._chronicle:
            self._chronicle.drain()
        if self._pump:
            await self._while_patient(self._pump)

    async def _deliver(self, backend: Child) -> None:
        """What the guest sent before it closed a stream goes to the host's programs."""
        work = asyncio.get_running_loop().create_task(drained(backend))
        try:
            await self._while_patient(work)
        finally:
            work.cancel()

    async def _while_patient(self, work: asyncio.Task[None]) -> None:
        """A slow reader of the console or of a stream may take its time, unless we were told to stop."""
        patient = not self._end.cancelled() and self._end.exception() is None
        patient = patient and self._end.result().ending is not Ending.STOPPED
        waiting: set[asyncio.Future[Any]] = {work, self._hurry}
        limit = None if patient else LAST_WORDS_SECONDS
        await asyncio.wait(waiting, timeout=limit, return_when="FIRST_COMPLETED")


def _hint(stderr: Iterable[str], confined: bool) -> str | None:
    text = "\n".join(stderr)
    if confined and ("Permission denied" in text or "Operation not permitted" in text):
        return "QEMU has of this host only what it needs; if that is too little, --no-sandbox gives it all"
    if "unsupported machine type" in text or "No machine specified" in text:
        return "this QEMU has no nitro-enclave machine; `nitroctl build` makes one that has"
    if "Property 'nitro-enclave-machine." in text and "not found" in text:
        return "this QEMU's machine is older than nitroctl: `nitroctl build`, or `nitroctl build --plugin`"
    return None
