# SPDX-License-Identifier: MIT
"""What runs of a container image: its words, program, environment, user and folder as container runtimes have
them, what init cannot be given, and what AWS's builder writes into /etc.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cpiomodel
import imagemodel as im
from cpiomade import Memory
from imagebuilt import APP, DIR, HOSTS, LNK, REG, bootstrap, contents, running
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose
from nitroctl.eif.extract import extract


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    return bootstrap(tmp_path)


def test_entrypoint_and_cmd(tmp_path: Path) -> None:
    """Joined, as in a container; AWS's way takes CMD alone."""
    both = {"Entrypoint": ["/app", "-a"], "Cmd": ["b c"]}
    assert running(tmp_path, both).cmd == ("/app", "-a", "b c")
    assert running(tmp_path, both, aws_cmd=True).cmd == ("b c",)
    assert running(tmp_path, {"Entrypoint": ["/app"]}, aws_cmd=True).cmd == ("/app",)
    assert running(tmp_path, {"Cmd": ["/app"]}).cmd == ("/app",)


def test_programs_are_found_in_the_images_path(tmp_path: Path) -> None:
    """init looks in AWS's folders alone, so it is told the place; the first word stays what it is."""
    found = running(tmp_path, {"Cmd": ["tool", "x"], "Env": ["PATH=/none:/usr/bin"]})
    assert (found.cmd, found.program, found.warnings) == (("tool", "x"), "/usr/bin/tool", ())
    assert running(tmp_path, {"Cmd": ["tool"]}).program == "/usr/bin/tool"
    for missing in ("plain", "gone"):
        found = running(tmp_path, {"Cmd": [missing]})
        assert (found.cmd, found.program) == ((missing,), "") and missing in found.warnings[0]
    found = running(tmp_path, {"Cmd": ["./tool"], "WorkingDir": "/usr/bin"})
    assert (found.cmd, found.program, found.warnings) == (("./tool",), "", ())
    assert running(tmp_path, {"Cmd": ["tool"]}, aws_cmd=True).program == ""


def test_aws_init_is_given_the_place_as_first_word(tmp_path: Path, start: compose.Bootstrap) -> None:
    """It knows no file `program`; ours does."""
    application = running(tmp_path, {"Cmd": ["tool", "x"], "Env": ["PATH=/usr/bin"]})
    for aws, expected in ((False, {b"cmd": b"tool\nx\n", b"program": b"/usr/bin/tool\n"}),
                          (True, {b"cmd": b"/usr/bin/tool\nx\n"})):  # fmt: skip
        compose.compose(application, replace(start, aws=aws), tmp_path / "o", compose.Options())
        out = {p.name: p.read_bytes() for p in extract(tmp_path / "o", tmp_path / f"out-{aws}")}
        items = {i.name: i.data for i in cpiomodel.read(out["ramdisk-1.cpio"])}
        assert {name: items[name] for name in items if name in (b"cmd", b"program")} == expected


def test_environment(tmp_path: Path) -> None:
    run = {"Cmd": ["/app"], "Env": ["A=b=c", "PATH=/x"]}
    assert running(tmp_path, run).env == ("A=b=c", "PATH=/x", "HOME=/root")
    assert running(tmp_path, {"Cmd": ["/app"]}).env == (f"PATH={compose.PATH}", "HOME=/root")
    assert running(tmp_path, {"Cmd": ["/app"], "Env": ["A=b"]}, aws_cmd=True).env == ("A=b",)


@pytest.mark.parametrize(
    "user, numbers, home",
    [
        ("", "", "/root"), ("root", "", "/root"), ("0:0", "", "/root"), ("web", "33 34 50 51", "/srv/web"),
        ("33", "33 34 50 51", "/srv/web"), ("web:data", "33 50", "/srv/web"), ("web:99", "33 99", "/srv/web"),
        ("1000", "1000 0", "/"), ("1000:1001", "1000 1001", "/"), ("0:34", "0 34", "/root"),
    ],
)  # fmt: skip
def test_users(tmp_path: Path, user: str, numbers: str, home: str) -> None:
    found = running(tmp_path, {"Cmd": ["/app"], "User": user})
    assert found.user == numbers
    assert f"HOME={home}" in found.env


@pytest.mark.parametrize("user", ["nobody", "web:nogroup", "99999999999", "4294967295", "-1", "\u0663"])
def test_users_that_are_not_there(tmp_path: Path, user: str) -> None:
    with pytest.raises(NitroError, match="is to run as"):
        running(tmp_path, {"Cmd": ["/app"], "User": user})


def test_working_directories(tmp_path: Path) -> None:
    """Made if it is not there, as container runtimes do."""
    found = running(tmp_path, {"Cmd": ["/app"], "WorkingDir": "/new/folder"})
    assert found.cwd == "/new/folder"
    assert contents(found)["new/folder"].mode == DIR | 0o755
    assert running(tmp_path, {"Cmd": ["/app"], "WorkingDir": "/"}).cwd == ""
    for bad in ("relative", "/app/x"):
        with pytest.raises(NitroError):
            running(tmp_path, {"Cmd": ["/app"], "WorkingDir": bad})


def test_what_init_cannot_be_given(tmp_path: Path) -> None:
    for run, what in (
        ({"Cmd": ["/app", "a\0b"]}, "NUL"), ({"Cmd": ["/app"], "Env": ["A=\0"]}, "NUL"),
        ({"Cmd": ["/app"], "WorkingDir": "/a\nb"}, "line break"),
    ):  # fmt: skip
        with pytest.raises(NitroError, match=what):
            running(tmp_path, run)


PEM = "KEY=-----BEGIN X-----\nMII=\n-----END X-----\n"


def test_line_breaks(tmp_path: Path, start: compose.Bootstrap) -> None:
    """Our init takes them, from files of its own; what has none is as AWS has it."""
    application = running(tmp_path, {"Cmd": ["/app", "a\nb", "c"], "Env": ["A=1", PEM, "HOME=/"]})
    compose.compose(application, start, tmp_path / "o", compose.Options())
    items = {i.name: i.data for i in cpiomodel.read(extract(tmp_path / "o", tmp_path / "x")[-1].read_bytes())}
    path = b"PATH=" + compose.PATH.encode()
    assert (items[b"cmd"], items[b"cmd0"]) == (b"/app\nc\n", b"/app\0a\nb\0c\0")
    assert items[b"env"] == path + b"\nA=1\nHOME=/\n"
    assert items[b"env0"] == path + b"\0A=1\0" + PEM.encode() + b"\0HOME=/\0"


@pytest.mark.parametrize(
    "run, what",
    [
        (
            {"Cmd": ["/app"], "Env": ["A=1", PEM]},
            "app.tar: the variable 'KEY' has a line break, which AWS's init",
        ),
        ({"Cmd": ["/app", "a\nb"]}, "app.tar: the argument .* has a line break, which AWS's init"),
    ],
)
def test_line_breaks_and_awss_init(
    tmp_path: Path, start: compose.Bootstrap, run: dict[str, Any], what: str
) -> None:
    with pytest.raises(NitroError, match=what):
        compose.compose(running(tmp_path, run), replace(start, aws=True), tmp_path / "o", compose.Options())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("key", ["Cmd", "Env", "WorkingDir", "User"])
def test_texts_that_are_not_unicode(tmp_path: Path, key: str) -> None:
    """JSON can escape half of a surrogate pair."""
    run: dict[str, Any] = {"Cmd": ["/app"]}
    run[key] = ["/app", "A=\ud800"] if key in ("Cmd", "Env") else "/\ud800"
    with pytest.raises(NitroError, match="is not JSON.*surrogates"):
        running(tmp_path, run)


def etc_of(folder: Path, *entries: Any) -> tuple[dict[str, tuple[int, bytes]], tuple[str, ...]]:
    """Mode and content of what is in /etc, and the notes."""
    image = im.docker(folder / "app.tar", [im.layer(APP, *entries)], run={"Cmd": ["/app"]})
    application = compose.from_image(image)
    sink = Memory()
    compose._write_application(sink, application)
    found = {i.name.decode(): (i.mode, i.data) for i in cpiomodel.read(sink.data)}
    return {n: v for n, v in found.items() if "etc/" in n}, application.notes


def test_etc_has_awss_files_where_the_image_has_none(tmp_path: Path) -> None:
    """So that `localhost` resolves in Debian's and Ubuntu's images. What is there stays, and is told."""
    hosts = {"rootfs/etc/hosts": (REG | 0o644, HOSTS)}
    mtab = {"rootfs/etc/mtab": (LNK | 0o777, b"/proc/mounts")}
    assert etc_of(tmp_path) == (hosts | mtab, ())
    assert etc_of(tmp_path, im.symlink("etc/mtab", "/proc/mounts")) == (hosts | mtab, ())
    resolv = {"rootfs/etc/resolv.conf": (LNK | 0o777, b"/run/resolvconf/resolv.conf")}
    link = im.symlink("etc/resolv.conf", "/run/resolvconf/resolv.conf")
    assert etc_of(tmp_path, link) == (hosts | mtab | resolv, ())
    own, notes = etc_of(tmp_path, im.entry("etc/hosts", b"1 me"), im.entry("etc/resolv.conf", b""))
    assert own == mtab | {
        "rootfs/etc/hosts": (REG | 0o644, b"1 me"),
        "rootfs/etc/resolv.conf": (REG | 0o644, b""),
    }
    assert notes == (
        "kept the image's own /etc/hosts and /etc/resolv.conf, which AWS's build-enclave replaces (--as-aws)",
    )
    # Dangling links are there as well; what is no folder is left as it is; a link to one is followed.
    root = im.folder(tmp_path / "root", {"app": b"x", "etc/mtab": b"own"})
    application = compose.from_directory(root, ("/app",))
    sink = Memory()
    compose._write_application(sink, application)
    items = {i.name.decode(): i.data for i in cpiomodel.read(sink.data)}
    assert (items["rootfs/etc/hosts"], items["rootfs/etc/mtab"]) == (HOSTS, b"own")
    assert "own /etc/mtab, which" in application.notes[0]
    found, (note,) = etc_of(tmp_path, im.symlink("etc/hosts", "nowhere"), im.symlink("etc/mtab", "x"))
    assert found["rootfs/etc/hosts"] == (LNK | 0o777, b"nowhere") and "/etc/hosts and /etc/mtab" in note
    assert etc_of(tmp_path, im.entry("etc", b"file")) == ({}, ())
    assert etc_of(tmp_path, im.entry("usr/etc"), im.symlink("etc", "usr/etc"))[0] == {
        name.replace("rootfs", "rootfs/usr"): item for name, item in (hosts | mtab).items()
    }


def test_a_mount_point_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(NitroError, match="/proc"):
        running(tmp_path, {"Cmd": ["/app"]}, im.entry("proc", b"x"))


def test_file_capabilities_are_a_warning(tmp_path: Path) -> None:
    ping = im.entry("ping", b"p", pax_headers={"SCHILY.xattr.security.capability": "x"})
    assert "1 files" in running(tmp_path, {"Cmd": ["/app"]}, ping).warnings[0]
