# SPDX-License-Identifier: MIT
"""What an enclave is planned to be, its context ID, and what its console says. No process is started."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_fakes import write_eif
from nitroctl.base.accelerator import Accelerator
from nitroctl.base.errors import (
    ApplicationFailed,
    BootTimeout,
    EifError,
    EnclaveError,
    GuestPanic,
    NitroError,
)
from nitroctl.enclaves.console import LINE_MAX, TAIL_LINES, ConsoleWatch
from nitroctl.enclaves.folder import release, reserve
from nitroctl.enclaves.plan import default_boot_timeout, default_name, make_plan
from nitroctl.enclaves.records import Ending, Party
from nitroctl.enclaves.request import EnclaveConfig
from nitroctl.enclaves.result import Result
from nitroctl.enclaves.sink import FdSink

GIB = 1 << 30
TRUE = Path("/bin/true")  # an executable that stands for QEMU and the backend


def request(eif: Path, **more: object) -> EnclaveConfig:
    accel = Accelerator("tcg", "because")
    return EnclaveConfig(eif, TRUE, TRUE, accel=accel, **more)  # type: ignore[arg-type]


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    return write_eif(tmp_path / "hello.eif")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder / "nitroctl"


# ---- plan


def test_defaults(eif: Path) -> None:
    plan = make_plan(request(eif))
    assert (plan.name, plan.memory_mib, plan.cpus, plan.cid) == ("hello", 512, 1, None)
    assert plan.instance_id == "i-0000000000000000"  # 16 zeros: PCR4 is the same on every machine
    assert plan.role is None
    assert plan.boot_timeout == 180
    assert plan.acpi is False


@pytest.mark.parametrize(
    ("size", "memory", "seconds"),
    [
        # nitro-cli's own checks of its rule, then its borders.
        (2 * GIB, 32 * GIB, 180), (10 * GIB, 32 * GIB, 270), (10 * GIB, 128 * GIB, 360),
        (1, 1, 180), (6 * GIB, 100 * GIB, 180), (6 * GIB + 1, 100 * GIB, 270), (6 * GIB, 100 * GIB + 1, 270),
    ],
)  # fmt: skip
def test_boot_timeout_is_nitro_clis(size: int, memory: int, seconds: float) -> None:
    assert default_boot_timeout(size, memory) == seconds


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("hello.eif", "hello"), ("a.eif.eif", "a"), ("hello", "hello"), ("a.eif.bin", "a.eif.bin"),
        (".eif", ".eif"), ("my app (1), über.eif", "my app (1), über"), ("a\nb\x1b[2J.eif", "a?b?[2J"),
        (os.fsdecode(b"\xff.eif"), "?"),
    ],
)  # fmt: skip
def test_default_name(file: str, name: str) -> None:
    assert default_name(Path("/x") / file) == name


def test_no_file_and_no_eif(tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"absent\.eif.*No such file") as error:
        make_plan(request(tmp_path / "absent.eif"))
    assert error.value.rule == "io"
    (tmp_path / "x.eif").write_bytes(b"MZ" * 400)
    with pytest.raises(EifError) as error:
        make_plan(request(tmp_path / "x.eif"))
    assert error.value.rule == "bad-magic"


@pytest.mark.parametrize(
    ("custom", "acpi"),
    [
        ({"nitroctl": {"acpi": True}}, True),
        ({"nitroctl": {"acpi": False}}, False),
        ({"nitroctl": {"acpi": 1}}, False),
        ({"nitroctl": [True]}, False),
        ({"acpi": True}, False),
        (None, False),
    ],
)
def test_a_kernel_that_needs_acpi_says_so_in_the_metadata(
    tmp_path: Path, custom: object, acpi: bool
) -> None:
    assert make_plan(request(write_eif(tmp_path / "x.eif", custom))).acpi is acpi


# ---- context IDs


def test_the_lowest_free_context_ids(runtime: Path) -> None:
    first, second = reserve(None), reserve(None)
    assert (first.cid, second.cid) == (16, 17)
    assert second.path == runtime / "17"
    assert second.path.stat().st_mode & 0o777 == 0o700
    release(first)
    third = reserve(None)
    assert third.cid == 16
    release(second)
    release(third)
    assert list(runtime.iterdir()) == []


def test_a_context_id_in_use(runtime: Path) -> None:
    folder = reserve(99)
    with pytest.raises(EnclaveError, match="context ID 99 is in use"):
        reserve(99)
    release(folder)
    release(reserve(99))


def test_what_a_crash_left_is_taken_over(runtime: Path) -> None:
    reserve(None)  # makes the folder; then everything below dies without cleaning
    folder = runtime / "17"
    folder.mkdir(mode=0o700)
    (folder / "vsock_5000").touch()
    taken = reserve(None)
    assert taken.cid == 17
    assert list(folder.iterdir()) == []
    release(taken)


def test_a_lock_on_a_removed_folder_is_worth_nothing(runtime: Path) -> None:
    """Whoever opened the folder before its owner removed it must not believe to own the new one."""
    first = reserve(16)
    late = os.open(first.path, os.O_RDONLY)
    release(first)
    fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = reserve(16)
    assert not os.path.samestat(os.fstat(late), os.stat(second.path))
    os.close(late)
    release(second)


def test_many_at_once_get_different_context_ids(runtime: Path) -> None:
    """Reserving, removing and reserving again in eight threads: at no moment do two have the same ID."""
    held: set[int] = set()
    guard = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                folder = reserve(None)
                with guard:
                    assert folder.cid not in held
                    held.add(folder.cid)
                with guard:
                    held.remove(folder.cid)
                release(folder)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert list(runtime.iterdir()) == []


def test_a_runtime_folder_too_deep_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(NitroError, match="at most 107") as error:
        reserve(None)
    assert error.value.hint and "XDG_RUNTIME_DIR" in error.value.hint
    assert list((deep / "nitroctl").iterdir()) == []


# ---- the console


def watch(*pieces: bytes) -> ConsoleWatch:
    console = ConsoleWatch()
    for piece in pieces:
        console.feed(piece)
    return console


PANIC = b"[    1.500000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"


@pytest.mark.parametrize(
    "line",
    [
        PANIC,
        b"[    1.500000][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
        b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n",
    ],
)
def test_a_panic_is_recognised(line: bytes) -> None:
    console = watch(b"hello\r\n", line)
    assert console.panic == "Attempted to kill init! exitcode=0x00000100"
    assert console.last_word == "hello"
    assert not console.panic_over
    console.feed(b"[    1.600000] Rebooting in 30 seconds..")
    assert not console.panic_over
    console.feed(b"\r\n")
    assert console.panic_over


def test_the_end_of_a_panic_without_reboot() -> None:
    assert watch(PANIC, b"[    1.600000] ---[ end Kernel panic - not syncing: X ]---\n").panic_over


def test_an_unfinished_line_before_a_panic_does_not_hide_it() -> None:
    """The kernel does not know what the terminal shows: it goes on in the application's line."""
    console = watch(b"working ... ", PANIC)
    assert console.panic == "Attempted to kill init! exitcode=0x00000100"


@pytest.mark.parametrize("text", ["System halted", "Power down"])
def test_a_halt_is_recognised(text: str) -> None:
    assert watch(f"[   12.345678] reboot: {text}\r\n".encode()).halted == text


@pytest.mark.parametrize(
    "line",
    [
        b"the log says Kernel panic - not syncing: no\n",
        b"Kernel panic\n",
        b"[ x ] Kernel panic - not syncing: no\n",
        b"> [    1.0] reboot: System halted\n",
        b"[    1.000000] app: reboot: System halted\n",
        b"reboot: Restarting system\n",
    ],
)
def test_what_is_no_kernel_message_does_not_count(line: bytes) -> None:
    console = watch(line)
    assert console.panic is None
    assert console.halted is None


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(deadline=None)
def test_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """The same facts whatever the sizes in which the bytes arrive."""
    whole = data + b"\n" + PANIC + b"tail"
    edges = sorted({0, len(whole), *(min(c, len(whole)) for c in cuts)})
    pieces = [whole[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    one, many = watch(whole), watch(*pieces)
    assert one.panic == many.panic is not None
    assert one.tail() == many.tail()
    assert one.received == many.received == len(whole)


def test_a_hostile_console_costs_little() -> None:
    console = watch(b"x" * (1 << 20), b"\n" * 100_000, b"\x1b[2J\x00\xff" * 1000)
    lines = console.tail()
    assert len(lines) <= TAIL_LINES + 1
    assert all(len(line) <= LINE_MAX and line.isprintable() for line in lines)


# ---- sinks


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    if request.param == "pipe":
        reader, writer = os.pipe()
    else:
        a, b = socket.socketpair()
        reader, writer = a.detach(), b.detach()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_slow_reader_does_not_block_the_loop(ends: tuple[int, int]) -> None:
    """A megabyte into a pipe that is read only after the loop has done something else."""
    reader, writer = ends
    data = bytes(range(256)) * 4096

    async def main() -> bytes:
        sink = FdSink(writer)
        task = asyncio.get_running_loop().create_task(sink.write(data))
        await asyncio.sleep(0.01)
        assert not task.done()
        os.set_blocking(reader, False)
        got = b""
        while len(got) < len(data):
            try:
                got += os.read(reader, 65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        await task
        sink.close()
        return got

    assert asyncio.run(main()) == data
    assert os.get_blocking(writer), "the descriptor is shared and must stay as it was"


def test_a_regular_file_keeps_its_position(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb", buffering=0) as f:
        f.write(b"before ")
        sink = FdSink(f.fileno())
        asyncio.run(sink.write(b"console "))
        sink.close()
        f.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before console after"


def test_a_reader_that_went_away(ends: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        asyncio.run(FdSink(writer).write(b"x"))
    os.close(writer)


# ---- results


@pytest.mark.parametrize(
    ("ending", "signum", "status", "error"),
    [
        (Ending.ORDERLY, None, 0, None),
        (Ending.FAILED, None, 1, EnclaveError),
        (Ending.APPLICATION, None, 5, ApplicationFailed),
        (Ending.NO_HEARTBEAT, None, 3, BootTimeout),
        (Ending.PANIC, None, 4, GuestPanic),
        (Ending.STOPPED, 2, 130, None),
        (Ending.STOPPED, 15, 143, None),
        (Ending.STOPPED, 1, 129, None),
    ],
)
def test_exit_statuses(
    ending: Ending, signum: int | None, status: int, error: type[EnclaveError] | None
) -> None:
    result = Result(ending, "why", True, Party.GUEST, signal=signum)
    assert result.status == status
    if error is None:
        result.check()
    else:
        with pytest.raises(error, match="why") as caught:
            result.check()
        assert caught.value.exit_status == status
