# SPDX-License-Identifier: MIT
"""--trust-ca: the CA is in every bundle that the image has, once, behind what was there; nothing else
changes."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

import cpiomodel
import imagemodel as im
from cpiomade import Memory
from nitroctl.base.errors import NitroError
from nitroctl.eif import compose, trust
from nitroctl.eif.compose import Application

BUNDLE = b"-----BEGIN CERTIFICATE-----\nAmazon's\n-----END CERTIFICATE-----"  # without its newline
DEBIAN, FEDORA = "etc/ssl/certs/ca-certificates.crt", "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
    "-subj",
            "/CN=local", "-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem")]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    return folder / "ca.pem"


def contents(application: Application) -> dict[str, tuple[int, bytes]]:
    sink = Memory()
    compose._write_application(sink, application)
    return {item.name.decode(): (item.mode, item.data) for item in cpiomodel.read(sink.data)}


def test_every_bundle_of_an_image(tmp_path: Path, ca: Path) -> None:
    pem = trust.read(ca)
    layers = [
        im.layer(im.entry("app", b"x", mode=0o755), im.entry(FEDORA, BUNDLE, mode=0o444), im.entry(DEBIAN,
        b"old\n")),
        im.layer(im.entry(DEBIAN, b"new\n"), im.symlink("etc/ssl/cert.pem", "certs/ca-certificates.crt"),
                 im.symlink("etc/pki/tls/certs/ca-bundle.crt", f"/{FEDORA}")),
    ]  # fmt: skip
    image = im.docker(tmp_path / "app.tar", layers, run={"Cmd": ["/app"]})
    before, after = contents(compose.from_image(image)), contents(compose.from_image(image, trusted=pem))
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {f"rootfs/{DEBIAN}", f"rootfs/{FEDORA}"}
    assert after[f"rootfs/{DEBIAN}"][1] == b"new\n" + pem
    assert after[f"rootfs/{FEDORA}"] == (stat.S_IFREG | 0o444, BUNDLE + b"\n" + pem)
    assert "in 2 CA bundles" in compose.from_image(image, trusted=pem).notes[-1]


def test_an_image_without_bundles_and_a_folder(tmp_path: Path, ca: Path) -> None:
    pem = trust.read(ca)
    image = im.docker(
        tmp_path / "app.tar", [im.layer(im.entry("app", b"x", mode=0o755))], run={"Cmd": ["/app"]}
    )
    assert contents(compose.from_image(image, trusted=pem))[f"rootfs/{DEBIAN}"] == (stat.S_IFREG | 0o644, pem)
    root = tmp_path / "root"
    (root / DEBIAN).parent.mkdir(parents=True)
    (root / DEBIAN).write_bytes(BUNDLE + b"\n")
    (root / "app").write_bytes(b"x")
    found = contents(compose.from_directory(root, ("/app",), trusted=pem))
    assert found[f"rootfs/{DEBIAN}"][1] == BUNDLE + b"\n" + pem and found["rootfs/app"][1] == b"x"
    (root / DEBIAN).unlink()
    assert contents(compose.from_directory(root, ("/app",), trusted=pem))[f"rootfs/{DEBIAN}"][1] == pem


def test_what_cannot_be_trusted(tmp_path: Path, ca: Path) -> None:
    """And a private key beside the certificate stays where it is."""
    both = tmp_path / "both.pem"
    both.write_bytes((ca.parent / "key.pem").read_bytes() + ca.read_bytes())
    assert trust.read(both) == ca.read_bytes()
    leaf = tmp_path / "leaf.pem"
    argv = ["openssl", "req", "-x509", "-key", str(ca.parent / "key.pem"), "-subj", "/CN=x", "-out",
    str(leaf),
    "-addext",
            "basicConstraints=CA:FALSE"]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    (tmp_path / "none.pem").write_bytes(b"hello")
    (tmp_path / "broken.pem").write_bytes(BUNDLE)
    # One that does not say what it is for.
    key, request = str(ca.parent / "key.pem"), str(tmp_path / "request")
    for words in (
        ("req", "-new", "-key", key, "-subj", "/CN=x", "-out", request),
        ("x509", "-req", "-in", request, "-signkey", key, "-out", str(tmp_path / "old.pem")),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    for name, text in (
        ("old.pem", "a certificate that cannot be used as a CA"),
        ("leaf.pem", "a certificate that is not a CA's"),
        ("none.pem", "has no PEM certificate"),
        ("broken.pem", "has "),
        ("missing.pem", "No such file"),
    ):
        with pytest.raises(NitroError, match=text):
            trust.read(tmp_path / name)


def test_bundles_that_nothing_can_be_added_to(tmp_path: Path, ca: Path) -> None:
    pem, app = trust.read(ca), im.entry("app", b"x", mode=0o755)
    for entry, text in (
        (im.entry(DEBIAN, b"#" * (1 << 20)), f"cannot be added to the image's CA bundle /{DEBIAN}"),
        (im.entry(DEBIAN), f"/{DEBIAN} is not a file to which a CA can be added"),
    ):
        image = im.docker(tmp_path / "app.tar", [im.layer(app, entry)], run={"Cmd": ["/app"]})
        with pytest.raises(NitroError, match=text):
            compose.from_image(image, trusted=pem)
