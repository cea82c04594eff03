# SPDX-License-Identifier: MIT
"""Files over an image that stays as it is: what the application finds, and what the enclave's documents say.
That an overlay changes nothing else is computed in test_eif_overlay.py; here Linux unpacks it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import imagemodel as im
from nitroctl import attestation
from nitroctl.attestation import Policy, UnmeasuredEnclave
from nitroctl.attestation.errors import DebugEnclave
from nitroctl.eif import cpio, overlay
from nitroctl.eif.measure import measure
from nitroctl.testing.checks_attestation import document
from nitroctl.testing.claims import Nsm
from nitroctl.testing.lab import Lab
from nitroctl.toolchain import guest
from test_image import built

pytestmark = pytest.mark.boot


@pytest.fixture
def eif(lab: Lab, tmp_path: Path) -> Path:
    """A program, a merged /usr, a file of two names, a folder with a mode of its own."""
    agent = guest.locate("agent").read_bytes()
    layer = im.layer(
        im.entry("usr/bin/agent", agent, mode=0o755),
        im.entry("usr/lib/answer", b"the image's"),
        im.symlink("lib", "/usr/lib"),
        im.entry("etc/one", b"both"),
        im.hardlink("etc/two", "etc/one"),
        im.entry("srv/secret", mode=0o700),
    )
    run = {"Entrypoint": ["/usr/bin/agent", "7000"]}
    return built(lab, im.docker(tmp_path / "app.tar", [layer], run=run))


def overlaid(folder: Path) -> Path:
    return im.folder(
        folder,
        {
            "rootfs/lib/answer": b"the overlay's",
            "rootfs/etc/one": b"this one",
            "rootfs/srv/secret/more": b"more",
            "rootfs/new/folder/file": b"new",
        },
    )


def root(lab: Lab) -> bytes:
    return Path(lab.environment()["XDG_DATA_HOME"], "nitroctl/ca/root.pem").read_bytes()


def test_a_folder_and_pcrs_that_are_kept(lab: Lab, eif: Path, tmp_path: Path) -> None:
    with lab.run(eif, "--overlay", str(overlaid(tmp_path / "over")), "--overlay-keep-pcrs") as run:
        uds = run.uds()
        with run.agent(uds) as client:
            found = {
                name: client.probe("cat", name)
                for name in (
                    "/usr/lib/answer",
                    "/etc/one",
                    "/etc/two",
                    "/srv/secret/more",
                    "/new/folder/file",
                )
            }
            assert list(found.values()) == ["the overlay's", "this one", "both", "more", "new"]
            assert client.probe("cat", "/lib/answer") == "the overlay's"
            data = document(Nsm(client))
    measured = measure(eif)
    policy = Policy(pcrs={0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}, allow_unmeasured=True)
    assert attestation.verify(data, root(lab), policy).unmeasured
    with pytest.raises(UnmeasuredEnclave):
        attestation.verify(data, root(lab), Policy(allow_debug=True))


def test_an_archive_and_pcrs_of_zero(lab: Lab, eif: Path, tmp_path: Path) -> None:
    """Padded as GNU cpio does it."""
    entries = [cpio.directory("new"), cpio.file("rootfs/greeting", b"from outside")]
    archive = tmp_path / "over.cpio"
    overlay.compose([lambda image: entries], eif, archive)
    os.truncate(archive, -(-archive.stat().st_size // 512) * 512)
    with lab.run(eif, "--overlay", str(archive)) as run:
        uds = run.uds()
        with run.agent(uds) as client:
            assert client.probe("cat", "/greeting") == "from outside"
            data = document(Nsm(client))
    found = attestation.verify(data, root(lab), Policy(allow_debug=True))
    assert [any(found.pcrs[i]) for i in (0, 1, 2, 4, 8)] == [False, False, False, True, False]
    assert not found.unmeasured
    with pytest.raises(DebugEnclave):
        attestation.verify(data, root(lab), Policy(allow_unmeasured=True))
