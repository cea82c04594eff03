# SPDX-License-Identifier: MIT
"""Container images and folders into EIFs: the ramdisks and metadata that init and the kernel get, from each
kind of archive, with which kernel, by which command.

What becomes of an image is in the files beside this one, by subject (test_eif_image_*.py): its layers,
damaged ones, references, what runs of it, whose bytes are the same, memory.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

import cpiomodel
import eifmodel as model
import imagemodel as im
from imagebuilt import APP, DIR, GROUP, PASSWD, REG, bootstrap, contents, files, running
from nitroctl.base.errors import NitroError
from nitroctl.cli import main
from nitroctl.eif import compose
from nitroctl.eif.describe import describe
from nitroctl.eif.extract import extract
from nitroctl.eif.verify import verify
from nitroctl.nitro_cli import images
from nitroctl.toolchain import guest
from nitroctl.toolchain import prebuilt as prebuilt_kernel


@pytest.fixture
def start(tmp_path: Path) -> compose.Bootstrap:
    return bootstrap(tmp_path)


@pytest.mark.parametrize("kind", ["docker", "oci gzip", "oci zstd", "oci plain", "folder", "docker and oci"])
def test_kinds_of_archives(tmp_path: Path, kind: str) -> None:
    layers = [im.layer(APP), im.layer(im.entry("etc"), im.entry("etc/x", b"y" * 100000))]
    path = tmp_path / "app.tar"
    packers = {"oci gzip": gzip.compress, "oci zstd": zstandard.ZstdCompressor().compress}
    if kind == "docker":
        im.docker(path, layers)
    elif kind == "folder":
        im.folder(path, im.oci_files(layers, [gzip.compress(data) for data in layers]))
    elif kind == "docker and oci":
        parts = im.oci_files(layers, layers)
        config = next(n for n, d in parts.items() if b"diff_ids" in d)
        names = [f"blobs/sha256/{im.digest(data)}" for data in layers]
        manifest = [{"Config": config, "RepoTags": ["app:1"], "Layers": names}]
        im.archive(path, parts | {"manifest.json": json.dumps(manifest).encode()})
    else:
        im.oci(path, layers, packer=packers.get(kind, bytes))
    application = compose.from_image(path)
    assert files(application) == {"app": b"binary", "etc": None, "etc/x": b"y" * 100000}
    assert application.cmd == ("/app", "x")
    assert application.name == "app" and re.fullmatch("[0-9a-f]{64}", application.version)


def test_the_eif(tmp_path: Path, start: compose.Bootstrap) -> None:
    """Two ramdisks as AWS has them, with what init needs, and metadata as nitro-cli writes them."""
    application = running(tmp_path, {"Cmd": ["/app"], "User": "web", "WorkingDir": "/srv/web"})
    made = compose.compose(application, start, tmp_path / "o.eif", compose.Options(custom={"k": 1}))
    assert made.measurements == verify(tmp_path / "o.eif")
    assert made.warnings == ()
    out = {p.name: p.read_bytes() for p in extract(tmp_path / "o.eif", tmp_path / "out")}
    assert [i.name for i in cpiomodel.read(out["ramdisk-0.cpio"])] == [b"dev", b"init"]
    items = {i.name: i for i in cpiomodel.read(out["ramdisk-1.cpio"])}
    assert [n for n in items if b"/" not in n] == [b"cmd", b"cwd", b"env", b"rootfs", b"user"]
    assert items[b"cmd"].data == b"/app\n" and items[b"cwd"].data == b"/srv/web\n"
    assert items[b"user"].data == b"33 34 50 51\n"
    assert items[b"rootfs/tmp"].mode == DIR | 0o1777
    value = describe(tmp_path / "o.eif").to_json()
    assert (value["ImageName"], len(value["ImageVersion"])) == ("app", 64)
    assert value["Metadata"]["DockerInfo"]["Config"]["User"] == "web"
    assert value["Metadata"]["k"] == 1
    assert out["cmdline"] == b"quiet"


def test_compressed_ramdisks(tmp_path: Path, start: compose.Bootstrap) -> None:
    application = running(tmp_path, {"Cmd": ["/app"]})
    for name in ("a", "b"):
        compose.compose(application, start, tmp_path / name, compose.Options(compress=True))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    out = extract(tmp_path / "a", tmp_path / "out")
    assert [p.name for p in out[3:]] == ["ramdisk-0.cpio.gz", "ramdisk-1.cpio.gz"]
    assert cpiomodel.read(gzip.decompress(out[3].read_bytes()))[1].data == b"init"


def test_compressed_ramdisks_need_memory_all_the_same(
    tmp_path: Path, start: compose.Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they unpack to does not follow the file's size, which the default memory does."""

    def warnings(mib: int, *, compress: bool) -> tuple[str, ...]:
        image = im.oci(tmp_path / "a.tar", [im.layer(APP, im.entry("zeros", bytes(mib << 20)))])
        options = compose.Options(compress=compress)
        return compose.compose(compose.from_image(image), start, tmp_path / "o", options).warnings

    # An enclave of 512 MiB was seen to unpack 240 MiB, and not 250.
    assert compose._memory_warnings(1 << 20, 240 << 20) == []
    assert compose._memory_warnings(1 << 20, 250 << 20) != []
    monkeypatch.setattr("nitroctl.base.memory.MIN_MEMORY_MIB", 40)
    assert warnings(12, compress=False) == ()
    assert warnings(8, compress=True) == ()
    (warning,) = warnings(12, compress=True)
    assert "the ramdisks unpack to 13 MiB in the enclave" in warning
    assert "default memory of 40 MiB" in warning and warning.endswith("--memory 52")


@pytest.mark.parametrize("way", ["image", "directory"])
def test_a_full_disk_is_not_a_damaged_image(
    tmp_path: Path, start: compose.Bootstrap, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The error names the file that could not be written, not the layer that was being read."""
    data = random.Random(1).randbytes(8 << 20)
    if way == "image":
        application = compose.from_image(im.oci(tmp_path / "a.tar", [im.layer(APP, im.entry("x", data))]))
    else:
        application = compose.from_directory(im.folder(tmp_path / "d", {"app": data}), ("/app",))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NitroError, match=f"^cannot write {tmp_path}/o: No space left on device$"):
        compose.compose(application, start, tmp_path / "o", compose.Options())
    assert not (tmp_path / "o").exists()


def folder_tree(path: Path) -> Path:
    root = path / "root"
    im.folder(root, {"bin/app": b"a", "etc/passwd": PASSWD, "etc/group": GROUP})
    (root / "bin" / "app").chmod(0o4711)
    (root / "tmp").mkdir()
    (root / "link").symlink_to("/bin/app")
    return root


def test_from_a_directory(tmp_path: Path, start: compose.Bootstrap) -> None:
    """It is started as a container would be."""
    root = folder_tree(tmp_path)
    application = compose.from_directory(root, ("app", "x"), env=("A=b",), cwd="/new", user="web")
    found = contents(application)
    assert found["bin/app"].mode == REG | 0o4711 and found["link"].data == b"/bin/app"
    assert found["new"].mode == DIR | 0o755
    assert (found["bin/app"].uid, application.name) == (0, "root")
    assert application.cmd == ("app", "x") and application.warnings == ()
    assert application.program == "/bin/app"
    assert application.env == (f"PATH={compose.PATH}", "A=b", "HOME=/srv/web")
    assert (application.user, application.cwd) == ("33 34 50 51", "/new")
    assert compose.compose(application, start, tmp_path / "o", compose.Options())
    assert verify(tmp_path / "o")
    assert "no program" in compose.from_directory(root, ("/bin/gone",)).warnings[0]


@pytest.mark.parametrize(
    "what, given",
    [
        ("what to run", {"cmd": ()}), ("no user", {"user": "nobody"}), ("no group", {"user": "1:x"}),
        ("NAME=VALUE", {"env": ("A",)}), ("NAME=VALUE", {"env": ("=b",)}), ("not absolute", {"cwd": "bin"}),
        ("is not a folder", {"cwd": "/bin/app/x"}),
    ],
)  # fmt: skip
def test_directories_that_cannot_be_started(tmp_path: Path, what: str, given: dict[str, Any]) -> None:
    with pytest.raises(NitroError, match=what):
        compose.from_directory(folder_tree(tmp_path), **{"cmd": ("/bin/app",), **given})


def test_what_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that the caller may not list is an error. (Root may list all, hence the fake.)"""
    root = folder_tree(tmp_path)
    real = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "etc":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NitroError, match="etc: Permission denied"):
        compose.from_directory(root, ("/bin/app",))


def test_the_kernel_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's where ours was not built, also for `nitro-cli build-enclave`."""

    def locate(what: str, arch: str) -> Path:
        raise NitroError("there is none")

    prebuilt = prebuilt_kernel.Prebuilt(
        tmp_path / "bzImage", im.folder(tmp_path / "modules", {"modules": b""}), "6.1", ("a",)
    )
    monkeypatch.setattr(guest, "locate", locate)
    monkeypatch.setattr("nitroctl.toolchain.prebuilt.fetch", lambda **_: prebuilt)
    monkeypatch.setattr(guest, "build_init", lambda *_: tmp_path)
    monkeypatch.setattr("nitroctl.toolchain.aws_blobs.INSTALLED", tmp_path / "none")
    monkeypatch.delenv("NITRO_CLI_BLOBS", raising=False)
    for start in (compose.bootstrap(), images._bootstrap()):
        assert (start.kernel.image, start.kernel.acpi) == (tmp_path / "bzImage", True)
        assert start.kernel.marks == {"acpi": True, "lacks": ["a"]}
    with pytest.raises(NitroError, match="there is none"):
        compose.bootstrap("own")


def test_blobs(tmp_path: Path) -> None:
    """AWS's folder: kernel, init and module; its command line, trimmed; a warning where its init cannot."""
    parts = {"bzImage": model.bzimage(), "init": b"aws", "nsm.ko": b"ko"}
    blobs = im.folder(tmp_path / "blobs", parts | {"cmdline": b"console=ttyS0 reboot=k \n"})
    application = running(tmp_path, {"Cmd": ["/app"], "User": "web"})
    made = compose.compose(application, compose.from_blobs(blobs), tmp_path / "o", compose.Options())
    assert "USER" in made.warnings[0]
    out = {p.name: p.read_bytes() for p in extract(tmp_path / "o", tmp_path / "out")}
    assert out["cmdline"] == b"console=ttyS0 reboot=k"
    assert [(i.name, i.mode) for i in cpiomodel.read(out["ramdisk-0.cpio"])] == [
        (b"dev", DIR | 0o755), (b"init", REG | 0o755), (b"nsm.ko", REG | 0o755),
    ]  # fmt: skip
    (blobs / "init").unlink()
    with pytest.raises(NitroError, match="lacks init"):
        compose.from_blobs(blobs)


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as e:
        main(["eif", *map(str, argv)])
    assert isinstance(e.value.code, int)
    return e.value.code, capsys.readouterr().err


def test_command(tmp_path: Path, start: compose.Bootstrap, capsys: pytest.CaptureFixture[str]) -> None:
    image = im.docker(tmp_path / "app.tar", [im.layer(APP)])
    im.folder(tmp_path, {"cmdline": b"quiet"})
    argv: list[str | Path] = ["build", "--image", image, "--blobs", tmp_path, "-o", tmp_path / "o.eif"]
    assert run(capsys, *argv)[0] == 0
    assert verify(tmp_path / "o.eif")
    for wrong in (["--cmd", "x"], ["--ramdisk", image], ["--directory", tmp_path], ["--kernel", "own"],
                  ["--no-kernel-check"]):  # fmt: skip
        assert run(capsys, *argv, *wrong)[0] == 2, wrong
    parts = ["--kernel", "x", "--cmdline", "c"]
    assert run(capsys, "build", "-o", tmp_path / "o.eif", *parts, "--compress")[0] == 2
    assert run(capsys, "build", "-o", tmp_path / "o.eif")[0] == 2
