# SPDX-License-Identifier: MIT
"""Copies out of a guest that sends what it likes, and into one: tars made here by tarfile, unpacked by ours,
and the other way round. That busybox in a guest makes and takes them is for the boot tests."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nitroctl.base.errors import NitroError
from nitroctl.inside import agent, copy

RECORD: Any = SimpleNamespace(name="app", memory_mib=64, hint=None, cause=None, tail=())


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: Any) -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[Any, bytes]:
    return entry(name, kind=kind, linkname=target)


def packed(*entries: tuple[Any, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A guest that answers commands: `tar` is what it sends, `status` how each command ends, `took` what came
    on standard input, `asked` the commands."""
    fake = SimpleNamespace(tar=b"", status={}, took=b"", asked=[], reason="tar: it is broken")

    class Command:
        reason = fake.reason

        def __init__(self, record: object, words: list[str], *, busybox: bool) -> None:
            assert busybox
            self.words = words
            fake.asked.append(words)

        def run(self, source: Iterable[bytes] = (), sink: Callable[[bytes], object] = lambda _: None) -> int:
            fake.took += b"".join(source)
            for at in range(0, len(fake.tar), 1000):
                sink(fake.tar[at : at + 1000])
            return int(fake.status.get(self.words[0], 0))

    monkeypatch.setattr(agent, "Command", Command)
    return fake


def out(path: str, target: Path, **more: Any) -> tuple[Path, list[str]]:
    notes: list[str] = []
    return copy.out(RECORD, path, target, note=notes.append, **more), notes


def test_a_folder_comes_out_as_it_is(guest: SimpleNamespace, tmp_path: Path) -> None:
    guest.tar = packed(
        entry("app", kind=tarfile.DIRTYPE, mode=0o4700),
        entry("app/closed", kind=tarfile.DIRTYPE, mode=0o500),
        entry("app/closed/run", b"#!\0", mode=0o6755, mtime=1e9, uid=12, gid=13),
        link("app/again", "app/closed/run", tarfile.LNKTYPE),
        link("app/near", "closed/run"),
        link("app/closed/back", ".././near"),
        link("app/winding", "closed/../near"),
        link("app/far", "/etc/passwd"),
        link("app/closed/up", "../../x"),
        entry("app/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("app/pipe", kind=tarfile.FIFOTYPE),
        entry("app/" + "n" * 200, b"long"),
    )
    made, notes = out("/srv/../opt/app/", tmp_path)
    assert guest.asked == [["tar", "-C", "/opt", "-cf", "-", "--", "app"]]
    assert made == tmp_path / "app" and os.listdir(tmp_path) == ["app"]
    run = made / "closed/run"
    assert run.read_bytes() == b"#!\0" and os.path.samefile(run, made / "again")
    assert (run.stat().st_mtime, run.stat().st_uid) == (1e9, os.getuid())
    modes = {p.name: stat.S_IMODE(p.lstat().st_mode) for p in (made, made / "closed", run)}
    assert modes == {"app": 0o700, "closed": 0o700, "run": 0o755}
    assert os.readlink(made / "near") == "closed/run" and (made / "closed/back").read_bytes() == b"#!\0"
    assert (made / ("n" * 200)).read_bytes() == b"long"
    assert sorted(os.listdir(made)) == ["again", "closed", "near", "n" * 200]
    assert notes == [
        "left out: app/winding: a link to closed/../near, which may lead out of the copy",
        "left out: app/far: a link to /etc/passwd, which may lead out of the copy",
        "left out: app/closed/up: a link to ../../x, which may lead out of the copy",
        "left out: app/null: neither file, folder nor link",
        "left out: app/pipe: neither file, folder nor link",
    ]


def test_a_file_takes_a_new_name_and_replaces_a_link_itself(guest: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "copy").symlink_to("precious")
    guest.tar = packed(entry("passwd", b"root"), entry("another", b"not asked for"))
    made, _ = out("etc/passwd", tmp_path / "copy")
    assert not made.is_symlink() and made.read_bytes() == b"root"
    assert (tmp_path / "precious").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["copy", "precious"]


_FOLDER = entry("d", kind=tarfile.DIRTYPE)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (packed(_FOLDER, entry("d/../../x", b"!")), "with the name d/../../x"),
        (packed(_FOLDER, entry("/x", b"!")), "with the name /x"),
        (packed(_FOLDER, link("d/l", "."), entry("d/l/x", b"!")), "d/l/x where it cannot be"),
        (packed(_FOLDER, entry("d/x", b"1"), entry("d/x", b"2")), "d/x where it cannot be"),
        (packed(_FOLDER, link("d/x", "/etc/passwd", tarfile.LNKTYPE)), "with the name /etc/passwd"),
        (packed(_FOLDER, link("d/x", "d/gone", tarfile.LNKTYPE)), "d/x where it cannot be"),
        (packed(_FOLDER, entry("d/a\x1b]0;b/c", b"")), r"d/a\x1b]0;b/c where it cannot be"),
        (packed(entry("d/x", b"1")), "d/x where it cannot be"),
        (packed(_FOLDER, entry("d/x", bytes(9000)))[:3000], "d/x where it cannot be"),
        (packed(_FOLDER, entry("d/x", b"1"))[:600], "is damaged"),
        (b"no tar at all" * 100, "is damaged"),
        (packed(entry("e", b"1")), "neither a file nor a folder that can be copied"),
        (b"", "is damaged"),
        (packed(_FOLDER, entry("d/x", bytes(1 << 20))), "more than 1 MiB"),
    ],
)  # fmt: skip
def test_what_a_stranger_sends_stays_in_its_place(
    guest: SimpleNamespace, tmp_path: Path, sent: bytes, why: str
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    guest.tar = sent
    with pytest.raises(NitroError) as caught:
        out("/d", inner, limit=1 << 20)
    assert why in str(caught.value)
    assert os.listdir(tmp_path) == ["inner"] and os.listdir(inner) == []


def test_what_cannot_be_copied_out(guest: SimpleNamespace, tmp_path: Path) -> None:
    guest.status = {"tar": 1}
    with pytest.raises(NitroError, match="enclave app: tar: it is broken"):
        out("/d", tmp_path)
    (tmp_path / "d").mkdir()
    with pytest.raises(NitroError, match="is a folder that is there already"):
        out("/d", tmp_path)
    with pytest.raises(NitroError, match="has no name of its own"):
        out("/", tmp_path)
    assert os.listdir(tmp_path) == ["d"]


def test_a_guest_s_whole_root(guest: SimpleNamespace, tmp_path: Path) -> None:
    """Into a folder with a name of the host's; what is no file cannot be linked to."""
    guest.tar = packed(
        entry("./", kind=tarfile.DIRTYPE),
        entry("./etc", kind=tarfile.DIRTYPE),
        entry("./etc/name", b"app"),
        link("./etc/again", "etc/name", kind=tarfile.LNKTYPE),
        link("./etc/folder", "etc", kind=tarfile.LNKTYPE),
    )
    made, notes = out("/", tmp_path / "root")
    assert made == tmp_path / "root" and (made / "etc/again").read_bytes() == b"app"
    assert guest.asked == [["tar", "-C", "/", "-cf", "-", "--", "."]]
    assert notes == ["left out: ./etc/folder: a hard link to what is no file"]


def test_no_more_files_than_a_folder_should_have(
    guest: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "ENTRIES_MAX", 3)
    files = [entry("d", kind=tarfile.DIRTYPE), *(entry(f"d/{number}") for number in range(3))]
    guest.tar = packed(*files[:3])
    assert out("/d", tmp_path)[0] == tmp_path / "d"
    guest.tar = packed(*files)
    with pytest.raises(NitroError, match="what the guest sent of /d has more than 3 files"):
        out("/d", tmp_path / "other")
    assert os.listdir(tmp_path) == ["d"]


def test_into_the_guest(guest: SimpleNamespace, tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "deep").mkdir(parents=True)
    (source / "deep/file").write_bytes(content := os.urandom(200_001))
    (source / "deep/file").chmod(0o750)
    (source / "empty").touch()
    (source / "link").symlink_to("deep/file")
    assert copy.into(RECORD, source, "opt") == "/opt/src"  # a folder there
    assert guest.asked == [["test", "-d", "/opt"], ["tar", "-C", "/opt", "-xf", "-"]]
    with tarfile.open(fileobj=io.BytesIO(guest.took)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert set(members) == {"src", "src/deep", "src/deep/file", "src/empty", "src/link"}
        assert {(m.uid, m.gid) for m in members.values()} == {(0, 0)}
        assert members["src/deep/file"].mode == 0o750 and members["src/link"].linkname == "deep/file"
        file = archive.extractfile("src/deep/file")
        assert file and file.read() == content

    guest.status, guest.took, guest.asked = {"test": 1}, b"", []
    assert copy.into(RECORD, source / "empty", "/opt/new") == "/opt/new"  # nothing there
    assert guest.asked[1] == ["tar", "-C", "/opt", "-xf", "-"]
    assert tarfile.open(fileobj=io.BytesIO(guest.took)).getnames() == ["new"]

    guest.status = {"tar": 1}
    with pytest.raises(NitroError, match="enclave app: tar: it is broken"):
        copy.into(RECORD, source, "/opt/")
    with pytest.raises(NitroError, match="No such file or directory"):
        copy.into(RECORD, tmp_path / "gone", "/opt/")
    with pytest.raises(NitroError, match="^/ has no name of its own"):
        copy.into(RECORD, Path("/"), "/opt/")


def test_what_is_no_file_or_changes_meanwhile(tmp_path: Path) -> None:
    """A socket has no content; a file that shrinks would shift all that follows it in the tar."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(bytes(300_000))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tmp_path / "d/socket"))
        whole = b"".join(copy._packed(tmp_path / "d", "d"))
    assert tarfile.open(fileobj=io.BytesIO(whole)).getnames() == ["d", "d/file"]
    pieces = copy._packed(tmp_path / "d", "d")
    read = 0
    while read < 100_000:
        read += len(next(pieces))
    os.truncate(tmp_path / "d/file", 10)
    with pytest.raises(NitroError, match="^d/file became shorter while it was read"):
        b"".join(pieces)
