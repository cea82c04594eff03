# SPDX-License-Identifier: MIT
"""What an enclave is planned to be: the defaults, and what the EIF decides. No process is started."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import eifmodel as model
from enclave_fakes import write_eif
from nitroctl.base.errors import EifError, NotBuilt, UsageError
from nitroctl.commands.options import requested
from nitroctl.eif.format import image_arch
from nitroctl.enclaves import overlay, qemu
from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.plan import default_boot_timeout, default_name, make_plan
from nitroctl.enclaves.ready import ready
from nitroctl.enclaves.request import RunRequest
from nitroctl.vsock import sockets

GIB = 1 << 30
TRUE = Path("/bin/true")  # an executable that stands for QEMU and the backend


def request(eif: Path) -> RunRequest:
    return RunRequest(eif, qemu=TRUE, vsock_backend=TRUE, accel="tcg")


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    return write_eif(tmp_path / "hello.eif")


def test_defaults(eif: Path) -> None:
    plan = make_plan(request(eif))
    asked = plan.request
    assert (plan.name, plan.memory_mib, asked.cpus, asked.cid) == ("hello", 512, 1, None)
    assert asked.instance_id == "i-0000000000000000"  # 16 zeros: PCR4 is the same on every machine
    assert asked.role is None
    assert plan.boot_timeout == 180
    assert plan.acpi is False


@pytest.mark.parametrize(
    ("size", "memory", "seconds"),
    [
        # nitro-cli's own checks of its rule, then its borders.
        (2 * GIB, 32 * GIB, 180), (10 * GIB, 32 * GIB, 270), (10 * GIB, 128 * GIB, 360),
        (1, 1, 180), (6 * GIB, 100 * GIB, 180), (6 * GIB + 1, 100 * GIB, 270), (6 * GIB, 100 * GIB + 1, 270),
    ],
)  # fmt: skip
def test_boot_timeout_is_nitro_clis(size: int, memory: int, seconds: float) -> None:
    assert default_boot_timeout(size, memory) == seconds


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("hello.eif", "hello"), ("a.eif.eif", "a"), ("hello", "hello"), ("a.eif.bin", "a.eif.bin"),
        (".eif", ".eif"), ("my app (1), über.eif", "my app (1), über"), ("a\nb\x1b[2J.eif", "a?b?[2J"),
        (os.fsdecode(b"\xff.eif"), "?"),
    ],
)  # fmt: skip
def test_default_name(file: str, name: str) -> None:
    assert default_name(Path("/x") / file) == name


def test_no_file_and_no_eif(tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"absent\.eif.*No such file") as error:
        make_plan(request(tmp_path / "absent.eif"))
    assert error.value.rule == "io"
    (tmp_path / "x.eif").write_bytes(b"MZ" * 400)
    with pytest.raises(EifError) as error:
        make_plan(request(tmp_path / "x.eif"))
    assert error.value.rule == "bad-magic"


def test_the_command_lines_of_a_run_that_asks_for_nothing(eif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be asked for besides changes nothing of them."""
    monkeypatch.setattr("nitroctl.enclaves.plan.new_module_id", lambda instance: f"{instance}-enc1")
    plan = make_plan(request(eif))
    folder = Folder(16, Path("/run/16"))
    made = overlay.prepare(plan.overlays, eif, folder.overlay)
    assert qemu.argv(plan.qemu_config(folder, overlay=made)) == [
        "/bin/true",
        "-M", "nitro-enclave,vsock=vsock,id=i-0000000000000000-enc1,parent-id=i-0000000000000000,"
              "dump-guest-core=off",
        "-name", "guest=hello",
        "-accel", "tcg", "-cpu", "max",
        "-smp", "1", "-m", "512M",
        "-kernel", str(eif),
        "-nodefaults", "-no-user-config", "-display", "none",
        "-chardev", "socket,id=vsock,path=/run/16/device",
        "-serial", "stdio",
    ]  # fmt: skip
    assert sockets.argv(plan.backend_config(folder)) == [
        "/bin/true", "--socket-path=/run/16/device", "--guest-cid=16", "--uds-path=/run/16/vsock",
        f"--fallback-path={sockets.shared_ports()}",
    ]  # fmt: skip
    assert plan.unmeasured == () and plan.notes == ()
    open_plan = make_plan(replace(request(eif), sandbox=False))
    assert not any("dump-guest-core" in word for word in qemu.argv(open_plan.qemu_config(folder)))
    assert sockets.argv(open_plan.backend_config(folder))[-1] == "--no-sandbox"


def test_qemus_own_sandbox_where_it_was_built_in(eif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(16, Path("/run/16"))
    for there in (True, False):
        monkeypatch.setattr("nitroctl.enclaves.containment.has_sandbox", lambda qemu, there=there: there)
        args = qemu.argv(make_plan(request(eif)).qemu_config(folder, vsock=7, gdb=8))
        assert "socket,id=vsock,fd=7" in args
        assert ("-sandbox" in args) == there
        if there:
            assert args[args.index("-sandbox") + 1] == (
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
            )
        assert "-sandbox" not in qemu.argv(
            make_plan(replace(request(eif), sandbox=False)).qemu_config(folder)
        )


def arm_eif(path: Path) -> Path:
    """With a mark for ACPI, which no arm64 machine here has."""
    metadata = json.loads(model.TINY[2][1])
    metadata["CustomMetadata"] = {"nitroctl": {"acpi": True}}
    parts = [(model.KERNEL, model.arm64_image()), (model.CMDLINE, b"c"), (5, json.dumps(metadata).encode())]
    path.write_bytes(model.pack([*parts, (model.RAMDISK, b"r")], flags=1))
    return path


def test_an_eif_for_arm64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its QEMU, CPU and tools are that architecture's, whatever the host's; KVM is the host's alone."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    eif = arm_eif(tmp_path / "app.eif")
    asked: list[object] = []

    def choose(*what: object) -> Path:
        asked.append(what)
        return TRUE

    monkeypatch.setattr("nitroctl.toolchain.choice.choose", choose)
    made = ready(RunRequest(eif, vsock_backend=TRUE))
    assert (asked, made.qemu) == ([(None, "aarch64")], TRUE)
    plan = make_plan(made)
    assert (plan.accel.name, plan.acpi) == ("tcg", False)
    assert "this host is x86_64, the guest aarch64" in plan.accel.reason
    argv = qemu.argv(plan.qemu_config(Folder(16, tmp_path, -1)))
    assert argv[argv.index("-cpu") + 1] == "neoverse-n1"
    with pytest.raises(UsageError, match="KVM runs this host's architecture alone, and .* is for aarch64"):
        make_plan(replace(made, accel="kvm"))
    with pytest.raises(NotBuilt) as caught:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        make_plan(replace(made, tools=True))
    assert caught.value.hint == "nitroctl guest tools --arch aarch64"


def test_a_program_is_found_as_a_shell_finds_it(
    eif: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slash it is that file, whatever PATH has; without one PATH's, or else this folder's. The whole
    path goes to the supervisor, which is in another folder."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for path in (here / "both", here / "own", elsewhere / "both"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", str(elsewhere))
    asked: list[RunRequest] = []

    @click.command()
    @requested(RunRequest)
    def command(**given: Any) -> None:
        asked.append(ready(RunRequest(**given)))

    for text, found in (("./both", here / "both"), ("both", elsewhere / "both"), ("own", here / "own")):
        words = [str(eif), "--qemu", text, "--vsock-backend", text, "--ca-days", "1"]
        done = CliRunner().invoke(command, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        asked.append(ready(RunRequest.from_keywords("x", eif=eif, qemu=text, vsock_backend=text)))
        assert {(one.qemu, one.vsock_backend) for one in asked} == {(found, found)}
        asked.clear()


def test_a_file_that_is_no_eif_is_judged_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, expected in (("x86_64", "x86_64"), ("aarch64", "aarch64"), ("riscv64", "x86_64")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        (tmp_path / "no").write_bytes(b"\x7fELF\0\0\0\1")
        for path in (tmp_path / "absent", tmp_path, tmp_path / "no"):
            assert image_arch(path) == expected
    assert image_arch(arm_eif(tmp_path / "app.eif")) == "aarch64"
    assert image_arch(write_eif(tmp_path / "x86.eif")) == "x86_64"


def test_what_makes_an_enclave_unmeasured(eif: Path, tmp_path: Path) -> None:
    over, ready = tmp_path / "over", tmp_path / "ready.cpio"
    over.mkdir()
    ready.write_bytes(b"070701" + bytes(118))
    causes: list[tuple[dict[str, Any], str]] = [
        ({"append": "quiet rdinit=/x"}, "another init on the kernel's command line"),
        ({"overlay": (str(over),)}, "an overlay"),
        ({"overlay": (str(ready),), "append": "init=/x"}, "an overlay and another init"),
    ]
    for more, why in causes:
        plan = make_plan(replace(request(eif), **more))
        assert plan.unmeasured
        assert [f"unmeasured, because of {why}" in plan.notes[0], "are zero" in plan.notes[0]] == [True, True]
        kept = make_plan(replace(request(eif), overlay_keep_pcrs=True, **more))
        assert "in the name of their issuer" in kept.notes[0]
        assert kept.qemu_config(Folder(16, tmp_path)).keep_pcrs
    assert overlay.prepare([ready], eif, tmp_path / "x") == ready  # no copy of what is there
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"overlay_keep_pcrs": True}, "overlay_keep_pcrs is for overlay or append or "),
        ({"overlay_keep_pcrs": True, "append": "quiet"}, "for an enclave that is not measured"),
        ({"overlay_keep_pcrs": True, "overlay": (str(over),), "debug_mode": True}, "exclude each other"),
        ({"overlay": (str(tmp_path / "absent"),)}, "absent: No such file"),
    ]
    for more, text in wrong:
        with pytest.raises(UsageError, match=text):
            make_plan(replace(request(eif), **more))


@pytest.mark.parametrize(
    ("custom", "acpi"),
    [
        ({"nitroctl": {"acpi": True}}, True),
        ({"nitroctl": {"acpi": False}}, False),
        ({"nitroctl": {"acpi": 1}}, False),
        ({"nitroctl": [True]}, False),
        ({"acpi": True}, False),
        (None, False),
    ],
)
def test_a_kernel_that_needs_acpi_says_so_in_the_metadata(tmp_path: Path, custom: object, acpi: bool) -> None:
    assert make_plan(request(write_eif(tmp_path / "x.eif", custom))).acpi is acpi


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        (["TIOCSTI", "bpf()"], ["this image's kernel lacks, of what AWS's has: TIOCSTI, bpf()"]),
        ([1, "a", None], ["this image's kernel lacks, of what AWS's has: a"]),  # not ours, then
        ("TIOCSTI", []),
        ([], []),
    ],
)
def test_what_the_kernel_lacks_is_a_note(tmp_path: Path, lacks: object, said: list[str]) -> None:
    plan = make_plan(request(write_eif(tmp_path / "x.eif", {"nitroctl": {"lacks": lacks}})))
    assert [note for note in plan.notes if "lacks" in note] == said
