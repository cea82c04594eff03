# SPDX-License-Identifier: MIT
"""The plugin without QEMU: the launcher on a small program, what dpkg and debian/rules are asked, and the
choice between plugin and tree. The real plugin in the real QEMU: tests/plugin."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from jsonpage import answer
from nitroctl.base.errors import NitroError
from nitroctl.commands.build import build as build_command
from nitroctl.commands.run import run as run_command
from nitroctl.commands.test import test as check_command
from nitroctl.commands.which import which as which_command
from nitroctl.enclaves.ready import ready
from nitroctl.enclaves.request import RunRequest
from nitroctl.toolchain import cache, choice, packages, places, plugin, plugin_build, tree
from nitroctl.toolchain.plugin import Manifest
from nitroctl.toolchain.plugin_build import Installed

ROOT = Path(__file__).resolve().parents[3]
ID = "00112233445566778899aabbccddeeff00112233"

# Stands in for QEMU: what it was started with, and what a child of its would see.
QEMU_C = """
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
    const char *preload = getenv("LD_PRELOAD");
    for (int i = 1; i < argc; i++)
        printf("argument <%s>\\n", argv[i]);
    printf("preload <%s>\\n", preload ? preload : "unset");
    fflush(stdout);
    return system("test -z \\"${LD_PRELOAD+set}\\" && echo child unset || echo \\"child <$LD_PRELOAD>\\"");
}
"""


def cc(*arguments: str | Path) -> None:
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", *map(str, arguments)], check=True)


class Stage:
    """A stand-in for QEMU, a plugin of hw/plugin/preload.c alone, and a launcher for both."""

    def __init__(self, tmp: Path, package: str = "qemu-system-x86") -> None:
        self.tmp = tmp
        self.qemu = tmp / "qemu"
        (tmp / "qemu.c").write_text(QEMU_C)
        cc("-o", self.qemu, f"-Wl,--build-id=0x{ID}", tmp / "qemu.c")
        for folder in ("bin", "lib"):
            (tmp / folder).mkdir()
        self.plugin = tmp / "lib" / "nitro-enclave.so"
        cc("-shared", "-fPIC", "-o", self.plugin, ROOT / "hw/plugin/preload.c")
        self.launcher = tmp / "bin" / "qemu-system-x86_64"
        self.installed = Installed(self.qemu, package, "1:7.2+x+b3", "1:7.2+x", ID)
        plugin_build.compile_launcher(ROOT / plugin_build.LAUNCHER, self.installed, self.launcher)

    def run(self, *arguments: str, preload: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        if preload is not None:
            env["LD_PRELOAD"] = preload
        argv: list[str | Path] = [self.launcher, *arguments]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# --- the launcher ----------------------------------------------------------------------------------------


def test_arguments_arrive_and_nothing_leaks(stage: Stage) -> None:
    done = stage.run("-M", "a b", "", "ü")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "argument <-M>", "argument <a b>", "argument <>", "argument <ü>", "preload <unset>", "child unset"
    ]  # fmt: skip


def test_it_was_preloaded(stage: Stage) -> None:
    env = {**os.environ, "LD_DEBUG": "files"}
    done = subprocess.run([stage.launcher], env=env, capture_output=True, text=True, check=True)
    assert f"calling init: {stage.plugin}" in done.stderr


def test_the_users_own_preload_stays(stage: Stage) -> None:
    own = stage.tmp / "own.so"
    (stage.tmp / "own.c").write_text("int nitro_test_nothing;\n")
    cc("-shared", "-fPIC", "-o", own, stage.tmp / "own.c")
    done = stage.run(preload=str(own))
    assert done.stdout.splitlines() == [f"preload <{own}>", f"child <{own}>"]
    assert done.stderr == ""


def test_a_changed_qemu_is_refused(stage: Stage) -> None:
    other = "ff" * 20
    cc("-o", stage.qemu, f"-Wl,--build-id=0x{other}", stage.tmp / "qemu.c")
    done = stage.run()
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    for part in (
        str(stage.qemu),
        "qemu-system-x86 1:7.2+x+b3",
        ID,
        other,
        f"nitroctl build --plugin --qemu {stage.qemu}",
    ):
        assert part in done.stderr


def test_the_one_for_arm64_names_the_commands_for_arm64(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "qemu-system-arm")
    stage.qemu.unlink()
    done = stage.run()
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "qemu-system-arm 1:7.2+x+b3" in done.stderr
    assert done.stderr.endswith("use the tree build: nitroctl build --arch aarch64\n")


@pytest.mark.parametrize("how", ["none", "gone", "no ELF", "empty", "cut"])
def test_a_qemu_without_a_build_id_is_refused(stage: Stage, how: str) -> None:
    if how == "none":
        cc("-o", stage.qemu, "-Wl,--build-id=none", stage.tmp / "qemu.c")
    elif how == "gone":
        stage.qemu.unlink()
    elif how == "no ELF":
        stage.qemu.write_text("#!/bin/sh\necho ran\n")
    else:
        os.truncate(stage.qemu, 0 if how == "empty" else 100)
    done = stage.run()
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert str(stage.qemu) in done.stderr


@pytest.mark.parametrize("bit, name", [(stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid")])
def test_raised_rights_are_refused(stage: Stage, bit: int, name: str) -> None:
    stage.qemu.chmod(0o755 | bit)
    done = stage.run()
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert name in done.stderr and "nitroctl build" in done.stderr


def test_file_capabilities_are_refused(stage: Stage) -> None:
    # VFS_CAP_REVISION_2 (linux/capability.h). Root may set it; an ordinary user may in a user namespace of
    # its own.
    value = "0100000200100000000000000000000000000000"
    code = f"import os; os.setxattr({str(stage.qemu)!r}, 'security.capability', bytes.fromhex({value!r}))"
    own = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
    subprocess.run([*own, "python3", "-c", code], check=True)
    done = stage.run()
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "file capabilities" in done.stderr and "setcap -r" in done.stderr


def test_a_plugin_that_is_gone(stage: Stage) -> None:
    stage.plugin.unlink()
    done = stage.run()
    assert done.returncode == 1
    assert str(stage.plugin) in done.stderr and "nitroctl build --plugin" in done.stderr


# --- the build-id ----------------------------------------------------------------------------------------


def test_build_id_as_another_tool_reads_it(stage: Stage) -> None:
    assert plugin.build_id(stage.qemu) == ID
    for program in (Path("/bin/sh").resolve(), stage.launcher):
        said = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=True).stdout
        match = re.search(r"Build ID: ([0-9a-f]+)", said)
        assert plugin.build_id(program) == (match[1] if match else None)


@pytest.mark.parametrize("length", [0, 4, 63, 64, 100, 700])
def test_build_id_of_what_is_no_program(stage: Stage, length: int) -> None:
    cut = stage.tmp / "cut"
    cut.write_bytes(stage.qemu.read_bytes()[:length])
    assert plugin.build_id(cut) is None


# --- the package -----------------------------------------------------------------------------------------

DPKG_QUERY = """#!/bin/sh
case "$*" in
"--search $QEMU") echo "qemu-system-x86: $QEMU" ;;
"--show --showformat="*" qemu-system-x86") printf '%s\\n' "$SHOWN" ;;
*) echo "dpkg-query: no path found matching pattern" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def dpkg(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    programs = stage.tmp / "programs"
    programs.mkdir()
    (programs / "dpkg-query").write_text(DPKG_QUERY)
    (programs / "dpkg-query").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("QEMU", str(stage.qemu))
    monkeypatch.setenv("SHOWN", "qemu\t1:7.2+x\t1:7.2+x+b3")
    return stage


def test_a_rebuild_is_of_the_same_source(dpkg: Stage) -> None:
    assert plugin_build.installed(dpkg.qemu) == dpkg.installed


def test_a_qemu_of_nobodys(dpkg: Stage) -> None:
    with pytest.raises(NitroError, match="belongs to no package") as caught:
        plugin_build.installed(dpkg.launcher)
    assert "nitroctl build" in (caught.value.hint or "")


def test_a_package_of_another_source(dpkg: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOWN", "xen\t4.17\t4.17")
    with pytest.raises(NitroError, match="source package xen"):
        plugin_build.installed(dpkg.qemu)


def test_a_folder_on_path_that_may_not_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_stat = os.stat

    def refusing(path: Any, *more: Any, **others: Any) -> os.stat_result:
        if os.fspath(path).startswith("/locked/"):
            raise PermissionError(13, os.strerror(13), path)
        return really_stat(path, *more, **others)

    program = tmp_path / places.QEMU
    program.touch(0o755)
    monkeypatch.setattr(os, "stat", refusing)  # root may look everywhere
    monkeypatch.setenv("PATH", f"/locked{os.pathsep}{tmp_path}")
    assert program in plugin_build._in_path(places.QEMU)


def test_no_qemu_at_all(tmp_path: Path) -> None:
    with pytest.raises(NitroError, match="no such file") as caught:
        plugin_build.installed(tmp_path / "qemu")
    assert "qemu-system-x86" in (caught.value.hint or "")


# --- debian/rules ----------------------------------------------------------------------------------------

RULES = """\
common_configure_opts = \\
\t--with-pkgversion="$(PKGVERSION)" \\
\t--disable-install-blobs \\
\t--disable-docs

configure-qemu: b/qemu/configured
b/qemu/configured: configure
\trm -rf b/qemu; mkdir -p b/qemu
\tcd b/qemu && \\
\t    ../../configure ${common_configure_opts} --disable-user \\
\t\t--${enable_system}-system \\
\t\t--disable-xen \\
\t\t--enable-modules \\
\t\t$(if ${enable-system},--enable-module-upgrades) \\
\t\t${QEMU_CONFIGURE_OPTIONS}
\ttouch $@

b/user-static/configured: configure
\tcd b/user-static && ../../configure --disable-plugins --disable-tcg --disable-modules
"""
CONTROL = """\
Source: qemu
# --enable-kvm\tlinux-amd64
# --enable-vhost-net\tlinux-any
##--enable-xen
# --enable-gtk --enable-vte
"""


def test_options_of_debians_build() -> None:
    options = plugin_build.layout_options(RULES, CONTROL)
    assert {"--enable-modules", "--enable-plugins", "--enable-tcg", "--enable-kvm", "--enable-vhost-net",
            "--disable-xen", "--enable-trace-backends=log"} <= set(options)  # fmt: skip
    others = {"--disable-plugins", "--disable-tcg", "--enable-gtk", "--disable-docs", "--enable-xen"}
    assert not others & set(options)
    assert len({re.sub("^--(en|dis)able-|=.*", "", o) for o in options}) == len(options)


def test_what_debian_says_replaces_the_defaults() -> None:
    more = "--disable-xen --disable-plugins --enable-trace-backends=log,ftrace"
    options = plugin_build.layout_options(RULES.replace("--disable-xen", more), CONTROL)
    assert "--disable-plugins" in options and "--enable-plugins" not in options
    assert "--enable-trace-backends=log,ftrace" in options


def test_without_modules_there_is_no_plugin() -> None:
    with pytest.raises(NitroError, match="loadable modules"):
        plugin_build.layout_options(RULES.replace("--enable-modules", "--disable-modules"), CONTROL)


def test_rules_of_another_shape_are_refused() -> None:
    with pytest.raises(NitroError, match="debian/rules"):
        plugin_build.layout_options("%:\n\tdh $@\n", CONTROL)


def test_releases(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    for text, supported in (
        ('ID=debian\nVERSION_CODENAME=bookworm\n', True), ('VERSION_CODENAME="trixie"\n', True),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", False), ("ID=arch\n", False), ("", False),
    ):  # fmt: skip
        release.write_text(text)
        assert bool(packages.distribution_qemu(release)) == supported
    assert packages.distribution_qemu(tmp_path / "none") == ()


# --- choosing --------------------------------------------------------------------------------------------


class Built:
    """A plugin and a tree build in a cache of the test's own."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.rebuilt: list[Path | None] = []
        self.failure: NitroError | None = None

    def make_plugin(self, build_id: str = ID) -> Manifest:
        values = {f.name: "00" for f in dataclasses.fields(Manifest)}
        made = Manifest(**{
            **values, "key": "k" + build_id[:6], "qemu": str(self.stage.qemu), "build_id": build_id,
            "package": "qemu-system-x86", "version": "1:7.2+x+b3", "configure": [], "tools": {},
            "seconds": 1.0, "built": "2026-01-01T00:00:00+00:00",
        })  # type: ignore[arg-type]  # fmt: skip

        def fill(folder: Path) -> None:
            (folder / "bin").mkdir()
            (folder / "bin" / places.QEMU).touch()
            cache.write_json(folder / "manifest.json", dataclasses.asdict(made))

        cache.build_entry("plugin", made.key, fill, name=plugin.POINTER)
        return made

    def make_tree(self) -> Path:
        def fill(folder: Path) -> None:
            (folder / "bin").mkdir()
            program = folder / "bin" / places.QEMU
            program.touch()
            program.chmod(0o755)

        return cache.build_entry("qemu", "tree", fill) / "bin" / places.QEMU

    def build_plugin(self, qemu: Path | None = None) -> Manifest:
        self.rebuilt.append(qemu)
        if self.failure:
            raise self.failure
        return self.make_plugin()


@pytest.fixture
def built(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Built:
    monkeypatch.setenv("XDG_CACHE_HOME", str(stage.tmp / "cache"))
    monkeypatch.setattr(places, "default_prefix", lambda: stage.tmp / "prefix")
    made = Built(stage)
    monkeypatch.setattr(plugin_build, "build_plugin", made.build_plugin)
    return made


def test_nothing_is_built(built: Built) -> None:
    either = "nitroctl build, or, for the QEMU that is installed, nitroctl build --plugin"
    for kind, command in ((None, either), ("tree", "nitroctl build"),
                          ("plugin", "nitroctl build --plugin")):  # fmt: skip
        with pytest.raises(NitroError) as caught:
            choice.choose(kind)  # type: ignore[arg-type]
        assert caught.value.hint == command


def test_the_plugin_comes_first(built: Built) -> None:
    tree = built.make_tree()
    assert choice.choose() == choice.choose("tree") == tree
    launcher = built.make_plugin().launcher
    assert choice.choose() == choice.choose("plugin") == plugin.locate() == launcher
    assert choice.choose("tree") == tree
    assert built.rebuilt == []


def test_the_command(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = built.stage.tmp / "vhost-user-vsock"
    monkeypatch.setattr(plugin_build, "build_plugin", lambda qemu, **others: built.make_plugin())
    monkeypatch.setattr(tree, "build_backend", lambda **others: backend)
    prefix = built.stage.tmp / "prefix"
    shown = CliRunner().invoke(build_command, ["--plugin", "--json", "--prefix", str(prefix)])
    made = answer("nitroctl build --plugin", shown.stdout)
    links = [str(prefix / "bin" / name) for name in (places.QEMU, backend.name)]
    assert (made["qemu"], made["vsock"], made["links"]) == (str(built.stage.qemu), str(backend), links)


def test_all_take_the_same_qemu(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """run, the Python API, nitro-cli and demo (`ready`), `which qemu` and `test boot`."""

    def lab(qemu: Path, backend: Path, eif: Path | None) -> NoReturn:
        raise NitroError(f"{qemu}")

    monkeypatch.setattr("nitroctl.testing.lab.Lab", lab)
    for make in (built.make_tree, lambda: built.make_plugin().launcher):
        made = make()
        assert ready(RunRequest(Path("a.eif"), vsock_backend=Path("backend"))).qemu == made
        assert CliRunner().invoke(which_command, ["qemu"]).output == f"{made}\n"
        result = CliRunner().invoke(check_command, ["boot", "--vsock-backend", "true"])
        assert str(result.exception) == f"{made}"


def test_an_updated_qemu_is_noticed_and_the_plugin_built_again(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    built.make_plugin(build_id="ee" * 20)
    with pytest.raises(NitroError, match=r"no longer qemu-system-x86 1:7\.2\+x\+b3"):
        plugin.locate()
    assert plugin.misfit(plugin.manifest()) is not None  # type: ignore[arg-type]
    launcher = choice.choose()
    assert built.rebuilt == [built.stage.qemu]
    assert launcher == plugin.locate()
    assert choice.choose() == launcher and len(built.rebuilt) == 1


def test_when_it_cannot_be_built_again(built: Built) -> None:
    built.make_plugin(build_id="ee" * 20)
    built.failure = NitroError("Debian's mirror no longer has it", hint="upgrade")
    with pytest.raises(NitroError, match="no longer has it"):
        choice.choose()
    tree = built.make_tree()
    assert choice.choose() == tree
    with pytest.raises(NitroError, match="no longer has it"):
        choice.choose("plugin")


def test_a_qemu_that_was_removed(built: Built) -> None:
    built.make_plugin()
    built.stage.qemu.unlink()
    built.failure = NitroError("no such file", hint="install it")
    with pytest.raises(NitroError, match="cannot be read"):
        plugin.locate()
    tree = built.make_tree()
    assert choice.choose() == tree


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--plugin", "--series", "7.2"], ["--plugin", "--sanitize"],
                                     ["--plugin", "--update"], ["--qemu", "/bin/sh"]])  # fmt: skip
def test_build_options_that_do_not_go_together(options: list[str]) -> None:
    assert CliRunner().invoke(build_command, options).exit_code == 2


def test_run_options_that_do_not_go_together(tmp_path: Path) -> None:
    options = [str(tmp_path / "x.eif"), "--qemu", "/q", "--qemu-build", "tree"]
    result = CliRunner().invoke(run_command, options)
    assert result.exit_code == 2 and "--qemu-build" in result.output
