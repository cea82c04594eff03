# SPDX-License-Identifier: MIT
"""What is made for those who have no QEMU, and what is refused of what others made: a QEMU that is not the
one that dpkg knows, a kernel package of another shape, a bundle whose record is damaged. Nothing is built."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nitroctl import __version__
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import about, bundle, packages, plugin, plugin_build, prebuilt, programs, tree
from nitroctl.toolchain.plugin_build import Installed


@pytest.mark.parametrize(
    ("there", "distribution", "builds", "made", "said"),
    [
        ("plugin", True, True, "there", ""),
        ("bundle", True, True, "there", ""),
        ("", True, True, "plugin", ""),
        ("", True, False, "tree", "no compiler\nbuilding a QEMU instead\n"),
        ("", False, True, "tree", ""),
    ],
)
def test_which_qemu_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    there: str, distribution: bool, builds: bool, made: str, said: str,
) -> None:  # fmt: skip
    """None where there is one; else the distribution's with the plugin, and if that cannot be one of ours."""

    def build_plugin(jobs: int | None) -> SimpleNamespace:
        if not builds:
            raise NitroError("no compiler")
        return SimpleNamespace(launcher=Path("plugin"))

    monkeypatch.setattr(plugin, "prebuilt", lambda: Path("there") if there == "plugin" else None)
    monkeypatch.setattr(bundle, "qemu", lambda: Path("there") if there == "bundle" else None)
    monkeypatch.setattr(packages, "distribution_qemu", lambda: distribution)
    monkeypatch.setattr(plugin_build, "build_plugin", build_plugin)
    monkeypatch.setattr(tree, "build_qemu", lambda options: SimpleNamespace(qemu=Path("tree")))
    monkeypatch.setattr(tree, "build_backend", lambda jobs: Path("backend"))
    assert programs.make(2) == (Path(made), Path("backend"))
    assert capsys.readouterr().err == said


def test_a_qemu_says_of_which_package_it_is(tmp_path: Path) -> None:
    """QEMU compiles that in, and the plugin compares it: it must be what dpkg has."""
    path = tmp_path / "qemu"
    installed = Installed(path, "qemu-system-x86", "1:10.0.2+ds-2", "1:10.0.2+ds-2", "ab")

    def says(text: str) -> str:
        path.write_text(f"#!/bin/sh\necho '{text}'\n")
        path.chmod(0o755)
        return plugin_build._package_string(installed)

    assert says("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)") == "Debian 1:10.0.2+ds-2"
    for text in ("QEMU emulator version 10.0.2", "QEMU emulator version 10.0.3 (Debian 1:10.0.3+ds-1)", ""):
        with pytest.raises(NitroError, match=r"dpkg says qemu-system-x86 1:10\.0\.2\+ds-2") as caught:
            says(text)
        assert "install the package again" in (caught.value.hint or "")


def test_a_kernel_package_of_another_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boot").mkdir()
    for names, text in (
        ((), "has 0 kernels in /boot"),
        (("vmlinuz-6.1-1", "vmlinuz-6.1-2"), "has 2 kernels in /boot"),
    ):
        for name in names:
            (tmp_path / "boot" / name).touch()
        with pytest.raises(NitroError, match=text):
            prebuilt._pick(tmp_path, tmp_path, "x86_64")
    (tmp_path / "boot/vmlinuz-6.1-2").unlink()
    monkeypatch.setattr(prebuilt, "check_image", lambda *_: None)
    with pytest.raises(NitroError, match=r"has no modules for its kernel 6\.1-1"):
        prebuilt._pick(tmp_path, tmp_path, "x86_64")


def test_a_bundle_whose_record_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"{", b"\xff"):
        (tmp_path / bundle.RECORD).write_bytes(data)
        with pytest.raises(NitroError, match=bundle.RECORD) as caught:
            bundle._folder(tmp_path)
        assert caught.value.hint == "install nitroctl again"
    (tmp_path / bundle.RECORD).write_text(json.dumps({"glibc": "2.17", "nitroctl": __version__}))
    assert bundle._folder(tmp_path) == tmp_path
    for word in ("", "../x", "ABCD", "a", "0" * 129):  # no build-id
        assert bundle.plugin_for(word) is None


def test_the_version_tells_where_the_qemu_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = Path("/q/qemu"), Path("/other")

    def told(built: Path, bundled: Path, own: Path) -> str:
        monkeypatch.setattr(plugin, "in_use", lambda: here)
        with_plugin = SimpleNamespace(package="qemu-system-x86", version="1:10", launcher=built)
        monkeypatch.setattr(plugin, "manifest", lambda: with_plugin)
        monkeypatch.setattr(bundle, "installed_qemu", lambda: SimpleNamespace(version="10.0.8", path=bundled))
        monkeypatch.setattr(tree, "manifest", lambda: SimpleNamespace(version="10.0.9", qemu=own))
        return about.qemu()

    assert told(here, other, other) == "qemu-system-x86 1:10 with the plugin, /q/qemu"
    assert told(other, here, other) == "10.0.8, came with nitroctl, /q/qemu"
    assert told(other, other, here) == "10.0.9, /q/qemu"
    assert told(other, other, other) == "/q/qemu"
