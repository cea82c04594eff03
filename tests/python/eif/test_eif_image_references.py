# SPDX-License-Identifier: MIT
"""Images named by reference: what skopeo is asked for, and what is said where it is not or cannot. The skopeo
is a fake.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

import imagemodel as im
from imagebuilt import APP, files
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose, reference

# Does what `skopeo copy ... SOURCE oci:FOLDER:NAME` does, for the one image in the folder SKOPEO_IMAGE.
SKOPEO = """#!/usr/bin/env python3
import json, os, shutil, sys
command, *options, source, target = sys.argv[1:]
assert command == "copy" and set(options) == {"--override-os=linux", "--override-arch=amd64"}, sys.argv
if "gone" in source:
    sys.exit("FATA[0000] manifest unknown")
print("Copying blob 1")
transport, folder, name = target.split(":", 2)
assert transport == "oci"
shutil.copytree(os.environ["SKOPEO_IMAGE"], folder)
with open(folder + "/index.json") as f:
    index = json.load(f)
index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": name}
with open(folder + "/index.json", "w") as f:
    json.dump(index, f)
"""


@pytest.fixture
def skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A skopeo that knows one image; returns the folder where it is to be put."""
    program = tmp_path / "bin" / "skopeo"
    program.parent.mkdir()
    program.write_text(SKOPEO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SKOPEO_IMAGE", str(tmp_path / "layout"))
    (tmp_path / "scratch").mkdir()
    layers = [im.layer(APP)]
    im.folder(tmp_path / "layout", im.oci_files(layers, [gzip.compress(layers[0])]))
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    "text, name",
    [
        ("docker://alpine", "alpine"), ("docker://localhost:5000/team/app:1.2", "localhost:5000/team/app"),
        ("docker://a/b@sha256:" + "0" * 64, "a/b"), ("docker-daemon:app:latest", "app"),
        ("containers-storage:localhost/app", "localhost/app"),
    ],
)  # fmt: skip
def test_images_by_reference(skopeo: Path, text: str, name: str) -> None:
    with reference.fetched(text, skopeo) as found:
        application = compose.from_image(found.path)
        assert (application.name, files(application)) == (name, {"app": b"binary"})
        assert skopeo in found.path.parents
    assert not list(skopeo.iterdir())


def test_references_that_are_paths(skopeo: Path, tmp_path: Path) -> None:
    """Those need no skopeo."""
    layout = tmp_path / "layout"
    for text in (str(layout), f"oci:{layout}", f"oci-archive:{layout}", f"docker-archive:{layout}"):
        with reference.fetched(text, skopeo) as found:
            assert found == reference.Located(layout)


def test_what_skopeo_cannot_fetch(skopeo: Path) -> None:
    with pytest.raises(NitroError, match="manifest unknown") as e, reference.fetched("docker://gone", skopeo):
        pass
    assert "skopeo login" in str(e.value.hint)
    assert not list(skopeo.iterdir())


def test_without_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NitroError, match="needs skopeo") as e, reference.fetched("docker://alpine"):
        pass
    assert "apt-get install skopeo" in str(e.value.hint)
    with pytest.raises(NitroError, match="cannot read") as e:
        compose.from_image(Path("alpine"))
    assert "docker://alpine" in str(e.value.hint)
