# SPDX-License-Identifier: MIT
"""`nitroctl build` on the stage of buildstage.py: what a build makes, what is built again, interruptions,
failures, a folder of the user's. The graft, links and a failed step's words are beside this file:
test_build_*.py.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from buildstage import Stage, make_tarball, write
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.toolchain import cache, places, source
from nitroctl.toolchain.steps import BuildFailed
from nitroctl.toolchain.tree import BuildOptions, build_qemu

# --- a build -----------------------------------------------------------------------------------------------


def test_a_product_is_complete(stage: Stage) -> None:
    made = stage.build()
    assert stage.steps()[0] == "configure"
    machines = subprocess.run([made.qemu, "-M", "help"], capture_output=True, text=True, check=True)
    assert machines.stdout == "nitro-enclave   AWS Nitro Enclave\n"
    for name in source.FIRMWARE_FILES:
        # Where QEMU looks: beside bin/ (get_relocated_path in its util/cutils.c), or in its build folder.
        assert (made.root / "share/qemu" / name).read_text() == f"firmware {name}"
        bundle = Path(made.build_dir) / "qemu-bundle/usr/local/share/qemu" / name
        assert bundle.read_text() == f"firmware {name}"
    assert made.version == "10.0.99" and made.series == "10.0" and not made.sanitize
    assert made.qtests == ["nitro-overlay/tests/qtest/nitro-test"]
    assert (Path(made.build_dir) / made.qtests[0]).is_file()
    assert (
        made.qemu_sha256
        == subprocess.run(["sha256sum", made.qemu], capture_output=True, text=True, check=True).stdout[:64]
    )
    assert "--without-default-devices" in made.configure
    assert json.loads((made.root / "manifest.json").read_text())["key"] == made.key
    assert places.locate("qemu") == made.qemu
    assert not (Path(made.source_dir) / "roms").exists()


def test_the_second_time_nothing_runs(stage: Stage) -> None:
    first = stage.build()
    stage.steps()
    assert stage.build() == first
    assert stage.steps() == []


@pytest.mark.parametrize(
    "path, text, expected",
    [
        ("hw/nitro.c", "nitro-enclave   changed\n", ["compile nitro.o", "link qemu-system-x86_64"]),
        ("include/nitro.h", "changed\n", ["compile nitro.o", "link qemu-system-x86_64"]),
        ("tests/qtest/nitro-test.c", "changed\n", ["compile nitro-overlay/tests/qtest/nitro-test"]),
    ],
)
def test_a_change_of_ours_rebuilds_ours(stage: Stage, path: str, text: str, expected: list[str]) -> None:
    first = stage.build()
    stage.steps()
    write(stage.checkout / path, text)
    # As a wheel does: the file's time says that it is old.
    os.utime(stage.checkout / path, (1577836800, 1577836800))
    second = stage.build()
    assert stage.steps() == expected
    assert second.key != first.key
    # The old one is still whole for those who run it.
    assert first.qemu.is_file()


def test_a_touch_rebuilds_nothing(stage: Stage) -> None:
    stage.build()
    stage.steps()
    (stage.checkout / "hw" / "nitro.c").touch()
    stage.build()
    assert stage.steps() == []


def test_a_file_that_goes_goes_from_the_build(stage: Stage) -> None:
    write(stage.checkout / "hw" / "extra" / "more.c", "more\n")
    first = stage.build()
    copy = Path(first.source_dir) / "nitro-overlay/hw/extra"
    assert copy.is_dir()
    shutil.rmtree(stage.checkout / "hw" / "extra")
    assert stage.build().key != first.key
    assert not copy.exists()


def test_two_checkouts_share_a_build_folder(stage: Stage) -> None:
    first = stage.build()
    original = (stage.checkout / "hw" / "nitro.c").read_text()
    write(stage.checkout / "hw" / "nitro.c", "nitro-enclave   other checkout\n")
    second = stage.build()
    write(stage.checkout / "hw" / "nitro.c", original)
    third = stage.build()
    assert first.key == third.key != second.key
    assert first.build_dir == second.build_dir
    machines = subprocess.run([third.qemu], capture_output=True, text=True, check=True).stdout
    assert machines == original


def test_a_vanished_environment_configures_again(stage: Stage) -> None:
    made = stage.build()
    stage.steps()
    link = Path(made.build_dir) / "pyvenv/bin/python3"
    link.unlink()
    link.symlink_to("/nonexistent/python3")
    write(stage.checkout / "hw" / "nitro.c", "nitro-enclave   changed\n")
    stage.build()
    assert stage.steps()[0] == "configure"


def test_sanitized_and_plain_are_two(stage: Stage) -> None:
    plain = stage.build()
    sanitized = stage.build(sanitize=True)
    assert plain.key != sanitized.key and plain.build_dir != sanitized.build_dir
    assert plain.source_dir == sanitized.source_dir
    assert {"--enable-asan", "--enable-ubsan"} <= set(sanitized.configure) - set(plain.configure)
    assert places.locate("qemu") == plain.qemu and places.locate("qemu", sanitize=True) == sanitized.qemu


def test_prune_after_builds_keeps_what_is_current(stage: Stage) -> None:
    old = stage.build()
    write(stage.checkout / "hw" / "nitro.c", "nitro-enclave   changed\n")
    new = stage.build()
    removed, busy = cache.prune()
    assert [e.key for e in removed] == [old.key] and not busy
    stage.steps()
    assert stage.build() == new
    assert stage.steps() == []


# --- interruptions -----------------------------------------------------------------------------------------


# Builds the stage in argv[1] like the fixture does.
CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import buildstage
stage = object.__new__(buildstage.Stage)
stage.checkout, stage.tarball = Path(sys.argv[1]) / "checkout", Path(sys.argv[1]) / "qemu-10.0.99.tar.xz"
buildstage.use_stage(stage, setattr)
stage.build()
"""


def first_line(fifo: Path, child: subprocess.Popen[bytes]) -> str:
    """What is said first through `fifo`; nothing if `child` ends before."""
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)) as said:
        ended = os.pidfd_open(child.pid)
        try:
            select.select([said.fileno(), ended], [], [])
            return said.readline()
        finally:
            os.close(ended)


@pytest.mark.parametrize("step", ["configure", "nitro.o", "other.o", "product"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill-9", "ctrl-c"])
def test_interrupted_builds_are_completed(stage: Stage, step: str, how: signal.Signals) -> None:
    stopped = stage.tmp / "stopped"
    os.mkfifo(stopped)
    here = Path(__file__).parent
    argv = [sys.executable, "-c", CHILD, str(stage.tmp), str(here), str(here.parent)]
    with subprocess.Popen(argv, env={**os.environ, "STOP_AT": step}, stderr=subprocess.DEVNULL) as child:
        assert first_line(stopped, child) == "stopped\n"  # the step is reached
        child.send_signal(how)
        assert child.wait() != 0
    assert not (stage.tmp / "cache/nitroctl/qemu").exists() or not any(
        e for e in cache.entries() if e.kind == "qemu" and e.finished
    )
    stage.steps()
    made = stage.build()
    assert subprocess.run([made.qemu], capture_output=True, check=True).stdout.startswith(b"nitro-enclave")
    if step in ("nitro.o", "other.o"):
        # What was compiled is kept; what was half-written is not taken for done.
        assert "configure" not in (ran := stage.steps()) and f"compile {step}" in ran
        assert (Path(made.build_dir) / step).read_text() != "half"
    assert build_qemu(BuildOptions(source=stage.tarball)) == made
    assert [e for e in cache.entries() if not e.finished] == []


# --- failures ----------------------------------------------------------------------------------------------


def test_an_error_of_the_compiler(stage: Stage) -> None:
    write(stage.checkout / "hw" / "nitro.c", "oops\n")
    with pytest.raises(BuildFailed) as caught:
        stage.build()
    assert "nitro.o" in caught.value.step
    # Named as the file that one edits, not as our copy of it.
    reason, where = caught.value.lines
    assert reason == f"{stage.checkout}/hw/nitro.c:1:1: error: 'oops' undeclared"
    assert where == f"the whole log is in {caught.value.log}"
    assert str(caught.value.log) in str(caught.value)
    assert "FAILED" in caught.value.log.read_text()
    with pytest.raises(NitroError, match="nitroctl"):
        places.locate("qemu")
    write(stage.checkout / "hw" / "nitro.c", "nitro-enclave   fixed\n")
    stage.build()


def test_an_error_of_configure(stage: Stage) -> None:
    write(stage.tree / "broken-configure", "")
    tarball = make_tarball(stage.tmp, stage.tree)
    with pytest.raises(BuildFailed, match="configuring QEMU failed") as caught:
        stage.build(source=tarball)
    assert caught.value.lines[:-1] == ("ERROR: Dependency gnutls not found",)


def test_a_build_without_the_machine(stage: Stage) -> None:
    """As Kconfig makes it when something that the machine depends on is missing."""
    write(stage.checkout / "hw" / "nitro.c", "microvm         microvm (i386)\n")
    with pytest.raises(NitroError, match="no machine nitro-enclave"):
        stage.build()


def test_no_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(stage.tmp)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=10**6))
    with pytest.raises(NitroError, match="needs .* of disk"):
        stage.build()
    assert stage.steps() == []
    assert [e for e in cache.entries() if e.kind != "apt"] == []


def test_a_cache_path_that_configure_does_not_take(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(stage.tmp / "a cache"))
    with pytest.raises(NitroError, match="no spaces"):
        stage.build()


@pytest.mark.parametrize(
    "content, message",
    [(b"no tarball", "unpacking"), (None, "no QEMU release tarball")],
)
def test_a_wrong_tarball(stage: Stage, content: bytes | None, message: str) -> None:
    tarball = stage.tmp / "wrong.tar.gz"
    if content is None:
        with tarfile.open(tarball, "w:gz") as tar:
            tar.add(stage.checkout, arcname="other")
    else:
        tarball.write_bytes(content)
    with pytest.raises(NitroError, match=message):
        stage.build(source=tarball)
    assert [e for e in cache.entries() if e.kind == "qemu-source"] == []


def test_a_source_without_firmware(stage: Stage) -> None:
    (stage.tree / "pc-bios" / "qboot.rom").unlink()
    with pytest.raises(NitroError, match=r"lacks qboot\.rom"):
        stage.build(source=make_tarball(stage.tmp, stage.tree))


@pytest.mark.parametrize(
    "version, series, message",
    [
        ("9.2.1", None, r"no graft for QEMU 9\.2\.1"),
        ("10.0.5", "9.2", r"QEMU 10\.0\.5, not of series 9\.2"),
    ],
)
def test_series(stage: Stage, version: str, series: str | None, message: str) -> None:
    write(stage.tree / "VERSION", version)
    with pytest.raises(UsageError, match=message):
        stage.build(source=stage.tree, series=series)


def test_not_a_source(stage: Stage) -> None:
    with pytest.raises(UsageError, match="no such file"):
        stage.build(source=stage.tmp / "nothing")
    with pytest.raises(UsageError, match="no QEMU source tree"):
        stage.build(source=stage.checkout)


# --- a folder of the user's --------------------------------------------------------------------------------


def test_a_folder_is_grafted_in_place(stage: Stage) -> None:
    first = stage.build(source=stage.tree)
    assert (stage.tree / "nitro-overlay").resolve() == stage.checkout
    assert "nitro-overlay" in (stage.tree / "Kconfig").read_text()
    assert (stage.tree / "roms").exists(), "the user's files stay"
    stage.steps()
    assert stage.build(source=stage.tree) == first
    assert stage.steps() == []
    # Also what is not ours is seen there.
    write(stage.tree / "other.c", "changed by hand\n")
    stage.build(source=stage.tree)
    assert stage.steps() == ["compile other.o", "link qemu-system-x86_64"]


def test_a_folder_in_the_way_of_the_link(stage: Stage) -> None:
    (stage.tree / "nitro-overlay").mkdir()
    with pytest.raises(NitroError, match="should be a link"):
        stage.build(source=stage.tree)
