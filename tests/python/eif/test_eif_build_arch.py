# SPDX-License-Identifier: MIT
"""EIFs for either architecture: which image, kernel and blobs are taken for one, and what AWS's loader needs
of an arm64 kernel. Expected values: AWS's specification of the flags, Linux's booting.rst, the OCI image
specification, AWS's published command lines, Debian's disassembler."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eifmodel as model
import imagemodel as im
from jsonpage import answer
from nitroctl.base.arch import ARCHES, Arch
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.cli import nitroctl
from nitroctl.eif import compose, testimage
from nitroctl.eif.image import open_image
from nitroctl.eif.make import make
from nitroctl.eif.request import BuildRequest

KERNELS = {"x86_64": model.bzimage(), "aarch64": model.arm64_image()}
NAMES = {"x86_64": "bzImage", "aarch64": "Image"}
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(autouse=True)
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("nitroctl.toolchain.aws_blobs.INSTALLED", Path("/nonexistent"))


def member(architecture: str, variant: str) -> tuple[bytes, bytes, dict[str, Any]]:
    """An image's configuration, its only layer, whose /app says what it is for, and its platform."""
    layer = im.layer(im.entry("app", f"{architecture}/{variant}".encode(), mode=0o755))
    where: dict[str, Any] = {"os": "linux", "architecture": architecture}
    where |= {"variant": variant} if variant else {}
    return im.config([layer], **where), layer, where


def layout(path: Path, platforms: list[tuple[str, str]]) -> Path:
    """An OCI layout of an index with an image for each (architecture, variant), whose /app says which."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes, media: str, **more: Any) -> dict[str, Any]:
        blobs[f"blobs/sha256/{im.digest(data)}"] = data
        return {"mediaType": media, "digest": f"sha256:{im.digest(data)}", "size": len(data), **more}

    items = []
    for architecture, variant in platforms:
        text, layer, where = member(architecture, variant)
        config = put(text, "application/vnd.oci.image.config.v1+json")
        manifest = {
            "schemaVersion": 2,
            "config": config,
            "layers": [put(layer, "application/vnd.oci.image.layer.v1.tar")],
        }
        data = json.dumps(manifest).encode()
        items.append(put(data, "application/vnd.oci.image.manifest.v1+json", platform=where))
    index = put(json.dumps({"schemaVersion": 2, "manifests": items}).encode(), INDEX)
    top = {"schemaVersion": 2, "manifests": [index]}
    files = blobs | {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(top).encode()}
    return im.archive(path, files)


def blobs(folder: Path, *arches: Arch, text_offset: int = 0x200000) -> Path:
    """AWS's, in a folder of their own; those of two architectures as in a checkout of its nitro-cli."""
    for arch in arches:
        kernel = model.arm64_image(text_offset=text_offset) if arch == "aarch64" else KERNELS[arch]
        below = f"blobs/{arch}/" if len(arches) > 1 else ""
        im.folder(folder, {
            f"{below}{NAMES[arch]}": kernel, f"{below}init": arch.encode(), f"{below}cmdline": b"quiet\n",
        })  # fmt: skip
    return folder


def parts_of(path: Path) -> tuple[int, bytes]:
    """Flags, and the kernel, which is the first section."""
    (flags,) = struct.unpack_from(">H", path.read_bytes(), 6)
    return flags, sections_of(path)[0][1]


def sections_of(path: Path) -> list[tuple[int, bytes]]:
    data, at, found = path.read_bytes(), 548, []
    while at < len(data):
        kind, _, size = struct.unpack_from(">HHQ", data, at)
        found.append((kind, data[at + 12 : at + 12 + size]))
        at += 12 + size
    return found


# ---- which image ----

PLATFORMS = [("amd64", ""), ("amd64", "v3"), ("arm64", ""), ("arm64", "v8"), ("arm64", "v9"), ("riscv64", "")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    platforms=st.lists(st.sampled_from(PLATFORMS), min_size=1, max_size=4, unique=True),
    arch=st.sampled_from(ARCHES),
)
def test_the_member_of_an_index(tmp_path: Path, platforms: list[tuple[str, str]], arch: Arch) -> None:
    """That for the architecture, whatever the order; what runs on all its machines goes before a variant."""
    path = layout(tmp_path / "app.tar", platforms)
    debian = {"x86_64": "amd64", "aarch64": "arm64"}[arch]
    first = {"x86_64": "v1", "aarch64": "v8"}[arch]
    ours = [(name, variant) for name, variant in platforms if name == debian]
    plain = [one for one in ours if one[1] in ("", first)]
    wanted = plain or ours
    if len(wanted) == 1:
        image = open_image(path, arch=arch)
        assert (image.info["Architecture"], len(image.layers)) == (debian, 1)
        assert image.id == im.digest(member(*wanted[0])[0])
    else:
        with pytest.raises(NitroError) as e:
            open_image(path, arch=arch)
        if not ours:
            # The error names what there is and what was wanted.
            assert f"the enclave is {arch} (linux/{debian})" in str(e.value)
            assert all(f"linux/{name}" in str(e.value) for name, _ in platforms)
        else:
            assert f"has {len(wanted)} images for linux/{debian}" in str(e.value)


def test_platform_and_architecture_must_agree(tmp_path: Path) -> None:
    path = layout(tmp_path / "app.tar", PLATFORMS[:3])
    assert open_image(path, platform="linux/arm64").info["Architecture"] == "arm64"
    assert open_image(path, platform="linux/arm64/v8").info["Architecture"] == "arm64"
    with pytest.raises(
        UsageError, match="'linux/arm64' is for aarch64, but the enclave's architecture is x86_64"
    ):
        open_image(path, platform="linux/arm64", arch="x86_64")


# ---- the whole image ----


@pytest.mark.parametrize("offset", [0, 0x80000])
@pytest.mark.parametrize("by", ["arch", "platform", "blobs"])
def test_an_eif_for_arm64(tmp_path: Path, offset: int, by: str) -> None:
    """By each way to ask for one; its kernel lies where AWS's loader can use it, and is measured so."""
    image = layout(tmp_path / "app.tar", PLATFORMS[:3])
    ways: dict[str, dict[str, Any]] = {
        "arch": {"arch": "aarch64"},
        "platform": {"platform": "linux/arm64"},
        "blobs": {},
    }
    folder = blobs(tmp_path / "b", *(ARCHES if by != "blobs" else ("aarch64",)), text_offset=offset)
    built = make(BuildRequest(output=tmp_path / "o", image=str(image), blobs=folder, **ways[by]))
    flags, kernel = parts_of(built.path)
    expected = bytearray(model.arm64_image(text_offset=offset))
    if not offset:
        expected[8:16] = (0x200000).to_bytes(8, "little")
    assert (flags, kernel) == (1, bytes(expected))
    assert any("text_offset" in note for note in built.notes) is (offset == 0)
    run = CliRunner().invoke(nitroctl, ["eif", "verify", "--json", str(built.path)], catch_exceptions=False)
    assert answer("nitroctl eif verify", run.stdout)["pcrs"] == {
        str(n): value for n, value in enumerate(model.measure(sections_of(built.path)))
    }
    data = built.path.read_bytes()
    assert b"arm64/" in data and b"amd64/" not in data and b'"Architecture":"arm64"' in data


def test_as_aws_the_kernel_stays_and_is_warned_of(tmp_path: Path) -> None:
    """AWS's builder takes its blobs as they are: else the PCRs would not be its."""
    image = layout(tmp_path / "app.tar", PLATFORMS[:3])
    folder = blobs(tmp_path / "b", "aarch64", text_offset=0)
    request = BuildRequest(output=tmp_path / "o", image=str(image), blobs=folder, as_aws=True)
    built = make(request)
    assert parts_of(built.path) == (1, model.arm64_image(text_offset=0))
    assert any("text_offset is 0" in warning for warning in built.warnings)
    run = CliRunner().invoke(nitroctl, ["eif", "verify", str(built.path)], catch_exceptions=False)
    assert run.exit_code == 0 and "text_offset is 0" in run.stderr
    run = CliRunner().invoke(nitroctl, ["eif", "verify", "--json", str(built.path)], catch_exceptions=False)
    (warning,) = answer("nitroctl eif verify", run.stdout)["warnings"]
    assert "text_offset is 0" in warning
    arguments = ["eif", "predict", str(image), "--blobs", str(folder)]
    predicted = json.loads(CliRunner().invoke(nitroctl, arguments, catch_exceptions=False).stdout)
    measured = built.measurements.to_json()
    assert predicted["Measurements"] == {key: measured[key] for key in predicted["Measurements"]}


def test_blobs_and_kernels_of_the_other_architecture(tmp_path: Path) -> None:
    image = layout(tmp_path / "app.tar", PLATFORMS[:3])
    folder = blobs(tmp_path / "b", "x86_64")
    request = BuildRequest(output=tmp_path / "o", image=str(image), blobs=folder, arch="aarch64")
    with pytest.raises(NitroError, match="are for x86_64, but the enclave's architecture is aarch64"):
        make(request)
    # Of both in a checkout, this host's.
    both = compose.from_blobs(blobs(tmp_path / "both", *ARCHES))
    assert (both.kernel.arch, both.init.read_bytes()) == ("x86_64", b"x86_64")
    # A kernel of the other architecture is an error by name, whichever it is.
    wrong: list[tuple[Arch, str, str]] = [
        ("aarch64", "bzImage", "x86 bzImage"), ("x86_64", "Image", "an arm64 Image"),
    ]  # fmt: skip
    for arch, name, why in wrong:
        kernel = im.folder(
            tmp_path / arch, {name: model.bzimage() if arch == "aarch64" else model.arm64_image()}
        )
        parts = BuildRequest(output=tmp_path / "o", kernel=str(kernel / name), cmdline="c", arch=arch)
        with pytest.raises(NitroError, match=why):
            make(parts)
        # Without being told, the file is believed.
        made = make(dataclasses.replace(parts, arch=None))
        assert parts_of(made.path)[0] == (1 if name == "Image" else 0)


@pytest.mark.parametrize(("machine", "flags"), [("x86_64", 0), ("aarch64", 1)])
def test_a_kernel_that_does_not_tell_is_for_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: int
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    kernel = im.folder(tmp_path / "k", {"kernel": b"neither"}) / "kernel"
    parts = BuildRequest(output=tmp_path / "o", kernel=str(kernel), cmdline="c", kernel_check=False)
    assert parts_of(make(parts).path) == (flags, b"neither")


# AWS's, from aws-nitro-enclaves-cli's blobs/aarch64/cmdline.
CMDLINE = "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0"


def test_what_starts_without_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def locate(what: str, arch: Arch) -> Path:
        asked.append((what, arch))
        return tmp_path / what

    monkeypatch.setattr("nitroctl.toolchain.guest.locate", locate)
    monkeypatch.setattr("nitroctl.toolchain.guest.build_init", lambda arch: tmp_path / arch)
    start = compose.bootstrap(arch="aarch64")
    assert (start.cmdline, start.init, start.kernel.arch) == (CMDLINE, tmp_path / "aarch64/init", "aarch64")
    assert set(asked) == {("kernel", "aarch64")}


@pytest.mark.parametrize("arch", ARCHES)
def test_a_test_image_that_halts(tmp_path: Path, arch: Arch) -> None:
    """Its program is machine code written by hand: Debian's disassembler reads it."""
    path = tmp_path / "halt"
    path.write_bytes(testimage._halting_program(arch))
    objdump = "objdump" if arch == "x86_64" else "aarch64-linux-gnu-objdump"
    assert shutil.which(objdump)
    header = subprocess.run([objdump, "-f", path], check=True, capture_output=True, text=True).stdout
    assert "start address 0x0000000000400078" in header
    machine = {"x86_64": "i386:x86-64", "aarch64": "aarch64"}[arch]
    raw = tmp_path / "code"
    raw.write_bytes(path.read_bytes()[120:])
    argv: list[str | Path] = [objdump, "-D", "-b", "binary", "-m", machine, raw]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    lines = [line.split("\t", 2)[2] for line in text.splitlines() if line.count("\t") >= 2]
    lines = [" ".join(line.split("//")[0].split()) for line in lines]
    # reboot(2): 0xfee1dead, 672274793, 0xcdef0123; then exit. The numbers are those of unistd_64.h.
    assert lines == {
        "x86_64": [
            "mov $0xa9,%eax", "mov $0xfee1dead,%edi", "mov $0x28121969,%esi", "mov $0xcdef0123,%edx",
            "syscall", "mov $0x3c,%eax", "syscall",
        ],
        "aarch64": [
            "mov w0, #0xdead", "movk w0, #0xfee1, lsl #16", "mov w1, #0x1969", "movk w1, #0x2812, lsl #16",
            "mov w2, #0x123", "movk w2, #0xcdef, lsl #16", "mov w8, #0x8e", "movk w8, #0x0, lsl #16",
            "svc #0x0", "mov w8, #0x5d", "movk w8, #0x0, lsl #16", "svc #0x0",
        ],
    }[arch]  # fmt: skip
