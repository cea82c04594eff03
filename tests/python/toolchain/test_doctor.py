# SPDX-License-Identifier: MIT
"""`nitroctl doctor`: each gap is found, comes with what mends it, and decides the exit status."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from jsonpage import answer
from nitroctl.base import accelerator, config, confine
from nitroctl.base import arch as arches
from nitroctl.base.errors import NitroError
from nitroctl.commands.doctor import doctor as command
from nitroctl.toolchain import aws_blobs, bundle, cache, doctor, packages, plugin, source


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which nitroctl has made nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("nitroctl.toolchain.places.default_prefix", lambda: tmp_path / "prefix")
    monkeypatch.setattr(doctor, "runtime_dir", lambda: Path("/run/user/1000/nitroctl"))
    monkeypatch.setattr(packages, "missing", lambda needs: [])
    monkeypatch.setattr(aws_blobs, "INSTALLED", tmp_path / "blobs")
    monkeypatch.delenv("NITRO_CLI_BLOBS", raising=False)


def make(kind: str, *files: str) -> None:
    def fill(folder: Path) -> None:
        for name in files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            path.chmod(0o755)

    cache.build_entry(kind, "key", fill)


def make_all() -> None:
    make("qemu", "bin/qemu-system-x86_64", *(f"share/qemu/{name}" for name in source.FIRMWARE_FILES))
    make("vsock", "bin/vhost-user-vsock")


def findings() -> dict[str, doctor.Finding]:
    return {f.topic: f for f in doctor.examine()}


def test_nothing_built() -> None:
    found = findings()
    assert {t for t, f in found.items() if f.state == "lacks"} == {
        "QEMU tree", "firmware", "vsock backend", "guest kernel", "prebuilt kernel", "guest init",
        "guest tools",
    }  # fmt: skip
    assert all(f.mend for f in found.values() if f.state == "lacks")
    assert {t for t, f in found.items() if f.needed_to_run and f.state == "lacks"} == {
        "QEMU tree", "firmware", "vsock backend"
    }  # fmt: skip
    assert found["QEMU plugin"].state == "slow" and "nitroctl build --plugin" in found["QEMU plugin"].mend


def test_the_other_architectures_kernel_is_the_one_that_its_images_get() -> None:
    for arch in (one for one in arches.ARCHES if one != arches.host()):
        topic, image = f"guest kernel, {arch}", arches.facts(arch).image
        assert findings()[topic].mend.startswith("nitroctl guest kernel --prebuilt")
        for kind in (cache.named("kernel-prebuilt", arch), cache.named("kernel", arch)):
            make(kind, image)
            assert (findings()[topic].state, Path(findings()[topic].text).parts[-3]) == ("ok", kind)


def test_status_is_about_running() -> None:
    """Kernels are for making images; an EIF brings its own."""
    assert CliRunner().invoke(command, [], standalone_mode=False).return_value == 1
    make_all()
    result = CliRunner().invoke(command, [], standalone_mode=False)
    assert result.return_value == 0
    assert "LACKS  guest kernel" in result.output and "-> nitroctl guest kernel" in result.output


def test_json() -> None:
    make_all()
    result = CliRunner().invoke(command, ["--json"], standalone_mode=False)
    found = {f["topic"]: f for f in answer("nitroctl doctor", result.output)["items"]}
    assert found["QEMU tree"]["state"] == "ok"
    assert found["QEMU tree"]["text"].endswith("bin/qemu-system-x86_64")
    assert found["guest init"] == {
        "topic": "guest init", "state": "lacks", "text": found["guest init"]["text"],
        "mend": "nitroctl guest init", "needed_to_run": False,
    }  # fmt: skip


def test_the_plugin_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {field.name: "x" for field in dataclasses.fields(plugin.Manifest)}
    manifest = plugin.Manifest(**values)  # type: ignore[arg-type]
    monkeypatch.setattr(plugin, "manifest", lambda arch="x86_64": manifest if arch == "x86_64" else None)
    monkeypatch.setattr(plugin, "misfit", lambda built: None)
    make("vsock", "bin/vhost-user-vsock")
    found = findings()
    assert found["QEMU plugin"].state == "ok" and found["QEMU tree"].state == "slow"
    assert not any(f.needed_to_run and f.state == "lacks" for f in found.values())
    monkeypatch.setattr(plugin, "misfit", lambda built: "it was updated")
    found = findings()
    assert found["QEMU plugin"].text == "it was updated" and found["QEMU plugin"].mend
    assert found["QEMU tree"].state == "lacks" and found["QEMU tree"].needed_to_run


def test_firmware_that_is_gone() -> None:
    make_all()
    (cache.entry("qemu", "key") / "share/qemu/qboot.rom").unlink()
    assert findings()["firmware"].state == "lacks"
    assert "qboot.rom" in findings()["firmware"].text


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing", lambda needs: [n for n in needs if n.what == "libcbor"])
    found = findings()["packages: QEMU"]
    assert found.state == "lacks" and "libcbor" in found.text
    assert "libcbor-dev" in found.mend or "libcbor-devel" in found.mend


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=10**9))
    assert findings()["disk"].state == "slow" and "1.00 GB free" in findings()["disk"].text


@pytest.mark.parametrize("length, state", [(107, "ok"), (108, "lacks")])
def test_socket_paths_fit(monkeypatch: pytest.MonkeyPatch, length: int, state: str) -> None:
    """unix(7): sun_path has 108 bytes, one of them for the NUL."""
    assert config.UNIX_PATH_MAX == 107
    longest = "/4294967295/vsock_4294967295"
    folder = "/" + "x" * (length - len(longest) - 1)
    monkeypatch.setattr(doctor, "runtime_dir", lambda: Path(folder))
    assert findings()["socket folder"].state == state


def test_mends_are_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which can be pasted as they are; what is to be said beside them is a comment."""
    monkeypatch.setattr(packages, "missing", lambda needs: needs)
    monkeypatch.setattr(packages, "install_line", lambda needs: "sudo apt install x")
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    monkeypatch.setattr(confine, "kinds", tuple)  # a kernel without Landlock
    mends = [f.mend for f in doctor.examine() if f.mend]
    assert len(mends) > 10
    for mend in mends:
        assert re.match(r"(sudo|export|unset|nitroctl|pip|apt|dnf|cat) ", mend), mend
    subprocess.run(["bash", "-n"], input="\n".join(mends), text=True, check=True)


def test_what_is_not_there_yet_is_said_not_to_be_built() -> None:
    absent = (
        "QEMU plugin", "QEMU tree", "vsock backend", "guest kernel", "prebuilt kernel", "guest init",
        "guest tools",
    )  # fmt: skip
    assert {findings()[topic].text for topic in absent} == {"not built"}


@pytest.mark.parametrize("kind", ["CACHE", "DATA", "STATE"])
def test_folders_can_be_written_to(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / "new" / "deep"))
    found = findings()[f"{kind.lower()} folder"]
    assert (found.state, found.text) == ("ok", str(tmp_path / "new/deep/nitroctl"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").write_text("no folder")
    found = findings()[f"{kind.lower()} folder"]
    assert (found.state, found.text) == ("lacks", f"{tmp_path / 'new'} is no folder")
    assert found.needed_to_run == (kind != "CACHE") and found.mend.startswith(f"export XDG_{kind}_HOME=")
    (tmp_path / "new").unlink()
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    found = findings()[f"{kind.lower()} folder"]
    assert found.state == "lacks" and f"you cannot write to {tmp_path}" in found.text


def test_a_group_is_advised_only_where_it_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kvm = tmp_path / "kvm"
    kvm.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    for reason, words in (
        ("neither vmx nor svm is among the CPU flags in /proc/cpuinfo", ""),
        (f"{kvm}: Permission denied", "sudo usermod -aG kvm $USER"),
        (f"{tmp_path}/none: No such file or directory", ""),
    ):
        chosen = accelerator.Accelerator("tcg", reason)
        monkeypatch.setattr(accelerator, "choose", lambda kvm, chosen=chosen: chosen)
        mend = doctor._accelerator(kvm).mend
        assert mend.startswith(words) and bool(mend) == bool(words)
    kvm.unlink()
    chosen = accelerator.Accelerator("tcg", f"{kvm}: No such file or directory")
    monkeypatch.setattr(accelerator, "choose", lambda kvm: chosen)
    assert doctor._accelerator(kvm).mend.startswith("sudo modprobe ")


@pytest.mark.parametrize("name, state", [("kvm", "ok"), ("tcg", "slow")])
def test_accelerator(monkeypatch: pytest.MonkeyPatch, name: str, state: str) -> None:
    chosen = accelerator.Accelerator(name, "because of the weather")  # type: ignore[arg-type]
    monkeypatch.setattr(accelerator, "choose", lambda **_: chosen)
    found = findings()["accelerator"]
    assert found.state == state and "because of the weather" in found.text
    assert not found.needed_to_run


def test_awss_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are, of which kernel, and of which package where rpm knows it."""
    found = findings()["AWS's blobs"]
    assert (found.state, found.needed_to_run) == ("slow", False) and str(tmp_path / "blobs") in found.text
    dummies = Path(__file__).parents[1] / "data/aws-builder/blobs"
    (tmp_path / "blobs").symlink_to(dummies)
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    version = (dummies / "bzImage.config").read_text().splitlines()[2].split()[2]
    assert findings()["AWS's blobs"].text == f"{tmp_path / 'blobs'}, kernel {version}"
    (programs / "rpm").write_text("#!/bin/sh\necho 1.4.2-0.amzn2023\n")
    (programs / "rpm").chmod(0o755)
    found = findings()["AWS's blobs"]
    assert found.state == "ok"
    assert found.text.endswith(f"kernel {version}, aws-nitro-enclaves-cli-devel 1.4.2-0.amzn2023")
    (programs / "rpm").write_text("#!/bin/sh\necho package is not installed; exit 1\n")
    assert findings()["AWS's blobs"].text.endswith(f"kernel {version}")
    monkeypatch.setenv("NITRO_CLI_BLOBS", str(programs))
    found = findings()["AWS's blobs"]
    assert found.text == f"{programs} (NITRO_CLI_BLOBS) lacks bzImage, cmdline, init"
    assert (found.state, found.needed_to_run) == ("lacks", False) and "unset NITRO_CLI_BLOBS" in found.mend


def test_a_kernel_that_cannot_confine_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guest could do then is said; that nothing runs is not."""
    for there, words in (
        (["Landlock 6", "seccomp"], "QEMU is confined by Landlock 6 and seccomp"),
        (["seccomp"], "lacks Landlock: a guest that breaks out of QEMU can open your files"),
        (["Landlock 6"], "lacks seccomp: a guest that breaks out of QEMU can start programs"),
        ([], "lacks Landlock and seccomp: a guest that breaks out of QEMU can open your files"),
    ):
        monkeypatch.setattr(confine, "kinds", lambda there=there: there)
        found = findings()["sandbox"]
        assert words in found.text and not found.needed_to_run
        assert found.state == ("ok" if len(there) == 2 else "slow")


def test_what_sudo_left_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of root's, which the root folder is everywhere; a folder above it is left to its owner."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = doctor._writable("cache folder", Path("/"), "XDG_CACHE_HOME", needed=False)
    assert (found.state, found.mend) == ("lacks", 'sudo chown -R "$USER" /')
    found = doctor._writable("cache folder", Path("/none such/there"), "XDG_CACHE_HOME", needed=False)
    assert found.mend.startswith("export XDG_CACHE_HOME=")


def test_errors_of_other_parts_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Path:
        raise NitroError("it is odd", hint="nitroctl build")

    monkeypatch.setattr(doctor, "runtime_dir", fails)
    found = findings()["socket folder"]
    assert (found.state, found.text, found.needed_to_run) == ("lacks", "it is odd", True)
    assert found.mend.startswith("export XDG_RUNTIME_DIR=")
    monkeypatch.setattr(bundle, "installed_qemu", fails)
    found = findings()["QEMU bundled"]
    assert (found.state, found.text, found.mend) == ("lacks", "it is odd", "nitroctl build")
    assert doctor._located("x", fails, needed=True) == doctor.Finding(
        "x", "lacks", "it is odd", "nitroctl build", needed_to_run=True
    )
