# SPDX-License-Identifier: MIT
"""`nitroctl eif`: what it prints, how it fails, and what is in the test images."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cpiomodel
import eifmodel as model
from jsonpage import answer
from nitroctl.base import shown
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.cli import main
from nitroctl.commands import eif as commands
from nitroctl.eif import compose, cpio, testimage
from nitroctl.eif.about import parse_metadata
from nitroctl.eif.describe import describe
from nitroctl.eif.format import SectionType, open_eif, read_layout
from nitroctl.eif.request import BuildRequest


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as e:
        main(["eif", *map(str, argv)])
    out, err = capsys.readouterr()
    assert isinstance(e.value.code, int)
    return e.value.code, out, err


# The vector with what passes for a kernel.
BOOTABLE = [(model.KERNEL, model.bzimage()), *model.TINY[1:]]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.eif"
    path.write_bytes(model.pack(model.TINY))
    return path


# ---- describe ----


def test_describe_json_as_nitro_cli_prints_it(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole text: keys, order, indentation. (nitro-cli, describe-eif.)"""
    pcr0, pcr1, pcr2 = model.TINY_PCRS
    assert run(capsys, "describe", "--file-rules-only", "--json", tiny) == (
        0,
        f"""{{
  "EifVersion": 4,
  "Measurements": {{
    "HashAlgorithm": "Sha384 {{ ... }}",
    "PCR0": "{pcr0}",
    "PCR1": "{pcr1}",
    "PCR2": "{pcr2}"
  }},
  "IsSigned": false,
  "CheckCRC": true,
  "ImageName": "tiny",
  "ImageVersion": "1.0",
  "Metadata": {{
    "BuildTime": "1970-01-01T00:00:00+00:00",
    "BuildTool": "t",
    "BuildToolVersion": "0",
    "OperatingSystem": "Linux",
    "KernelVersion": "0.0",
    "DockerInfo": null
  }}
}}
""",
        "",
    )


def with_metadata(folder: Path, metadata: bytes) -> Path:
    path = folder / "m.eif"
    path.write_bytes(model.pack([*BOOTABLE[:2], (model.METADATA, metadata), *BOOTABLE[3:]]))
    return path


def test_custom_metadata_are_flattened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = model.TINY_METADATA.replace(b'"CustomMetadata":null', '"CustomMetadata":{"z":[],"ä":{}}'.encode())
    _, out, _ = run(capsys, "describe", "--json", with_metadata(tmp_path, text))
    assert list(json.loads(out)["Metadata"])[-3:] == ["DockerInfo", "z", "ä"]
    assert '"z": [],\n    "ä": {}\n' in out


def test_custom_metadata_without_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AWS's build takes any JSON."""
    text = model.TINY_METADATA.replace(b'"CustomMetadata":null', b'"CustomMetadata":[1,{}]')
    status, out, _ = run(capsys, "describe", "--json", with_metadata(tmp_path, text))
    assert status == 0 and json.loads(out)["Metadata"]["CustomMetadata"] == [1, {}]
    assert "[1, {}]" in run(capsys, "describe", with_metadata(tmp_path, text))[1]


def test_without_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v3.eif"
    path.write_bytes(model.pack([*BOOTABLE[:2], *BOOTABLE[3:]], version=3))
    _, out, err = run(capsys, "describe", "--json", path)
    assert list(json.loads(out)) == ["EifVersion", "Measurements", "IsSigned", "CheckCRC"]
    assert err == ""


BAD_METADATA = [
    b"", b"x", b"[]", b"null", b"{}", b"\xff", b"[" * 100000, b"1" * 5000, b'{"a":NaN}',
    model.TINY_METADATA.replace(b'"CustomMetadata":null', b'"CustomMetadata":{"e":1e400}'),
    model.TINY_METADATA.replace(b',"CustomMetadata":null', b""),
    model.TINY_METADATA.replace(b'"DockerInfo":null,', b""),
    model.TINY_METADATA.replace(b'"tiny"', b"3"),
    model.TINY_METADATA.replace(b'"KernelVersion"', b'"kernel"'),
    b" " * (1 << 20),
]  # fmt: skip


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=range(len(BAD_METADATA)))
def test_metadata_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metadata: bytes
) -> None:
    """No enclave depends on them: a warning, the rest is shown, and the file is taken as it is."""
    assert parse_metadata(metadata)[0] is None
    path = with_metadata(tmp_path, metadata)
    status, out, err = run(capsys, "describe", "--json", path)
    assert status == 0 and "not readable" in err
    assert list(json.loads(out)) == ["EifVersion", "Measurements", "IsSigned", "CheckCRC"]
    status, out, _ = run(capsys, "describe", path)
    assert status == 0 and "not readable" in out
    assert describe(path).needs_acpi is False


def test_half_a_surrogate_pair_is_printed_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_metadata(tmp_path, model.TINY_METADATA.replace(b'"tiny"', b'"\\ud800"'))
    status, out, _ = run(capsys, "describe", "--json", path)
    assert status == 0 and json.loads(out)["ImageName"] == "\ud800"
    status, out, _ = run(capsys, "describe", path)
    assert status == 0 and "\\ud800" in out


def test_describe_for_people(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "describe", "--file-rules-only", tiny)
    assert (status, err) == (0, "")
    for part in ("tiny 1.0", "EIF version 4", "1d8f97aa, matches", *model.TINY_PCRS):
        assert part in out
    assert out.count("ramdisk") == 2


def test_describe_shows_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As nitro-cli: the wrong checksum is reported, not refused."""
    path = tmp_path / "d.eif"
    path.write_bytes(model.pack(BOOTABLE)[:-1] + b"X")
    status, out, _ = run(capsys, "describe", path)
    assert status == 0 and "DOES NOT MATCH" in out
    _, out, _ = run(capsys, "describe", "--json", path)
    assert json.loads(out)["CheckCRC"] is False


UNBOOTABLE = [
    ("cmdline-nul", [BOOTABLE[0], (model.CMDLINE, b"console=ttyS0\0"), *BOOTABLE[2:]]),
    ("kernel-not-bzimage", list(model.TINY)),
    ("kernel-setup-size", [(model.KERNEL, model.bzimage()[:0x400]), *BOOTABLE[1:]]),
    ("cmdline-too-long", [BOOTABLE[0], (model.CMDLINE, b"x" * 2048), *BOOTABLE[2:]]),
]


@pytest.mark.parametrize("rule, sections", UNBOOTABLE, ids=[rule for rule, _ in UNBOOTABLE])
def test_one_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, sections: list[tuple[int, bytes]]
) -> None:
    """What the machine refuses, describe and verify refuse, whoever asks; and it is still described."""
    from eifverdict import Core
    from nitroctl import nitro_cli

    path = tmp_path / "o.eif"
    data = model.pack(sections)
    path.write_bytes(data)
    with Core() as core:
        assert core.ask(data)[0] == rule
    for command in (["describe"], ["describe", "--json"], ["verify"]):
        status, out, err = run(capsys, *command, path)
        assert status == 1 and f"[{rule}]" in err
        assert ("PCR0" in out) == ("describe" in command)
    assert "REFUSES" in run(capsys, "describe", path)[1]
    with pytest.raises(SystemExit) as e:
        nitro_cli.main(["describe-eif", "--eif-path", str(path)])
    out, err = capsys.readouterr()
    assert e.value.code not in (0, None) and out == "" and "E35" in err and f"[{rule}]" in err


def test_gaps_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o.eif"
    path.write_bytes(model.pack(BOOTABLE, gaps={0: bytes(64)}))
    status, out, _ = run(capsys, "describe", path)
    assert status == 0 and "64 bytes lie between the sections" in out
    status, out, err = run(capsys, "describe", "--json", path)
    assert status == 0 and json.loads(out)["CheckCRC"] is True and "64 bytes" in err
    assert run(capsys, "verify", path)[0] == 0


def test_a_file_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences and rich's markup in names come out as text."""
    text = model.TINY_METADATA.replace(b'"tiny"', b'"\\u001b]0;x\\u0007[red]\\u202e"')
    _, out, _ = run(capsys, "describe", with_metadata(tmp_path, text))
    assert "\\x1b]0;x\\x07[red]\\u202e 1.0" in out and "\x1b" not in out
    assert shown.line("a\tb\x9bc ä") == "a\\tb\\x9bc ä"


@pytest.mark.parametrize("content, rule", [(b"", "file-too-short"), (bytes(1000), "bad-magic"), (None, "io")])
def test_describe_of_what_is_no_eif(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, rule: str
) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    status, out, err = run(capsys, "describe", path)
    assert (status, out) == (1, "")
    assert str(path) in err and f"[{rule}]" in err and "Traceback" not in err


# ---- build ----


def build_argv(folder: Path, *more: str) -> list[str]:
    (folder / "bzImage").write_bytes(model.bzimage())
    (folder / "disk").write_bytes(b"disk")
    argv = ["--kernel", folder / "bzImage", "--cmdline", "quiet", "--ramdisk", folder / "disk"]
    return ["build", *map(str, argv), "-o", str(folder / "o.eif"), *more]


def test_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meta.json").write_text('{"team": "x"}')
    status, out, err = run(capsys, *build_argv(tmp_path, "--metadata", str(tmp_path / "meta.json")))
    assert (status, err) == (0, "")
    found = describe(tmp_path / "o.eif")
    assert [line.split() for line in out.splitlines()[1:]] == [[n, v] for n, v in found.measurements.items()]
    value = found.to_json()
    assert (value["ImageName"], value["ImageVersion"]) == ("bzImage", "1.0")
    assert value["Metadata"]["KernelVersion"] == "6.1.0-test"
    assert value["Metadata"]["team"] == "x"


def registers(found: Any) -> dict[str, str]:
    return {f"PCR{number}": value for number, value in found["pcrs"].items()}


def test_build_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *build_argv(tmp_path, "--json", "--name", "", "--version", "2"))
    assert status == 0
    assert registers(answer("nitroctl eif build", out)) == dict(
        describe(tmp_path / "o.eif").measurements.items()
    )
    assert describe(tmp_path / "o.eif").to_json()["ImageName"] == ""


@pytest.mark.parametrize(
    "text, what",
    [
        ('{"e":1e400}', "1e400 is out of range"), ("{", "JSON"), ('{"a":"' + "x" * 4096 + '"}', "4096"),
        (None, "meta.json"),
    ],
)  # fmt: skip
def test_custom_metadata_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, what: str
) -> None:
    if text is not None:
        (tmp_path / "meta.json").write_text(text)
    status, _, err = run(capsys, *build_argv(tmp_path, "--metadata", str(tmp_path / "meta.json")))
    assert status == 1 and what in err and "Traceback" not in err
    assert not (tmp_path / "o.eif").exists()


def test_wrong_options_end_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["build"], build_argv(tmp_path, "--build-time", "noon"), ["describe"], ["nothing"]):
        assert run(capsys, *argv)[0] == 2


def test_half_of_what_signing_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, text in (
        (("--signing-certificate", "c.pem"), "--signing-certificate, and --private-key or --signer"),
        (("--signer", "sh -c x"), "--signing-certificate as well as --signer"),
    ):
        status, _, err = run(capsys, *build_argv(tmp_path, *more))
        assert status == 2 and text in " ".join(err.replace("│", "").split()), err
        assert not (tmp_path / "o.eif").exists()
    with pytest.raises(UsageError, match="signer=5: signer takes a command") as caught:
        BuildRequest(output=tmp_path / "o.eif", kernel="k", cmdline="c", signer=5)
    assert "private_key=" in str(caught.value.hint)


def test_a_command_line_that_is_not_utf8(tmp_path: Path) -> None:
    """Bytes of the shell's are the image's."""
    argv = [sys.executable, "-m", "nitroctl", "eif", *build_argv(tmp_path)]
    argv[argv.index("quiet")] = "a=\udcff"  # how Python shows the byte ff
    root = str(Path(commands.__file__).parents[2])
    subprocess.run(argv, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": root})
    assert describe(tmp_path / "o.eif").cmdline == b"a=\xff"


def test_help_lists_every_kind() -> None:
    text = CliRunner().invoke(commands.eif, ["test-image", "--help"]).output
    for name, kind in testimage.KINDS.items():
        assert f"{name:12}  {kind.summary}" in text


# ---- test images ----


@pytest.fixture
def kernel(tmp_path: Path) -> compose.Kernel:
    path = tmp_path / "bzImage"
    path.write_bytes(model.bzimage())
    return compose.Kernel(path)


@pytest.fixture
def programs(tmp_path: Path) -> testimage.Programs:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("init", "hello", "agent", "features"):
        (folder / name).write_bytes(name.encode() * 1000)
    return testimage.Programs.in_folder(folder)


def ramdisks(path: Path) -> list[dict[str, cpiomodel.Item]]:
    with open_eif(path) as (fd, size):
        sections = read_layout(fd, size).of_type(SectionType.RAMDISK)
        archives = [cpiomodel.read(os.pread(fd, s.size, s.data_offset)) for s in sections]
    return [{item.name.decode(): item for item in archive} for archive in archives]


def test_hello_has_awss_shape(tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs) -> None:
    made = testimage.make("hello", tmp_path / "o.eif", kernel=kernel, programs=programs)
    assert made.warnings == ()
    boot, app = ramdisks(tmp_path / "o.eif")
    assert list(boot) == ["dev", "init"]
    assert (boot["init"].mode, boot["init"].data) == (stat.S_IFREG | 0o755, b"init" * 1000)
    folders = {"rootfs/" + name for name in ("dev", "proc", "run", "sys", "tmp", "var")}
    assert set(app) == folders | {"cmd", "env", "rootfs", "rootfs/hello"}
    assert {app[name].mode for name in folders} == {stat.S_IFDIR | 0o755}
    assert (app["cmd"].data, app["env"].data) == (b"/hello\n", b"")
    assert app["cmd"].mode == app["env"].mode == stat.S_IFREG | 0o644
    found = describe(tmp_path / "o.eif")
    assert found.cmdline.startswith(b"reboot=k panic=1 pci=off nomodules console=ttyS0 ")
    assert not found.needs_acpi
    assert found.metadata and found.metadata["CustomMetadata"] is None


def test_a_kernel_with_modules(tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs) -> None:
    """Its modules are in the bootstrap ramdisk, and the image says that it needs ACPI."""
    modules = tmp_path / "modules"
    (modules / "ko").mkdir(parents=True)
    (modules / "modules").write_text("ko/nsm.ko\n")
    (modules / "ko" / "nsm.ko").write_bytes(b"module")
    with_modules = compose.Kernel(kernel.image, tuple(cpio.tree(modules)), acpi=True)
    testimage.make("agent", tmp_path / "o.eif", kernel=with_modules, programs=programs)
    boot, app = ramdisks(tmp_path / "o.eif")
    assert list(boot) == ["dev", "init", "ko", "ko/nsm.ko", "modules"]
    assert app["cmd"].data == b"/agent\n"
    assert describe(tmp_path / "o.eif").needs_acpi


def test_broken_kinds(tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs) -> None:
    """Each differs from the good ones in its one way."""
    shapes = {}
    for kind in testimage.KINDS:
        if kind != "big":
            testimage.make(kind, tmp_path / "o.eif", kernel=kernel, programs=programs)
            boot, app = ramdisks(tmp_path / "o.eif")
            init = boot["init"].data[:4] if "init" in boot else None
            shapes[kind] = (init, app["cmd"].data if "cmd" in app else None, len(app))
    assert shapes == {
        "hello": (b"init", b"/hello\n", 10),
        "agent": (b"init", b"/agent\n", 10),
        "features": (b"init", b"/features\n", 10),
        "halt": (b"init", b"/halt\n", 10),
        "panic": (b"hell", b"/\n", 9),
        "late-panic": (b"init", None, 8),
        "no-heartbeat": (b"agen", b"/\n", 9),
        "no-init": (None, b"/\n", 9),
        "no-app": (b"init", b"/missing\n", 9),
    }


def test_big(tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs) -> None:
    """Of the size that was asked for, hard to compress, the same every time."""
    import hashlib
    import zlib

    size = 5 << 20
    made = [
        testimage.make("big", tmp_path / name, kernel=kernel, programs=programs, size=size) for name in "ab"
    ]
    assert made[0].measurements == made[1].measurements
    assert abs(made[0].size - size) < 4096
    _, app = ramdisks(tmp_path / "a")
    filler = app["rootfs/filler"].data
    assert len(zlib.compress(filler, 1)) > len(filler)
    assert filler[1 << 20 : 2 << 20] == hashlib.shake_128(b"nitroctl filler 1").digest(1 << 20)
    assert filler[: 1 << 20] != filler[1 << 20 : 2 << 20]


def test_the_halting_program(tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs) -> None:
    """Its shape alone is looked at: as root it would halt the machine that the tests run on."""
    testimage.make("halt", tmp_path / "o.eif", kernel=kernel, programs=programs)
    program = ramdisks(tmp_path / "o.eif")[1]["rootfs/halt"].data
    assert program[:4] == b"\x7fELF"
    (magic1, magic2, halt) = (struct.pack("<I", n) for n in (0xFEE1DEAD, 672274793, 0xCDEF0123))
    assert program.index(magic1) < program.index(magic2) < program.index(halt)


def test_images_that_cannot_be_made(
    tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs
) -> None:
    with pytest.raises(UsageError, match="hello"):
        testimage.make("nothing", tmp_path / "o", kernel=kernel, programs=programs)
    programs.agent.unlink()
    with pytest.raises(NitroError, match="agent"):
        testimage.make("hello", tmp_path / "o", kernel=kernel, programs=programs)
    assert not (tmp_path / "o").exists()


def test_test_image_command(
    tmp_path: Path, kernel: compose.Kernel, programs: testimage.Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    argv: list[str | Path] = ["--kernel", kernel.image, "--programs", programs.init.parent]
    argv += ["--cmdline", "x=y"]
    status, out, _ = run(capsys, "test-image", "big", "-o", tmp_path / "o", *argv, "--size", "1M", "--json")
    assert status == 0
    found = describe(tmp_path / "o")
    assert registers(answer("nitroctl eif test-image", out)) == dict(found.measurements.items())
    assert found.cmdline == b"x=y"
    assert run(capsys, "test-image", "big", "-o", tmp_path / "o", "--size", "huge")[0] == 2
