# SPDX-License-Identifier: MIT
"""Programs and libraries that a build needs of the host: what is lacking, and the line that installs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildstage import write
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import packages, steps


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
