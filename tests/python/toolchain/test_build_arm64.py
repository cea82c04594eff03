# SPDX-License-Identifier: MIT
"""A QEMU for arm64 enclaves beside the one for x86-64: what is asked of configure, and that neither build
touches the other. On the stage of buildstage.py; the plugin's part without dpkg."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from buildstage import Stage
from nitroctl.base import arch as arches
from nitroctl.base.errors import NitroError
from nitroctl.commands.build import build as build_command
from nitroctl.toolchain import packages, places, plugin_build, source, tree


def test_both_are_built_from_one_source(stage: Stage) -> None:
    # The stage's own configure makes x86-64's alone.
    choice = """set -e
case "$*" in *aarch64-softmmu*) NAME=qemu-system-aarch64;; *) NAME=qemu-system-x86_64;; esac
"""
    configure = stage.tree / "configure"
    text = configure.read_text().replace("set -e\n", choice, 1)
    configure.write_text(text.replace("build qemu-system-x86_64: ld", "build $NAME: ld"))
    first = stage.build(source=stage.tree)
    arm = stage.build(source=stage.tree, arch="aarch64")
    assert (first.arch, first.qemu.name) == ("x86_64", "qemu-system-x86_64")
    assert (arm.arch, arm.qemu.name) == ("aarch64", "qemu-system-aarch64")
    assert first.build_dir != arm.build_dir and first.key != arm.key
    assert arm.firmware == {}  # its board boots without any
    assert places.locate("qemu") == first.qemu and places.locate("qemu", arch="aarch64") == arm.qemu
    found = tree.manifest(arch="aarch64")
    assert found is not None and found.key == arm.key
    asked = [o for o in arm.configure if "x86_64" in o or "aarch64" in o]
    assert asked == [
        "--target-list=aarch64-softmmu",
        "--with-devices-aarch64=../../../nitro-overlay/configs/aarch64",
    ]


def test_kvm_is_asked_for_on_its_own_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for series in source.SERIES.values():
        assert "--enable-kvm" in series.options
        for host, target, kvm in (
            ("x86_64", "x86_64", True),
            ("x86_64", "aarch64", False),
            ("aarch64", "aarch64", True),
            ("aarch64", "x86_64", False),
        ):
            monkeypatch.setattr(arches, "host", lambda host=host: host)
            assert ("--enable-kvm" in tree.for_arch(series.options, target)) is kvm  # type: ignore[arg-type]


def test_the_distributions_qemu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(plugin_build, "_in_path", lambda program: [])
    with pytest.raises(NitroError, match="no qemu-system-aarch64 is installed") as caught:
        plugin_build.installed(arch="aarch64")
    assert "qemu-system-arm" in str(caught.value.hint)
    assert "nitroctl build --arch aarch64" in str(caught.value.hint)
    assert packages.emulator("aarch64").program == "/usr/bin/qemu-system-aarch64"


def test_what_cannot_be_asked_together() -> None:
    for arguments, said in (
        (["--arch", "all", "--json"], "name one --arch"),
        (["--arch", "all", "--plugin", "--qemu", "/bin/sh"], "leave --arch out"),
        (["--arch", "arm"], "aarch64"),
    ):
        result = CliRunner().invoke(build_command, arguments)
        assert result.exit_code == 2 and said in result.output, result.output
