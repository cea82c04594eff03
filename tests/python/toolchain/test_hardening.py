# SPDX-License-Identifier: MIT
"""What we build and others run is hardened: the vsock backend, the library of parent programs, the plugin's
launcher. The tree's QEMU: tests/boot; the plugin: tests/plugin; the wheels' QEMU: tools/dist.

Not the guest's programs: they are static, so that any image can have them, and measured.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from nitroctl.base.config import source_root
from nitroctl.toolchain import hardening, plugin_build
from preload_host import library
from vhost_backend import find_binary

CONTRIB = source_root() / "contrib"


def test_the_backend() -> None:
    assert hardening.lacks(Path(find_binary())) == []


def test_the_library_of_parent_programs() -> None:
    """It shows what it stands in for, and nothing else: each of that is in the C library as well."""
    said = subprocess.run(["objdump", "-T", library()], check=True, capture_output=True, text=True).stdout
    shown = set(re.findall(r"\.text\s.*\s(\w+)$", said, re.MULTILINE))
    assert {"socket", "connect", "bind", "accept4", "ioctl"} <= shown
    linked = subprocess.run(["ldd", "/bin/sh"], check=True, capture_output=True, text=True).stdout
    libc = re.search(r"libc\.so\.6 => (\S+)", linked)
    assert libc
    known = subprocess.run(["objdump", "-T", libc[1]], check=True, capture_output=True, text=True).stdout
    assert shown <= set(re.findall(r"(\w+)$", known, re.MULTILINE))
    assert hardening.lacks(Path(library()), shown, program=False) == []


def test_the_plugins_launcher(tmp_path: Path) -> None:
    about = plugin_build.Installed(Path("/usr/bin/qemu"), "qemu", "1", "1", "00" * 20)
    plugin_build.compile_launcher(CONTRIB / "plugin/launcher.c", about, tmp_path / "launcher")
    assert hardening.lacks(tmp_path / "launcher") == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    source = tmp_path / "soft.c"
    source.write_text(
        '#include <stdio.h>\nint more(void) { return 1; }\nint main(void) { puts("x"); return 0; }\n'
    )
    soft = ["-O0", "-no-pie", "-fno-stack-protector", "-Wl,-z,norelro,-z,lazy,-z,execstack", "-rdynamic"]
    subprocess.run(["cc", *soft, "-o", tmp_path / "soft", source], check=True, capture_output=True)
    found = hardening.lacks(tmp_path / "soft", ("main", "_start"))
    assert [what.partition(":")[0] for what in found] == [
        "position-independent", "bound at its start", "RELRO", "without an executable stack",
        "with a stack protector", "with FORTIFY", "without exports",
    ]  # fmt: skip
    assert "more" in found[-1]
