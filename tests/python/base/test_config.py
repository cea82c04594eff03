# SPDX-License-Identifier: MIT
"""Where a user's files are: the XDG Base Directory specification, with and without its variables."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from nitroctl.base import config
from nitroctl.base.errors import NitroError

FOLDERS = (
    ("XDG_CACHE_HOME", ".cache", config.cache_dir),
    ("XDG_DATA_HOME", ".local/share", config.data_dir),
    ("XDG_STATE_HOME", ".local/state", config.state_dir),
)


def test_folders_are_the_variables_or_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    own = pwd.getpwuid(os.getuid()).pw_dir
    for variable, below, folder in FOLDERS:
        monkeypatch.setenv("HOME", "/home/of mine")
        for value in ("", "relative/path"):  # the specification: to be ignored
            monkeypatch.setenv(variable, value)
            assert folder() == Path("/home/of mine", below, "nitroctl")
        monkeypatch.setenv(variable, "/else/where")
        assert folder() == Path("/else/where/nitroctl")
        monkeypatch.delenv(variable)
        assert folder() == Path("/home/of mine", below, "nitroctl")
        for home in ("", "not/absolute"):
            monkeypatch.setenv("HOME", home)
            assert folder() == Path(own, below, "nitroctl")
        monkeypatch.delenv("HOME")
        assert folder() == Path(own, below, "nitroctl")


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 0x7FFFFFF0)
    with pytest.raises(NitroError, match="user 2147483632 has no home folder") as caught:
        config.cache_dir()
    assert caught.value.hint == "set HOME to one"


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wheel they are beside the package, of a checkout above it."""
    package = tmp_path / "site/nitroctl"
    (package / "base").mkdir(parents=True)
    monkeypatch.setattr(config, "__file__", str(package / "base/config.py"))
    with pytest.raises(NitroError, match="nitroctl's C sources are neither in .* nor in .*") as caught:
        config.source_root()
    assert caught.value.hint == "reinstall nitroctl, or run it from a checkout"
    for root in (package / "source", tmp_path):
        (root / "graft").mkdir(parents=True)
        (root / "Kconfig").touch()
        assert config.source_root() == root
        assert config.in_checkout() == (root == tmp_path)


def test_where_programs_are_put(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "prefix", "/venv")
    assert config.default_prefix() == Path("/venv")
    monkeypatch.setattr(sys, "base_prefix", "/venv")
    assert config.default_prefix() == Path("/home/me/.local")
