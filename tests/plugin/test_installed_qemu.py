# SPDX-License-Identifier: MIT
"""The real plugin in the distribution's real QEMU, without a guest: what is there, what does not leak, and
that wrong builds of it are refused by name. With guests: tests/boot --qemu $(nitroctl which plugin).

    pytest tests/plugin -k x86_64       the plugin for qemu-system-x86_64
    pytest tests/plugin -k "not x86_64" that for qemu-system-aarch64, and each in the other's QEMU

A wrong build is made as an error would make it: nitro-plugin.c compiled with another header than QEMU's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from nitroctl.base import arch as arches
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import hardening, plugin, plugin_build
from nitroctl.toolchain.plugin import Manifest
from nitroctl.toolchain.steps import tool


def built_for(arch: Arch) -> Manifest:
    plugin.locate(arch)  # raises with the command that provides it
    built = plugin.manifest(arch)
    assert built is not None
    return built


@pytest.fixture(scope="module", params=arches.ARCHES)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    built = built_for(request.param)
    if not (Path(built.build_dir) / plugin_build.TARGET).is_file():
        hint = "nitroctl cache clean, then nitroctl build --plugin"
        raise NitroError(f"{built.build_dir} is gone", hint=hint)
    return built


# What does not depend on the architecture is tried with one.
x86_64_alone = pytest.mark.parametrize("manifest", ["x86_64"], indirect=True)


def library(manifest: Manifest) -> Path:
    return manifest.launcher.resolve().parents[1] / "lib" / plugin_build.PLUGIN


def environment(preload: str | None = None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return {**env, "LD_PRELOAD": preload} if preload else env


def run(*argv: str | Path, preload: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment(preload), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False)  # fmt: skip


# --- a good build ----------------------------------------------------------------------------------------


def test_machine_device_and_traces_are_there(manifest: Manifest) -> None:
    for arguments, expected in (
        (["-M", "help"], "nitro-enclave"),
        (["-M", "nitro-enclave,help"], "cert-chain=<string>"),
        (["-device", "help"], "nitro-nsm-device"),
        (["-trace", "help"], "nitro_nsm_request"),
    ):
        done = run(manifest.launcher, *arguments)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
        assert expected not in run(manifest.qemu, *arguments).stdout


def test_other_machines_are_as_before(manifest: Manifest) -> None:
    with_plugin = run(manifest.launcher, "-M", "help").stdout.splitlines()
    without = run(manifest.qemu, "-M", "help").stdout.splitlines()
    assert [line for line in with_plugin if not line.startswith("nitro-enclave ")] == without


@x86_64_alone
@pytest.mark.parametrize("own", [False, True], ids=["no-preload", "users-own-preload"])
def test_nothing_leaks_into_qemus_children(manifest: Manifest, tmp_path: Path, own: bool) -> None:
    preload = None
    if own:
        (tmp_path / "own.c").write_text("int nitro_test_nothing;\n")
        preload = str(tmp_path / "own.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", preload, tmp_path / "own.c"], check=True)
    seen = tmp_path / "environment"
    os.mkfifo(seen)
    # QEMU starts a shell for this.
    argv: list[str | Path]
    argv = [manifest.launcher, "-M", "none", "-nodefaults", "-display", "none", "-incoming",
            f"exec:env > {seen}"]  # fmt: skip
    with subprocess.Popen(argv, env=environment(preload), stdin=subprocess.DEVNULL) as qemu:
        lines = seen.read_text().splitlines()
        qemu.terminate()
    assert [line for line in lines if line.startswith("LD_PRELOAD=")] == (
        [f"LD_PRELOAD={preload}"] if own else []
    )


def test_a_second_machine_of_that_name_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    first = library(manifest)
    shutil.copy(first, tmp_path / "second.so")
    done = run(manifest.qemu, "-M", "help", preload=f"{first}:{tmp_path / 'second.so'}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "has a machine nitro-enclave of its own" in done.stderr


# --- wrong builds ----------------------------------------------------------------------------------------


def wrong_build(manifest: Manifest, folder: Path, header: str, change: tuple[str, str]) -> Path:
    """The plugin with nitro-plugin.c compiled against a changed copy of one of QEMU's headers."""
    build_dir = Path(manifest.build_dir)
    commands = json.loads((build_dir / "compile_commands.json").read_text())
    (entry,) = [e for e in commands if e["file"].endswith("hw/plugin/nitro-plugin.c")]
    roots = [build_dir, Path(manifest.source_dir, "include"), Path(manifest.source_dir)]
    original = next(root / header for root in roots if (root / header).is_file())
    text, count = re.subn(*change, original.read_text(), count=1)
    assert count == 1
    copy = folder / "include" / header
    copy.parent.mkdir(parents=True)
    copy.write_text(text)
    compiler = shlex.split(entry["command"])
    compiler[compiler.index("-o") + 1] = str(folder / "wrong.o")
    compiler[1:1] = ["-iquote", str(folder / "include")]
    subprocess.run(compiler, cwd=build_dir, check=True)

    listed = subprocess.run([tool("ninja"), "-C", build_dir, "-t", "commands", plugin_build.TARGET],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    linker = shlex.split(listed.splitlines()[-1])
    linker[linker.index("-o") + 1] = str(folder / plugin_build.PLUGIN)
    linker = [str(folder / "wrong.o") if word == entry["output"] else word for word in linker]
    assert str(folder / "wrong.o") in linker
    subprocess.run(linker, cwd=build_dir, check=True)
    return folder / plugin_build.PLUGIN


def refused(manifest: Manifest, wrong: Path) -> str:
    done = run(manifest.qemu, "-M", "help", preload=str(wrong))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "does not fit this QEMU" in done.stderr
    assert f"nitroctl build --plugin --qemu {manifest.qemu}" in done.stderr
    return done.stderr


def test_another_version_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    wrong = wrong_build(manifest, tmp_path, "qemu-version.h", (re.escape(manifest.version), "1:0.0+other"))
    said = refused(manifest, wrong)
    assert "1:0.0+other" in said and manifest.version in said


def test_a_qemu_of_the_other_architecture_is_refused() -> None:
    """What the plugin for x86_64 needs is not all there: it is the dynamic linker that names the plugin."""
    ours = {arch: built_for(arch) for arch in arches.ARCHES}
    assert "it has no type arm-cpu" in refused(ours["x86_64"], library(ours["aarch64"]))
    wrong = library(ours["x86_64"])
    done = run(ours["aarch64"].qemu, "-M", "help", preload=str(wrong))
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"{wrong}: undefined symbol: " in done.stderr


@pytest.mark.parametrize(
    "manifest, header, struct, name",
    [
        ("x86_64", "qom/object.h", "Object", "object"),
        ("x86_64", "hw/boards.h", "MachineState", "machine"),
        ("x86_64", "hw/i386/microvm.h", "MicrovmMachineState", "microvm-machine"),
        ("x86_64", "hw/i386/microvm.h", "MicrovmMachineClass", "microvm-machine"),
        ("x86_64", "hw/virtio/virtio.h", "VirtIODevice", "virtio-device"),
        ("x86_64", "target/i386/cpu.h", "ArchCPU", "x86_64-cpu"),
        ("x86_64", "exec/memory.h", "MemoryRegion", "memory-region"),
        ("aarch64", "hw/boards.h", "MachineState", "machine"),
        ("aarch64", "target/arm/cpu.h", "ArchCPU", "arm-cpu"),
    ],
    indirect=["manifest"],
)  # fmt: skip
def test_a_padded_struct_is_refused_by_name(
    manifest: Manifest, tmp_path: Path, header: str, struct: str, name: str
) -> None:
    # At the end of the struct, where a field that only some configurations have would go unnoticed longest.
    change = (rf"(?ms)^(struct {struct}\s*\{{.*?)^\}};", r"\1    char padding[64];\n};")
    said = refused(manifest, wrong_build(manifest, tmp_path, header, change))
    found = re.search(r"type (\S+) was expected to have (\d+) bytes, and has (\d+)", said)
    assert found and found[1] == name
    assert int(found[2]) - int(found[3]) == 64


def test_the_plugin_is_hardened(manifest: Manifest) -> None:
    """It shows no symbol: QEMU's linker takes nothing of it for its own."""
    assert hardening.lacks(manifest.launcher.resolve()) == []
    assert hardening.lacks(library(manifest), program=False) == []
