# SPDX-License-Identifier: MIT
"""Kernels and programs for guests, without a guest: real tar, dpkg-deb, make and cc; the "kernel" is a fake.

That the real ones boot is for tests/boot.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jsonpage import answer
from nitroctl.base.arch import ARCHES, Arch
from nitroctl.base.config import cache_dir, source_root
from nitroctl.base.errors import CommandFailed, NitroError, NotBuilt
from nitroctl.cli import nitroctl
from nitroctl.toolchain import busybox, cache, guest, modules, packages, prebuilt, steps
from nitroctl.toolchain import kernel as kernels
from nitroctl.toolchain.image import check_image, give_text_offset
from nitroctl.toolchain.steps import BuildFailed

FRAGMENTS = {
    name: (source_root() / f"guest/{name}.config").read_text() for name in ("kernel", "kernel-aarch64")
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "nitroctl"


def leftovers(kind: str) -> list[str]:
    """Names below a kind of the cache that are no finished entry."""
    folder = cache_dir() / kind
    return [p.name for p in folder.iterdir() if p.name.startswith(".")] if folder.is_dir() else []


# --- configuration ---------------------------------------------------------------------------------------


def test_lost_options_names_each_with_what_it_is() -> None:
    fragment = '# a comment\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D="x y"\nCONFIG_E=1\n'
    config = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_D="x"\n'
    assert kernels.lost_options(fragment, config) == [
        "CONFIG_B=y (is not set)",
        "CONFIG_C=n (is y)",
        'CONFIG_D="x y" (is "x")',
        "CONFIG_E=1 (is not set)",
    ]


def test_an_option_that_is_off_may_be_absent_altogether() -> None:
    assert kernels.lost_options("# CONFIG_C is not set\nCONFIG_A=y\n", "CONFIG_A=y\n") == []


@pytest.mark.parametrize("which", FRAGMENTS)
def test_a_fragment_has_no_option_twice_and_no_line_of_another_form(which: str) -> None:
    names = []
    for line in FRAGMENTS[which].splitlines():
        match = re.fullmatch(r"(CONFIG_\w+)=\S+|# (CONFIG_\w+) is not set", line)
        if match:
            names.append(match[1] or match[2])
        else:
            assert not line or line.startswith("#"), line
            assert "CONFIG_" not in line.removeprefix("# CONFIG") or "KCONFIG_ALLCONFIG" in line, line
    assert len(names) == len(set(names))


@pytest.mark.parametrize("arch", ARCHES)
def test_the_fragments_have_what_an_enclave_stands_on(arch: Arch) -> None:
    lines = kernels.fragment_for(arch).splitlines()
    names = [line.removeprefix("# ").replace("=", " ").split(" ")[0] for line in lines if "CONFIG_" in line]
    assert {"CONFIG_NSM=y", "CONFIG_VIRTIO_VSOCKETS=y", "CONFIG_VIRTIO_MMIO=y"} <= set(lines)
    own = "CONFIG_X86_MPPARSE=y", "CONFIG_SERIAL_OF_PLATFORM=y"
    assert [line in lines for line in own] == [arch == "x86_64", arch == "aarch64"]
    assert len(names) == len(set(names))


# --- building a kernel, from a tree that is no kernel ----------------------------------------------------

# What of the kernel's build system is used, in a dozen lines: the configuration is what KCONFIG_ALLCONFIG
# asks for (less what LOSE matches), the bzImage has the header's magic, and prints a line a step.
MAKEFILE = r"""
allnoconfig:
	@echo "  HOSTLD  conf"
	grep -v "$(LOSE)" $(KCONFIG_ALLCONFIG) > $(KCONFIG_CONFIG)
bzImage:
	test "$(ARCH)$(KCFLAGS)" = x86_64
	@echo "  CC      init/main.o"
	$(FAIL)
	mkdir -p arch/x86/boot include/config
	{ head -c 514 /dev/zero; printf HdrS; echo "$(KBUILD_BUILD_TIMESTAMP)"; } > arch/x86/boot/bzImage
	echo symbols > vmlinux
	echo 6.12.0-fake > include/config/kernel.release
Image:
	test "$(ARCH)$(CROSS_COMPILE)$(CC)" = arm64aarch64-linux-gnu-aarch64-linux-gnu-gcc
	mkdir -p arch/arm64/boot include/config
	{ head -c 56 /dev/zero; printf ARMd; } > arch/arm64/boot/Image
	echo symbols > vmlinux
	echo 6.12.0-fake > include/config/kernel.release
"""
MTIME = 1700000000
MADE = "Tue Nov 14 22:13:20 UTC 2023"  # date -u -d @1700000000


def source_package(tmp_path: Path, *, lose: str = "nothing-at-all", fail: str = "true") -> Path:
    """Put a source package with a tree like that into the cache, as if apt had fetched it."""
    tree = BytesIO()
    with tarfile.open(fileobj=tree, mode="w:xz") as tar:
        for name, text in {
            "Makefile": f"LOSE={lose}\nFAIL={fail}\n{MAKEFILE}",
            "arch/arm/Kconfig": "",
            "arch/arm/kernel.c": "",
            "arch/arm64/kernel.c": "",
            "arch/x86/kernel.c": "",
            "tools/objtool/arch/x86/include/arch/special.h": "",
            "Documentation/Kconfig": "",
            "Documentation/admin-guide/index.rst": "",
        }.items():
            member = tarfile.TarInfo(f"{kernels.SOURCE}/{name}")
            content = text.encode()
            member.size, member.mtime = len(content), MTIME
            tar.addfile(member, BytesIO(content))
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {kernels.SOURCE}\nVersion: 6.12.0-1\nArchitecture: all\nMaintainer: nobody <n@x>\n"
        "Description: test\n"
    )
    (root / "usr/src").mkdir(parents=True)
    (root / f"usr/src/{kernels.SOURCE}.tar.xz").write_bytes(tree.getvalue())
    (root / "usr/src/other").write_text("not the tarball")

    def fill(folder: Path) -> None:
        deb = folder / f"{kernels.SOURCE}_6.12.0-1_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, deb], check=True)

    return cache.build_entry("deb", "source", fill, name=f"deb-{kernels.SOURCE}")


@pytest.fixture
def any_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex, bison and so on are for the real kernel."""
    monkeypatch.setattr(kernels, "toolchain", lambda needs, cc: {"cc": "12.2.0"})


@pytest.mark.usefixtures("any_tools")
def test_a_kernel_is_built_once_and_its_tree_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = source_package(tmp_path)
    bzimage = kernels.build()
    assert "Removing the kernel's source" in capsys.readouterr().err
    assert bzimage.read_bytes() == bytes(514) + f"HdrS{MADE}\n".encode()
    folder = bzimage.parent
    assert sorted(p.name for p in folder.iterdir()) == ["bzImage", "config", "manifest.json", "vmlinux"]
    assert leftovers("kernel") == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["release"] == "6.12.0-fake"
    assert manifest["source"] == f"{kernels.SOURCE} 6.12.0-1"
    assert "CONFIG_NSM=y\n" in (folder / "config").read_text()
    assert guest.locate("kernel") == bzimage
    shown = CliRunner().invoke(nitroctl, ["guest", "kernel", "--json"], catch_exceptions=False).stdout
    assert answer("nitroctl guest kernel", shown)["kernel"] == str(bzimage)

    before = bzimage.stat()
    (package / f"{kernels.SOURCE}_6.12.0-1_all.deb").write_bytes(b"not read again")
    assert kernels.build() == bzimage
    assert bzimage.stat() == before


@pytest.mark.usefixtures("any_tools")
def test_an_option_that_does_not_come_out_fails_by_name(tmp_path: Path) -> None:
    source_package(tmp_path, lose="CONFIG_NSM=")
    with pytest.raises(NitroError, match=r"CONFIG_NSM=y \(is not set\)"):
        kernels.build()
    assert leftovers("kernel") == []
    with pytest.raises(NitroError, match="no kernel for guests") as e:
        guest.locate("kernel")
    assert e.value.hint == "nitroctl guest kernel"


@pytest.mark.usefixtures("any_tools")
def test_a_users_options_come_to_ours_and_take_the_place_of_ours(tmp_path: Path) -> None:
    source_package(tmp_path)
    ours = kernels.build()
    options = tmp_path / "my.config"
    options.write_text("# for volumes\n CONFIG_EXT4_FS=y\n\nCONFIG_NR_CPUS=8\n# CONFIG_BRIDGE is not set\n")
    theirs = kernels.build(config=options)
    got = (theirs.parent / "config").read_text().splitlines()
    assert {"CONFIG_NSM=y", "CONFIG_EXT4_FS=y", "CONFIG_NR_CPUS=8"} <= set(got)
    assert [line for line in got if "NR_CPUS" in line or "BRIDGE " in line or "BRIDGE=" in line] == [
        "CONFIG_NR_CPUS=8",
        "# CONFIG_BRIDGE is not set",
    ]
    manifest = json.loads((theirs.parent / "manifest.json").read_text())
    assert manifest["options"] == ["CONFIG_BRIDGE", "CONFIG_EXT4_FS", "CONFIG_NR_CPUS"]
    # Known by its content, and nobody's default.
    (tmp_path / "same.config").write_text("CONFIG_EXT4_FS=y\nCONFIG_NR_CPUS=8\n# CONFIG_BRIDGE is not set\n")
    assert kernels.build(config=tmp_path / "same.config") == theirs != ours
    assert guest.locate("kernel") == ours
    kept = {entry.path for entry in cache.entries() if entry.names}
    assert {ours.parent, theirs.parent} <= kept


@pytest.mark.usefixtures("any_tools")
@pytest.mark.parametrize(
    ("options", "lose", "message"),
    [
        (
            b"CONFIG_EXT4_FS=m\nCONFIG_A=y\n",
            "CONFIG_EXT4_FS=",
            r"not take these options: CONFIG_EXT4_FS=m \(is",
        ),
        # Our own that go with something of the user's, but not what an enclave is.
        (b"CONFIG_A=y\n", "CONFIG_NSM=", r"as guest/kernel.config has it: CONFIG_NSM=y"),
        (b"CONFIG_A=y\nEXT4=y\n", "nothing-at-all", r"line 2: 'EXT4=y' is no option"),
        (b"\n# a comment\n", "nothing-at-all", "has no option"),
        (b"#" * (kernels.OPTIONS_MAX + 1), "nothing-at-all", "no file of kernel options"),
    ],
)
def test_options_that_cannot_be_had(tmp_path: Path, options: bytes, lose: str, message: str) -> None:
    source_package(tmp_path, lose=lose)
    (tmp_path / "my.config").write_bytes(options)
    with pytest.raises(NitroError, match=message):
        kernels.build(config=tmp_path / "my.config")
    assert leftovers("kernel") == []


@pytest.mark.usefixtures("any_tools")
def test_what_goes_with_an_option_of_the_users_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source_package(tmp_path, lose="CONFIG_IP_MULTIPLE_TABLES=")
    (tmp_path / "my.config").write_text("# CONFIG_IP_ADVANCED_ROUTER is not set\n")
    kernels.build(config=tmp_path / "my.config")
    assert "no longer: CONFIG_IP_MULTIPLE_TABLES=y (is not set)" in capsys.readouterr().err


@pytest.mark.usefixtures("any_tools")
def test_the_command_prints_the_image_or_the_file_with_the_symbols(tmp_path: Path) -> None:
    source_package(tmp_path)
    run = CliRunner().invoke(nitroctl, ["guest", "kernel"])
    bzimage = guest.locate("kernel")
    assert run.stdout == f"{bzimage}\n"
    run = CliRunner().invoke(nitroctl, ["guest", "kernel", "--vmlinux"])
    assert run.stdout == f"{bzimage.parent / 'vmlinux'}\n"
    assert (bzimage.parent / "vmlinux").read_text() == "symbols\n"
    run = CliRunner().invoke(nitroctl, ["guest", "kernel", "--prebuilt", "--config", "x"])
    assert run.exit_code != 0 and "--config" in str(run.exception or run.output)


@pytest.mark.usefixtures("any_tools")
def test_a_failing_compiler_is_quoted(tmp_path: Path) -> None:
    source_package(tmp_path, fail="@echo 'init/main.c:1:1: error: no such thing'; exit 1")
    with pytest.raises(BuildFailed) as e:
        kernels.build()
    assert "init/main.c:1:1: error: no such thing" in str(e.value)
    assert e.value.log.is_file()
    assert leftovers("kernel") == []


@pytest.mark.usefixtures("any_tools")
def test_an_interrupted_build_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source_package(tmp_path)
    real = steps.logged

    def interrupted(argv: Sequence[str], *args: Any, **options: Any) -> int:
        if "bzImage" in argv:
            raise KeyboardInterrupt
        return real(argv, *args, **options)

    monkeypatch.setattr(kernels, "logged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernels.build()
    assert "Removing the kernel's source" in capsys.readouterr().err
    assert leftovers("kernel") == []
    monkeypatch.setattr(kernels, "logged", real)
    assert kernels.build().is_file()


@pytest.mark.usefixtures("any_tools")
def test_settings_of_a_make_above_do_not_reach_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "n")  # only print
    monkeypatch.setenv("KBUILD_BUILD_TIMESTAMP", "today")
    monkeypatch.setenv("KCFLAGS", "-O0")
    source_package(tmp_path)
    assert MADE.encode() in kernels.build().read_bytes()


@pytest.mark.usefixtures("any_tools")
def test_a_damaged_package_fails_and_leaves_nothing(tmp_path: Path) -> None:
    package = source_package(tmp_path)
    (deb,) = package.glob("*.deb")
    deb.write_bytes(deb.read_bytes()[:-200])
    with pytest.raises(CommandFailed):
        kernels.build()
    assert leftovers("kernel") == []


@pytest.mark.parametrize(
    ("arch", "more"),
    [("x86_64", {"arch/x86/kernel.c"}), ("aarch64", {"arch/arm/kernel.c", "arch/arm64/kernel.c"})],
)
def test_only_what_a_kernel_of_that_architecture_needs_is_unpacked(
    tmp_path: Path, arch: Arch, more: set[str]
) -> None:
    (deb,) = source_package(tmp_path).glob("*.deb")
    into = tmp_path / "tree"
    into.mkdir()
    root = kernels._unpack(deb, into, arch)
    files = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    # Kconfig files name those of other architectures, so they stay.
    assert files - {"tools/objtool/arch/x86/include/arch/special.h"} == {
        "Makefile",
        "arch/arm/Kconfig",
        "Documentation/Kconfig",
        *more,
    }
    assert arch != "x86_64" or "tools/objtool/arch/x86/include/arch/special.h" in files


@pytest.mark.usefixtures("any_tools")
def test_a_kernel_for_arm64_lies_where_aws_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-ld"):
        (programs / name).write_text("#!/bin/sh\necho 12.2.0\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    source_package(tmp_path)
    shown = CliRunner().invoke(nitroctl, ["guest", "kernel", "--arch", "arm64"], catch_exceptions=False)
    image = Path(shown.stdout.strip())
    assert image == guest.locate("kernel", "aarch64")
    # booting.rst: code, then text_offset in little-endian at 8; AWS's is 2 MiB.
    head = image.read_bytes()[:64]
    assert head[:16].hex() == 8 * "00" + "0000200000000000" and head[56:60] == b"ARM\x64"
    assert sorted(p.name for p in image.parent.iterdir()) == ["Image", "config", "manifest.json", "vmlinux"]
    got = (image.parent / "config").read_text().splitlines()
    assert {"CONFIG_NSM=y", "CONFIG_ARM_GIC_V3=y"} <= set(got) and "CONFIG_KVM_GUEST=y" not in got
    # A kernel of the one architecture is not taken for the other's.
    with pytest.raises(NitroError, match="no kernel for guests"):
        guest.locate("kernel", "x86_64")


def test_a_text_offset_that_a_kernel_has_stays(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(bytes(8) + (0x80000).to_bytes(8, "little") + bytes(40) + b"ARM\x64" + bytes(100))
    before = path.read_bytes()
    give_text_offset(path, "aarch64")
    assert path.read_bytes() == before
    with pytest.raises(NitroError, match="is not a bzImage"):
        check_image(path, "x86_64")
    check_image(path, "aarch64")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "_search_path", lambda: str(tmp_path))
    with pytest.raises(NitroError, match=r"flex.*bison.*bc"):
        kernels.build()


def test_a_kernel_that_is_no_bzimage_is_refused(tmp_path: Path) -> None:
    for content in (b"", bytes(0x206), b"\x7fELF" + bytes(1000)):
        path = tmp_path / "k"
        path.write_bytes(content)
        with pytest.raises(NitroError, match="is not a bzImage"):
            check_image(path, "x86_64")
    path.write_bytes(bytes(0x202) + b"HdrS")
    check_image(path, "x86_64")


# --- Debian's kernel --------------------------------------------------------------------------------------


def test_the_metapackage_must_name_one_kernel() -> None:
    flavour, one = "linux-image-cloud-arm64", "linux-image-6.12.117+deb13-cloud-arm64"
    assert prebuilt.package("aarch64") == flavour
    assert prebuilt._the_kernel(["linux-base", one], flavour) == one
    for names in (
        [],
        ["linux-image-arm64"],
        [one.replace("arm64", "amd64")],
        [one, one.replace("117", "118")],
    ):
        with pytest.raises(NitroError, match="names no one kernel"):
            prebuilt._the_kernel(names, flavour)


class Archive:
    """Debian's, with one kernel that is a file's head."""

    def __init__(self, arch: Arch) -> None:
        self.head = {"x86_64": bytes(514) + b"HdrS", "aarch64": bytes(56) + b"ARM\x64"}[arch]
        self.flavour = {"x86_64": "cloud-amd64", "aarch64": "cloud-arm64"}[arch]

    def depends(self, package: str) -> list[str]:
        assert package == f"linux-image-{self.flavour}"
        return [f"linux-image-6.12.0-{self.flavour}"]

    def version(self, package: str) -> str:
        return "6.12.0-1"

    def download(self, package: str, version: str, name: str) -> Path:
        return Path(package)

    def unpack(self, deb: Path, into: Path) -> None:
        (into / "boot").mkdir()
        (into / "boot/vmlinuz-6.12.0-fake").write_bytes(self.head)
        folder = into / "usr/lib/modules/6.12.0-fake"
        folder.mkdir(parents=True)
        (folder / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in modules.DEVICES))


def test_a_prebuilt_kernel_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nitroctl.toolchain.apt.AptRoot.open", lambda suite, arch, refresh: Archive(arch))
    shown = CliRunner().invoke(nitroctl, ["guest", "kernel", "--prebuilt", "--json"], catch_exceptions=False)
    found = answer("nitroctl guest kernel --prebuilt", shown.stdout)
    assert (found["release"], found["source"]) == ("6.12.0-fake", "linux-image-6.12.0-cloud-amd64 6.12.0-1")
    assert found["acpi"] is True
    arguments = ["guest", "kernel", "--prebuilt", "--arch", "aarch64", "--json"]
    shown = CliRunner().invoke(nitroctl, arguments, catch_exceptions=False)
    found = answer("nitroctl guest kernel --prebuilt", shown.stdout)
    assert (found["acpi"], found["source"]) == (False, "linux-image-6.12.0-cloud-arm64 6.12.0-1")
    assert found["kernel"] == str(guest.locate("prebuilt", "aarch64")) != str(guest.locate("prebuilt"))


# --- Debian's busybox --------------------------------------------------------------------------------------


class Packages:
    """Debian's, with a busybox that says what version it is."""

    newest = "1:1.37.0-6"

    def version(self, package: str) -> str:
        assert package == "busybox-static"
        return self.newest

    def download(self, package: str, version: str) -> Path:
        return Path(version)

    def unpack(self, deb: Path, into: Path) -> None:
        (into / "usr/bin").mkdir(parents=True)
        (into / "usr/bin/busybox").write_text(str(deb))


def test_the_tools_are_fetched_once_and_again_to_update(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotBuilt) as caught:
        busybox.locate()
    assert caught.value.hint == "nitroctl guest tools"
    monkeypatch.setattr("nitroctl.toolchain.apt.AptRoot.open", lambda suite, arch, refresh: Packages())

    def tools(*options: str) -> Path:
        command = ["guest", "tools", "--json", *options]
        shown = CliRunner().invoke(nitroctl, command, catch_exceptions=False)
        found = answer("nitroctl guest tools", shown.stdout)
        assert found["agent"] == str(guest.locate("tools"))
        assert found["busybox"] == str(busybox.locate())
        return busybox.locate()

    first = tools()
    assert first.read_text() == "1:1.37.0-6" and os.access(first, os.X_OK)
    assert {path.name for path in first.parent.iterdir()} == {"busybox", "manifest.json"}
    monkeypatch.setattr(Packages, "newest", "1:1.37.0-7")
    assert tools() == first
    assert tools("--update").read_text() == "1:1.37.0-7"


# --- programs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "machine"), [("x86_64", 62), ("aarch64", 183)])  # elf.h
def test_programs_are_static_without_warnings_and_compiled_once(arch: Arch, machine: int) -> None:
    folder = guest.build_init(arch)
    # A warning would be there.
    assert cache.log_path("init" if arch == "x86_64" else "init-aarch64").read_text() == ""
    for name in guest.PROGRAMS:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x7fELF") and int.from_bytes(content[18:20], "little") == machine
        # No PT_INTERP, no dynamic section: System V ABI, program header types 3 and 2.
        headers = subprocess.run(["readelf", "-lW", folder / name], check=True, capture_output=True).stdout
        assert b"LOAD" in headers and b"INTERP" not in headers and b"DYNAMIC" not in headers
        assert os.access(folder / name, os.X_OK)
    before = (folder / "init").stat()
    assert guest.build_init(arch) == folder
    assert (folder / "init").stat() == before
    assert guest.locate("init", arch) == folder / "init"
    assert guest.locate("agent", arch) == folder / "agent"


def test_the_same_sources_make_the_same_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {name: (guest.build_init() / name).read_bytes() for name in guest.PROGRAMS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another, longer cache"))
    second = {name: (guest.build_init() / name).read_bytes() for name in guest.PROGRAMS}
    assert first == second


def test_hello_without_an_nsm_says_so_and_fails() -> None:
    if os.path.exists("/dev/nsm"):
        pytest.fail("this host has an NSM of its own")
    run = subprocess.run([guest.build_init() / "hello"], capture_output=True, check=False)
    assert run.returncode == 1
    assert b"/dev/nsm: No such file or directory" in run.stderr


def fake_cc(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cc").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        ("case $1 in -dumpmachine) echo aarch64-linux-gnu;; *) echo 1;; esac", "for aarch64", "x86_64"),
        ("case $1 in -dumpmachine) echo x86_64-linux-gnu;; -print*) echo libc.a;; *) echo 1;; esac",
         "no static C library", "libc"),
    ],
)  # fmt: skip
def test_a_compiler_that_cannot_make_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str, hint: str
) -> None:
    fake_cc(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(NitroError, match=message) as e:
        guest.build_init()
    assert hint in str(e.value.hint)


def test_a_program_that_does_not_compile_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run(["cc", "-print-file-name=libc.a"], check=True, capture_output=True, text=True)
    fake_cc(
        tmp_path / "bin",
        "case $1 in -dumpmachine) echo x86_64-linux-gnu;; "
        f"-print*) echo {real.stdout.strip()};; -dump*) echo 1;; "
        "*) echo 'init.c:3: error: impossible' >&2; exit 1;; esac",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(BuildFailed, match="init.c:3: error: impossible"):
        guest.build_init()
    assert leftovers("init") == []


def test_the_commands_print_paths(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(nitroctl, ["guest", "init", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    paths = answer("nitroctl guest init", result.stdout)["programs"]
    assert set(paths) == {"init", "agent", "hello", "features", "tools"}
    assert all(Path(path).is_file() for path in paths.values())
    result = runner.invoke(nitroctl, ["which", "init"], catch_exceptions=False)
    assert result.stdout.strip() == paths["init"]
