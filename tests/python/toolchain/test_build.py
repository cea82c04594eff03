# SPDX-License-Identifier: MIT
"""`nitroctl build` on a small stand-in for QEMU: real tar, patch and ninja, our own configure and compiler.

The stand-in's build.ninja "compiles" by copying, and its emulator is a shell script that knows one machine.
The real thing is built by `make check` itself.
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
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from jsonpage import answer
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.commands.build import build as build_command
from nitroctl.commands.which import which as which_command
from nitroctl.toolchain import cache, packages, places, source, steps, tree
from nitroctl.toolchain.steps import BuildFailed, NinjaOutput, configure_reasons
from nitroctl.toolchain.tree import BuildOptions, build_qemu

PATCH = """\
SPDX-License-Identifier: GPL-2.0-or-later

--- a/Kconfig
+++ b/Kconfig
@@ -1,3 +1,4 @@
 source target/Kconfig
 source hw/Kconfig
+source nitro-overlay/Kconfig
 source semihosting/Kconfig
--- a/meson.build
+++ b/meson.build
@@ -1,3 +1,4 @@
 subdir('gdbstub')
 subdir('hw')
+subdir('nitro-overlay/hw')
 subdir('tests')
"""

# Stops at the step that $STOP_AT names, after saying so in $STOPPED; everything that runs is in $STEPS.
CONFIGURE = """#!/bin/sh
set -e
echo "configure $*" >> "$STEPS"
src=$(dirname "$0")
[ "$STOP_AT" = configure ] && { echo stopped > "$STOPPED"; exec sleep 1000; }
[ -e "$src/broken-configure" ] && { echo checking; echo "ERROR: Dependency gnutls not found"; exit 1; }
grep -q nitro-overlay/hw "$src/meson.build"
mkdir -p pyvenv/bin meson-info
ln -s "$(command -v python3)" pyvenv/bin/python3
cat > compile <<'END'
#!/bin/sh
echo "compile $2" >> "$STEPS"
[ "$STOP_AT" = "$2" ] && { printf half > "$2"; echo stopped > "$STOPPED"; exec sleep 1000; }
if grep -q oops "$1"; then
    echo "$1:1:1: error: 'oops' undeclared"
    exit 1
fi
cp "$1" "$2"
END
cat > link <<'END'
#!/bin/sh
echo "link $1" >> "$STEPS"
{
    echo '#!/bin/sh'
    echo '[ "$STOP_AT" = product ] && { echo stopped > "$STOPPED"; exec sleep 1000; }'
    echo "cat <<'MACHINES'"
    cat nitro.o
    echo MACHINES
} > "$1"
chmod +x "$1"
END
chmod +x compile link
cat > build.ninja <<END
rule cc
  command = ./compile \\$in \\$out
rule ld
  command = ./link \\$out
build nitro.o: cc $src/nitro-overlay/hw/nitro.c | $src/nitro-overlay/include/nitro.h
build other.o: cc $src/other.c
build nitro-overlay/tests/qtest/nitro-test: cc $src/nitro-overlay/tests/qtest/nitro-test.c
build qemu-system-x86_64: ld | nitro.o other.o
build build.ninja: phony
END
cat > meson-info/intro-targets.json <<END
[{"type": "executable", "defined_in": "$src/meson.build", "filename": ["$PWD/qemu-system-x86_64"]},
 {"type": "executable", "defined_in": "$src/nitro-overlay/tests/qtest/meson.build",
  "filename": ["$PWD/nitro-overlay/tests/qtest/nitro-test"]},
 {"type": "static library", "defined_in": "$src/nitro-overlay/hw/meson.build", "filename": ["$PWD/x.a"]}]
END
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def make_qemu(folder: Path, version: str = "10.0.99") -> Path:
    write(folder / "VERSION", version + "\n")
    write(folder / "Kconfig", "source target/Kconfig\nsource hw/Kconfig\nsource semihosting/Kconfig\n")
    write(folder / "meson.build", "subdir('gdbstub')\nsubdir('hw')\nsubdir('tests')\n")
    write(folder / "other.c", "other\n")
    write(folder / "roms" / "edk2" / "large", "x" * 1000)
    write(folder / "configure", CONFIGURE, 0o755)
    for name in source.FIRMWARE_FILES:
        write(folder / "pc-bios" / name, f"firmware {name}")
    return folder


def make_tarball(tmp_path: Path, tree: Path) -> Path:
    tarball = tmp_path / "qemu-10.0.99.tar.xz"
    with tarfile.open(tarball, "w:xz") as tar:
        tar.add(tree, arcname="qemu-10.0.99")
    return tarball


class Stage:
    """A checkout of ours, a QEMU, a cache, and the list of steps that ran."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.checkout = tmp_path / "checkout"
        self.steps_file = tmp_path / "steps"
        self.tree = make_qemu(tmp_path / "qemu")
        self.tarball = make_tarball(tmp_path, self.tree)
        write(self.checkout / "graft" / "qemu-10.0.patch", PATCH)
        write(self.checkout / "Kconfig", "config NITRO\n")
        write(self.checkout / "hw" / "nitro.c", "nitro-enclave   AWS Nitro Enclave\n")
        write(self.checkout / "include" / "nitro.h", "header\n")
        write(self.checkout / "tests" / "qtest" / "nitro-test.c", "test\n")

    def steps(self) -> list[str]:
        """What ran since the last call, configure without its options."""
        lines = self.steps_file.read_text().splitlines() if self.steps_file.exists() else []
        self.steps_file.unlink(missing_ok=True)
        return ["configure" if line.startswith("configure ") else line for line in lines]

    def build(self, **options: object) -> tree.Manifest:
        return build_qemu(BuildOptions(**{"source": self.tarball, **options}))  # type: ignore[arg-type]


def use_stage(stage: Stage, setattr: Callable[[object, str, object], None]) -> None:
    """Let nitroctl take the stage's checkout for its own sources, and not look at this host's tools."""
    for module in (tree, source):
        setattr(module, "source_root", lambda: stage.checkout)
        setattr(module, "toolchain", lambda needs: {"cc": "12.2.0"})
    # What is linked into the environment that runs the tests is none of theirs.
    setattr(places, "default_prefix", lambda: stage.checkout.parent / "prefix")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STEPS", str(made.steps_file))
    monkeypatch.setenv("STOPPED", str(tmp_path / "stopped"))
    use_stage(made, monkeypatch.setattr)
    return made


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
import test_build
stage = object.__new__(test_build.Stage)
stage.checkout, stage.tarball = Path(sys.argv[1]) / "checkout", Path(sys.argv[1]) / "qemu-10.0.99.tar.xz"
test_build.use_stage(stage, setattr)
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


# --- graft -------------------------------------------------------------------------------------------------


def files_of(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in sorted(tree.rglob("*")) if p.is_file()}


def test_graft_twice(stage: Stage) -> None:
    patch = stage.checkout / "graft" / "qemu-10.0.patch"
    assert source.apply_graft(patch, stage.tree)
    once = files_of(stage.tree)
    assert (stage.tree / "meson.build").read_text().splitlines() == [
        "subdir('gdbstub')", "subdir('hw')", "subdir('nitro-overlay/hw')", "subdir('tests')"
    ]  # fmt: skip
    assert not source.apply_graft(patch, stage.tree)
    assert files_of(stage.tree) == once


@pytest.mark.parametrize("name", ["Kconfig", "meson.build"])
def test_graft_half_applied_is_completed(stage: Stage, name: str) -> None:
    """Killed between two files."""
    patch = stage.checkout / "graft" / "qemu-10.0.patch"
    original = (stage.tree / name).read_bytes()
    source.apply_graft(patch, stage.tree)
    whole = files_of(stage.tree)
    (stage.tree / name).write_bytes(original)
    assert source.apply_graft(patch, stage.tree)
    assert files_of(stage.tree) == whole


def test_graft_in_moved_lines_fits(stage: Stage) -> None:
    text = "# more\n" * 30 + (stage.tree / "meson.build").read_text()
    write(stage.tree / "meson.build", text)
    assert source.apply_graft(stage.checkout / "graft" / "qemu-10.0.patch", stage.tree)


@pytest.mark.parametrize("name", ["Kconfig", "meson.build"])
@pytest.mark.parametrize("content", [None, "something else\n", "subdir('hw')\n\nsubdir('tests')\n"])
def test_graft_that_does_not_fit(stage: Stage, name: str, content: str | None) -> None:
    if content is None:
        (stage.tree / name).unlink()
    else:
        write(stage.tree / name, content)
    before = files_of(stage.tree)
    with pytest.raises(NitroError, match="the graft does not fit") as caught:
        source.apply_graft(stage.checkout / "graft" / "qemu-10.0.patch", stage.tree)
    assert name in str(caught.value) and "nothing was changed" in str(caught.value.hint)
    assert files_of(stage.tree) == before


def test_the_real_grafts_can_be_read() -> None:
    for series in source.SERIES.values():
        parts = source.split_patch(series.graft.read_text())
        assert set(parts) == {"Kconfig", "meson.build"}
        added = [line for part in parts.values() for line in part.splitlines()[2:] if line.startswith("+")]
        ours = [line for line in added if source.LINK in line]
        # 7.2 does not tell its Kconfig of libcbor, gnutls and libfdt by itself.
        others = {
            "7.2": ["libcbor = ", "CONFIG_LIBCBOR", "CONFIG_GNUTLS", "CONFIG_FDT"],
            "10.0": [],
            "10.2": [],
        }[series.name]
        assert len(ours) == (5 if others else 4)
        rest = [line for line in added if line not in ours and line != "+"]
        assert len(rest) == len(others)
        assert all(word in line for word, line in zip(others, rest, strict=True))


# --- what a failed step says -------------------------------------------------------------------------------

NINJA_FAILURE = """\
ninja: Entering directory `/build'
[1/1366] Generating ui/input.c with a custom command
[1351/1366] Compiling C object libcommon.a.p/fine.c.o
[1352/1366] Compiling C object libcommon.a.p/nitro.c.o
FAILED: {code}libcommon.a.p/nitro.c.o
cc -m64 -Ilibcommon.a.p -I.. -Wall -O2 -o libcommon.a.p/nitro.c.o -c ../nitro.c
../nitro.c: In function 'f':
../nitro.c:3:5: error: 'x' undeclared (first use in this function)
    3 |     x = 1;
      |     ^
[1353/1366] Compiling C object libcommon.a.p/later.c.o
../later.c:9:9: warning: unused variable 'y'
FAILED: {code}libcommon.a.p/third.c.o
cc -c ../third.c
../third.c:1:1: error: another
ninja: build stopped: subcommand failed.
"""


@pytest.mark.parametrize("code", ["", "[code=1] "])
def test_ninja_failure(code: str) -> None:
    output = NinjaOutput()
    for line in NINJA_FAILURE.format(code=code).splitlines():
        # ninja ends this line with a space.
        output.feed(line + " " if line.startswith("FAILED") else line)
    assert (output.done, output.total) == (1353, 1366)
    assert output.failed == "libcommon.a.p/nitro.c.o"
    assert output.reasons() == [
        "../nitro.c: In function 'f':",
        "../nitro.c:3:5: error: 'x' undeclared (first use in this function)",
        "    3 |     x = 1;",
        "      |     ^",
    ]


def test_ninja_failure_of_many_lines_begins_at_the_error() -> None:
    output = NinjaOutput()
    lines = ["FAILED: a.o", "cc a.c"] + [f"note {i}" for i in range(50)]
    lines += ["a.c: In function 'f':", "a.c:1:1: error: no"] + [f"more {i}" for i in range(50)]
    for line in lines:
        output.feed(line)
    assert output.reasons(limit=4) == ["a.c: In function 'f':", "a.c:1:1: error: no", "more 0", "more 1"]


def test_ninja_failure_without_a_step() -> None:
    output = NinjaOutput()
    output.feed("ninja: error: loading 'build.ninja': No such file or directory")
    assert output.reasons() == ["ninja: error: loading 'build.ninja': No such file or directory"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\nb\n../meson.build:7:0: ERROR: Unknown type\n\nA full log\n",
         ["../meson.build:7:0: ERROR: Unknown type", "A full log"]),
        ("ERROR: glib-2.66 is required\n", ["ERROR: glib-2.66 is required"]),
        ("one\ntwo\n", ["one", "two"]),
    ],
)  # fmt: skip
def test_configure_reasons(text: str, expected: list[str]) -> None:
    assert configure_reasons(text.splitlines()) == expected


# --- the host's packages -----------------------------------------------------------------------------------


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", "/nonexistent")
    monkeypatch.delenv("PKG_CONFIG_PATH", raising=False)
    with pytest.raises(NitroError) as caught:
        steps.toolchain(packages.BUILD)
    assert "libcbor" in str(caught.value) and "gnutls" in str(caught.value)
    hint = str(caught.value.hint)
    assert "libcbor-dev" in hint and "libgnutls28-dev" in hint and "gcc" not in hint


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cc").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = {need.what for need in packages.missing(packages.BUILD)}
    assert "make" in lacking and "cc" not in lacking


def test_one_missing_library_among_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "one.pc").write_text("Name: one\nDescription: d\nVersion: 1.5\n")
    (tmp_path / "two.pc").write_text("Name: two\nDescription: d\nVersion: 2\n")
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path))
    assert packages.versions(["one", "none", "two"]) == {"one": "1.5", "two": "2"}
    assert packages.versions(["one", "two"]) == {"one": "1.5", "two": "2"}


@pytest.mark.parametrize(
    "manager, uid, expected",
    [
        ("apt-get", 0, "apt-get install libcbor-dev libfdt-dev"),
        ("apt-get", 1000, "sudo apt-get install libcbor-dev libfdt-dev"),
        ("dnf", 1000, "sudo dnf install libcbor-devel libfdt-devel"),
        ("none", 1000, "install what Debian calls libcbor-dev libfdt-dev"),
    ],
)
def test_install_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manager: str, uid: int, expected: str
) -> None:
    write(tmp_path / manager, "", 0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    needs = [need for need in packages.BUILD if need.what in ("libcbor", "libfdt.h")]
    assert packages.install_line(needs) == expected


# --- links and commands ------------------------------------------------------------------------------------


def program(kind: str, key: str, name: str) -> Path:
    def fill(folder: Path) -> None:
        write(folder / "bin" / name, "#!/bin/sh\n", 0o755)

    return cache.build_entry(kind, key, fill) / "bin" / name


def test_links(stage: Stage) -> None:
    old, new = program("qemu", "old", places.QEMU), program("qemu", "new", places.QEMU)
    prefix = stage.tmp / "prefix"
    link = prefix / "bin" / places.QEMU
    assert tree.link_programs([old], prefix) == [(link, old, True)]
    assert tree.link_programs([old], prefix) == [(link, old, False)]
    assert tree.link_programs([new], prefix) == [(link, new, True)]
    assert link.resolve() == new


def test_a_linked_program_is_not_pruned(stage: Stage) -> None:
    old = program("qemu", "old", places.QEMU)
    tree.link_programs([old], stage.tmp / "prefix")
    program("qemu", "new", places.QEMU)
    cache.prune()
    assert old.is_file()


def test_the_backend_is_rebuilt_when_the_environment_that_configured_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of one C file, real meson and ninja."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "checkout"
    code = root / "contrib" / places.BACKEND / "main.c"
    folders = "".join(f"subdir('contrib/{name}')\n" for name in (places.BACKEND, places.PRELOAD))
    write(root / "meson.build", f"project('x', 'c')\n{folders}")
    write(code.parent / "meson.build", f"executable('{places.BACKEND}', 'main.c')\n")
    library = root / "contrib" / places.PRELOAD
    write(library / "preload.c", "int preloaded;\n")
    module = f"shared_module('{places.PRELOAD}', 'preload.c', name_prefix: '')\n"
    write(library / "meson.build", module)
    write(code, "int main(void) { return 3; }\n")
    monkeypatch.setattr(tree, "source_root", lambda: root)
    # An environment of its own, whose meson is only known there.
    gone = tmp_path / "venv" / "meson"
    gone.parent.mkdir()
    shutil.copy(steps.tool("meson"), gone)
    here = steps.tool
    with monkeypatch.context() as patch:
        patch.setattr(tree, "tool", lambda name: str(gone) if name == "meson" else here(name))
        made = tree.build_backend()
        assert subprocess.run([made]).returncode == 3
        assert (made.parents[1] / "lib" / f"{places.PRELOAD}.so").is_file()
    gone.unlink()
    write(code, "int main(void) { return 4; }\n")
    (code.parent / "meson.build").write_text(f"# later\nexecutable('{places.BACKEND}', 'main.c')\n")
    assert subprocess.run([tree.build_backend()]).returncode == 4


def test_a_file_in_the_way_of_a_link_stays(stage: Stage) -> None:
    made = program("qemu", "a", places.QEMU)
    theirs = stage.tmp / "prefix" / "bin" / places.QEMU
    write(theirs, "the distribution's")
    with pytest.raises(NitroError, match="exists and is no link"):
        tree.link_programs([made], stage.tmp / "prefix")
    assert theirs.read_text() == "the distribution's"


def test_the_commands(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = stage.tmp / "prefix"
    backend = program("vsock", "key", places.BACKEND)
    monkeypatch.setattr(tree, "build_backend", lambda **options: backend)
    arguments = ["--source", str(stage.tarball), "--prefix", str(prefix)]
    result = CliRunner().invoke(build_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for name in (places.QEMU, places.BACKEND):
        assert f"linked {prefix}/bin/{name} -> " in result.output
        assert (prefix / "bin" / name).is_file()
    result = CliRunner().invoke(build_command, [*arguments, "--json"], catch_exceptions=False)
    made = answer("nitroctl build", result.stdout)
    assert made["version"] == "10.0.99" and made["vsock"] == str(backend) and made["sanitized"] is None
    for what, expected in (("qemu", made["qemu"]), ("vsock", str(backend))):
        assert CliRunner().invoke(which_command, [what]).output == f"{expected}\n"
    # The library that an older nitroctl has not built is said to be absent.
    result = CliRunner().invoke(which_command, ["preload"])
    assert isinstance(result.exception, NitroError) and result.exception.hint == "nitroctl build"
    library = backend.parents[1] / "lib" / f"{places.PRELOAD}.so"
    write(library, "")
    assert CliRunner().invoke(which_command, ["preload"]).output == f"{library}\n"


@pytest.mark.parametrize("what", ["qemu", "vsock", "preload"])
def test_which_says_what_makes_it(stage: Stage, what: str) -> None:
    result = CliRunner().invoke(which_command, [what])
    assert isinstance(result.exception, NitroError) and result.exception.hint
    assert result.exception.hint.split(", or, ")[0] == "nitroctl build"
