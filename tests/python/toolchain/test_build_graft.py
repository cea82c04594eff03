# SPDX-License-Identifier: MIT
"""The graft that adds our sources to QEMU's build: put in once, whole or not at all. On the stage of
buildstage.py; and that the real ones can be read.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from buildstage import Stage, write
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import source


def files_of(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in sorted(tree.rglob("*")) if p.is_file()}


def test_graft_twice(stage: Stage) -> None:
    patch = stage.checkout / "graft" / "qemu-10.0.patch"
    assert source.apply_graft(patch, stage.tree)
    once = files_of(stage.tree)
    assert (stage.tree / "meson.build").read_text().splitlines() == [
        "subdir('gdbstub')", "subdir('hw')", "subdir('nitro-overlay/hw')", "subdir('tests')"
    ]  # fmt: skip
    assert not source.apply_graft(patch, stage.tree)
    assert files_of(stage.tree) == once


@pytest.mark.parametrize("name", ["Kconfig", "meson.build"])
def test_graft_half_applied_is_completed(stage: Stage, name: str) -> None:
    """Killed between two files."""
    patch = stage.checkout / "graft" / "qemu-10.0.patch"
    original = (stage.tree / name).read_bytes()
    source.apply_graft(patch, stage.tree)
    whole = files_of(stage.tree)
    (stage.tree / name).write_bytes(original)
    assert source.apply_graft(patch, stage.tree)
    assert files_of(stage.tree) == whole


def test_graft_in_moved_lines_fits(stage: Stage) -> None:
    text = "# more\n" * 30 + (stage.tree / "meson.build").read_text()
    write(stage.tree / "meson.build", text)
    assert source.apply_graft(stage.checkout / "graft" / "qemu-10.0.patch", stage.tree)


@pytest.mark.parametrize("name", ["Kconfig", "meson.build"])
@pytest.mark.parametrize("content", [None, "something else\n", "subdir('hw')\n\nsubdir('tests')\n"])
def test_graft_that_does_not_fit(stage: Stage, name: str, content: str | None) -> None:
    if content is None:
        (stage.tree / name).unlink()
    else:
        write(stage.tree / name, content)
    before = files_of(stage.tree)
    with pytest.raises(NitroError, match="the graft does not fit") as caught:
        source.apply_graft(stage.checkout / "graft" / "qemu-10.0.patch", stage.tree)
    assert name in str(caught.value) and "nothing was changed" in str(caught.value.hint)
    assert files_of(stage.tree) == before


def test_the_real_grafts_can_be_read() -> None:
    for series in source.SERIES.values():
        parts = source.split_patch(series.graft.read_text())
        assert set(parts) == {"Kconfig", "meson.build"}
        added = [line for part in parts.values() for line in part.splitlines()[2:] if line.startswith("+")]
        ours = [line for line in added if source.LINK in line]
        # 7.2 does not tell its Kconfig of libcbor, gnutls and libfdt by itself.
        others = {
            "7.2": ["libcbor = ", "CONFIG_LIBCBOR", "CONFIG_GNUTLS", "CONFIG_FDT"],
            "10.0": [],
            "10.2": [],
        }[series.name]
        assert len(ours) == (5 if others else 4)
        rest = [line for line in added if line not in ours and line != "+"]
        assert len(rest) == len(others)
        assert all(word in line for word, line in zip(others, rest, strict=True))
