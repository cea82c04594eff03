# SPDX-License-Identifier: MIT
"""Container images made for tests: layers from lists of entries, archives of every kind, by tarfile alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {"Entrypoint": ["/app"], "Cmd": ["x"], "Env": ["A=b"]}


def entry(name: str, data: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar entry: a file with `data`, else what `type` says (a folder unless said)."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.mode = 0o755 if data is None else 0o644
    info.size = len(data or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data or b""


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, None, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, None, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, errors="surrogateescape") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config(layers: Sequence[bytes], run: dict[str, Any] | None = None, **more: Any) -> bytes:
    value = {
        "architecture": "amd64",
        "os": "linux",
        "config": CONFIG if run is None else run,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(data) for data in layers]},
        **more,
    }
    return json.dumps(value).encode()


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def docker(path: Path, layers: Sequence[bytes], run: dict[str, Any] | None = None, **more: Any) -> Path:
    """As `docker save` wrote it for long: plain layers in folders of their own."""
    text = config(layers, run, **more)
    names = [f"{digest(data)}/layer.tar" for data in layers]
    manifest = [{"Config": f"{digest(text)}.json", "RepoTags": ["app:latest"], "Layers": names}]
    files = {f"{digest(text)}.json": text, **dict(zip(names, layers, strict=True))}
    return archive(path, {**files, "manifest.json": json.dumps(manifest).encode()})


def oci_files(
    layers: Sequence[bytes], packed: Sequence[bytes], run: dict[str, Any] | None = None
) -> dict[str, bytes]:
    """An OCI layout's files; `packed` are the layers as they are stored."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes, kind: str) -> dict[str, Any]:
        blobs[f"blobs/sha256/{digest(data)}"] = data
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest(data)}", "size": len(data)}

    described = put(config(layers, run), "config.v1+json")
    manifest = {"schemaVersion": 2, "config": described, "layers": [put(p, "layer.v1.tar") for p in packed]}
    index = {"schemaVersion": 2, "manifests": [put(json.dumps(manifest).encode(), "manifest.v1+json")]}
    blobs["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    return blobs | {"index.json": json.dumps(index).encode()}


def oci(
    path: Path, layers: Sequence[bytes], *, packer: Any = gzip.compress, run: dict[str, Any] | None = None
) -> Path:
    return archive(path, oci_files(layers, [packer(data) for data in layers], run))


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path
