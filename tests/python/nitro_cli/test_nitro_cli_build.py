# SPDX-License-Identifier: MIT
"""`nitro-cli build-enclave`: from an archive, with a fake Docker or skopeo, with which kernel, and how it
fails. What becomes of an image: tests/python/eif.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import cpiomodel
import eifmodel as model
import imagemodel as im
from nitro_cli_world import check_failure, run
from nitroctl.base.errors import NitroError
from nitroctl.eif.extract import extract

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as AWS's package has it."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    (folder / "bzImage").write_bytes(model.bzimage())
    (folder / "init").write_bytes(b"init")
    (folder / "nsm.ko").write_bytes(b"module")
    (folder / "cmdline").write_text("console=ttyS0\n")
    monkeypatch.setenv("NITRO_CLI_BLOBS", str(folder))
    return folder


def archive(path: Path) -> Path:
    return im.docker(path, [im.layer(im.entry("app", b"#!/bin/sh\n", mode=0o755))])


def describe(capfd: pytest.CaptureFixture[str], path: Path) -> Any:
    _, out, _ = run(capfd, "describe-eif", "--eif-path", path)
    return json.loads(out)


def test_build_enclave_from_an_archive(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = archive(world / "app.tar")
    status, out, err = run(capfd, "build-enclave", "--docker-uri", image, "--output-file", world / "o.eif")
    assert err == (
        "Start building the Enclave Image...\nUsing the locally available Docker image...\n"
        "Enclave Image successfully created.\n"
    )
    assert status == 0
    found = describe(capfd, world / "o.eif")
    assert json.loads(out) == {"Measurements": found["Measurements"]}
    assert out.startswith('{\n  "Measurements": {\n    "HashAlgorithm": "Sha384 { ... }",\n    "PCR0": ')
    assert found["ImageName"] == "app"
    # AWS's rule: CMD alone counts where there is one; WORKDIR and USER do not.
    extract(world / "o.eif", world / "parts")
    disks = sorted((world / "parts").glob("ramdisk*"))
    archives = [cpiomodel.read(d.read_bytes(), device=(3, 1)) for d in disks]
    boot, application = ({i.name.decode(): i.data for i in items} for items in archives)
    assert (boot["init"], boot["nsm.ko"]) == (b"init", b"module")
    assert (application["cmd"], application["env"]) == (b"x\n", b"A=b\n")
    assert not {"cwd", "user"} & set(application)


def test_build_enclave_with_everything(
    world: Path, blobs: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    (world / "custom.json").write_text('{"team": "x"}')
    status, out, err = run(
        capfd, "build-enclave", "--docker-uri", archive(world / "app.tar"), "--output-file", world / "o.eif",
        "--signing-certificate", keys[0], "--private-key", keys[1], "--name", "n", "--version", "7",
        "--metadata", world / "custom.json",
    )  # fmt: skip
    assert status == 0, err
    assert list(json.loads(out)["Measurements"])[-1] == "PCR8"
    found = describe(capfd, world / "o.eif")
    assert (found["ImageName"], found["ImageVersion"], found["Metadata"]["team"]) == ("n", "7", "x")
    assert found["SignatureCheck"] is True
    assert found["Metadata"]["BuildTime"] > "2026"


FAKE_DOCKER = """#!/bin/sh
echo "$*" >> "{folder}/calls"
case "$1" in
version) exit {daemon} ;;
build) echo building; exit {build} ;;
image) exit {local} ;;
pull) echo pulling; exit {pull} ;;
save) cp "{folder}/app.tar" "$3" ;;
esac
"""


def fake_docker(world: Path, *, daemon: int = 0, build: int = 0, local: int = 0, pull: int = 0) -> None:
    archive(world / "app.tar")
    path = world / "bin" / "docker"
    path.write_text(FAKE_DOCKER.format(folder=world, daemon=daemon, build=build, local=local, pull=pull))
    path.chmod(0o755)


def calls(world: Path) -> list[str]:
    return [line.split()[0] for line in (world / "calls").read_text().splitlines()]


def build(
    capfd: pytest.CaptureFixture[str], world: Path, uri: str, *more: str | Path
) -> tuple[int, str, str]:
    return run(capfd, "build-enclave", "--docker-uri", uri, "--output-file", world / "o.eif", *more)


def test_build_enclave_for_another_architecture(
    world: Path, blobs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By uname it is this host's, and an image for another is refused with both named; by Docker's own
    variable it is that one's."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    layer = im.layer(im.entry("app", b"#!/bin/sh\n", mode=0o755))
    image = im.docker(world / "arm.tar", [layer], architecture="arm64", variant="v8")
    status, _, err = build(capfd, world, str(image))
    assert status != 0 and "E48" in err
    assert "is an image for linux/arm64, but the enclave is x86_64 (linux/amd64)" in err
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/arm64")
    status, _, err = build(capfd, world, str(image))
    assert status != 0 and "are for x86_64, but the enclave's architecture is aarch64" in err
    (blobs / "bzImage").unlink()
    (blobs / "Image").write_bytes(model.arm64_image())
    status, _, err = build(capfd, world, str(image))
    assert status == 0, err
    # AWS's specification: bit 0 of the flags at offset 6.
    assert (world / "o.eif").read_bytes()[6:8] == b"\0\1"


def test_build_enclave_with_docker(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_docker(world)
    status, _, err = build(capfd, world, "app:latest")
    assert status == 0, err
    assert "Using the locally available Docker image...\n" in err
    assert calls(world) == ["version", "image", "save"]
    found = describe(capfd, world / "o.eif")
    assert found["ImageName"] == "app"
    assert re.fullmatch("[0-9a-f]{64}", found["ImageVersion"])
    assert list((world / "artifacts").iterdir()) == []

    (world / "calls").unlink()
    (world / "hello").mkdir()
    status, _, err = build(capfd, world, "hello", "--docker-dir", world / "hello")
    assert status == 0 and "building\n" in err
    assert calls(world) == ["version", "build", "save"]


def test_build_enclave_from_one_of_several_images(
    world: Path, blobs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file, by the name behind its path. In Docker a name without a tag is one image; a program of the
    image's name is not its archive."""
    fake_docker(world)
    archive(world / "app.tar")
    assert build(capfd, world, f"{world}/app.tar:latest")[0] == 0
    check_failure(build(capfd, world, f"{world}/app.tar:2"), "E48", "it has app:latest")
    assert not (world / "calls").exists()
    monkeypatch.chdir(world)
    (world / "hello").write_bytes(b"\x7fELF")
    for uri, saved in (("hello:1", "hello:1"), ("team/hello", "team/hello:latest"), ("0123456789ab",) * 2):
        assert build(capfd, world, uri)[0] == 0
        assert (world / "calls").read_text().splitlines()[-1].split()[-1] == saved


def test_build_enclave_pulls(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_docker(world, local=1)
    status, _, err = build(capfd, world, "hello:latest")
    assert status == 0 and "Using the locally" not in err and "pulling\n" in err
    assert calls(world) == ["version", "image", "pull", "save"]
    fake_docker(world, local=1, pull=1)
    check_failure(build(capfd, world, "hello:latest"), "E50", "docker pull hello:latest")
    fake_docker(world, build=1)
    check_failure(build(capfd, world, "hello", "--docker-dir", world), "E49", "docker build -t hello")


@pytest.mark.parametrize("installed", [False, True], ids=["no docker", "no daemon"])
def test_build_enclave_without_docker(
    world: Path, blobs: Path, capfd: pytest.CaptureFixture[str], installed: bool
) -> None:
    if installed:
        fake_docker(world, daemon=1)
    check_failure(build(capfd, world, "hello", "--docker-dir", world), "E49", "needs Docker", "docker save")
    said = ("skopeo", "docker save", "no file hello:latest, and no Docker (or Podman) answers")
    check_failure(build(capfd, world, "hello:latest"), "E50", *said)
    for path in ("./no.tar", "../no.tar", "/no.tar"):
        check_failure(build(capfd, world, path), "E19", f"File: '{Path(path)}', failing operation: 'Open'")
    image = archive(world / "app.tar")
    skopeo = world / "bin" / "skopeo"
    skopeo.write_text(f"""#!/bin/sh
echo "$*" >> "{world}/skopeo"
for target; do :; done
exit 1
""")
    skopeo.chmod(0o755)
    check_failure(build(capfd, world, "quay.io/x/y:1"), "E50", "docker://quay.io/x/y:1")
    assert "docker://quay.io/x/y:1 oci:" in (world / "skopeo").read_text()
    assert image.is_file() and not (world / "o.eif").exists()
    assert list((world / "artifacts").iterdir()) == []


def test_build_enclave_through_skopeo(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layer = im.layer(im.entry("app", b"#!/bin/sh\n", mode=0o755))
    im.folder(world / "layout", im.oci_files([layer], [layer]))
    skopeo = world / "bin" / "skopeo"
    skopeo.write_text(f"""#!/bin/sh
for target; do :; done
layout=${{target#oci:}}
cp -r "{world}/layout" "${{layout%%:*}}"
echo "$*" > "{world}/skopeo"
""")
    skopeo.chmod(0o755)
    status, _, err = build(capfd, world, "quay.io/x/y:1")
    assert status == 0, err
    assert "docker://quay.io/x/y:1 oci:" in (world / "skopeo").read_text()
    # With a transport it is skopeo's, whatever Docker has.
    fake_docker(world)
    status, _, err = build(capfd, world, "docker://quay.io/x/y:2")
    assert status == 0, err
    assert "docker://quay.io/x/y:2 oci:" in (world / "skopeo").read_text()
    assert not (world / "calls").exists()


def test_build_enclave_takes_the_kernel_that_is_there(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AWS's blobs: our own, if it was built, else Debian's, as after `make demo`."""
    from nitroctl.toolchain import guest
    from nitroctl.toolchain import prebuilt as prebuilt_kernel

    kernel = world / "vmlinuz"
    kernel.write_bytes(model.bzimage())
    monkeypatch.delenv("NITRO_CLI_BLOBS", raising=False)
    monkeypatch.setattr(guest, "build_init", lambda *_: world)
    (world / "init").write_bytes(b"init")
    asked = []
    there = ["prebuilt"]

    def located(what: str, arch: str) -> Path:
        if what not in there:
            raise NitroError(f"there is no {what}")
        asked.append(what)
        return kernel

    def fetched(**_: object) -> prebuilt_kernel.Prebuilt:
        asked.append("prebuilt")
        return prebuilt_kernel.Prebuilt(kernel, world / "modules", "6.1")

    (world / "modules").mkdir()
    monkeypatch.setattr(guest, "locate", located)
    monkeypatch.setattr("nitroctl.toolchain.prebuilt.fetch", fetched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    status, _, err = build(capfd, world, str(archive(world / "app.tar")))
    assert (status, asked) == (0, ["prebuilt"]), err
    there.append("kernel")
    asked.clear()
    status, _, err = build(capfd, world, str(archive(world / "app.tar")))
    assert (status, set(asked)) == (0, {"kernel"}), err


def test_build_enclave_failures(
    world: Path, blobs: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image = str(archive(world / "app.tar"))
    check_failure(build(capfd, world, image, "--private-key", keys[1]), "E01", "signing-certificate")
    check_failure(build(capfd, world, image, "--signing-certificate", keys[0]), "E01", "private-key")
    where = world / "nowhere" / "o.eif"
    argv = ("build-enclave", "--docker-uri", image, "--output-file", where)
    check_failure(run(capfd, *argv), "E19", f"File: '{where}'")
    (world / "large.json").write_text(json.dumps({"x": "y" * 5000}))
    check_failure(build(capfd, world, image, "--metadata", world / "large.json"), "E48", "4096")
    (world / "broken.tar").write_bytes(b"x" * 2000)
    check_failure(build(capfd, world, str(world / "broken.tar")), "E48")
    monkeypatch.delenv("NITRO_CLI_ARTIFACTS")
    monkeypatch.delenv("HOME", raising=False)
    check_failure(build(capfd, world, "hello"), "E51")
    (blobs / "bzImage").unlink()
    check_failure(build(capfd, world, image), "E52", "lacks bzImage")
    assert not (world / "o.eif").exists()
