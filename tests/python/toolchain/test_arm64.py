# SPDX-License-Identifier: MIT
"""All C of ours that runs beside QEMU compiles for an arm64 host, without a warning: backend, library for
parent programs, launcher and cores. That the result runs there is not shown: it takes such a host.

The programs are linked with Debian's C library for arm64. Of the cores' libraries only headers are looked at,
which are this host's: both are LP64.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nitroctl.base.config import source_root

CC = "aarch64-linux-gnu-gcc"
ROOT = source_root()
CONTRIB = ROOT / "contrib"
# As our meson.build has them, and every warning an error.
FLAGS = (
    "-std=gnu11", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wstrict-prototypes",
    "-Wmissing-prototypes", "-Wundef", "-Wvla", "-Wno-unused-parameter", "-fno-strict-aliasing",
    "-fstack-protector-strong", "-Werror",
)  # fmt: skip


def compiled(into: Path, *arguments: str | Path) -> None:
    done = subprocess.run([CC, *FLAGS, *arguments], cwd=into, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def is_arm64(path: Path) -> bool:
    return int.from_bytes(path.read_bytes()[18:20], "little") == 183  # EM_AARCH64 of elf.h


def test_the_vsock_backend(tmp_path: Path) -> None:
    sandbox = "-DSANDBOX_ARCH=AUDIT_ARCH_AARCH64"
    sources = sorted((CONTRIB / "vhost-user-vsock").glob("*.c"))
    compiled(tmp_path, sandbox, '-DVERSION="test"', "-pthread", "-o", "backend", *sources)
    assert is_arm64(tmp_path / "backend")


def test_the_library_for_parent_programs(tmp_path: Path) -> None:
    sources = sorted((CONTRIB / "vsock-preload").glob("*.c"))
    flags = ("-fPIC", "-shared", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")
    compiled(tmp_path, *flags, "-o", "preload.so", *sources, "-ldl")
    assert is_arm64(tmp_path / "preload.so")


def test_the_launcher(tmp_path: Path) -> None:
    names = {"NITRO_QEMU": "/usr/bin/qemu-system-aarch64", "NITRO_BUILD_ID": "ab", "NITRO_VERSION": "1",
             "NITRO_TREE": "2"}  # fmt: skip
    macros = ["-U_GNU_SOURCE", *(f'-D{name}="{value}"' for name, value in names.items())]
    compiled(tmp_path, *macros, "-o", "launcher", CONTRIB / "plugin/launcher.c")
    assert is_arm64(tmp_path / "launcher")


@pytest.fixture
def headers(tmp_path: Path) -> list[str]:
    """This host's headers of the cores' libraries, and none of its C library."""
    folder = tmp_path / "headers"
    folder.mkdir()
    for name in ("cbor.h", "cbor", "gnutls", "zlib.h", "zconf.h"):
        places = (Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu"))
        (folder / name).symlink_to(next(place / name for place in places if (place / name).exists()))
    glib = subprocess.run(["pkg-config", "--cflags", "glib-2.0"], check=True, capture_output=True, text=True)
    return ["-isystem", str(folder), *glib.stdout.split()]


def test_the_cores(tmp_path: Path, headers: list[str]) -> None:
    text = (ROOT / "meson.build").read_text()
    sources = [ROOT / line.strip(" ',") for line in text.splitlines() if line.strip().startswith("'hw/")]
    assert {path.parent.name for path in sources} == {"eif", "nsm"}
    sources += sorted((ROOT / "hw/core/cbor").glob("*.c"))
    compiled(tmp_path, f"-I{ROOT / 'include'}", *headers, "-c", *sources)
    assert all(is_arm64(tmp_path / f"{path.stem}.o") for path in sources)
