# SPDX-License-Identifier: MIT
"""Container images in files: finds the images in a file or folder, and the parts of the one that is wanted.

    OCI layout           index.json; a folder, or a tar of it ("oci-archive"); also as cosign writes it
    docker-archive       manifest.json, a list: `docker save`, and crane, kaniko, ko, jib, rules_oci
    skopeo's dir:        manifest.json, one manifest; blobs beside it

`docker save` writes both of the first two into one archive, and they need not name the same images.
Specifications: OCI image-layout.md, image-index.md, manifest.md, config.md; Docker image specification v1.2;
cosign's annotations. Layers are only located here; `layers` merges them, `root` writes the result.

The input is not trusted: the size of JSON is limited, and no name leads out of the image.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nitroctl.base import arch as arches
from nitroctl.base.arch import ARCHES, Arch, facts, named
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.eif import cpio
from nitroctl.eif.blobs import MAKE, Archive, Blob, Folder, Slice, encoded

JSON_MAX = 4 << 20  # bytes of a manifest or configuration; registries take 4 MiB
JSON_TOTAL_MAX = 16 * JSON_MAX  # bytes of JSON that are read from one file or folder
INDEXES_MAX = 4  # an index may name other indexes; how deep
MANIFESTS_MAX = 10_000
NAMES_SHOWN = 8

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLATFORM = re.compile(r"(?:linux/)?([a-z0-9_-]+)(?:/(v[1-9]))?")
# The variant that every machine of an architecture runs; it is left out of platform names.
_FIRST: dict[Arch, str] = {"x86_64": "v1", "aarch64": "v8"}
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
# Docker leaves these prefixes out of image names.
_HUB = re.compile(r"(?:docker\.io/(?:library/)?)")

# Annotations with an image's name. The second has only a tag if the writer follows the specification.
_NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
# What is stored beside images but is none: cosign's signatures and the like, BuildKit's provenance.
_COSIGN = re.compile(r"dev\.cosignproject\.cosign/(?:sigs|atts|sboms)")


@dataclass(frozen=True)
class Config:
    """The image's configuration for running it."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""


@dataclass(frozen=True)
class Image:
    """`name` is for the metadata; `id` the SHA-256 of the configuration in hex, as Docker's image id."""

    path: Path
    name: str
    id: str
    config: Config
    layers: tuple[Blob, ...]
    info: Mapping[str, Any]


@dataclass
class _Found:
    """An image for the wanted architecture in the file or folder. `variant`: v2 and so on of amd64; empty for
    the first variant of either architecture."""

    id: str
    variant: str
    config: Blob
    layers: list[Blob]
    names: list[str] = field(default_factory=list)

    def is_named(self, name: str) -> bool:
        """Whether `name` is its name (with or without Docker's registry), its tag alone, or its id (or the
        first 12 digits of it)."""
        if (match := _ID.fullmatch(name)) and self.id.startswith(match[1]):
            return True
        return any(
            name == known.rpartition("/")[2].rpartition(":")[2] or _familiar(name) == _familiar(known)
            for known in self.names
        )

    @property
    def label(self) -> str:
        return _familiar(self.names[0]) if self.names else self.id[:12]


def _familiar(name: str) -> str:
    return _HUB.sub("", name, count=1) if _HUB.match(name) else name


def platform_arch(platform: str | None) -> Arch | None:
    """The architecture in a platform's name. Raises UsageError if there are no enclaves for it."""
    return None if platform is None else _asked(platform)[0]


def platform_of(arch: Arch, variant: str = "") -> str:
    """The platform's name in container images."""
    return f"linux/{facts(arch).debian}" + (f"/{variant}" if variant else "")


def open_image(
    path: Path, *, name: str | None = None, platform: str | None = None, arch: Arch | None = None
) -> Image:
    """Find an image in a folder or archive. If there are several, `name` (a tag, a whole name, or an id) says
    which one; `arch` says for which architecture, by default that of `platform`, else the host's; `platform`
    says which of several variants. Raises NitroError."""
    variant = _variant(platform, arch)
    arch = arch or platform_arch(platform) or arches.default()
    try:
        parts = _Parts(path, arch)
        images = _all_images(parts, everything=variant is not None)
        one = _choose(parts, images, name, variant)
        return _image(parts, one, name)
    except OSError as e:
        reference = isinstance(e, FileNotFoundError) and path.suffix not in (".tar", ".oci", ".gz")
        hint = f"for an image in a registry write docker://{path}" if reference else None
        raise NitroError(f"cannot read the image {path}: {e.strerror or e}", hint=hint) from e


def _asked(platform: str) -> tuple[Arch, str]:
    """The architecture and the variant in a platform's name."""
    match = _PLATFORM.fullmatch(platform)
    arch = named(match[1]) if match else None
    if match is None or arch is None:
        known = " or ".join(platform_of(arch) for arch in ARCHES)
        raise UsageError(
            f"there are no enclaves for the platform {platform!r}; there are {known}",
            hint=f"give one of them, or a variant, such as {platform_of('x86_64', 'v3')}",
        )
    return arch, "" if match[2] in (None, _FIRST[arch]) else match[2]


def _variant(platform: str | None, arch: Arch | None) -> str | None:
    """The variant in --platform; None if no platform is given, empty for the first variant."""
    if platform is None:
        return None
    of, variant = _asked(platform)
    if arch is not None and arch != of:
        raise UsageError(
            f"the platform {platform!r} is for {of}, but the enclave's architecture is {arch}",
            hint=f"give {platform_of(arch)}, or leave the platform out",
        )
    return variant


# ---- reading ----


class _Parts:
    """An image's file or folder, from which at most JSON_TOTAL_MAX bytes of JSON are read. `others` collects
    the platforms of images for other architectures."""

    def __init__(self, path: Path, arch: Arch) -> None:
        self.path = path
        self.arch = arch
        self.store = Folder(path) if path.is_dir() else Archive(path)
        self.others: set[str] = set()
        self._left = JSON_TOTAL_MAX

    def read(self, blob: Blob, what: str) -> bytes:
        if blob.size > JSON_MAX:
            raise NitroError(f"{what} has {blob.size} bytes; at most {JSON_MAX} are read")
        self._left -= blob.size
        if self._left < 0:
            raise NitroError(f"the manifests of {self.path} have more than {JSON_TOTAL_MAX} bytes")
        with Slice(blob) as f:
            data = f.read(blob.size) or b""
            f.check(what)
            return data

    def json(self, blob: Blob, what: str) -> Any:
        return _json(self.read(blob, what), what)

    def described(self, descriptor: Any, what: str, *, beside: str | None = None) -> Blob:
        """The blob that an OCI descriptor names; it must have the size that is given there. With `beside` it
        is not in an OCI layout but beside the manifest, and its name is its digest followed by `beside`."""
        digest = _get(descriptor, "digest", str, what)
        size = _get(descriptor, "size", int, what)
        if not _DIGEST.fullmatch(digest):
            raise NitroError(f"{what} has a digest that is not sha256:HEX: {digest[:100]!r}")
        hex = digest.removeprefix("sha256:")
        blob = self.store.blob(f"blobs/sha256/{hex}" if beside is None else f"{hex}{beside}", digest)
        if blob.size != size:
            raise NitroError(f"{what} says that {digest} has {size} bytes, but it has {blob.size}")
        return blob


def _json(data: bytes, what: str) -> Any:
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates, which escapes can contain
        return value
    except (ValueError, RecursionError) as e:
        raise NitroError(f"{what} is not JSON: {e}") from None


def _get(value: Any, key: str, kind: type, what: str) -> Any:
    """The value of a key, which must be in the JSON object and have that type."""
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise NitroError(f"{what} has no {key} that is a {kind.__name__}")
    return value[key]


def _platform_of(value: Any, what: str) -> str:
    """OS/ARCHITECTURE[/VARIANT] from a configuration or a descriptor's platform; the first variant is left
    out."""
    architecture = _get(value, "architecture", str, what)
    arch = named(architecture)
    architecture = facts(arch).debian if arch else architecture
    text = f"{_get(value, 'os', str, what)}/{architecture}"
    variant = value.get("variant")
    if variant and isinstance(variant, str) and not (arch and variant == _FIRST[arch]):
        text += f"/{variant}"
    return text


# ---- finding the images ----


def _all_images(parts: _Parts, *, everything: bool) -> list[_Found]:
    """Every image for the wanted architecture, once, with all its names. If both manifest.json and index.json
    are there, only the first is read, unless it names images for other architectures (it lists only those of
    the machine on which Docker wrote it), or `everything` is wanted."""
    names = parts.store.names()
    if not names & {"manifest.json", "index.json"}:
        raise NitroError(
            f"{parts.path} is not a container image: it has neither index.json (OCI) nor manifest.json "
            "(docker save)",
            hint=MAKE,
        )
    found: dict[str, _Found] = {}
    for kind in ("manifest.json", "index.json"):
        if kind not in names or (found and not parts.others and not everything):
            continue
        what = f"{kind} of {parts.path}"
        value = parts.json(parts.store.blob(kind), what)
        for image in _images_of(parts, kind, value, what):
            known = found.setdefault(image.id, image)
            known.names += [name for name in image.names if name not in known.names]
    return list(found.values())


def _images_of(parts: _Parts, kind: str, value: Any, what: str) -> Iterator[_Found]:
    if kind == "index.json":
        yield from _oci_images(parts, value, what, beside=False)
    elif isinstance(value, list) and value:
        for manifest in value:
            yield from _docker_image(parts, manifest, what)
    elif isinstance(value, dict) and "manifests" in value:
        yield from _oci_images(parts, value, what, beside=True)
    elif isinstance(value, dict) and "layers" in value:
        yield from _oci_image(parts, value, None, (), what, beside=True)
    else:
        raise NitroError(f"{what} lists no image")


def _docker_image(parts: _Parts, manifest: Any, what: str) -> Iterator[_Found]:
    """The image of an entry of manifest.json. Its layers may be compressed and can have any names; the
    configuration always has the digests of the uncompressed layers."""
    blob = parts.store.blob(_get(manifest, "Config", str, what))
    text = f"the configuration of {parts.path}"
    data = parts.read(blob, text)
    config = _json(data, text)
    variant = _ours(parts, _platform_of(config, text))
    if variant is None:
        return
    layers = _get(manifest, "Layers", list, what)
    if not all(isinstance(name, str) for name in layers):
        raise NitroError(f"{what}: a layer's name is not a string")
    diff_ids = _get(_get(config, "rootfs", dict, text), "diff_ids", list, text)
    if len(diff_ids) != len(layers):
        raise NitroError(f"{what} lists {len(layers)} layers, but the configuration lists {len(diff_ids)}")
    found = []
    for name, diff_id in zip(layers, diff_ids, strict=True):
        if not isinstance(diff_id, str) or not _DIGEST.fullmatch(diff_id):
            raise NitroError(f"{text} has a digest that is not sha256:HEX: {str(diff_id)[:100]!r}")
        found.append(parts.store.blob(name, content=diff_id))
    tags = manifest.get("RepoTags")
    names = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    yield _Found(hashlib.sha256(data).hexdigest(), variant, blob, found, names)


def _oci_images(parts: _Parts, index: Any, what: str, *, beside: bool) -> Iterator[_Found]:
    """The images of an OCI index and of the indexes that it names."""
    count = 0
    todo: list[tuple[Any, str, tuple[str, ...], int]] = [(index, what, (), 0)]
    while todo:
        value, what, names, depth = todo.pop()
        if depth >= INDEXES_MAX:
            raise NitroError(f"{parts.path}: indexes are nested {INDEXES_MAX} deep, which is too deep")
        below = []
        for item in _get(value, "manifests", list, what):
            count += 1
            if count > MANIFESTS_MAX:
                raise NitroError(f"{parts.path} names more than {MANIFESTS_MAX} manifests")
            if not isinstance(item, dict):
                raise NitroError(f"{what}: a manifest's descriptor is not an object")
            notes = item.get("annotations")
            notes = notes if isinstance(notes, dict) else {}
            platform = item.get("platform")
            if _is_no_image(item, notes, platform):
                continue
            variant = None
            if isinstance(platform, dict):
                variant = _ours(parts, _platform_of(platform, what))
                if variant is None:
                    continue
            text = f"a manifest of {parts.path}"
            manifest = parts.json(
                parts.described(item, text, beside=".manifest.json" if beside else None), text
            )
            own = next((str(notes[key]) for key in _NAME_KEYS if notes.get(key)), None)
            called = (own,) if own else names
            if isinstance(manifest, dict) and "manifests" in manifest:
                below.append((manifest, text, called, depth + 1))
            else:
                yield from _oci_image(parts, manifest, variant, called, text, beside=beside)
        todo += reversed(below)


def _is_no_image(descriptor: Mapping[str, Any], notes: Mapping[str, Any], platform: Any) -> bool:
    """Whether a descriptor is for something other than an image: a signature, a provenance and the like."""
    return (
        "vnd.docker.reference.type" in notes
        or _COSIGN.fullmatch(str(notes.get("kind", ""))) is not None
        or ("artifactType" in descriptor and not isinstance(platform, dict))
    )


def _oci_image(
    parts: _Parts, manifest: Any, variant: str | None, names: Iterable[str], what: str, *, beside: bool
) -> Iterator[_Found]:
    """The image of an OCI manifest; `variant` is None if its descriptor does not say the platform."""
    ending = "" if beside else None
    descriptor = _get(manifest, "config", dict, what)
    if descriptor.get("mediaType", _CONFIGS[0]) not in _CONFIGS:
        return  # something else that registries store: a Helm chart, a WebAssembly module
    config = parts.described(descriptor, what, beside=ending)
    text = f"the configuration of {parts.path}"
    data = parts.read(config, text)
    if variant is None:
        variant = _ours(parts, _platform_of(_json(data, text), text))
        if variant is None:
            return
    layers = [parts.described(item, what, beside=ending) for item in _get(manifest, "layers", list, what)]
    yield _Found(hashlib.sha256(data).hexdigest(), variant, config, layers, list(names))


def _ours(parts: _Parts, platform: str) -> str | None:
    """The variant, if the platform has the wanted architecture; else None, and the platform is noted."""
    own = platform_of(parts.arch)
    if platform == own or platform.startswith(own + "/"):
        return platform.removeprefix(own).removeprefix("/")
    if platform.strip("/") and not platform.startswith("unknown/"):
        parts.others.add(platform)
    return None


# ---- choosing one ----


def _choose(parts: _Parts, images: list[_Found], name: str | None, variant: str | None) -> _Found:
    path = parts.path
    left = images
    if name is not None:
        left = [image for image in images if image.is_named(name)]
        if images and not left:
            raise NitroError(f"{path} has no image {_safe(name)}; it has {_list(parts, images)}")
    if variant is not None:
        have = left
        left = [image for image in have if image.variant == variant]
        if have and not left:
            raise NitroError(
                f"{path} has no image for {platform_of(parts.arch, variant)}; it has {_list(parts, have)}"
            )
    else:
        # The variant that runs on every machine is preferred to other variants of the same image.
        plain = [set(image.names) for image in left if not image.variant]
        left = [
            image
            for image in left
            if not image.variant or not any(names & set(image.names) or not image.names for names in plain)
        ]
    if len(left) == 1:
        return left[0]
    if not left and not parts.others:
        raise NitroError(f"{path} contains no image", hint=MAKE)
    if not left:
        raise _for_others(parts, parts.others)
    if len({image.label for image in left}) == len(left):
        hint = f"choose one by its name: {path}:{_safe(left[0].label)}"
    elif len({image.variant for image in left}) == len(left):
        hint = f"choose one: nitroctl eif build --platform {platform_of(parts.arch, left[0].variant)}"
    else:
        hint = f"choose one by its id: {path}:{left[0].id[:12]}"
    raise NitroError(
        f"{path} has {len(left)} images for {platform_of(parts.arch)}: {_list(parts, left)}", hint=hint
    )


def _for_others(parts: _Parts, platforms: Iterable[str]) -> NitroError:
    """The error for an image that is only for other architectures: which ones, and what to do."""
    own = platform_of(parts.arch)
    ways = [
        f"give --arch {arch} for an enclave of that architecture"
        for arch in ARCHES
        if any(p == platform_of(arch) or p.startswith(platform_of(arch) + "/") for p in platforms)
    ]
    others = ", ".join(sorted(_safe(other) for other in platforms)[:NAMES_SHOWN])
    return NitroError(
        f"{parts.path} is an image for {others}, but the enclave is {parts.arch} ({own})",
        hint="; or ".join([*ways, f"build or pull it with --platform {own}, and save it again"]),
    )


def _list(parts: _Parts, images: list[_Found]) -> str:
    """The images' names, with variants or ids if the names alone are ambiguous."""
    labels = [image.label for image in images]
    pairs = [(image.label, image.variant) for image in images]
    shown = []
    for image in images[:NAMES_SHOWN]:
        names = " = ".join(_safe(_familiar(name)) for name in image.names[:NAMES_SHOWN]) or image.id[:12]
        if pairs.count((image.label, image.variant)) > 1:
            names += f" ({image.id[:12]})"
        elif image.variant or labels.count(image.label) > 1:
            names += f" ({platform_of(parts.arch, image.variant)})"
        shown.append(names)
    return ", ".join(shown) + (", ..." if len(images) > NAMES_SHOWN else "")


def _safe(text: str) -> str:
    return cpio.readable(encoded(text))


def _image(parts: _Parts, found: _Found, asked: str | None) -> Image:
    what = f"the configuration of {parts.path}"
    value = parts.json(found.config, what)
    system = _platform_of(value, what)
    if "/".join(system.split("/")[:2]) != platform_of(parts.arch):
        raise _for_others(parts, [system])
    if _get(_get(value, "rootfs", dict, what), "diff_ids", list, what) and not found.layers:
        raise NitroError(f"{parts.path} has no layers")
    run = value.get("config") or {}

    def texts(key: str) -> tuple[str, ...]:
        items = run.get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise NitroError(f"{what}: {key} is not a list of strings")
        return tuple(items)

    def text(key: str) -> str:
        item = run.get(key) or ""
        if not isinstance(item, str):
            raise NitroError(f"{what}: {key} is not a string")
        return item

    if not isinstance(run, dict):
        raise NitroError(f"{what}: config is not an object")
    config = Config(texts("Entrypoint"), texts("Cmd"), texts("Env"), text("WorkingDir"), text("User"))
    names = [name for name in found.names if re.search("[:/]", name)] or [parts.path.stem]
    name = next((n for n in names if asked and _familiar(asked) == _familiar(n)), names[0])
    info = {
        "Id": f"sha256:{found.id}",
        "Architecture": facts(parts.arch).debian,
        "Os": "linux",
        "Config": run,
    }
    return Image(parts.path, name, found.id, config, tuple(found.layers), info)
