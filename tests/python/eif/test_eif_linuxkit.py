# SPDX-License-Identifier: MIT
"""AWS's ramdisks byte for byte: against archives that AWS's own builder made (data/aws-builder/README)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from nitroctl.base.errors import NitroError
from nitroctl.eif import linuxkit
from nitroctl.eif.export import export
from nitroctl.eif.image import open_image
from nitroctl.eif.tar import seconds

DATA = Path(__file__).parents[1] / "data" / "aws-builder"
CASES = sorted(path.stem for path in DATA.glob("*.tar") if path.stem != "mtime-2106")


class Memory:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data

    def copy(self, fd: int, size: int | None, name: str) -> None:
        assert size is not None
        data = os.read(fd, size)
        assert len(data) == size
        self.data += data


def ramdisk(path: Path, cmd: list[str] | None = None) -> tuple[bytes, list[bytes]]:
    """The application ramdisk of an image, and its folders whose time is not certain."""
    image = open_image(path)
    run = image.info["Config"]
    exported = export(image, run.get("WorkingDir") or "")
    command = run["Cmd"] if isinstance(run.get("Cmd"), list) else run.get("Entrypoint", cmd)
    sink = Memory()
    with linuxkit.spooled(image, exported) as contents:
        linuxkit.write(sink, linuxkit.application(exported, command, run.get("Env") or []), contents)
    return bytes(sink.data), linuxkit.uncertain(exported)


def listing(archive: bytes) -> list[str]:
    """An archive header by header, so that a failure names the entry."""
    lines, at = [], 0
    while archive[at : at + 6] == b"070701":
        fields = [archive[at + 6 + 8 * i : at + 14 + 8 * i].decode() for i in range(13)]
        size, length = int(fields[6], 16), int(fields[11], 16)
        start = (at + 110 + length + 3) & ~3
        name, content = archive[at + 110 : at + 109 + length], archive[start : start + size]
        lines.append(f"{name!r} {' '.join(fields)} {content!r}")
        at = (start + size + 3) & ~3
    return lines


@pytest.mark.parametrize("case", CASES)
def test_the_ramdisk_is_that_of_awss_builder(case: str) -> None:
    expected = (DATA / f"{case.removesuffix('-gz')}.cpio").read_bytes()
    found, uncertain = ramdisk(DATA / f"{case}.tar")
    for ours, theirs in zip(listing(found), listing(expected), strict=False):
        assert ours == theirs
    assert found == expected
    implied = [b"opt", b"opt/app", b"opt/app/bin", b"work", b"work/here"]
    assert uncertain == (implied if case == "implied" else [])


def test_a_time_that_breaks_awss_archive_is_refused() -> None:
    with pytest.raises(NitroError, match="after 2106"):
        ramdisk(DATA / "mtime-2106.tar")


@pytest.mark.parametrize("module", [True, False])
def test_the_bootstrap_ramdisk(module: bool) -> None:
    sink = Memory()
    blob = (DATA / "blobs/nsm.ko").read_bytes() if module else None
    linuxkit.write(sink, linuxkit.bootstrap((DATA / "blobs/init").read_bytes(), blob))
    expected = DATA / ("bootstrap.cpio" if module else "bootstrap-no-nsm.cpio")
    assert bytes(sink.data) == expected.read_bytes()


# ---- what no archive of AWS's shows ----

Item = tuple[str, bytes | str | None]  # name; content, "-> target", "= hard link's target", None: a folder


def image_of(tmp_path: Path, *layers: list[Item], workdir: str = "") -> Path:
    """A docker-archive of these layers."""
    path = tmp_path / "image.tar"
    names, digests = [], []
    with tarfile.open(path, "w") as outer:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            outer.addfile(info, io.BytesIO(data))

        for number, items in enumerate(layers):
            raw = io.BytesIO()
            with tarfile.open(fileobj=raw, mode="w") as tar:
                for name, content in items:
                    info = tarfile.TarInfo(name)
                    info.mtime = 1000 + number
                    info.mode = 0o755 if content is None else 0o644
                    if content is None:
                        info.type = tarfile.DIRTYPE
                    elif isinstance(content, str):
                        info.type = tarfile.SYMTYPE if content.startswith("-> ") else tarfile.LNKTYPE
                        info.linkname = content.split(" ", 1)[1]
                    else:
                        info.size = len(content)
                    tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
            names.append(f"{number}/layer.tar")
            digests.append(f"sha256:{hashlib.sha256(raw.getvalue()).hexdigest()}")
            add(names[-1], raw.getvalue())
        config = {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Cmd": ["/app"], "WorkingDir": workdir},
            "rootfs": {"diff_ids": digests},
        }
        add("config.json", json.dumps(config).encode())
        add("manifest.json", json.dumps([{"Config": "config.json", "Layers": names}]).encode())
    return path


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name -> mode and content; of a name that comes twice, the last."""
    found = {}
    for line in listing(archive):
        name, rest = line[2:].split("' ", 1) if line.startswith("b'") else line.split(" ", 1)
        fields, content = rest.split(" b'", 1) if " b'" in rest else (rest, "'")
        found[name] = (int(fields.split()[1], 16), content[:-1].encode())
    return found


def test_a_folder_hides_the_link_of_a_lower_layer(tmp_path: Path) -> None:
    """Each layer is unpacked alone, so `bin/tool` makes a folder there."""
    path = image_of(
        tmp_path,
        [("usr", None), ("usr/bin", None), ("usr/bin/old", b"1"), ("bin", "-> usr/bin")],
        [("bin", None), ("bin/tool", b"2")],
    )
    found = entries(ramdisk(path)[0])
    assert stat.S_ISDIR(found["rootfs/bin/"][0])
    assert found["rootfs/bin/tool"][1] == b"2"
    assert "rootfs/usr/bin/tool" not in found


def test_a_link_of_the_same_layer_is_followed(tmp_path: Path) -> None:
    layer: list[Item] = [("usr", None), ("usr/bin", None), ("bin", "-> /usr/bin"), ("bin/x/tool", b"2")]
    path = image_of(tmp_path, layer)
    found, uncertain = ramdisk(path)
    assert entries(found)["rootfs/usr/bin/x/tool"][1] == b"2"
    assert uncertain == [b"usr/bin/x"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([("bin", "-> nowhere"), ("bin/tool", b"")], "bin is not a folder"),
        ([("a", b""), ("a/b", b"")], "a is not a folder"),
        ([("a", "= b")], "a hard link to b, where this layer has nothing"),
        ([("b", None), ("a", "= b")], "where this layer has a folder"),
        ([("x", b""), (".wh.x", b"")], "a whiteout of something in the same layer"),
        ([(".wh..", b"")], "a whiteout without a name"),
        ([("../x", b"")], "leads out of the image"),
        ([("a", "-> b"), ("b", "-> a"), ("a/x", b"")], "more than 40 symbolic links"),
    ],
)
def test_what_docker_cannot_unpack_is_refused(tmp_path: Path, items: list[Item], message: str) -> None:
    with pytest.raises(NitroError, match=message):
        ramdisk(image_of(tmp_path, items))


def test_folders_at_the_places_of_files_stay_and_the_files_come_last(tmp_path: Path) -> None:
    path = image_of(tmp_path, [("etc", None), ("etc/hosts", None), ("etc/mtab", None), ("etc/hosts/x", b"1")])
    lines = [line.split(" ", 1)[0] for line in listing(ramdisk(path)[0])]
    assert "b'rootfs/etc/hosts/'" in lines
    last = lines[lines.index("b'rootfs/sys/'") + 1 :]
    assert last[:3] == ["b'rootfs/etc/hosts'", "b'rootfs/etc/mtab'", "b'rootfs'"]


def test_a_working_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NitroError, match="working directory '/app/x' is not a folder"):
        ramdisk(image_of(tmp_path, [("app", b"")], workdir="/app/x"))


def test_a_missing_working_directory_makes_its_parents_time_uncertain(tmp_path: Path) -> None:
    path = image_of(tmp_path, [("srv", None)], workdir="/srv/app")
    assert ramdisk(path)[1] == [b"srv", b"srv/app"]


def test_a_whole_second_is_cut_from_the_decimal_not_from_a_float() -> None:
    """Also in the images that are not AWS's: case `times` has the other values."""
    info = tarfile.TarInfo("x")
    info.pax_headers = {"mtime": "1600000000.999999999"}
    assert seconds(info) == 1600000000
    info.pax_headers = {"mtime": "-0.5"}
    assert seconds(info) == -1
    info.pax_headers = {"mtime": "soon"}
    with pytest.raises(tarfile.ReadError, match="the time 'soon'"):
        seconds(info)
