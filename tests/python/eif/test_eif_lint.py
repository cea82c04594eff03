# SPDX-License-Identifier: MIT
"""`eif lint`: a good image in which nothing is found, and for each rule one that differs in that alone."""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import zstandard
from click.testing import CliRunner, Result

import eifmodel as model
from jsonpage import answer
from nitroctl.base.errors import NitroError
from nitroctl.commands.eif import eif
from nitroctl.eif.lint import RULES

DOCS = Path(__file__).resolve().parents[3] / "docs" / "lint.md"
HOSTS = (Path(__file__).parents[1] / "data/aws-builder/minimal.cpio").read_bytes()
HOSTS = HOSTS[HOSTS.index(b"127.0.0.1 ") : HOSTS.index(b"ip6-allrouters\n") + 15]
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(44)
DRIVERS = b"..virtio-mmio-cmdline\0..vmw_vsock_virtio_transport\0..nsm-hwrng\0.."
REG, DIR, LNK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK

Files = dict[str, tuple[int, bytes]]


def bzimage(vmlinux: bytes = b"\x7fELF" + DRIVERS, packed: bytes | None = None) -> bytes:
    """With a payload where the boot protocol has it: offset and length at 0x248, behind the setup sectors."""
    payload = gzip.compress(vmlinux) if packed is None else packed
    image = bytearray(model.bzimage()[: 5 * 512] + bytes(64))
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + payload


def arm64(text_offset: int = 0x200000) -> bytes:
    return model.arm64_image(text_offset=text_offset) + DRIVERS


def cpio(files: Files, *, first: int = 721, device: int = 3) -> bytes:
    """An archive as AWS's builder numbers it."""
    out = b""
    for ino, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], first):
        fields = (ino, mode, 0, 0, 1, 0, len(data), device, 1, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"%08x" * 13 % fields + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


GOOD: Files = {
    "rootfs": (DIR | 0o755, b""),
    **{f"rootfs/{name}/": (DIR | 0o755, b"") for name in ("dev", "proc", "run", "sys", "tmp", "etc", "bin")},
    "rootfs/etc/hosts": (REG | 0o755, HOSTS),
    "rootfs/etc/resolv.conf": (LNK | 0o755, b"/run/resolvconf/resolv.conf"),
    "rootfs/etc/mtab": (LNK | 0o777, b"/proc/mounts"),
    "rootfs/sbin": (LNK | 0o777, b"usr/../bin"),
    "rootfs/usr": (DIR | 0o755, b""),
    "rootfs/bin/app": (REG | 0o755, ELF),
    "cmd": (REG | 0o644, b"app\n"),
    "env": (REG | 0o644, b"A=b\n"),
}


@dataclass(frozen=True)
class Image:
    kernel: bytes = dataclasses.field(default_factory=bzimage)
    cmdline: bytes = b"console=ttyS0 panic=30"
    boot: Files = dataclasses.field(default_factory=lambda: {"init": (REG | 0o755, b"init")})
    files: Files = dataclasses.field(default_factory=lambda: GOOD)
    more: Files = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=lambda: {"Cmd": ["app"]})
    flags: int = 0
    first: int = 721
    wrong: bool = False  # the checksum
    ramdisk: bytes | None = None  # in place of the application's
    pack: Any = bytes  # what ramdisks are compressed with

    def write(self, path: Path) -> Path:
        meta = json.loads(model.TINY_METADATA)
        meta["DockerInfo"] = {"Config": self.config}
        files = {n: f for n, f in (self.files | self.more).items() if n not in self.left_out}
        application = cpio(files, first=self.first) if self.ramdisk is None else self.ramdisk
        data = model.pack(
            [
                (model.KERNEL, self.kernel), (model.CMDLINE, self.cmdline),
                (model.METADATA, json.dumps(meta).encode()), (model.RAMDISK, self.pack(cpio(self.boot))),
                (model.RAMDISK, self.pack(application)),
            ],
            flags=self.flags,
        )  # fmt: skip
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if self.wrong else data)
        return path


def app(data: bytes) -> Files:
    return {"rootfs/bin/app": (REG | 0o755, data)}


def call(path: Path, *options: str) -> Result:
    return CliRunner().invoke(eif, ["lint", str(path), *options], standalone_mode=False)


def found(path: Path, *options: str) -> dict[str, dict[str, str]]:
    result = call(path, "--json", *options)
    assert not result.exception, result.exception
    return {finding["rule"]: finding for finding in answer("nitroctl eif lint", result.stdout)["items"]}


def test_nothing_is_found_in_a_good_image(tmp_path: Path) -> None:
    """However kernel and ramdisks are packed; with a kernel for arm64; with modules for drivers."""
    vmlinux = b"\x7fELF" + bytes(3 << 20) + DRIVERS
    size = struct.pack("<I", len(vmlinux))
    modules = Image().boot | {
        "nsm.ko": (REG | 0o644, b"..nsm-hwrng"),
        "ko/vmw_vsock_virtio_transport.ko.xz": (REG | 0o644, b"?"),
    }
    for image in (
        Image(),
        Image(kernel=bzimage(vmlinux)),
        Image(kernel=bzimage(packed=lzma.compress(vmlinux) + size)),
        Image(kernel=bzimage(packed=lzma.compress(vmlinux, lzma.FORMAT_ALONE) + size)),
        Image(kernel=bzimage(packed=zstandard.compress(vmlinux) + size)),
        Image(pack=gzip.compress),
        Image(pack=lzma.compress),
        Image(kernel=arm64(), flags=1, more=app(ELF.replace(b"\x3e\0", b"\xb7\0"))),
        Image(kernel=arm64(0x80000), flags=1, more=app(b"#!/bin/sh\n")),
        Image(kernel=bzimage(b"\x7fELF" + DRIVERS.partition(b"vmw")[0]), boot=modules),
    ):
        assert found(image.write(tmp_path / "good.eif")) == {}
    result = call(tmp_path / "good.eif")
    assert (result.return_value, result.output) == (0, "")


def drivers(without: bytes) -> bytes:
    return bzimage(b"\x7fELF" + DRIVERS.replace(without, b""))


def command(line: bytes, more: Files | None = None) -> Image:
    return Image(more={"cmd": (REG | 0o644, line), **(more or {})})


def of(mib: int) -> Files:
    return {"x": (REG, bytes(mib << 20))}


# rule -> images in which it is found, and nothing else; with options
CASES: dict[str, list[tuple[Image, tuple[str, ...]]]] = {
    "flags": [(Image(kernel=arm64()), ()), (Image(flags=1, more=app(b"#!")), ())],
    "reserved-flags": [(Image(flags=2), ())],
    "memory": [(Image(), ("--memory", "32M")), (Image(more=of(17)), ("--memory", "64"))],
    "memory-pool": [(Image(more=of(26)), ())],
    "memory-unpacked": [(Image(more=of(13), pack=lambda data: gzip.compress(data, 1)), ())],
    "text-offset": [(Image(kernel=arm64(0), flags=1, more=app(b"#!")), ())],
    "kernel-not-read": [
        (Image(kernel=bzimage(packed=b"\x02\x21\x4c\x18" + bytes(99))), ()),
        (Image(kernel=bzimage(packed=gzip.compress(b"\x7fELF" + bytes(999))[:-30])), ()),
        (Image(kernel=model.bzimage()), ()),
    ],
    "kernel-virtio-mmio": [(Image(kernel=drivers(b"virtio-mmio-cmdline")), ())],
    "kernel-vsock": [
        (Image(kernel=drivers(b"vmw_vsock_virtio_transport")), ()),
        (Image(kernel=bzimage(b"\x7fELF" + DRIVERS.replace(b"port\0", b"port_common\0"))), ()),
    ],
    "kernel-nsm": [(Image(kernel=drivers(b"nsm-hwrng")), ())],
    "cmdline-panic": [(Image(cmdline=b"console=ttyS0"), ()), (Image(cmdline=b"panic=0"), ())],
    "not-looked-into": [
        (Image(ramdisk=b"\x02\x21\x4c\x18lz4"), ()),
        (Image(files={}, more={"bin/x": (REG | 0o755, b"x")}), ()),
    ],
    "no-init": [(Image(boot={}), ()), (Image(boot={"init": (REG | 0o644, b"x")}), ())],
    "no-command": [(Image(left_out=("cmd",)), ()), (Image(left_out=("env",)), ())],
    "mount-point": [
        (Image(left_out=("rootfs/sys/",)), ()),
        (Image(left_out=("rootfs/proc/",), more={"rootfs/proc": (REG, b"")}), ()),
    ],
    "program-hidden": [(command(b"/run/x\n", {"rootfs/run/x": (REG | 0o755, b"")}), ())],
    "files-hidden": [(Image(more={"rootfs/tmp/a": (REG, b"x")}), ())],
    "program-unpacks": [(Image(more=app(ELF + bytes(1 << 20) + b"MEI\014\013\012\013\016" + bytes(60))), ())],
    "program-machine": [(Image(more=app(ELF.replace(b"\x3e\0", b"\xb7\0"))), ())],
    "program-missing": [
        (command(b"gone\n"), ()),
        (command(b"/loop\n", {"rootfs/loop": (LNK, b"loop")}), ()),
        (command(b""), ()),  # which means sh
    ],
    "program-path": [
        (command(b"x\n", {"program": (REG, b"/opt/x\n"), "rootfs/opt": (DIR | 0o755, b""),
                       "rootfs/opt/x": (REG | 0o755, b"#!")}), ()),
    ],
    "cmd-over-entrypoint": [(Image(config={"Cmd": ["app"], "Entrypoint": ["/e"]}), ())],
    "user-ignored": [(Image(config={"User": "web"}), ()), (Image(more={"user": (REG, b"33 33\n")}), ())],
    "workdir-ignored": [
        (Image(config={"WorkingDir": "/srv"}), ()),
        (Image(more={"cwd": (REG, b"/srv\n")}), ()),
    ],
    "line-break": [(Image(more={"env0": (REG, b"A=\n\0")}), ())],
    "hosts": [(Image(more={"rootfs/etc/hosts": (REG, b"1.2.3.4 me\n")}), ())],
    "resolv-conf": [(Image(more={"rootfs/etc/resolv.conf": (REG, b"nameserver 1.1.1.1\n")}), ())],
    "left-out": [(Image(more={"rootfs/etc/hostname": (REG, b"box\n"), "rootfs/Dockerfile": (REG, b"")}), ())],
    "other-pcrs": [(Image(first=1), ())],
}  # fmt: skip
ALSO = {"program-hidden": {"files-hidden"}}


def test_every_rule_has_an_image_that_breaks_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smaller than life, so that images can be.
    monkeypatch.setattr("nitroctl.base.memory.MIN_MEMORY_MIB", 40)
    monkeypatch.setattr("nitroctl.eif.lint.POOL_MIB", 100)
    assert set(CASES) == {rule.name for rule in RULES}
    for rule, images in CASES.items():
        for image, options in images:
            findings = found(image.write(tmp_path / "x.eif"), *options)
            # A kernel of the other architecture is broken by the machine's rules as well.
            broken = "kernel-not-image" if image.flags else "kernel-not-bzimage"
            extra = {broken} if rule == "flags" else set()
            assert set(findings) == {rule} | ALSO.get(rule, set()) | extra, (rule, findings)
            one = findings[rule]
            assert one["text"] and one["mend"] and "\n" not in one["text"] + one["mend"]
            assert {"severity": one["severity"], "when": one["when"]} in [
                {"severity": r.severity, "when": r.when} for r in RULES if r.name == rule
            ]


def test_what_the_format_refuses_is_a_finding_by_its_rule(tmp_path: Path) -> None:
    """Of files for this machine's architecture and for the other."""
    path = Image(wrong=True).write(tmp_path / "x.eif")
    assert found(path)["crc-mismatch"]["severity"] == "error"
    path = Image(wrong=True, kernel=arm64(), flags=1, more=app(b"#!")).write(tmp_path / "x.eif")
    assert list(found(path)) == ["crc-mismatch"]
    path.write_bytes(model.with_crc(path.read_bytes() + b"x"))
    assert list(found(path)) == ["trailing-bytes"]
    for data in (b"no EIF" * 200, b""):
        path.write_bytes(data)
        result = call(path)
        assert isinstance(result.exception, NitroError) and result.exception.exit_status == 2


def test_statuses_and_options(tmp_path: Path) -> None:
    """As linters have them: 0 nothing, 1 findings, 2 trouble. Notes alone are nothing, unless asked for."""
    note = Image(first=1).write(tmp_path / "note.eif")
    warning = Image(first=1, cmdline=b"quiet").write(tmp_path / "warning.eif")
    for path, options, status in (
        (note, (), 0), (note, ("--fail-on", "note"), 1),
        (note, ("--fail-on", "note", "--ignore", "other-pcrs"), 0),
        (warning, (), 1), (warning, ("--fail-on", "error"), 0), (warning, ("--ignore", "cmdline-panic"), 0),
        (Image(boot={}).write(tmp_path / "error.eif"), ("--fail-on", "never"), 0),
        (tmp_path / "error.eif", ("--fail-on", "error"), 1),
    ):  # fmt: skip
        assert call(path, *options).return_value == status, (path, options)
    assert isinstance(call(note, "--ignore", "nonsense").exception, click.UsageError)
    first, mend, second, *_ = call(warning).output.split("\n")
    assert re.fullmatch(r"warning on AWS: without panic=N .* never ends \[cmdline-panic\]", first)
    assert mend == "        -> add panic=30, as in AWS's command line"
    assert re.fullmatch(r"note    AWS's build: .* \[other-pcrs\]", second)


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    path = command(b"/\x1b[31mgone\n").write(tmp_path / "x.eif")
    assert "\x1b" not in call(path).output


def test_the_documentation_has_every_rule_with_its_severity() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (run|build) \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((rule.name, rule.severity, rule.when) for rule in RULES)
