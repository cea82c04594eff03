# SPDX-License-Identifier: MIT
"""What is built is linked into the environment and found there, by `nitroctl build` and `nitroctl which`. On
the stage of buildstage.py; a real meson for the backend's.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from buildstage import Stage, write
from jsonpage import answer
from nitroctl.base.errors import NitroError
from nitroctl.commands.build import build as build_command
from nitroctl.commands.which import which as which_command
from nitroctl.toolchain import cache, places, steps, tree


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
