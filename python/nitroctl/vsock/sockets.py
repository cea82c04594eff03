# SPDX-License-Identifier: MIT
"""An enclave's vsock as seen from its parent: unix sockets instead of AF_VSOCK.

The backend, vhost-user-vsock, serves one enclave. A program on this host reaches port N of the enclave by
connecting to the backend's socket PATH and sending `CONNECT N` (the text protocol that Firecracker documents
as hybrid vsock). It serves the parent's port N by listening on `PATH_N`. This module does both, and builds
the backend's command line. Starting and ending the backend is left to `enclaves.lifecycle`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from nitroctl.base import config, locks
from nitroctl.base.config import UNIX_PATH_MAX
from nitroctl.base.errors import EnclaveError, EnclaveTimeout, NitroError, UsageError

if TYPE_CHECKING:
    import asyncio

PARENT_CID = 3
HEARTBEAT_PORT = 9000
APP_STATUS_PORT = (1 << 32) - 1 - 9000  # to which our init sends the application's exit status
HEARTBEAT = 0xB7
PORT_MAX = 0xFFFFFFFE  # 0xFFFFFFFF is VMADDR_PORT_ANY

# The answer is "OK ", a decimal u32 and a newline; anything longer is not an answer.
_OK_MAX = 32

# Pause between two attempts to reach a port on which nobody listens yet: the guest does not report when it
# does.
RETRY_SECONDS = 0.02
LISTEN_SECONDS = 10  # how long an application may take from the heartbeat until it listens, on a busy host


class PortRefused(EnclaveError):
    """Nobody listens on that port of the enclave, or the enclave is gone."""


class BackendConfig(NamedTuple):
    """The backend's options. Descriptors are numbers of inherited file descriptors; None leaves the option
    out. `forwards` come from `nitroctl.vsock.forwards`.

    `booted_fd` gets the line "booted" when the backend has answered the heartbeat, `ready_fd` the line
    "ready" once it listens. When the other end of `lifeline_fd` closes, the backend removes its sockets
    and `cleanup_dir`, and ends. With `once` it ends when QEMU disconnects.
    """

    binary: Path
    socket_path: Path
    guest_cid: int
    uds_path: Path
    fallback_path: Path | None = None
    forwards: Sequence[str] = ()
    booted_fd: int | None = None
    ready_fd: int | None = None
    lifeline_fd: int | None = None
    cleanup_dir: Path | None = None
    once: bool = False
    sandbox: bool = True


def argv(options: BackendConfig) -> list[str]:
    args = [
        os.fspath(options.binary),
        f"--socket-path={options.socket_path}",
        f"--guest-cid={options.guest_cid}",
        f"--uds-path={options.uds_path}",
        *(f"--{forward}" for forward in options.forwards),
    ]
    if options.fallback_path is not None:
        args.append(f"--fallback-path={options.fallback_path}")
    if options.booted_fd is not None:
        args.append(f"--booted-fd={options.booted_fd}")
    if options.ready_fd is not None:
        args.append(f"--ready-fd={options.ready_fd}")
    if options.lifeline_fd is not None:
        args.append(f"--lifeline-fd={options.lifeline_fd}")
    if options.cleanup_dir is not None:
        args.append(f"--cleanup-dir={options.cleanup_dir}")
    if options.once:
        args.append("--once")
    if not options.sandbox:
        args.append("--no-sandbox")
    return args


def shared_ports() -> Path:
    """The PATH of ports that are served for all enclaves of this user, running or not. If nobody listens on
    an enclave's own PATH_N, its backend tries this one."""
    return config.runtime_dir() / "ports" / "all"


def serve_shared(port: int) -> Listener:
    """Serve the parent's port `port` for all enclaves. Raises like `serve`."""
    with _shared_folder():
        return listen(shared_ports(), port)


def sweep_shared() -> None:
    """Remove the sockets in `shared_ports` that nobody serves any more, and the folder if it is then empty.
    Programs that are killed, and those that `parent` runs, leave such sockets behind."""
    if not shared_ports().parent.exists():
        return
    with _shared_folder() as folder, contextlib.suppress(OSError):
        for path in folder.glob("all_*"):
            with contextlib.suppress(FileNotFoundError):
                if _stale(os.fspath(path)):
                    path.unlink()
        folder.rmdir()


@contextlib.contextmanager
def _shared_folder() -> Iterator[Path]:
    """The folder of `shared_ports`, which is made if needed and locked during the body: whoever makes,
    replaces or removes sockets there holds this lock (so does contrib/vsock-preload)."""
    folder = shared_ports().parent
    fd = locks.take_folder(lambda: config.private_dir(folder))
    try:
        yield folder
    finally:
        locks.end(fd)


def check_path(path: str | os.PathLike[str]) -> str:
    """`path` as text, if it fits into the address of a unix socket. Raises NitroError, with its length, if
    not."""
    text = os.fspath(path)
    length = len(os.fsencode(text))
    if length > UNIX_PATH_MAX:
        raise NitroError(
            f"the path {text} has {length} bytes; the address of a unix socket has at most {UNIX_PATH_MAX}",
            hint="set XDG_RUNTIME_DIR to a private folder with a shorter path",
        )
    return text


def port_path(uds: str | os.PathLike[str], port: int) -> Path:
    """The socket on which the parent's port `port` is served."""
    check_port(port)
    return Path(f"{os.fspath(uds)}_{port}")


def check_port(port: int) -> None:
    if type(port) is not int:
        raise UsageError(f"port={port!r}: port takes a whole number", hint="write the number of a vsock port")
    if not 0 <= port <= PORT_MAX:
        raise NitroError(f"{port} is no vsock port; ports are 0 to {PORT_MAX}")


def connect(uds: str | os.PathLike[str], port: int, *, timeout: float | None = None) -> socket.socket:
    """Connect to port `port` of the enclave whose backend serves `uds`.

    Returns a connected stream socket, blocking and without a timeout. `timeout` seconds bound the
    handshake. Raises PortRefused if nobody listens there, NitroError for anything else; no socket stays
    open then.
    """
    check_port(port)
    path = check_path(uds)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.settimeout(timeout)
        try:
            sock.connect(path)
            sock.sendall(b"CONNECT %d\n" % port)
            answer = _read_line(sock)
        except TimeoutError as e:
            raise EnclaveTimeout(f"no answer about the enclave's port {port} within {timeout:g} s") from e
        except (FileNotFoundError, ConnectionRefusedError) as e:
            raise PortRefused(f"no enclave is behind {path}: {e.strerror}") from e
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
        except OSError as e:
            raise NitroError(f"{path}: {e.strerror}") from e
        _check_answer(answer, path, port)
        sock.settimeout(None)
        stack.pop_all()
        return sock


def connect_soon(
    uds: str | os.PathLike[str], port: int, *, timeout: float, refused: Callable[[PortRefused], None]
) -> socket.socket:
    """Like `connect`, but retry for up to `timeout` seconds while nobody listens: the heartbeat says that the
    enclave has booted, not that its application already listens.

    `refused` is called after each attempt; it raises if nobody will ever listen, for instance if the enclave
    ended.
    """
    deadline = time.monotonic() + timeout
    last: PortRefused | None = None
    while True:
        left = deadline - time.monotonic()
        try:
            return connect(uds, port, timeout=max(left, RETRY_SECONDS))
        except EnclaveTimeout:
            if last:
                raise last from None  # the last attempt had almost no time
            raise
        except PortRefused as e:
            last = e
            refused(e)
            if left <= 0:
                raise
        time.sleep(RETRY_SECONDS)


async def open_connection(
    uds: str | os.PathLike[str], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Like `connect`, for asyncio."""
    import asyncio

    check_port(port)
    path = check_path(uds)
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except (FileNotFoundError, ConnectionRefusedError) as e:
        raise PortRefused(f"no enclave is behind {path}: {e.strerror}") from e
    except OSError as e:
        raise NitroError(f"{path}: {e.strerror}") from e
    try:
        writer.write(b"CONNECT %d\n" % port)
        answer = b""
        with contextlib.suppress(ConnectionError):
            # Not by the line, for which another kind of server could let us wait.
            while len(answer) < _OK_MAX and not answer.endswith(b"\n") and (byte := await reader.read(1)):
                answer += byte
        _check_answer(answer, path, port)
    except BaseException:
        writer.close()
        raise
    return reader, writer


def _check_answer(answer: bytes, path: str, port: int) -> None:
    if not answer:
        raise PortRefused(f"nobody listens on port {port} of the enclave behind {path}")
    number = answer[3:-1]
    if not (answer.startswith(b"OK ") and answer.endswith(b"\n") and number.isdigit()):
        raise EnclaveError(
            f"{path} answered {answer[:_OK_MAX]!r} to CONNECT {port}: it is not a hybrid vsock socket"
        )


def _read_line(sock: socket.socket) -> bytes:
    # Byte by byte: what follows the newline belongs to the caller.
    line = b""
    while len(line) < _OK_MAX and not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line


class Listener:
    """A served port of the parent. A context manager, which removes the socket file at the end."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.socket = sock
        self.path = path
        self._inode = os.lstat(path).st_ino

    def accept(self) -> socket.socket:
        """The next connection from the enclave. To limit the wait call `settimeout` on `.socket`."""
        return self.socket.accept()[0]

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listen(uds: str | os.PathLike[str], port: int, *, backlog: int = 128) -> Listener:
    """Serve the parent's port `port`: connections that the enclave opens to CID 3 arrive here. Raises like
    `serve`."""
    return serve(port_path(uds, port), backlog=backlog)


def serve(path: Path, *, backlog: int = 128) -> Listener:
    """Listen on a unix socket to which only the user can connect.

    A socket file that nobody serves any more is replaced. Raises NitroError if somebody serves it.
    """
    address = check_path(path)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            try:
                sock.bind(address)
            except OSError:
                if not _stale(address):
                    raise
                os.unlink(address)
                sock.bind(address)
            os.chmod(address, 0o600)
            sock.listen(backlog)
        except OSError as e:
            raise NitroError(f"cannot listen on {address}: {e.strerror}") from e
        listener = Listener(sock, path)
        stack.pop_all()
        return listener


def _stale(address: str) -> bool:
    """True for a socket file without a server. Tested with a socket of another type: a server makes the
    attempt fail with another error, and does not see it as a client."""
    if not stat.S_ISSOCK(os.lstat(address).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False
