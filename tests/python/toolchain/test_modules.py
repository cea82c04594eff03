# SPDX-License-Identifier: MIT
"""A distribution's kernel modules, sorted for a ramdisk. That a guest loads them is for tests/boot."""

from __future__ import annotations

import json
import lzma
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitroctl.base.config import source_root
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import modules, prebuilt
from nitroctl.toolchain.modules import ModuleFolder


def module(*depends: str, aliases: tuple[str, ...] = ()) -> bytes:
    info = b"license=GPL\0depends=" + ",".join(depends).encode() + b"\0retpoline=Y\0name=x\0"
    return b"\x7fELF" + bytes(60) + info + b"".join(f"alias={alias}\0".encode() for alias in aliases)


def modules_folder(root: Path, content: dict[str, bytes], builtin: str = "") -> Path:
    folder = root / "6.12.0-fake"
    (folder / "kernel/drivers").mkdir(parents=True)
    for name, data in content.items():
        packed = lzma.compress(data) if name.endswith(".xz") else data
        (folder / "kernel/drivers" / name).write_bytes(packed)
    (folder / "modules.builtin").write_text(builtin)
    return folder


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    folder = modules_folder(
        tmp_path,
        {
            "nsm.ko.xz": module("rng-core"),
            "rng-core.ko": module(),
            "transport.ko.xz": module("common", "vsock"),
            "common.ko.xz": module("vsock"),
            "vsock.ko.xz": module(),
            "unrelated.ko.xz": module("vsock"),
            "other.ko.gz": b"of no interest",
        },
        "kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-mmio.ko\n",
    )
    found = ModuleFolder(folder)
    assert found.in_order(["virtio_mmio", "transport", "nsm"]) == [
        "vsock", "common", "transport", "rng_core", "nsm",
    ]  # fmt: skip
    assert found.content("nsm") == module("rng-core")
    assert found.has("virtio-mmio") and found.has("rng-core") and not found.has("none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.ko": module("b")}, "no module b, and it is not built in"),
        ({"a.ko": module("b"), "b.ko": module("a")}, "depends on itself"),
        ({"a.ko": module("a")}, "depends on itself"),
        ({"a.ko.zst": b"\x28\xb5\x2f\xfd"}, "compressed in a way"),
        ({"a.ko": b"text"}, "no ELF file"),
    ],
)
def test_modules_that_cannot_be_loaded(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    with pytest.raises(NitroError, match=message):
        ModuleFolder(modules_folder(tmp_path, content)).in_order(["a"])


@given(st.lists(st.frozensets(st.integers(0, 11)), min_size=1, max_size=12), st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_any_graph_of_modules_is_loadable_in_order(
    tmp_path_factory: pytest.TempPathFactory, needs: list[frozenset[int]], data: st.DataObject
) -> None:
    # Module i depends on lower numbers only, so there is an order.
    graph = {i: sorted(n for n in need if n < i) for i, need in enumerate(needs)}
    wanted = data.draw(st.lists(st.sampled_from(sorted(graph)), min_size=1))
    folder = modules_folder(
        tmp_path_factory.mktemp("m"),
        {f"m{i}.ko": module(*(f"m{n}" for n in need)) for i, need in graph.items()},
    )
    order = [int(name[1:]) for name in ModuleFolder(folder).in_order([f"m{i}" for i in wanted])]

    closure, pending = set(), list(wanted)
    while pending:
        i = pending.pop()
        closure.add(i)
        pending += graph[i]
    assert sorted(order) == sorted(closure)
    for at, i in enumerate(order):
        assert set(graph[i]) <= set(order[:at])


def test_depends_as_modinfo_reads_it() -> None:
    def depends(content: bytes) -> list[str]:
        return modules.modinfo(content, b"depends", b",")

    assert depends(module()) == []
    assert depends(module("a", "b-c")) == ["a", "b-c"]
    assert depends(b"\x7fELF no such entry") == []
    # Part of another key is none.
    assert depends(b"\0softdepends=x\0depends=a\0") == ["a"]
    assert modules.modinfo(module(aliases=("a-1", "b")), b"alias") == ["a-1", "b"]


PACKAGE = {
    "virtio_mmio.ko.xz": module(),
    "vmw_vsock_virtio_transport.ko.xz": module("vsock"),
    "vsock.ko.xz": module(),
    "nsm.ko.xz": module(),
    "vsock_loopback.ko.xz": module("vsock"),
    "tun.ko.xz": module(aliases=("devname:net/tun", "char-major-10-200")),
    "llc.ko.xz": module(),
    "bridge.ko.xz": module("llc", aliases=("rtnl-link-bridge",)),
    "br_netfilter.ko.xz": module("bridge"),
    "loop.ko": module(aliases=("block-major-7-[0-9]*", "has space")),
    "unrelated.ko.xz": module(),
}


def package(tree: Path, config: str) -> Path:
    """Debian's package, unpacked."""
    modules_folder(tree / "usr/lib/modules", PACKAGE)
    (tree / "boot").mkdir()
    (tree / "boot/vmlinuz-6.12.0-fake").write_bytes(bytes(0x202) + b"HdrS")
    (tree / "boot/config-6.12.0-fake").write_text(config)
    return tree


@pytest.mark.parametrize("packed", [True, False])
def test_a_kernel_package_becomes_a_kernel_and_a_ramdisk_part(tmp_path: Path, packed: bool) -> None:
    config = "CONFIG_TUN=m\nCONFIG_VETH=m\nCONFIG_DEVPORT=y\n# CONFIG_X86_16BIT is not set\n"
    tree = package(tmp_path / "tree", config + ("CONFIG_MODULE_DECOMPRESS=y\n" if packed else ""))
    into = tmp_path / "into"
    into.mkdir()
    release, lacks = prebuilt._pick(tree, into, "x86_64")
    assert release == "6.12.0-fake"
    # A module that is there, one that is not, an option that is on, one that is off, one unheard of.
    assert {"veth devices", "16-bit segments", "TIOCSTI"} <= set(lacks)
    assert not {"tun devices", "/dev/port"} & set(lacks)

    listed = (into / "ramdisk/modules").read_text().splitlines()
    assert listed == [
        "/ko/virtio_mmio.ko", "/ko/vsock.ko", "/ko/vmw_vsock_virtio_transport.ko", "/ko/nsm.ko",
    ]  # fmt: skip
    end = ".ko.xz" if packed else ".ko"
    bridge = f"/ko/llc{end} /ko/bridge{end} /ko/br_netfilter{end}"
    demand = (into / "ramdisk/modules.demand").read_text().splitlines()
    assert demand == [
        "late /ko/vsock_loopback.ko",
        "node net/tun 10 200",
        f"need tun /ko/tun{end}",
        f"need char_major_10_200 /ko/tun{end}",
        f"need bridge {bridge}",
        f"need rtnl_link_bridge {bridge}",
        f"need br_netfilter {bridge}",
        "need loop /ko/loop.ko",
        "need block_major_7_[0-9]* /ko/loop.ko",
    ]
    # Each file is there and no other; the first ones need not be unpacked in every guest.
    named = {word for line in (*listed, *demand) for word in shlex.split(line) if word.startswith("/ko/")}
    assert named == {f"/ko/{p.name}" for p in (into / "ramdisk/ko").iterdir()}
    for path in named:
        content = (into / f"ramdisk{path}").read_bytes()
        assert (lzma.decompress(content) if path.endswith(".xz") else content).startswith(b"\x7fELF")


def test_a_prebuilt_kernel_with_other_modules_is_made_anew(tmp_path: Path) -> None:
    root = tmp_path / prebuilt._key("linux-image-x", "6.12-1")
    root.mkdir()
    (root / "bzImage").touch()
    manifest = {"release": "6.12", "source": "linux-image-x 6.12-1", "lacks": ["a", "b"]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    found = prebuilt._made(root, "x86_64")
    assert found and (found.release, found.lacks) == ("6.12", ("a", "b"))
    other = root.rename(tmp_path / "6.12-1-0123456789ab")
    assert prebuilt._made(other, "x86_64") is None


def test_what_is_said_to_be_lacking_is_what_our_kernel_has() -> None:
    fragment = (source_root() / "guest/kernel.config").read_text().splitlines()
    for option in (*modules._MEANING, *modules._MEANING_OF["x86_64"], *modules.DEMAND, *modules.LATE):
        assert f"{option}=y" in fragment
