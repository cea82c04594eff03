# SPDX-License-Identifier: MIT
"""`eif diff` against archives that AWS's own builder made (data/aws-builder): every difference that its rules
make is explained, and no other one."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

import eifmodel as model
import imagemodel as im
from jsonpage import answer
from nitroctl.commands.eif import eif
from nitroctl.eif.diff import diff
from nitroctl.eif.diff_rules import RULES

DATA = Path(__file__).parents[1] / "data" / "aws-builder"
# mtime-2106 cannot be built; contents-gz is contents, packed.
CASES = sorted(path.stem for path in DATA.glob("*.tar") if path.stem not in ("mtime-2106", "contents-gz"))


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """A kernel that can be booted, and another init than AWS's."""
    parts = {"bzImage": model.bzimage(), "bzImage.config": b"", "cmdline": b"quiet", "init": b"ours"}
    return im.folder(tmp_path / "blobs", parts)


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(eif, [str(a) for a in arguments])
    assert result.exit_code in (0, 1) and not result.exception, result.output
    return result.stdout


def theirs(folder: Path, archive: bytes, blobs: Path) -> Path:
    """An EIF with a ramdisk that AWS's builder made."""
    output = folder / f"{zlib.crc32(archive)}-aws.eif"
    (folder / "application.cpio").write_bytes(archive)
    ramdisks = ("--ramdisk", DATA / "bootstrap.cpio", "--ramdisk", folder / "application.cpio")
    call("build", "--kernel", blobs / "bzImage", "--cmdline", "quiet", *ramdisks, "-o", output)
    return output


def ours(folder: Path, image: Path, blobs: Path) -> Path:
    output = folder / f"{image.stem}-ours.eif"
    # The images here are about files: not each has the program that its configuration names.
    kernel = ("--kernel", blobs / "bzImage", "--cmdline", "quiet", "--allow-missing-program")
    call("build", "--image", image, *kernel, "-o", output)
    return output


@pytest.fixture(autouse=True)
def our_init(blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nitroctl.toolchain.guest.build_init", lambda *_: blobs)


def dated(archive: bytes, name: bytes, mtime: int) -> bytes:
    """The archive with another time in the header of that name."""
    at = archive.index(name + b"\0") - 110
    assert archive[at : at + 6] == b"070701"
    return archive[: at + 46] + b"%08x" % mtime + archive[at + 54 :]


def test_every_difference_to_awss_own_archives_is_explained(tmp_path: Path, blobs: Path) -> None:
    seen = set()
    for case in CASES:
        found = diff(
            theirs(tmp_path, (DATA / f"{case}.cpio").read_bytes(), blobs),
            ours(tmp_path, DATA / f"{case}.tar", blobs),
        )
        assert [d for d in found if d.rule is None and not d.where.startswith("PCR")] == [], case
        seen |= {d.rule for d in found if d.rule}
    assert set(RULES) - seen == {"folder-time"}  # which is 0 in these archives, and no Docker was there


def test_a_folder_that_no_layer_lists_has_any_time(tmp_path: Path, blobs: Path) -> None:
    archive = (DATA / "implied.cpio").read_bytes()
    one = theirs(tmp_path, dated(archive, b"rootfs/opt/", 1_700_000_000), blobs)
    for other in (ours(tmp_path, DATA / "implied.tar", blobs), theirs(tmp_path, archive, blobs)):
        (found,) = [d for d in diff(one, other) if "rootfs/opt" in d.where]
        assert found.rule == "folder-time" and "2023-11-14 22:13:20 UTC" in (found.a or "")


def test_what_no_rule_makes_is_not_explained(tmp_path: Path, blobs: Path) -> None:
    """A rule is named only where it makes what AWS's archive has: its own files changed are no rule."""
    archive = (DATA / "minimal.cpio").read_bytes()
    made = ours(tmp_path, DATA / "minimal.tar", blobs)
    for change in (
        archive.replace(b"ip6-allnodes", b"ip6-allNODES"),
        dated(archive, b"rootfs/etc/mtab", 5),
        archive.replace(b"/run/resolvconf", b"/run/Resolvconf"),
        dated(archive, b"cmd", 5),
    ):
        assert change != archive
        other = diff(theirs(tmp_path, change, blobs), made)
        assert len([d for d in other if d.where.startswith("ramdisk 1: ") and d.rule is None]) == 1


def test_the_command_names_the_rules(tmp_path: Path, blobs: Path) -> None:
    """In either order of the files; between two of ours nothing is said of AWS."""
    aws = theirs(tmp_path, (DATA / "cmd-both.cpio").read_bytes(), blobs)
    made = ours(tmp_path, DATA / "cmd-both.tar", blobs)
    for order in ((aws, made), (made, aws)):
        text = call("diff", *order)
        assert "  = AWS replaces /etc/hosts [hosts]\n" in text
        assert "  = AWS's builder takes CMD and ignores ENTRYPOINT [command]\n" in text
        assert text.endswith("differences are its rules.\n")
        rows = answer("nitroctl eif diff", call("diff", *order, "--json"))["items"]
        (hosts,) = [row for row in rows if row["where"] == "ramdisk 1: rootfs/etc/hosts"]
        assert (hosts["rule"], hosts["why"]) == ("hosts", "AWS replaces /etc/hosts")
        assert all(row["rule"] is None for row in rows if row["where"].startswith("PCR"))
    other = tmp_path / "other.eif"
    more = ("--kernel", blobs / "bzImage", "--allow-missing-program")
    call("build", "--image", DATA / "times.tar", *more, "-o", other)
    assert "AWS" not in call("diff", made, other)


def test_a_hard_link_shows_its_files_content(tmp_path: Path, blobs: Path) -> None:
    """An archive has the content with one name alone."""
    layers = [
        im.layer(im.entry("app", b"x"), im.entry("b", data), im.hardlink("a", "b")) for data in (b"12", b"34")
    ]
    one, two = (
        ours(tmp_path, im.docker(tmp_path / f"{i}.tar", [data]), blobs) for i, data in enumerate(layers)
    )
    found = {d.where: d.a for d in diff(one, two)}
    assert "2 bytes sha256" in (found["ramdisk 1: rootfs/a"] or "")
    assert "2 bytes sha256" in (found["ramdisk 1: rootfs/b"] or "")
