# SPDX-License-Identifier: MIT
"""The Python API: enclaves as objects, for parent programs and tests.

    import nitroctl

    with nitroctl.Enclave("app.eif", memory="512M") as enclave:
        with enclave.connect(5000) as sock:
            sock.sendall(b"hello")

An enclave has a supervisor in a process of its own (`supervisor`), so no event loop, thread or signal handler
of this process is needed or touched. It ends with its `with` block, and also when this process dies, however
that comes about. Here is only what a user holds in his hands; nothing is decided here that the command line
decides otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import select
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nitroctl.base.errors import EnclaveError, EnclaveTimeout, NitroError, UsageError
from nitroctl.base.options import signature
from nitroctl.eif.request import BuildRequest
from nitroctl.enclaves import capture, differences, folder, logs, records, usage
from nitroctl.enclaves.differences import Difference, DiffersFromAws
from nitroctl.enclaves.handles import LAST_WORDS, Console, EnclaveListener, NsmLog, StrictRecord
from nitroctl.enclaves.ready import ready
from nitroctl.enclaves.records import Record
from nitroctl.enclaves.request import RunRequest
from nitroctl.enclaves.supervised import Supervised
from nitroctl.enclaves.waitfor import Pattern, WaitFor
from nitroctl.enclaves.waiting import aside, close_server
from nitroctl.inside.handles import Faults
from nitroctl.keywords import BuildKeywords, RunKeywords, StrPath
from nitroctl.vsock import sockets

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from nitroctl.attestation.document import Document
    from nitroctl.eif.build import Built

# Whether an enclave that was not started when somebody began to wait for its connections is by now.
STARTED_SECONDS = 0.2
# From the end of an enclave's folder to that of its supervisor.
ENDING_SECONDS = 10.0


class Enclave:
    """An enclave that lives as long as this object's `with` block (or from `start` to `close`), once.

    The options are those of `nitroctl run`: `memory` as there ("512M", "4G") or in MiB, `boot_timeout` in
    seconds; paths of `listen_port` and the like as PORT=PATH. `accel` forces "kvm" or "tcg". The record and
    the logs are removed at the end unless `keep` is true; with `log_dir` they are copied there first.

    With `strict` what there is not on AWS raises DiffersFromAws: at the start for options and for the image,
    later for the console and the application's status. `differs` names what is allowed all the same
    (docs/differences.md).

    `wait_for_port` and `wait_for_log`, one or several, are what the start waits for after the heartbeat: that
    the application listens on a port, that the console has a line in which this regular expression is found.
    All of it takes `wait_timeout` seconds at most.

    Methods raise EnclaveError, whose message says why, once the enclave has ended. To make the object touches
    nothing: what is not there, or wrong with the image, is `start`'s to say.
    """

    def __init__(
        self,
        eif: StrPath,
        *,
        keep: bool = False,
        log_dir: StrPath | None = None,
        strict: bool = False,
        differs: Sequence[str] = (),
        wait_for_port: int | Sequence[int] = (),
        wait_for_log: Pattern | Sequence[Pattern] = (),
        wait_timeout: float = 60.0,
        **options: Unpack[RunKeywords],
    ) -> None:
        self._request = RunRequest.from_keywords("Enclave", eif=eif, **options)
        self._strict = strict
        self._differs = differences.checked(differs)
        self._differs_now: frozenset[str] = frozenset()  # allowed for as long as a test runs
        self._keep = keep
        self.log_dir = None if log_dir is None else Path(log_dir)
        self._wait_for = WaitFor(wait_for_port, wait_for_log, wait_timeout)
        self._supervised: Supervised | None = None
        self._record: Record | None = None
        self._closed = False
        self._last_words = b""
        self._resources = contextlib.ExitStack()
        self._early: folder.Folder | None = None
        self.console = Console(self)
        self.faults = Faults(self)
        self.nsm = NsmLog(self)

    # ---- its life ----

    def start(self) -> Self:
        """Start it and wait for its heartbeat, and for what `wait_for_port` and `wait_for_log` name. Raises
        what `nitroctl run` would end with: UsageError, BootTimeout, GuestPanic, EnclaveError; nothing runs
        any more then, and `console` can still be read until `close`."""
        if self._supervised or self._closed:
            raise UsageError("an Enclave object starts its enclave once; make another one")
        self._request = ready(self._request)
        if self._strict:
            request = self._request
            found = [*differences.of_request(request), *differences.of_image(request.eif, request.memory)]
            self._refuse(found)
        self._supervised = Supervised(self._request)
        try:
            self._supervised.wait_booted(self._on_state)
            self._wait_for.all(self.console.wait_for, self.connect)
        except BaseException:
            self._end("stopped, because its start failed")
            raise
        return self

    def _refuse(self, found: Iterable[Difference]) -> None:
        if left := [one for one in found if one.name not in self._differs | self._differs_now]:
            raise DiffersFromAws(left)

    def _asked_for(self, use: str) -> None:
        """What a user asks of it that AWS may not have."""
        if self._strict and not (use == "console" and self._request.debug_mode):
            self._refuse([Difference(use, differences.USES[use])])

    def _on_state(self, record: Record) -> None:
        self._record = record

    def wait(self, timeout: float | None = None) -> Record:
        """Wait until it has ended by itself, and return its record; `record.check()` raises the error that
        fits, if there was one. Raises EnclaveTimeout after `timeout` seconds."""
        record = self._now
        return self._shown(records.wait(record, timeout) or record)

    async def wait_async(self, timeout: float | None = None) -> Record:
        """As `wait`, for asyncio."""
        return await aside(lambda: self.wait(timeout))

    def stop(self) -> None:
        """End it, if it still runs, and all that `listen` and `start_server` made. Its record and its console
        can be read until `close`."""
        self._end("stopped by a call of stop()")

    async def stop_async(self) -> None:
        """As `stop`, for asyncio."""
        await asyncio.to_thread(self.stop)

    def _end(self, why: str) -> None:
        try:
            if self._supervised:
                self._supervised.stop(why)
        finally:
            self._resources.close()

    def close(self) -> None:
        """End it, and remove all that belongs to it. What the console said last can still be read."""
        if self._closed:
            return
        self._closed = True
        try:
            self._end("stopped with its Enclave object's `with` block, or by close()")
        finally:
            if self._record:
                self._record = records.latest(self._record)
                self._last_words = logs.read_tail(self._record.home, logs.CONSOLE, LAST_WORDS)
                if self.log_dir is not None:
                    _copy_logs(self._record.home, self.log_dir)
                if not self._keep:
                    records.remove(self._record)

    def __enter__(self) -> Self:
        if self._supervised:
            return self  # its `start` was called
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.__enter__))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            if self._supervised:
                self._supervised.cancel()
            with contextlib.suppress(NitroError):
                await starting
            await asyncio.to_thread(self.close)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # ---- what it is ----

    def __repr__(self) -> str:
        if self._record is None:
            return f"<Enclave {self.name}: {'closed' if self._closed else 'not started'}>"
        record = self._now
        state = f"CID {record.cid}, {record.state}" if record.running else f"ended: {record.message}"
        return f"<Enclave {record.name}: {state}>"

    @property
    def record(self) -> Record:
        """All that is known about it, as it is now; see `nitroctl inspect`."""
        return self._shown(self._now)

    def _shown(self, record: Record) -> Record:
        return StrictRecord.of(record, self._asked_for) if self._strict else record

    @property
    def _now(self) -> Record:
        if self._record is None:
            raise UsageError("this enclave has not been started", hint="call start(), or use it in a `with`")
        if self._record.running and not self._closed:
            self._record = records.latest(self._record)
        return self._record

    @property
    def started(self) -> bool:
        """Whether there is a record: it runs, or has."""
        return self._record is not None

    @property
    def running(self) -> bool:
        return self._record is not None and self._now.running

    @property
    def name(self) -> str:
        return self._record.name if self._record else self._request.name or self._request.eif.name

    @property
    def id(self) -> str:
        """nitro-cli's EnclaveID."""
        return self._now.id

    @property
    def cid(self) -> int:
        """Its context ID."""
        return self._now.cid

    @property
    def uds(self) -> Path:
        """The unix socket that `connect` uses; the parent's port N is served at this path with `_N` added."""
        return self._now.uds

    def pcrs(self) -> dict[int, bytes]:
        """PCR0, 1, 2 and, of a signed image, 8, computed from the file (48 bytes each), also before
        `start`."""
        from nitroctl.eif.measure import measure

        values = (self._record and self._now.pcrs) or measure(self._request.eif).by_number()
        return {int(number): bytes.fromhex(value) for number, value in values.items()}

    def stats(self) -> dict[str, Any]:
        """CPU time and memory of its processes, connections and bytes of each port, as `nitroctl stats
        --json` has them."""
        self._asked_for("stats")
        return usage.of(self._now)

    # ---- vsock ----

    def capture(
        self, path: StrPath, *, snaplen: int = capture.SNAPLEN, limit_mib: int = capture.LIMIT_MIB
    ) -> contextlib.AbstractContextManager[dict[str, int]]:
        """As long as the `with` block lasts, packets of its vsock go into a pcap file, each with up to
        `snaplen` bytes of data. What the block gets is filled at its end: `packets`, `dropped`, `bytes`."""
        self._asked_for("capture")
        return capture.into_file(self._now, Path(path), snaplen=snaplen, limit_mib=limit_mib)

    def connect(self, port: int, *, timeout: float = 30.0, retry: bool = True) -> socket.socket:
        """Connect to `port` of the enclave: a connected stream socket without a timeout.

        The heartbeat says that the enclave has booted, not that its application listens by now: unless
        `retry` is false, a refused connection is tried again for up to `timeout` seconds, as long as the
        enclave runs. Raises vsock.PortRefused.
        """
        self._check_runs()
        if retry:
            return sockets.connect_soon(self.uds, port, timeout=timeout, refused=self._check_runs)
        try:
            return sockets.connect(self.uds, port, timeout=timeout)
        except sockets.PortRefused as e:
            self._check_runs(e)
            raise

    async def open_connection(
        self, port: int, *, timeout: float = 30.0, retry: bool = True
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `connect`, for asyncio: like asyncio.open_connection."""
        self._check_runs()
        deadline = time.monotonic() + timeout
        refused: sockets.PortRefused | None = None
        while True:
            left = deadline - time.monotonic()
            try:
                connecting = sockets.open_connection(self.uds, port)
                return await asyncio.wait_for(connecting, max(left, sockets.RETRY_SECONDS))
            except asyncio.TimeoutError as e:
                if refused:
                    raise refused from None
                raise EnclaveTimeout(
                    f"no answer about port {port} of the enclave {self.name} within {timeout:g} s",
                    record=self._now,
                ) from e
            except sockets.PortRefused as e:
                refused = e
                self._check_runs(e)
                if not retry or left <= 0:
                    raise
            await asyncio.sleep(sockets.RETRY_SECONDS)

    def _check_runs(self, error: Exception | None = None) -> None:
        """Of one that has ended, the context ID may be another enclave's by now, and so the paths."""
        record = self._now
        if not record.running:
            raise sockets.PortRefused(
                f"the enclave {record.name} has ended: {record.message}", record=record
            ) from error

    def listen(self, port: int, *, backlog: int = 128) -> sockets.Listener:
        """Serve the parent's `port`, which the enclave reaches at CID 3: `listener.accept()` gives the next
        connection. Also before `start`, for applications that want their parent at once. It ends with the
        enclave: whoever waits in `accept` then gets an EnclaveError, and so does who calls this afterwards.
        Raises NitroError for a port that somebody serves."""
        if self._record is None:
            sockets.check_port(port)
            path = self._early_folder() / str(port)
            listener = EnclaveListener(self, sockets.serve(path, backlog=backlog), port)
            more = (*self._request.listen_port, f"{port}={path}")
            self._request = dataclasses.replace(self._request, listen_port=more)
        else:
            self._check_runs()
            try:
                listener = EnclaveListener(self, sockets.listen(self.uds, port, backlog=backlog), port)
            except NitroError as e:
                if not self.uds.parent.exists():
                    with contextlib.suppress(EnclaveTimeout):
                        records.wait(self._now, ENDING_SECONDS)  # its folder goes first
                    self._check_runs(e)
                raise
        self._resources.callback(listener.close)
        return listener

    async def start_server(
        self,
        handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
        port: int,
    ) -> asyncio.Server:
        """As `listen`, for asyncio: like asyncio.start_server. Closed with the enclave."""
        server = await asyncio.start_unix_server(handler, sock=self.listen(port).socket)
        self._resources.callback(close_server, asyncio.get_running_loop(), server)
        return server

    def _await(self, sock: socket.socket, deadline: float | None) -> bool:
        """Wait for a client of this listening socket, or for something else: then the answer is no. Raises
        EnclaveError where there can be no client any more."""
        record = self._record and self._now
        ended = self._closed or bool(record and not record.running)
        fd = records.supervisor_fd(record) if record and not ended else None
        seconds = 0.0 if ended else None if fd is not None else STARTED_SECONDS
        if deadline is not None and not ended:
            left = max(0.0, deadline - time.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        try:
            if sock.fileno() >= 0:
                waiting: list[Any] = [sock] if fd is None else [sock, fd]
                found = select.select(waiting, [], [], seconds)[0]
                if sock in found:
                    return True
        except (OSError, ValueError):  # the descriptor has gone, or is -1 by now
            if sock.fileno() >= 0:
                raise
        finally:
            if fd is not None:
                os.close(fd)
        if ended or sock.fileno() < 0:
            # It may have ended while this waited.
            record = self._record and records.latest(self._record)
            said = f"has ended: {record.message}" if record else "was never started, and is closed"
            raise EnclaveError(f"nobody will connect any more: the enclave {self.name} {said}", record=record)
        return False

    def _early_folder(self) -> Path:
        """For listeners of an enclave whose own folder is not there yet."""
        if self._early is None:
            self._early = folder.reserve_early()
            self._resources.callback(folder.release, self._early)
        return self._early.path

    # ---- attestation ----

    def attestation(
        self,
        *,
        nonce: bytes | None = None,
        user_data: bytes | None = None,
        public_key: bytes | None = None,
        timeout: float = 30.0,
    ) -> bytes:
        """An attestation document of this enclave's NSM, in the bytes that it has (COSE_Sign1).

        Only what runs inside can ask an NSM: this asks nitroctl's test agent, so the image must carry it, as
        `nitroctl eif test-image agent` does. Your own application hands out its documents itself.
        """
        from nitroctl.testing.agent import PORT, Agent

        try:
            self._check_runs()
            agent = Agent(self.uds, timeout=timeout, listen=timeout, refused=self._check_runs)
        except sockets.PortRefused as e:
            raise EnclaveError(
                f"the enclave {self.name} has no test agent that could be asked (port {PORT}): {e}",
                hint="let your application ask its NSM and send you the document",
                record=self._now,
            ) from e
        with agent:
            return agent.attestation(nonce=nonce, user_data=user_data, public_key=public_key)

    def verify(
        self,
        document: bytes,
        *,
        nonce: bytes | None = None,
        user_data: bytes | None = None,
        public_key: bytes | None = None,
    ) -> Document:
        """Verify a document that this enclave issued: under the local CA, with the PCRs of its file, unless
        debug mode or an overlay has them zero, and the values that are given. Returns it decoded; raises
        attestation.AttestationError."""
        from nitroctl import attestation
        from nitroctl.attestation import pki
        from nitroctl.enclaves import overlay

        unmeasured = bool(overlay.reasons(self._request))
        zero = self._request.debug_mode or (unmeasured and not self._request.overlay_keep_pcrs)
        policy = attestation.Policy(
            pcrs={} if zero else self.pcrs(),
            nonce=nonce,
            user_data=user_data,
            public_key=public_key,
            allow_debug=zero,
            allow_unmeasured=unmeasured,
        )
        return attestation.verify(document, pki.load_or_init().pem, policy)


Enclave.__signature__ = signature(Enclave.__init__, RunRequest)  # type: ignore[attr-defined]


def build_eif(output: StrPath, **options: Unpack[BuildKeywords]) -> Built:
    """Make an EIF of a container image (a path, or a reference for skopeo), of a folder or of parts, as
    `nitroctl eif build` does, whose options are the keywords. What it returns has `path`, `measurements` and
    `warnings`, and can be given to Enclave or open() itself.

    Of several images in one place, "PATH:NAME" says which. `signer` may also be what `nitroctl.eif.sign.load`
    gives.
    """
    from nitroctl.eif.make import make

    return make(BuildRequest.from_keywords("build_eif", output=output, **options))


build_eif.__signature__ = signature(build_eif, BuildRequest)  # type: ignore[attr-defined]


def _copy_logs(home: Path, into: Path) -> None:
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name in (logs.CONSOLE, logs.SUPERVISOR):
            for path in logs.paths(home, name):
                if path.exists():
                    shutil.copyfile(path, into / path.name)
    except OSError as e:
        raise NitroError(f"cannot copy the enclave's logs to {into}: {e.strerror}") from e
