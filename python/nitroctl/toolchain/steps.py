# SPDX-License-Identifier: MIT
"""Steps of a build: run a tool with its output in a log, follow ninja's progress, say what failed.

What the steps build is not known here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base import proc, progress
from nitroctl.base.errors import NitroError
from nitroctl.base.place import place
from nitroctl.toolchain import packages

_LIBRARIES = ("glib-2.0", "gnutls", "libcbor", "zlib")


class BuildFailed(NitroError):
    """A step of a build failed: the step, the lines that matter, where the whole log is."""

    def __init__(self, step: str, lines: Sequence[str], log: Path, *, hint: str | None = None) -> None:
        super().__init__(f"{step} failed", hint=hint, lines=[*lines, f"the whole log is in {log}"])
        self.step = step
        self.log = log


def tool(name: str) -> str:
    """A program of our own environment (meson, ninja), else the host's."""
    own = Path(sys.executable).parent
    found = shutil.which(name, path=f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if not found:
        raise NitroError(
            f"{name} is neither in {own} nor in PATH",
            hint="install nitroctl with its dependencies: make setup",
        )
    return found


def toolchain(needs: Sequence[packages.Need], *, cc: str = "cc") -> dict[str, str]:
    """Versions of compiler and libraries; raises NitroError that names the packages if one is missing."""
    lacking = packages.missing(needs)
    if lacking:
        raise NitroError(
            "missing on this host: " + ", ".join(f"{n.what} ({n.why})" for n in lacking),
            hint=packages.install_line(lacking),
        )
    said = proc.run([cc, "-dumpfullversion", "-dumpversion"]).stdout.decode().split()
    return {"cc": said[0] if said else "unknown", **packages.versions(_LIBRARIES)}


def logged(
    argv: Sequence[str],
    log: Path,
    on_line: Callable[[str], None],
    *,
    cwd: Path | None = None,
    lock_fds: Sequence[int] = (),
    ignore_sigpipe: bool = False,
) -> int:
    """Run a step, its output appended to `log` and given to `on_line`; returns its status.

    The children inherit the locks, so a build whose nitroctl was killed still counts as running until its
    last compiler is gone. They get SIGTERM when we die; with `ignore_sigpipe` (see proc.start) nothing ends
    them before.
    """
    env = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NINJA_STATUS": "[%f/%t] ",
        "LC_ALL": "C.UTF-8",
        "CFLAGS": "",
        "LDFLAGS": "",
    }
    process = proc.start(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=env,
        pass_fds=lock_fds,
        death_signal=signal.SIGTERM,
        ignore_sigpipe=ignore_sigpipe,
    )
    assert process.stdout is not None
    try:
        with process.stdout, place(log), open(log, "ab") as sink:
            for raw in process.stdout:
                sink.write(raw)
                on_line(raw.decode(errors="replace").rstrip("\r\n"))
        return process.wait()
    except BaseException:
        proc.stop(process)
        raise


_STEP = re.compile(r"\[(\d+)/(\d+)\] (.*)")


@dataclass
class NinjaOutput:
    """Follows ninja's output: how far it is, and what to show of a failure."""

    done: int = 0
    total: int = 0
    doing: str = ""
    failed: str = ""  # the target
    _failure: list[str] = dataclasses.field(default_factory=list)
    _collecting: bool = False
    _last: list[str] = dataclasses.field(default_factory=list)

    def feed(self, line: str) -> None:
        match = _STEP.match(line)
        if match:
            self.done, self.total, self.doing = int(match[1]), int(match[2]), match[3]
            self._collecting = False
            return
        self._last = [*self._last[-9:], line]
        if line.startswith("FAILED: "):
            # With several jobs more can fail; the first is the one to look at.
            self._collecting = not self.failed
            if self._collecting:
                # ninja 1.12 and later put "[code=N]" before the target.
                self.failed = re.sub(r"^\[code=\d+\] ", "", line.removeprefix("FAILED: ")).strip()
        elif self._collecting:
            self._failure.append(line)

    def reasons(self, limit: int = 20) -> list[str]:
        """The lines that matter: what the compiler said, without its command line."""
        lines = [line for line in self._failure[1:] if line.strip() and not line.startswith("ninja: ")]
        telling = re.compile(r"\b(error|undefined reference|Error)\b")
        errors = [i for i, line in enumerate(lines) if telling.search(line)]
        if errors and len(lines) > limit:
            # Start one line before the first error: "In function ...".
            lines = lines[max(0, errors[0] - 1) :]
        return (lines or self._last)[:limit]


def configure_reasons(lines: Sequence[str]) -> list[str]:
    """What configure or meson say went wrong; their last lines, if they do not say."""
    errors = [i for i, line in enumerate(lines) if re.search(r"\bERROR\b|^error:", line)]
    picked = list(lines[errors[0] :]) if errors else list(lines)[-10:]
    return [line for line in picked if line.strip()][:12]


def ninja(
    build_dir: Path,
    targets: Sequence[str],
    title: str,
    jobs: int | None,
    log: Path,
    locks: tuple[int, ...],
    originals: Callable[[str], str] = str,
) -> None:
    """Make the targets; raises BuildFailed. `originals` turns names of copies in a message into ours."""
    argv = [tool("ninja"), "-C", os.fspath(build_dir)]
    if jobs:
        argv.append(f"-j{jobs}")
    output = NinjaOutput()
    with progress.task(title, unit="steps") as task:

        def on_line(line: str) -> None:
            output.feed(line)
            task.set(output.done, total=output.total or None, note=output.doing[:60])

        # When we die, SIGTERM makes ninja stop its compilers and remove what they left half-written; SIGPIPE,
        # which comes first where it is just telling us its progress, would leave them running.
        status = logged([*argv, *targets], log, on_line, lock_fds=locks, ignore_sigpipe=True)
    if status:
        what = f"{title}: {output.failed or 'ninja'}"
        raise BuildFailed(what, [originals(line) for line in output.reasons()], log)


def meson_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("meson")
    except PackageNotFoundError as e:
        raise NitroError("meson is not installed beside nitroctl", hint="make setup") from e
