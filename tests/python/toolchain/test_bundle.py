# SPDX-License-Identifier: MIT
"""Parts that came with nitroctl are found before anything is built or looked up in the cache, in the order
that docs/install.md promises; and not where they cannot run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nitroctl import __version__
from nitroctl.base.errors import NitroError, NotBuilt
from nitroctl.cli import nitroctl as cli
from nitroctl.toolchain import (
    bundle,
    busybox,
    cache,
    choice,
    doctor,
    guest,
    kernel,
    packages,
    places,
    plugin,
    plugin_build,
    programs,
    tree,
)

BUILD_ID = "ab" * 20


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without QEMU and cache, on which nothing may be built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "default_prefix", lambda: tmp_path / "prefix")
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "site/nitroctl/toolchain/bundle.py"))
    nothing = packages.Need("", "", "", program=str(tmp_path / "usr/bin/qemu-system-x86_64"))
    monkeypatch.setattr(packages, "DISTRIBUTION_QEMU", nothing)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    for module in (tree, guest, kernel, plugin_build):
        monkeypatch.setattr(module, "toolchain", lambda needs, **_: pytest.fail("something is built"))
    return tmp_path


@pytest.fixture
def brought(bare: Path) -> Path:
    folder = bare / "site/nitroctl/bundle"
    for name in ("bin/vhost-user-vsock", "lib/vsock-preload.so", "guest/init", "guest/agent", "guest/hello",
                 "kernel/bzImage", f"plugins/{BUILD_ID}/bin/qemu-system-x86_64"):  # fmt: skip
        put(folder / name)
    put(folder / "bundle.json", json.dumps({"glibc": "2.34"}))
    return folder


@pytest.fixture
def companion(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = bare / "site/nitroctl_qemu"
    put(folder / "__init__.py")
    put(folder / "bin/qemu-system-x86_64")
    about = {"glibc": "2.34", "nitroctl": __version__, "qemu": "10.0.13", "source": "qemu 1:10.0.13+ds-0",
             "revised": "2026-10-01"}  # fmt: skip
    put(folder / "bundle.json", json.dumps(about))
    monkeypatch.setattr(sys, "path", [str(bare / "site"), *sys.path])
    return folder


def the_distributions(bare: Path, monkeypatch: pytest.MonkeyPatch, build_id: str = BUILD_ID) -> None:
    path = put(bare / "usr/bin/qemu-system-x86_64")
    monkeypatch.setattr(plugin, "build_id", lambda p: build_id if p == path else None)


def tree_build() -> Path:
    made = cache.build_entry("qemu", "key", lambda folder: void(put(folder / "bin/qemu-system-x86_64")))
    return made / "bin/qemu-system-x86_64"


def void(_: object) -> None:
    pass


def test_parts_are_found_and_nothing_is_built(brought: Path) -> None:
    cache.build_entry("vsock", "key", lambda folder: void(put(folder / "bin/vhost-user-vsock")))
    assert tree.build_backend() == places.locate("vsock") == brought / "bin/vhost-user-vsock"
    assert places.preload() == brought / "lib/vsock-preload.so"
    assert guest.build_init() == brought / "guest"
    assert [guest.locate(name) for name in ("init", "agent", "hello")] == [
        brought / "guest/init", brought / "guest/agent", brought / "guest/hello"
    ]  # fmt: skip
    assert kernel.build() == guest.locate("kernel") == brought / "kernel/bzImage"
    assert guest.default_kernel() == "own"


def test_the_order_of_qemus(brought: Path, companion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree_build()
    bundled = companion / "bin/qemu-system-x86_64"
    assert choice.choose() == plugin.in_use() == choice.choose("bundled") == bundled
    assert choice.choose("tree") == own
    assert programs.make() == (bundled, brought / "bin/vhost-user-vsock")
    with pytest.raises(NitroError, match="no plugin"):
        choice.choose("plugin")
    the_distributions(brought.parents[2], monkeypatch)
    launcher = brought / f"plugins/{BUILD_ID}/bin/qemu-system-x86_64"
    assert choice.choose() == plugin.in_use() == choice.choose("plugin") == plugin.locate() == launcher
    assert choice.choose("bundled") == bundled
    assert programs.make()[0] == launcher
    # An update of the distribution's that this nitroctl knows nothing of.
    the_distributions(brought.parents[2], monkeypatch, "cd" * 20)
    assert choice.choose() == bundled


def test_what_came_for_arm64(
    brought: Path, companion: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a package of its own; what came for x86_64 is not taken for it."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(NotBuilt) as caught:
        guest.locate("init", "aarch64")
    assert caught.value.hint == "nitroctl guest init --arch aarch64"
    with pytest.raises(NitroError) as missing:
        plugin.in_use(arch="aarch64")
    assert "nitroctl build --arch aarch64" in str(missing.value.hint)
    folder = brought.parents[1] / "nitroctl_arm64"
    put(folder / "__init__.py")
    for name in ("guest/init", "guest/tools", "guest/busybox", "kernel/Image"):
        put(folder / name)
    record = folder / "bundle.json"
    put(record, json.dumps({"nitroctl": __version__}))
    assert guest.build_init("aarch64") == folder / "guest" != guest.build_init("x86_64")
    assert guest.locate("kernel", "aarch64") == kernel.build(arch="aarch64") == folder / "kernel/Image"
    assert busybox.locate("aarch64") == folder / "guest/busybox"
    put(companion / "bin/qemu-system-aarch64")
    assert choice.choose(arch="aarch64") == companion / "bin/qemu-system-aarch64"
    assert choice.choose() == companion / "bin/qemu-system-x86_64"
    cli.main(["which", "qemu", "--arch", "arm64"], standalone_mode=False)
    assert capsys.readouterr().out == f"{companion}/bin/qemu-system-aarch64\n"
    # Its init and agent speak with the nitroctl that they were made with.
    put(record, json.dumps({"nitroctl": "0.0"}))
    with pytest.raises(NitroError, match="nitroctl-arm64 0.0 does not belong to nitroctl") as misfit:
        guest.locate("init", "aarch64")
    assert misfit.value.hint == "pip install --upgrade 'nitroctl[arm64]'"


def test_without_any(bare: Path) -> None:
    assert bundle.find("bin/vhost-user-vsock") is None and bundle.qemu() is None
    with pytest.raises(NitroError) as caught:
        choice.choose("bundled")
    assert caught.value.hint == "pip install 'nitroctl[qemu]'"


def test_a_folder_that_the_dynamic_linker_does_not_preload_from(
    brought: Path, companion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = brought.parent / "my bundle"
    brought.rename(spaced)
    the_distributions(brought.parents[2], monkeypatch)
    monkeypatch.setattr(bundle, "root", lambda: spaced)
    assert bundle.plugin_for(BUILD_ID) and plugin.prebuilt() is None
    assert choice.choose() == companion / "bin/qemu-system-x86_64"


def confstr_of_musl(name: str) -> str:
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize(
    "confstr, said", [(confstr_of_musl, "musl"), (lambda name: "glibc 2.31", "need glibc 2.34.* has 2.31")]
)
def test_another_c_library_is_refused_by_name(
    brought: Path, companion: Path, monkeypatch: pytest.MonkeyPatch, confstr: object, said: str
) -> None:
    monkeypatch.setattr(os, "confstr", confstr)
    finders: list[Callable[[], Path]] = [lambda: places.locate("vsock"), choice.choose]
    for find in finders:
        with pytest.raises(NitroError, match=said) as caught:
            find()
        assert caught.value.hint


def test_a_qemu_of_another_nitroctl_is_not_used(companion: Path) -> None:
    record = json.loads((companion / "bundle.json").read_text())
    put(companion / "bundle.json", json.dumps({**record, "nitroctl": "0.0.9"}))
    with pytest.raises(NitroError, match=f"nitroctl-qemu 0.0.9 does not belong to nitroctl {__version__}"):
        choice.choose("bundled")
    own = tree_build()
    assert choice.choose() == own


def test_doctor_names_the_qemu_in_use_and_its_age(
    brought: Path, companion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2026-10-01 and the day 2027-03-01 are 151 days apart.
    monkeypatch.setattr("nitroctl.toolchain.bundle.time.time", lambda: 1803859200.0)
    monkeypatch.setattr(doctor, "runtime_dir", lambda: Path("/run/user/1000/nitroctl"))
    found = {finding.topic: finding for finding in doctor.examine()}
    assert found["QEMU in use"].text == str(companion / "bin/qemu-system-x86_64")
    assert found["QEMU bundled"].state == "slow" and "151 days old" in found["QEMU bundled"].text
    assert "qemu 1:10.0.13+ds-0" in found["QEMU bundled"].text
    # Nothing has to be built: packages for that are no lack, nor is Debian's kernel.
    assert not [f for f in found.values() if f.state == "lacks"]
    the_distributions(brought.parents[2], monkeypatch)
    found = {finding.topic: finding for finding in doctor.examine()}
    assert BUILD_ID in found["QEMU in use"].text and "came with nitroctl" in found["QEMU plugin"].text
