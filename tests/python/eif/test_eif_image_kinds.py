# SPDX-License-Identifier: MIT
"""Container images as other tools write them, and files that hold several: which one is built, or what is
offered. The bytes are made from the tools' formats, not by the tools.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import eifmodel as model
import imagemodel as im
from imagebuilt import files
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.cli import main
from nitroctl.eif import compose, reference
from nitroctl.eif.image import Image, open_image

APP = im.layer(im.entry("app", b"binary", mode=0o755))
OTHER = im.layer(im.entry("app", b"other", mode=0o755))
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
INDEX = "application/vnd.oci.image.index.v1+json"
CONTAINERD, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"


def built(found: Image | Path, **choice: Any) -> bytes | None:
    """What /app has, of the whole way through the layers."""
    path = found if isinstance(found, Path) else found.path
    return files(compose.from_image(path, **choice))["app"]


class Layout:
    """The blobs of an OCI layout, and its descriptors."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, data: bytes, media: str, **more: Any) -> dict[str, Any]:
        self.blobs[f"blobs/sha256/{im.digest(data)}"] = data
        return {"mediaType": media, "digest": f"sha256:{im.digest(data)}", "size": len(data), **more}

    def image(
        self, layer: bytes = APP, platform: str | None = "linux/amd64", *, said: bool = True, **more: Any
    ) -> dict[str, Any]:
        """The descriptor of an image of one layer; `said`: also the descriptor has the platform."""
        os, architecture, *variant = (platform or "linux/").split("/")
        where = {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        config = json.dumps(json.loads(im.config([layer])) | where).encode()
        manifest = {
            "schemaVersion": 2,
            "config": self.put(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                self.put(gzip.compress(layer, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
            ],
        }
        more |= {"platform": where} if said else {}
        return self.put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json", **more)

    def index(self, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.put(json.dumps({"schemaVersion": 2, "manifests": items}).encode(), INDEX, **more)

    def files(self, *items: dict[str, Any]) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": items}).encode()
        return self.blobs | {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}


def named(descriptor: dict[str, Any], *tags: str) -> list[dict[str, Any]]:
    """One descriptor for each tag, as containerd's export has them."""
    return [
        descriptor | {"annotations": {CONTAINERD: f"docker.io/library/{tag}", REF: tag.partition(":")[2]}}
        for tag in tags
    ]


def config_of(layout: Layout, descriptor: dict[str, Any]) -> tuple[str, list[str]]:
    """The paths that manifest.json has for an image of the layout."""
    hex = descriptor["digest"].removeprefix("sha256:")
    manifest = json.loads(layout.blobs[f"blobs/sha256/{hex}"])
    paths = [
        d["digest"].replace("sha256:", "blobs/sha256/") for d in (manifest["config"], *manifest["layers"])
    ]
    return paths[0], paths[1:]


def manifest_json(entries: Iterable[tuple[str, list[str] | None, list[str]]]) -> dict[str, bytes]:
    value = [{"Config": config, "RepoTags": tags, "Layers": layers} for config, tags, layers in entries]
    return {"manifest.json": json.dumps(value).encode()}


# ---- docker-archives of other tools ----

TOOLS: dict[str, tuple[str, str]] = {
    "crane, kaniko, ko": ("sha256:{config}", "{layer}.tar.gz"),
    "jib": ("config.json", "{layer}.tar.gz"),
    "rules_oci": ("blobs/sha256/{config}", "blobs/sha256/{layer}.tar.gz"),
    "rules_docker": ("{config}.json", "{layer}/layer.tar"),
    "docker 25": ("blobs/sha256/{config}", "blobs/sha256/{layer}"),
    "no digest": ("image", "one"),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("packer", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_layers_of_a_docker_archive(tmp_path: Path, tool: str, packer: Callable[[bytes], bytes]) -> None:
    """Packed or not, and named as the tool likes; a layer that is another than the configuration says is
    found, also where the archive names it after its own digest."""

    def archive(name: str, layer: bytes) -> Path:
        config, packed = im.config([APP]), packer(layer)
        paths = [text.format(config=im.digest(config), layer=im.digest(packed)) for text in TOOLS[tool]]
        listed = manifest_json([(paths[0], ["app:latest"], paths[1:])])
        return im.archive(tmp_path / name, {paths[0]: config, paths[1]: packed, **listed})

    good = archive("app.tar", APP)
    assert built(good) == b"binary"
    assert open_image(good).name == "app:latest"
    (tmp_path / "bzImage").write_bytes(model.bzimage())
    (tmp_path / "init").write_bytes(b"init")
    start = compose.Bootstrap(compose.Kernel(tmp_path / "bzImage"), tmp_path / "init", "quiet")
    compose.compose(compose.from_image(good), start, tmp_path / "o", compose.Options())
    bad = compose.from_image(archive("bad.tar", OTHER))
    with pytest.raises(NitroError, match=f"layer 1 of 1.*{im.digest(OTHER)}, not sha256:{im.digest(APP)}"):
        compose.compose(bad, start, tmp_path / "o", compose.Options())


def test_a_docker_archive_that_lists_other_layers(tmp_path: Path) -> None:
    config = im.config([APP])
    listed = manifest_json([("c", None, ["l", "l"])])
    with pytest.raises(NitroError, match="lists 2 layers, but the configuration lists 1"):
        open_image(im.archive(tmp_path / "app.tar", {"c": config, "l": APP, **listed}))


# ---- one image, several ways to it ----


@pytest.mark.parametrize("nested", [False, True])
def test_two_names_of_one_image(tmp_path: Path, nested: bool) -> None:
    layout = Layout()
    image = layout.image()
    proof = layout.image(
        b"", "unknown/unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"}
    )
    found = layout.index(image, proof) if nested else image
    path = im.archive(tmp_path / "app.tar", layout.files(*named(found, "app:latest", "app:1.2")))
    assert built(path) == b"binary"
    assert open_image(path).name == "docker.io/library/app:latest"
    assert open_image(path, name="1.2").id == open_image(path).id


@pytest.mark.parametrize("platforms", [("linux/amd64", "linux/arm64"), ("linux/arm64", "linux/amd64")])
def test_docker_save_on_another_machine(tmp_path: Path, platforms: tuple[str, str]) -> None:
    """Its manifest.json has the image for its own machine, its index both."""
    layout = Layout()
    ours, theirs = layout.image(APP), layout.image(OTHER, "linux/arm64/v8")
    both = layout.index(*(ours if p == "linux/amd64" else theirs for p in platforms))
    config, layers = config_of(layout, theirs)
    parts = layout.files(*named(both, "app:1")) | manifest_json([(config, ["app:1"], layers)])
    assert built(im.archive(tmp_path / "app.tar", parts)) == b"binary"
    del parts["index.json"]
    words = r"is an image for linux/arm64, but the enclave is x86_64 \(linux/amd64\)"
    with pytest.raises(NitroError, match=words) as e:
        open_image(im.archive(tmp_path / "arm.tar", parts))
    assert "--arch aarch64" in str(e.value.hint) and "--platform linux/amd64" in str(e.value.hint)
    assert built(tmp_path / "arm.tar", arch="aarch64") == b"other"


def test_blobs_of_other_platforms_may_be_missing(tmp_path: Path) -> None:
    layout = Layout()
    ours, gone = layout.image(), Layout().image(OTHER, "linux/arm64")
    assert built(im.archive(tmp_path / "app.tar", layout.files(layout.index(gone, ours)))) == b"binary"


@pytest.mark.parametrize("kind", ["image", "imageIndex"])
def test_what_cosign_saves(tmp_path: Path, kind: str) -> None:
    """Image, signatures and the like side by side, without platforms."""
    layout = Layout()
    about = "dev.cosignproject.cosign"
    image = layout.image(said=kind == "imageIndex")
    image = layout.index(image) if kind == "imageIndex" else image
    beside = [
        layout.image(b"x" * n, None, said=False, annotations={"kind": f"{about}/{name}"})
        for n, name in enumerate(("sigs", "atts", "sboms"), 1)
    ]
    path = im.folder(
        tmp_path / "d", layout.files(*beside, image | {"annotations": {"kind": f"{about}/{kind}"}})
    )
    assert built(path) == b"binary"


def test_what_else_registries_hold(tmp_path: Path) -> None:
    """A signature that refers to the image (OCI 1.1), a Helm chart."""
    layout = Layout()
    manifest = {"config": layout.put(b"{}", "application/vnd.cncf.helm.config.v1+json"), "layers": []}
    chart = layout.put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    referrer = layout.put(b"{}", "application/vnd.oci.image.manifest.v1+json", artifactType="a/signature")
    path = im.archive(tmp_path / "app.tar", layout.files(chart, referrer, layout.image(said=False)))
    assert built(path) == b"binary"


# ---- skopeo's dir: ----


def dir_layout(layout: Layout, descriptor: dict[str, Any]) -> dict[str, bytes]:
    """That manifest and what it names, as `skopeo copy ... dir:` leaves it (containers-transports(5))."""
    blobs = {name.removeprefix("blobs/sha256/"): data for name, data in layout.blobs.items()}
    top = blobs.pop(descriptor["digest"].removeprefix("sha256:"))
    for item in json.loads(top).get("manifests", ()):
        hex = item["digest"].removeprefix("sha256:")
        blobs[f"{hex}.manifest.json"] = blobs.pop(hex)
    return blobs | {"manifest.json": top, "version": b"Directory Transport Version: 1.1\n"}


@pytest.mark.parametrize("several", [False, True])
def test_skopeos_dir(tmp_path: Path, several: bool) -> None:
    layout = Layout()
    image = layout.image()
    top = layout.index(layout.image(OTHER, "linux/arm64"), image) if several else image
    path = im.folder(tmp_path / "d", dir_layout(layout, top))
    found = reference.located(f"dir:{path}")
    assert found == reference.Located(path)
    assert built(path) == b"binary"


# ---- a choice to be made ----


def three(path: Path) -> tuple[Path, dict[str, str]]:
    """Two images with three names, as an OCI layout; and their ids."""
    layout = Layout()
    first, second = layout.image(APP), layout.image(OTHER)
    items = [*named(first, "app:latest", "app:1.2"), *named(second, "other:1.2")]
    ids = {name: im.digest(im.config([layer])) for name, layer in (("first", APP), ("second", OTHER))}
    return im.archive(path, layout.files(*items)), ids


def test_several_images_are_offered_by_name(tmp_path: Path) -> None:
    path, ids = three(tmp_path / "app.tar")
    with pytest.raises(NitroError, match="has 2 images.*: app:latest = app:1.2, other:1.2") as e:
        open_image(path)
    assert e.value.hint == f"choose one by its name: {path}:app:latest"
    for name in (
        "latest",
        "app:1.2",
        "docker.io/library/app:1.2",
        ids["first"],
        f"sha256:{ids['first'][:12]}",
    ):
        assert built(path, name=name) == b"binary", name
    assert built(path, name="docker.io/other:1.2") == b"other"
    assert open_image(path, name="other:1.2").name == "docker.io/library/other:1.2"
    with pytest.raises(NitroError, match="has 2 images"):
        open_image(path, name="1.2")
    with pytest.raises(NitroError, match="has no image app:2; it has app:latest"):
        open_image(path, name="app:2")


def test_several_images_of_docker_save(tmp_path: Path) -> None:
    parts: dict[str, bytes] = {}
    entries: list[tuple[str, list[str] | None, list[str]]] = []
    for tags, layer in ((["a:1"], APP), (None, OTHER)):
        config = im.config([layer])
        parts |= {f"{im.digest(config)}.json": config, im.digest(layer): layer}
        entries.append((f"{im.digest(config)}.json", tags, [im.digest(layer)]))
    path = im.archive(tmp_path / "app.tar", parts | manifest_json(entries))
    other = im.digest(im.config([OTHER]))[:12]
    with pytest.raises(NitroError, match=f"has 2 images.*: a:1, {other}\n") as e:
        open_image(path)
    assert str(e.value.hint).endswith(f"{path}:a:1")
    assert built(path, name="a:1") == b"binary" and built(path, name=other) == b"other"


def test_the_same_name_twice(tmp_path: Path) -> None:
    layout = Layout()
    items = [*named(layout.image(APP), "app:1"), *named(layout.image(OTHER), "app:1")]
    with pytest.raises(NitroError) as e:
        open_image(im.archive(tmp_path / "app.tar", layout.files(*items)))
    ids = [im.digest(im.config([layer]))[:12] for layer in (APP, OTHER)]
    assert f"app:1 ({ids[0]}), app:1 ({ids[1]})" in str(e.value)
    assert f"app.tar:{ids[0]}" in str(e.value.hint)


@pytest.mark.parametrize("said", [True, False])
def test_variants(tmp_path: Path, said: bool) -> None:
    """What runs everywhere goes first; others are asked for, or offered where there is no such."""
    layout = Layout()
    v1, v3 = layout.image(APP, said=said), layout.image(OTHER, "linux/amd64/v3", said=said)
    path = im.archive(tmp_path / "app.tar", layout.files(*named(layout.index(v3, v1), "app:1")))
    assert (
        built(path)
        == built(path, platform="linux/amd64")
        == built(path, platform="linux/amd64/v1")
        == b"binary"
    )
    assert built(path, platform="linux/amd64/v3") == built(path, platform="amd64/v3") == b"other"
    with pytest.raises(NitroError, match=r"for linux/amd64/v2; it has app:1 \(linux/amd64/v3\), app:1"):
        open_image(path, platform="linux/amd64/v2")
    v2 = layout.image(APP, "linux/amd64/v2", said=said)
    assert built(im.archive(tmp_path / "one.tar", layout.files(v2))) == b"binary"
    path = im.archive(tmp_path / "app.tar", layout.files(*named(layout.index(v3, v2), "app:1")))
    with pytest.raises(NitroError, match="has 2 images") as e:
        open_image(path)
    assert str(e.value.hint).endswith("--platform linux/amd64/v3")


@pytest.mark.parametrize("platform", ["linux/riscv64", "windows/amd64", "", "linux/amd64/x", "linux/amd64\n"])
def test_platforms_that_no_enclave_is(tmp_path: Path, platform: str) -> None:
    with pytest.raises(UsageError, match="there are linux/amd64 or linux/arm64"):
        open_image(three(tmp_path / "app.tar")[0], platform=platform)


def test_names_behind_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No skopeo is needed for what is here."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    path, _ = three(tmp_path / "app.tar")
    layout = Layout()
    items = named(layout.image(OTHER), "app:1")
    im.folder(tmp_path / "layout", layout.files(*items))
    (tmp_path / "app").write_bytes(b"\x7fELF")
    (tmp_path / "colon:1").write_bytes(b"")
    for text, name in (
        ("app.tar:latest", "latest"), (f"{path}:app:1.2", "app:1.2"), ("oci-archive:app.tar:1.2", "1.2"),
        ("docker-archive:app.tar:a:1", "a:1"), ("oci:layout:app:1", "app:1"), ("layout:1", "1"),
        ("app.tar", None), ("oci:layout", None), ("colon:1", None), ("app:1", None),
    ):  # fmt: skip
        with reference.fetched(text) as found:
            assert found.name == name and (found.path.exists() or text == "app:1"), text
    with reference.fetched("oci:layout:app:1") as found:
        assert built(found.path, name=str(found.name)) == b"other"
    for text in ("oci:gone", "dir:gone:1", "docker-archive:gone.tar"):
        with pytest.raises(NitroError, match="there is no file or folder gone"), reference.fetched(text):
            pass


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout()
    items = [layout.image(APP), layout.image(OTHER, "linux/amd64/v3")]
    path = im.archive(tmp_path / "app.tar", layout.files(*named(layout.index(*items), "app:1")))
    blobs = im.folder(tmp_path / "b", {"bzImage": model.bzimage(), "init": b"", "cmdline": b"quiet"})

    def build(*argv: object) -> int:
        with pytest.raises(SystemExit) as e:
            main(["eif", "build", "--blobs", str(blobs), "-o", str(tmp_path / "o"), *map(str, argv)])
        return int(e.value.code or 0)

    assert build("--image", f"{path}:1", "--platform", "linux/amd64/v3") == 0
    assert b"other" in (tmp_path / "o").read_bytes()
    assert build("--image", f"{path}:2") == 1
    assert "has no image 2; it has app:1" in capsys.readouterr().err
    assert build("--image", path, "--platform", "linux/riscv64") == 2
    assert build("--directory", blobs, "--cmd", "/x", "--platform", "linux/amd64") == 2


# ---- strangers ----


def test_names_from_outside_are_shown_escaped(tmp_path: Path) -> None:
    layout = Layout()
    items = [*named(layout.image(APP), "a:\x1b[31m\n"), *named(layout.image(OTHER), "b:1")]
    with pytest.raises(NitroError) as e:
        open_image(im.archive(tmp_path / "app.tar", layout.files(*items)))
    for text in (str(e.value), str(e.value.hint)):
        assert text.isprintable() and "\\x1b[31m" in text


def test_manifests_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small file whose indexes name one another, nobody reads gigabytes."""
    layout = Layout()
    item = layout.image()
    for _ in range(3):
        item = layout.index(*[item] * 200)
    path = im.archive(tmp_path / "app.tar", layout.files(item))
    monkeypatch.setattr("nitroctl.eif.image.MANIFESTS_MAX", 500)
    with pytest.raises(NitroError, match="more than 500 manifests"):
        open_image(path)
    monkeypatch.setattr("nitroctl.eif.image.JSON_TOTAL_MAX", 100_000)
    with pytest.raises(NitroError, match="more than 100000 bytes"):
        open_image(path)
    layout = Layout()
    item = layout.image()
    for _ in range(5):
        item = layout.index(item)
    with pytest.raises(NitroError, match="indexes are nested 4 deep"):
        open_image(im.archive(tmp_path / "deep.tar", layout.files(item)))
