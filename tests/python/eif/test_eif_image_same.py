# SPDX-License-Identifier: MIT
"""The same image or folder gives the same bytes: for another user, locale, time zone, umask, copy of the
folder; also with names that are not Unicode.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imagemodel as im
from imagebuilt import APP, bootstrap, child, files, start_in
from nitroctl.eif import compose
from nitroctl.eif.describe import describe

SETTINGS: list[dict[str, Any]] = [
    {},
    {"TZ": "Asia/Kathmandu", "umask": "077", "PYTHONHASHSEED": "1"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"user": True, "HOME": "/", "USER": "somebody", "umask": "000"},
]


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    return bootstrap(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can get at, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="nitroctl-test-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.mark.parametrize("option", ["plain", "compress"])
def test_the_same_bytes_anywhere(open_folder: Path, option: str) -> None:
    """Time zone, locale, umask, user."""
    start_in(open_folder)
    layers = [im.layer(APP, im.entry("b", b"1"), im.entry("a", b"2")), im.layer(im.entry("\u00e9", b"3"))]
    image = im.oci(open_folder / "app.tar", layers)
    made = []
    for i, setting in enumerate(SETTINGS):
        child(open_folder, image, open_folder / f"{i}", option, **setting)
        made.append((open_folder / f"{i}").read_bytes())
    assert made[1:] == made[:1] * (len(SETTINGS) - 1)


def test_the_same_bytes_from_any_copy_of_a_folder(open_folder: Path) -> None:
    """Whoever copied it, when, and in which order the file system has the names."""
    start_in(open_folder)
    names = ["app", "d/one", "d/two", "e/\u00e9", "e/f/g", "z"]
    made = []
    for i, setting in enumerate(SETTINGS):
        copy = open_folder / f"copy-{i}"
        im.folder(copy, {name: name.encode() for name in (names[::-1] if i % 2 else names)})
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.name == "app" else 0o644)
            os.utime(path, (i * 10**8, i * 10**8))
            if setting.get("user") and os.geteuid() == 0:
                os.chown(path, 65534, 65534)
        child(open_folder, copy, open_folder / f"{i}", **setting)
        made.append((open_folder / f"{i}").read_bytes())
    assert made[1:] == made[:1] * (len(SETTINGS) - 1)


def test_names_that_are_not_unicode(tmp_path: Path, start: compose.Bootstrap) -> None:
    """Also that of the folder, which becomes the image's."""
    folder = im.folder(tmp_path / "caf\udce9", {"app": b"a", "\udcff": b"x"})
    application = compose.from_directory(folder, ("/app",))
    assert files(application) == {"app": b"a", "\udcff": b"x"}
    compose.compose(application, start, tmp_path / "o", compose.Options())
    assert describe(tmp_path / "o").to_json()["ImageName"] == "caf?"
