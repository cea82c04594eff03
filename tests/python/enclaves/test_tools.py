# SPDX-License-Identifier: MIT
"""What `--tools` adds to an enclave: the ramdisk, and how the image's own init would have been started."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nitroctl.base.config import source_root
from nitroctl.base.errors import NotBuilt
from nitroctl.enclaves import cores, tools
from nitroctl.enclaves.request import RunRequest


@pytest.mark.parametrize(
    ("cmdline", "words"),
    [
        ("", ["/init"]),
        # AWS's own, and what it comes to with a kernel that has modules.
        ("reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0", ["/init"]),
        ("quiet single a.b foo=1 console=ttyS0 two", ["/init", "single", "two"]),
        ("one rdinit=/sbin/other two", ["/sbin/other", "two"]),
        ("one init=/no two", ["/init", "two"]),
        ("one -- two=2 quiet", ["/init", "one", "two=2", "quiet"]),
        ("rdinit=/a rdinit=/b", ["/b"]),
    ],
)
def test_how_the_images_init_would_start(cmdline: str, words: list[str]) -> None:
    """By Linux's init/main.c: words without a value that nothing in the kernel takes are arguments, those
    with a dot are a module's, `init=` and `rdinit=` drop the arguments before, what follows -- is kept."""
    assert tools.init_words(cmdline) == words


def test_the_ramdisk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tools", "busybox"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(tools, "locate", lambda *_: (tmp_path / "tools", tmp_path / "busybox"))
    found = {entry.name: entry for entry in tools.entries("quiet foo")}
    assert set(found) == {b".nitroctl", b".nitroctl/tools", b".nitroctl/busybox", b".nitroctl/next"}
    assert found[b".nitroctl/next"].data == b"/init\0foo\0"
    assert found[b".nitroctl/tools"].mode & 0o111 and found[b".nitroctl/busybox"].mode & 0o111
    assert tools.APPEND == "rdinit=/.nitroctl/tools"


def test_nothing_of_it_is_in_another_enclave() -> None:
    """Command line and overlay of an enclave without tools are those of the request alone."""
    plain = RunRequest(Path("app.eif"))
    assert (tools.append(plain), tools.sources(plain, "quiet")) == (None, ())
    assert tools.append(replace(plain, append="quiet")) == "quiet"
    assert tools.append(replace(plain, tools=True)) == tools.APPEND
    asked = replace(plain, tools=True, append="quiet")
    assert tools.append(asked) == f"quiet {tools.APPEND}"
    assert len(tools.sources(asked, "quiet")) == 1


def test_without_the_programs_it_says_what_makes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotBuilt) as caught:
        tools.locate()
    assert caught.value.hint == "nitroctl guest tools"


def test_both_sides_have_the_same_numbers() -> None:
    header = (source_root() / "guest/tools-protocol.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"#define (TOOLS_\w+) (\d+)u?$", header, re.M)}
    assert numbers == {
        "TOOLS_VERSION": tools.VERSION, "TOOLS_PORT": tools.PORT, "TOOLS_CORE_PORT": tools.CORE_PORT,
        "TOOLS_FRAME_MAX": 65536, "TOOLS_CORE_HEAD_MAX": cores.HEAD_MAX, "TOOLS_TTY": 1, "TOOLS_BUSYBOX": 2,
    }  # fmt: skip
