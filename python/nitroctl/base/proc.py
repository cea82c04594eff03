# SPDX-License-Identifier: MIT
"""The one door to other programs: `run` waits for one, `start` leaves one running under our eyes.

Every child has its standard input closed unless asked otherwise, is always waited for, and dies with us:
the kernel sends it a signal when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2)), so even
`kill -9` of nitroctl leaves nothing behind. Start long-lived children from the main thread for that reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from nitroctl.base.confine import Confinement
from nitroctl.base.errors import CommandFailed

PR_SET_PDEATHSIG = 1

# What `nitroctl parent` puts into a program's environment: this variable, and in LD_PRELOAD this library.
PARENT_FOLDER = "NITROCTL_VSOCK_DIR"
PARENT_LIBRARY = "vsock-preload.so"
# And the port of 127.0.0.1 to which it takes connections to EC2's metadata service, if there is one.
PARENT_METADATA = "NITROCTL_METADATA_PORT"

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent(
    parent: int, sig: int, mask: set[int], confinement: Confinement | None
) -> Callable[[], None]:
    """What a child does between fork and exec; `parent` closes the race with a parent already dead."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _libc.prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
        if confinement:
            confinement.enter()

    return prepare


@contextlib.contextmanager
def signals_held() -> Iterator[set[int]]:
    """Puts off what would end us; yields the mask of before.

    What a signal's handler raises while Python runs its hooks of a fork is printed and forgotten
    (os.register_at_fork; logging has such hooks): a Ctrl-C at that moment would have no effect. Handlers run
    in the main thread whichever takes the signal, so threads that live along with it are started with signals
    held, too: they inherit that.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield set(mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _environment() -> dict[str, str]:
    own = dict(os.environ)
    if own.pop(PARENT_FOLDER, None) is not None:
        names = re.split(r"[\s:]+", own.pop("LD_PRELOAD", ""))
        if others := [name for name in names if name and os.path.basename(name) != PARENT_LIBRARY]:
            own["LD_PRELOAD"] = ":".join(others)
    return own


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
    death_signal: int = signal.SIGKILL,
    ignore_sigpipe: bool = False,
    confinement: Confinement | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that dies with us. Raises CommandFailed when it cannot be started.

    `env` is added to our environment, from which what `nitroctl parent` has put there is taken: programs of
    ours reach enclaves without it. With `new_session` a Ctrl-C at the terminal does not reach it: the
    caller then owes it an end. With a `death_signal` of 0 it outlives us. With `ignore_sigpipe` writing to
    us when we are dead does not kill it before that signal does. With a `confinement` it has only what that
    gives it, and dies with us.
    """
    assert death_signal or not confinement
    command = [os.fspath(a) for a in argv]
    process = None
    try:
        with contextlib.ExitStack() as stack:
            prepare = None
            # Without a death signal no Python runs between fork and exec: safe in a process with threads.
            if death_signal:
                mask = stack.enter_context(signals_held())
                prepare = _die_with_parent(os.getpid(), death_signal, mask, confinement)
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                cwd=cwd,
                env={**_environment(), **(env or {})},
                start_new_session=new_session,
                restore_signals=not ignore_sigpipe,  # Python ignores it
                preexec_fn=prepare,
            )
    except OSError as e:
        raise CommandFailed(command, None, output=f"{e.filename or command[0]}: {e.strerror}") from e
    except BaseException:
        if process:
            stop(process)
        raise
    return process


def stop(process: subprocess.Popen[bytes], *, grace: float = 5.0) -> int:
    """End a child and reap it: SIGTERM, then SIGKILL after `grace` seconds. Returns its status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


@contextlib.contextmanager
def _stopped_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        stop(process)
        raise


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    hint: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its status and output.

    Without `log`, stdout is returned and stderr goes into the error, if any. With `log`, stdout and stderr
    are appended to that file as they come, each line also given to `on_line`, and the last lines go into
    the error. Raises CommandFailed for a non-zero status (unless `check` is false) or a missing program.
    """
    command = [os.fspath(a) for a in argv]
    if log is None and on_line is None:
        process = start(
            command,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
        )
        with _stopped_on_error(process):
            out, err = process.communicate(input)
        if check and process.returncode:
            raise CommandFailed(
                command, process.returncode, output=(err or out).decode(errors="replace"), hint=hint
            )
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    assert input is None, "input and log do not go together"
    tail: list[str] = []
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=env)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stopped_on_error(process))
        sink = stack.enter_context(open(log, "ab")) if log else None
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        for raw in process.stdout:
            if sink:
                sink.write(raw)
            line = raw.decode(errors="replace").rstrip("\r\n")
            tail = [*tail[-39:], line]
            if on_line:
                on_line(line)
        process.wait()
    output = "\n".join(tail)
    if check and process.returncode:
        raise CommandFailed(command, process.returncode, output=output, log=log, hint=hint)
    return subprocess.CompletedProcess(command, process.returncode, output.encode(), b"")
