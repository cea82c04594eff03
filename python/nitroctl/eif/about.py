# SPDX-License-Identifier: MIT
"""The contents of an EIF's metadata section, as AWS's tools write it, and our own marks in it. Reads no
file."""

from __future__ import annotations

from typing import Any

from nitroctl.eif.metadata import parse as json_of

# Keys of the metadata section's BuildMetadata, in AWS's order.
BUILD_KEYS = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")
METADATA_KEPT = 1 << 20  # how many bytes of the section are read


def custom(metadata: dict[str, Any]) -> dict[str, Any]:
    """The custom metadata as keys beside those of BuildMetadata, where nitro-cli puts them; custom metadata
    that are not an object get a key of their own."""
    value = metadata["CustomMetadata"]
    return {} if value is None else value if isinstance(value, dict) else {"CustomMetadata": value}


def metadata_json(metadata: dict[str, Any]) -> dict[str, Any]:
    """What nitro-cli prints about a metadata section."""
    return {
        "ImageName": metadata["ImageName"],
        "ImageVersion": metadata["ImageVersion"],
        "Metadata": {
            **{key: metadata["BuildMetadata"][key] for key in BUILD_KEYS},
            "DockerInfo": metadata["DockerInfo"],
            **custom(metadata),
        },
    }


def parse_metadata(data: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """Parse a metadata section: (metadata, None), or (None, what is wrong). As with nitro-cli all keys must
    be there; DockerInfo and CustomMetadata may be null."""
    if len(data) >= METADATA_KEPT:
        return None, f"more than {METADATA_KEPT} bytes"
    try:
        value = json_of(data)
    except ValueError as e:
        return None, f"not JSON: {e}"
    if not isinstance(value, dict):
        return None, "not a JSON object"
    build = value.get("BuildMetadata")
    if not isinstance(build, dict):
        return None, "no BuildMetadata"
    for where, keys in ((value, ("ImageName", "ImageVersion")), (build, BUILD_KEYS)):
        for key in keys:
            if not isinstance(where.get(key), str):
                return None, f"no text {key}"
    for key in ("DockerInfo", "CustomMetadata"):
        if key not in value:
            return None, f"no {key}"
    return value, None


def wants_acpi(metadata: dict[str, Any] | None) -> bool:
    """Does the image say that its kernel finds devices only through ACPI? (Our own mark: AWS's machine has no
    ACPI, and an image without the mark gets none.)"""
    return _marks(metadata).get("acpi") is True


def lacking(metadata: dict[str, Any] | None) -> list[str]:
    """Which features of AWS's kernel the image's own kernel lacks, according to the metadata."""
    lacks = _marks(metadata).get("lacks")
    return [item for item in lacks[:64] if isinstance(item, str)] if isinstance(lacks, list) else []


def _marks(metadata: dict[str, Any] | None) -> dict[str, Any]:
    custom = (metadata or {}).get("CustomMetadata")
    ours = custom.get("nitroctl") if isinstance(custom, dict) else None
    return ours if isinstance(ours, dict) else {}
