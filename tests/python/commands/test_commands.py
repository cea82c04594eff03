# SPDX-License-Identifier: MIT
"""What holds for every command of `nitroctl`, whatever it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

from commandtree import commands
from nitroctl import cli
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose
from nitroctl.toolchain import guest
from nitroctl.toolchain import prebuilt as prebuilt_kernel


def test_click_judges_no_file() -> None:
    """It would call some of what can be wrong with one a wrong usage, and leave the rest to us."""
    seen = 0
    for name, command in commands():
        for param in command.params:
            if isinstance(param.type, click.Path):
                seen += 1
                assert not param.type.readable and not param.type.exists, f"{name}: {param.name}"
    assert seen > 10


EIF_ARGUMENTS = [
    ["run"],
    ["eif", "describe"],
    ["eif", "verify"],
    ["eif", "extract", "-C", "out"],
    ["attest", "verify", os.devnull, "--eif"],
]


@pytest.mark.parametrize("arguments", EIF_ARGUMENTS, ids=" ".join)
def test_missing_unreadable_and_no_file_are_alike(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nitroctl.enclaves.ready._qemu", lambda request: Path("/bin/true"))
    monkeypatch.setattr("nitroctl.enclaves.ready._backend", lambda: Path("/bin/true"))
    locked = tmp_path / "locked.eif"
    locked.write_bytes(b"x")
    really_open = os.open

    def opened(path: Any, *more: Any, **others: Any) -> int:
        if os.fspath(path) == os.fspath(locked):
            raise PermissionError(13, os.strerror(13), path)
        return really_open(path, *more, **others)

    monkeypatch.setattr(os, "open", opened)  # root may read what nobody may
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for path, why in (
        (tmp_path / "missing.eif", "No such file or directory"),
        (locked, "Permission denied"),
        (tmp_path, "is not a regular file"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, str(path)])
        error = capsys.readouterr().err
        assert (ended.value.code, error.count("\n")) == (1, 1), error
        assert str(path) in error and why in error


BOTH = (("kernel", "prebuilt"), "own")


@pytest.mark.parametrize(("built", "expected"), [BOTH, (("prebuilt",), "prebuilt")])
def test_the_default_kernel_is_one_that_is_there(
    built: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands as by the Python API."""
    used = []

    def locate(what: str, arch: str | None) -> Path:
        if what in built:
            return tmp_path / "own"
        raise NitroError(f"there is no {what}")

    def found(name: str | None = None, arch: Arch | None = None) -> NoReturn:
        used.append(real(name).image.name)
        raise NitroError("enough")

    real = compose.locate_kernel
    (tmp_path / "modules").mkdir()
    prebuilt = prebuilt_kernel.Prebuilt(tmp_path / "prebuilt", tmp_path / "modules", "6.1")
    monkeypatch.setattr(guest, "locate", locate)
    monkeypatch.setattr("nitroctl.toolchain.prebuilt.fetch", lambda **_: prebuilt)
    monkeypatch.setattr(compose, "locate_kernel", found)
    (tmp_path / "root").mkdir()
    for arguments in (
        ["build", "--directory", str(tmp_path / "root"), "--cmd", "/app", "-o", str(tmp_path / "app.eif")],
        ["test-image", "hello", "-o", str(tmp_path / "hello.eif")],
    ):
        with pytest.raises(SystemExit):
            cli.main(["eif", *arguments])
    assert used == [expected, expected]
