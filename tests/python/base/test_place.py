# SPDX-License-Identifier: MIT
"""\"No space left on device\" says where: on a device that is always full, and with faked errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nitroctl import cli
from nitroctl.base.place import place
from nitroctl.toolchain import cache


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_place_is_added_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError) as e, place(tmp_path):
        raise full()
    assert e.value.filename == str(tmp_path) and cli._place(e.value) == str(tmp_path)
    with pytest.raises(FileNotFoundError) as other, place(tmp_path):
        (tmp_path / "gone").read_bytes()
    assert other.value.filename == str(tmp_path / "gone")


def test_a_copy_names_where_it_was_to_go() -> None:
    error = OSError(errno.ENOSPC, "x", "from", None, "to")
    assert cli._place(error) == "to"
    assert cli._place(OSError(errno.EIO, "x", "from", None, "to")) == "from"


def test_entries_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fill(folder: Path) -> None:
        raise full()

    with pytest.raises(OSError) as e:
        cache.build_entry("init", "key", fill)
    assert e.value.filename == str(cache.entry("init", "key"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output() -> None:
    with open("/dev/full", "w") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "nitroctl", "--version"], stdout=sink, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: No space left on device")
