# SPDX-License-Identifier: MIT
"""What tools/dist refuses to hand out, and what tools/dist-check sees in a trace. The real wheels are made by
`make dist`, and tried by `make dist-check`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from nitroctl.base.arch import ARCHES
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import guest

ROOT = Path(__file__).resolve().parents[3]
HARD = ["-O2", "-fPIE", "-pie", "-fstack-protector-all", "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now"]
# With an array for the stack protector, and a copy for FORTIFY.
PROGRAM = """
#include <stdio.h>
#include <string.h>
#include <zlib.h>
int main(int argc, char **argv)
{
    char text[16];
    strcpy(text, argv[argc - 1]);
    return printf("%s %s", text, WITH ? zlibVersion() : "");
}
"""


def load(name: str) -> ModuleType:
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dist() -> ModuleType:
    return load("dist")


def compiled(folder: Path, *flags: str) -> Path:
    path = folder / "bin/program"
    path.parent.mkdir(exist_ok=True)
    argv = ["cc", "-w", "-xc", "-", "-o", str(path), *flags]
    subprocess.run(argv, input=PROGRAM, text=True, check=True)
    return path


@pytest.mark.parametrize(
    "extra, lack",
    [
        ([], None),
        (["-fno-PIE", "-no-pie"], "position-independent"),
        (["-Wl,-z,lazy"], "bound at its start"),
        (["-Wl,-z,norelro"], "RELRO"),
        (["-fno-stack-protector"], "a stack protector"),
        (["-U_FORTIFY_SOURCE"], "FORTIFY"),
    ],
)  # fmt: skip
def test_a_program_that_is_not_hardened(
    dist: ModuleType, tmp_path: Path, extra: list[str], lack: str | None
) -> None:
    program = compiled(tmp_path, *HARD, *extra, "-DWITH=0")
    if lack is None:
        dist.hardened(program)
        dist.strip(program)
        dist.hardened(program)
        return
    with pytest.raises(NitroError, match=f"program is not .*{lack}"):
        dist.hardened(program)


def test_libraries_and_glibc(dist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path, *HARD, "-DWITH=1", "-lz")
    with pytest.raises(NitroError, match="program is linked with libz.so.1, which is not in the wheel"):
        dist.needed_glibc(tmp_path)
    (tmp_path / "lib").mkdir()
    shutil.copy("/usr/lib/x86_64-linux-gnu/libz.so.1", tmp_path / "lib")
    newest = dist.needed_glibc(tmp_path)
    assert 17 <= newest <= 34
    monkeypatch.setattr(dist, "GLIBC", newest - 1)
    with pytest.raises(NitroError, match=f"needs GLIBC_2.{newest}, newer than 2.{newest - 1}"):
        dist.needed_glibc(tmp_path)


def test_a_source_that_is_missing_or_damaged(dist: ModuleType, tmp_path: Path) -> None:
    part = dist.Part("lib/libx.so.1", "x", "1:2-3", "bookworm")
    with pytest.raises(NitroError, match="has no source of lib/libx.so.1"):
        dist.check_sources([part], tmp_path)
    folder = tmp_path / "x_1%3a2-3"
    folder.mkdir()
    content = b"a tarball"
    (folder / "x_2-3.dsc").write_text(
        f"Source: x\nChecksums-Sha256:\n {hashlib.sha256(content).hexdigest()} 9 x_2.orig.tar.gz\nFiles:\n"
    )
    with pytest.raises(NitroError, match="x_2.orig.tar.gz, source of lib/libx.so.1, is not there"):
        dist.check_sources([part], tmp_path)
    (folder / "x_2.orig.tar.gz").write_bytes(content)
    dist.check_sources([part], tmp_path)
    (folder / "x_2.orig.tar.gz").write_bytes(b"another")
    with pytest.raises(NitroError, match="is not there as x_2-3.dsc has it"):
        dist.check_sources([part], tmp_path)


def test_the_same_files_give_the_same_wheel(dist: ModuleType, tmp_path: Path) -> None:
    made = []
    for number in (1, 2):
        project = tmp_path / str(number)
        shutil.copytree(ROOT / "packaging/qemu", project)
        shutil.copy(ROOT / "packaging/hatch_build.py", project)
        bundle = project / "bundle"
        for name in sorted(("b", "a", "c"), reverse=number == 1):
            (bundle / name).mkdir(parents=True)
            (bundle / name / "file").write_text(name)
            (bundle / name / "file").chmod(0o755 if name == "a" else 0o640 if number == 1 else 0o644)
            os.utime(bundle / name / "file", (10**9 + number, 10**9 + number))
        wheel = dist.build_wheel(project, f"{bundle}=nitroctl_qemu", 34, "1700000000", project)
        assert wheel.name.endswith("-py3-none-manylinux_2_34_x86_64.whl")
        made.append(wheel.read_bytes())
    assert made[0] == made[1]


def test_the_wheel_for_arm64_guests(dist: ModuleType, tmp_path: Path) -> None:
    """For any host: nothing in it runs there. What is found of it is in test_bundle.py."""
    project = tmp_path / "arm64"
    shutil.copytree(ROOT / "packaging/arm64", project)
    shutil.copy(ROOT / "packaging/hatch_build.py", project)
    stage = dist.Stage(project / "bundle")
    stage.put(Path("/bin/true"), "guest/init", mode=0o755)
    stage.made_of("guest/*", "glibc", "2.36-1")
    dist.describe(stage, {"nitroctl": dist.__version__, "commit": "abc"}, 0)
    wheel = dist.build_wheel(project, f"{stage.root}=nitroctl_arm64", 0, "1700000000", project)
    assert wheel.name == f"nitroctl_arm64-{dist.__version__}-py3-none-any.whl"
    dist.judge(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = json.loads(archive.read("nitroctl_arm64/bundle.json"))
        metadata = next(name for name in names if name.endswith("/METADATA"))
        assert "Name: nitroctl-arm64" in archive.read(metadata).decode()
    assert {f"nitroctl_arm64/{name}" for name in ("__init__.py", "guest/init", "SOURCES.md")} <= names
    assert record["nitroctl"] == dist.__version__ and "glibc" not in record


def test_a_program_for_guests_is_static(dist: ModuleType) -> None:
    assert not dist.is_static(Path("/bin/true"))
    assert all(dist.is_static(guest.build_init(arch) / "init") for arch in ARCHES)


TRACE = """\
10 execve("/home/user/venv/bin/python3", ["python3"], 0x7 /* 8 vars */) = 0
10 openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3
11 execve("/home/user/venv/lib/python3.11/site-packages/nitroctl_qemu/bin/qemu-system-x86_64", [...], ) = 0
11 openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3
11 openat(AT_FDCWD, "/lib/x86_64-linux-gnu/libm.so.6", O_RDONLY|O_CLOEXEC) = 3
11 openat(AT_FDCWD, "/etc/gnutls/config", O_RDONLY) = -1 ENOENT (No such file or directory)
12 execve("/home/user/venv/lib/python3.11/site-packages/nitroctl/bundle/bin/vhost-user-vsock", [...], ) = 0
12 openat(AT_FDCWD, "/proc/self/fd", O_RDONLY) = 3
"""


def test_what_a_trace_shows() -> None:
    check = load("dist-check")
    assert check.foreign_files(TRACE) == set()
    foreign = '11 openat(AT_FDCWD, "/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0", O_RDONLY|O_CLOEXEC) = 3\n'
    assert check.foreign_files(TRACE + foreign) == {"/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0"}
    with pytest.raises(NitroError, match="only 0 programs"):
        check.foreign_files(TRACE.splitlines()[0])
