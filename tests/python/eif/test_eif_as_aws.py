# SPDX-License-Identifier: MIT
"""`eif build --as-aws` and `eif predict`: the PCRs of AWS's build, as its own tool computed them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cpiomodel
import imagemodel as im
from nitroctl.base.errors import NitroError
from nitroctl.commands.eif import eif
from nitroctl.eif import as_aws
from nitroctl.eif.compose import Bootstrap, Kernel, Options
from nitroctl.eif.extract import extract

DATA = Path(__file__).parents[1] / "data" / "aws-builder"
BLOBS = DATA / "blobs"
# Of the archives that AWS's builder made, with the dummy blobs; computed beside them, by another program.
PCRS = {
    "minimal": (
        "7e68b0469056b989284b2c626b7118e6255a729510c3123438120262a4919434b9c7e591de10c083966dc42708df5d68",
        "c360cb9f5f4fe0db2592b104775823eab2d8899d11682ab21a354e5ac17acebad47774afbc1187235fa46b8d1ef24f05",
        "95215e7a4debd9c4e85b6950f9600248092fa3285fc246bb3280976cd3fb85f891ad1ab8984d7a74277007d3474dd655",
    ),
    "hardlinks": (
        "6dc0c0978f735c7ccbc67d7625580aac5c9d91488f8b71dd6bf03465e79a42e37c61fb6aff7a7c2a76bcf621131cf6ce",
        "c360cb9f5f4fe0db2592b104775823eab2d8899d11682ab21a354e5ac17acebad47774afbc1187235fa46b8d1ef24f05",
        "b148c0fa10178560f29abf40b037ebb82edc6a8251f7cb8df59e7596b7787f1f64ae67339fe93012784752716f9d07ee",
    ),
    "times": (
        "378e2fd1c39670a6f063d2145565f3e9f2fb5aae2207a14105956f570d284619760c510663481ef912cedf1a7a7f83ca",
        "c360cb9f5f4fe0db2592b104775823eab2d8899d11682ab21a354e5ac17acebad47774afbc1187235fa46b8d1ef24f05",
        "4132803831579415f1b4f2ad728ce5b88b9b0733b678019ea822cd840934867e812a9c928359b8aede89131e92804c96",
    ),
}


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(eif, [str(a) for a in arguments])


def measured(result: Result) -> tuple[str, ...]:
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)["Measurements"]
    assert values.pop("HashAlgorithm") == "Sha384 { ... }"
    assert list(values) == ["PCR0", "PCR1", "PCR2"]
    return tuple(values.values())


@pytest.mark.parametrize("case", PCRS)
def test_build_and_predict_give_awss_pcrs(case: str, tmp_path: Path) -> None:
    image = DATA / f"{case}.tar"
    more = ("--blobs", BLOBS, "--no-kernel-check")
    assert measured(call("predict", image, *more)) == PCRS[case]
    output = tmp_path / "app.eif"
    built = call("build", "--as-aws", "--image", image, *more, "-o", output, "--json")
    assert json.loads(built.stdout)["pcrs"] == {str(i): value for i, value in enumerate(PCRS[case])}
    assert [p.name for p in tmp_path.iterdir()] == ["app.eif"]


def test_sections_flags_and_metadata_are_awss(tmp_path: Path) -> None:
    output = tmp_path / "app.eif"
    image = DATA / "cmd-both.tar"
    call("build", "--as-aws", "--image", image, "--blobs", BLOBS, "--no-kernel-check", "-o", output)
    data = output.read_bytes()
    assert data[:10].hex() == "2e656966000400000000"  # version 4, no flag, memory's first bytes
    offsets = [int.from_bytes(data[28 + 8 * i : 36 + 8 * i], "big") for i in range(5)]
    kinds = [int.from_bytes(data[at : at + 2], "big") for at in offsets]
    assert kinds == [1, 2, 5, 3, 3]
    assert all(data[at + 2 : at + 4] == b"\0\0" for at in offsets)
    size = int.from_bytes(data[offsets[2] + 4 : offsets[2] + 12], "big")
    text = data[offsets[2] + 12 : offsets[2] + 12 + size].decode()
    value = json.loads(text)
    keys = ["ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata"]
    assert list(value) == keys and text == json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    # The third line of bzImage.config.
    third = (BLOBS / "bzImage.config").read_text().splitlines()[2]
    assert third.startswith(f"# {value['BuildMetadata']['OperatingSystem']}/x86_64 ")
    assert third.split()[2] == value["BuildMetadata"]["KernelVersion"]
    assert value["CustomMetadata"] is None
    size = int.from_bytes(data[offsets[1] + 4 : offsets[1] + 12], "big")
    cmdline = data[offsets[1] + 12 : offsets[1] + 12 + size].decode()
    assert cmdline == (BLOBS / "cmdline").read_text().strip()


def test_a_checkout_of_awss_tool_has_the_blobs(tmp_path: Path) -> None:
    below = tmp_path / "blobs"
    below.mkdir()
    (below / "x86_64").symlink_to(BLOBS)
    result = call("predict", DATA / "minimal.tar", "--blobs", tmp_path, "--no-kernel-check")
    assert measured(result) == PCRS["minimal"]


def test_our_init_is_told_in_its_own_ramdisk(tmp_path: Path) -> None:
    """The application's stays AWS's, byte for byte."""
    start = Bootstrap(Kernel(BLOBS / "bzImage"), BLOBS / "init")
    output = tmp_path / "app.eif"
    built = as_aws.make(as_aws.Choice(DATA / "minimal.tar"), start, output, Options(), check_kernel=False)
    assert built.measurements.pcr2.hex() == PCRS["minimal"][2]
    bootstrap = next(p for p in extract(output, tmp_path / "out") if p.name == "ramdisk-0.cpio")
    names = [entry.name for entry in cpiomodel.read(bootstrap.read_bytes())]
    assert names == [b"as-aws", b"dev", b"init"]


def test_what_is_not_certain_on_awss_side_is_said() -> None:
    result = call("predict", DATA / "implied.tar", "--blobs", BLOBS, "--no-kernel-check")
    assert "no layer lists /opt, /opt/app, /opt/app/bin, /work, /work/here" in result.stderr
    assert "the application starts in /, not in '/work/here'" in result.stderr
    result = call("predict", DATA / "cmd-empty.tar", "--blobs", BLOBS, "--no-kernel-check")
    assert "CMD is an empty list" in result.stderr
    assert call("predict", DATA / "times.tar", "--blobs", BLOBS, "--no-kernel-check").stderr == ""
    result = call("predict", DATA / "special.tar", "--blobs", BLOBS, "--no-kernel-check")
    assert "a rootless Docker leaves out device nodes: /dev/loop300, /dev/null, /dev/nvme;" in result.stderr


def test_what_depends_on_versions_is_said(tmp_path: Path) -> None:
    old = im.entry("old", None, type=tarfile.SYMTYPE, linkname="x", mtime=-1)
    image = im.docker(tmp_path / "i.tar", [im.layer(old)], run={"Cmd": ["/a"], "Entrypoint": ["/b"]})
    result = call("predict", image, "--blobs", BLOBS, "--no-kernel-check")
    assert "with Docker before 28, links dated before 1970 break AWS's archive: /old\n" in result.stderr
    assert "no environment variables: nitro-cli up to 1.2.3 takes ENTRYPOINT, not CMD" in result.stderr


def test_what_awss_init_does_otherwise_than_a_container(tmp_path: Path) -> None:
    """It takes CMD alone where there is one; it ignores USER, and reads a line as one word."""
    layer = im.layer(im.entry("a", b"x", mode=0o755))

    def said(**run: object) -> str:
        image = im.docker(tmp_path / "i.tar", [layer], run=run)
        result = call("predict", image, "--blobs", BLOBS, "--no-kernel-check")
        return str(result.exception) if isinstance(result.exception, NitroError) else result.stderr

    assert "takes CMD and leaves out ENTRYPOINT" in said(Cmd=["/a"], Entrypoint=["/b"])
    assert "the application runs as root, not as 'web'" in said(Cmd=["/a"], User="web")
    assert "ignores USER" not in said(Cmd=["/a"], User="0:0")
    for odd in ({"Cmd": ["/a", "two\nlines"]}, {"Cmd": ["/a"], "Env": ["A=two\nlines"]}):
        assert "an argument or variable has a line break" in said(**odd)
    assert "the image has neither CMD nor ENTRYPOINT; AWS's build-enclave would fail, too" in said()


def test_refusals_name_the_image_and_leave_nothing(tmp_path: Path) -> None:
    output = tmp_path / "app.eif"
    more = ("--blobs", BLOBS, "--no-kernel-check", "-o", output)
    result = call("build", "--as-aws", "--image", DATA / "mtime-2106.tar", *more)
    assert isinstance(result.exception, NitroError)
    assert "mtime-2106.tar: " in str(result.exception) and "after 2106" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
    result = call("build", "--as-aws", "--compress", "--image", DATA / "minimal.tar", *more)
    assert result.exit_code == 2 and "not compressed" in result.output
    result = call("build", "--as-aws", "--directory", tmp_path, "--cmd", "/x", *more)
    assert result.exit_code == 2 and "--as-aws is for --image" in result.output
