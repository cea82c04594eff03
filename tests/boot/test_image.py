# SPDX-License-Identifier: MIT
"""Container images, made here without Docker, built into EIFs by the command and run: the application finds
itself with the image's command, environment, working directory and user. Those of one static program are run
with an arm64 QEMU, too."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import imagemodel as im
from nitroctl.base.arch import facts
from nitroctl.eif import testimage
from nitroctl.eif.measure import measure
from nitroctl.testing.lab import Lab
from nitroctl.toolchain import guest
from nitroctl.toolchain.apt import AptRoot

pytestmark = pytest.mark.boot


def built(lab: Lab, image: Path, *options: str, kernel: bool = True, source: str = "--image") -> Path:
    """The EIF of an image or folder: `nitroctl eif build --image app.tar -o app.eif`, with the lab's kernel
    if that is another one, unless `kernel` is false."""
    eif = image.with_suffix(".eif")
    own = lab.kernels["own"]
    argv = ["--arch", lab.arch, source, str(image)]
    if kernel and not isinstance(own, str):
        argv += ["--kernel", str(own.image)]
    argv = [sys.executable, "-m", "nitroctl", "eif", "build", *argv, "-o", str(eif), *options]
    done = subprocess.run(argv, env=lab.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return eif


# Our init passes line breaks on.
PEM = "KEY=-----BEGIN X-----\nMII=\n-----END X-----\n"


OURS = pytest.mark.ours("AWS's init knows neither USER, WORKDIR nor line breaks")


@OURS
@pytest.mark.parametrize("options", [[], ["--compress"]], ids=["plain", "compressed"])
def test_scratch_image(lab: Lab, tmp_path: Path, options: list[str]) -> None:
    """One static program and nothing else."""
    agent = guest.locate("agent", lab.arch).read_bytes()
    run: dict[str, Any] = {
        "Entrypoint": ["/agent"], "Cmd": ["7000", "two\nlines"], "Env": ["GREETING=hello world", PEM],
        "WorkingDir": "/srv/app", "User": "1000:1001",
    }  # fmt: skip
    layers = [im.layer(im.entry("agent", agent, mode=0o755))]
    image = im.docker(tmp_path / "scratch.tar", layers, run=run, architecture=facts(lab.arch).debian)
    with lab.run(built(lab, image, *options)) as enclave:
        uds = enclave.uds()
        with enclave.agent(uds) as client:
            assert client.probe("cat", "/proc/self/cmdline") == "\0".join(
                ("/agent", "7000", "two\nlines", "")
            )
            assert PEM in client.probe("cat", "/proc/self/environ").split("\0")
            assert client.probe("cwd").strip() == "/srv/app"
            ids = client.facts("id")
            assert (ids["uid"], ids["gid"]) == ("1000", "1001")
            environment = client.probe("env").splitlines()
            assert "GREETING=hello world" in environment
            assert "HOME=/" in environment
            client.exit(0)
        enclave.check_ends(0)


@OURS
def test_directory(lab: Lab, tmp_path: Path) -> None:
    """A folder as the root file system, its user by name, its program by a word that stays what it is."""
    root = im.folder(
        tmp_path / "root",
        {
            "bin/agent": guest.locate("agent", lab.arch).read_bytes(),
            "etc/passwd": b"web:x:33:34::/srv/web:/bin/sh\n",
            "etc/group": b"data:x:50:web\n",
        },
    )
    (root / "bin" / "agent").chmod(0o755)
    options = ["--cmd", "agent", "--cmd", "7000", "--env", "A=b c", "--user", "web", "--workdir", "/srv/web"]
    with lab.run(built(lab, root, *options, source="--directory")) as enclave:
        uds = enclave.uds()
        with enclave.agent(uds) as client:
            assert client.probe("args").splitlines() == ["agent", "7000"]
            assert client.probe("cwd").strip() == "/srv/web"
            ids = client.facts("id")
            assert (ids["uid"], ids["gid"]) == ("33", "34")
            assert {"A=b c", "HOME=/srv/web"} < set(client.probe("env").splitlines())
            client.exit(0)
        enclave.check_ends(0)


def stand_in(lab: Lab, folder: Path) -> Path:
    """A folder as nitro-cli has it, with our kernel and init."""
    kernel, file = lab.kernels["own"], facts(lab.arch).image
    image = guest.locate("kernel", lab.arch) if isinstance(kernel, str) else kernel.image
    return im.folder(
        folder,
        {
            file: image.read_bytes(),
            f"{file}.config": f"# Linux/{facts(lab.arch).kernel} 6.12 Kernel Configuration\n".encode(),
            "init": guest.locate("init", lab.arch).read_bytes(),
            "cmdline": f"{testimage.CMDLINES[lab.arch]}\n".encode(),
        },
    )


def test_blobs(lab: Lab, tmp_path: Path) -> None:
    """A folder as nitro-cli has it, here with our kernel and init: it boots, with CMD alone, as AWS's init
    would start it, and PCR1 is the same for every application."""
    agent = guest.locate("agent", lab.arch).read_bytes()
    blobs = lab.blobs.init.parent if lab.blobs else stand_in(lab, tmp_path / "blobs")
    layer = im.layer(im.entry("agent", agent, mode=0o755))
    pcr1 = set()
    for name, cmd in (("one", ["/agent", "7000", "one"]), ("two", ["/agent", "7000", "two"])):
        run = {"Entrypoint": ["/none"], "Cmd": cmd}
        image = im.docker(tmp_path / f"{name}.tar", [layer], run=run, architecture=facts(lab.arch).debian)
        eif = built(lab, image, "--blobs", str(blobs), "--aws-cmd", kernel=False)
        pcr1.add(measure(eif).pcr1)
        with lab.guest(eif) as started, started.agent() as client:
            assert client.probe("args").splitlines() == cmd
            client.exit(0)
    assert len(pcr1) == 1


def layer_of(deb: Path) -> bytes:
    """The data.tar of a Debian package, which has the form of a layer (deb(5))."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
    # Without the documentation it is loaded faster.
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            if "/usr/share/" not in member.name:
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return out.getvalue()


SCRIPT = b"""#!/bin/sh
echo "args: $0 $*"
echo "pwd: $(pwd)"
echo "mail: $MAIL home: $HOME path: $PATH"
while read -r key value; do
    case $key in Uid:|Gid:|Groups:) echo "$key" $value ;; esac
done < /proc/self/status
read -r line < again
echo "again: $line"
echo "localhost: $(getent hosts localhost)"
"""


@OURS
def test_debian_image(lab: Lab, tmp_path: Path) -> None:
    """Debian's base files, C library and its tools, and shell, a layer each, and a script on top: dynamic
    programs, /bin and /lib as links, a user of /etc/passwd, a hard link into a lower layer. None of it brings
    /etc/hosts, as Debian's images do not, and localhost resolves."""
    root = AptRoot.open()
    layers = [layer_of(root.download(name)) for name in ("base-files", "libc6", "libc-bin", "dash")]
    layers.append(
        im.layer(
            im.entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\nmail:x:8:9::/var/mail:/bin/sh\n"),
            im.entry("etc/group", b"root:x:0:\nmail:x:9:\nextra:x:50:mail\n"),
            im.entry("greeting", b"from below\n"),
        )
    )
    layers.append(
        im.layer(
            im.entry("bin/talk", SCRIPT, mode=0o755),  # through the link /bin
            im.hardlink("srv/again", "greeting"),
            im.entry(".wh.greeting", b""),
        )
    )
    run: dict[str, Any] = {"Entrypoint": ["talk"], "Cmd": ["one two", "three"], "Env": ["MAIL=a=b"]}
    run |= {"User": "mail", "WorkingDir": "/srv"}
    image = im.oci(tmp_path / "debian.tar", layers, packer=lambda data: gzip.compress(data, 1), run=run)
    with lab.run(built(lab, image)) as enclave:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        for line in (
            "args: /usr/bin/talk one two three",
            "pwd: /srv",
            f"mail: a=b home: /var/mail path: {path}",
            "Uid: 8 8 8 8",
            "Gid: 9 9 9 9",
            "Groups: 50",
            "again: from below",
            "localhost: ::1             localhost ip6-localhost ip6-loopback",
        ):
            enclave.expect(re.escape(line).encode())
        enclave.check_ends(0)


def test_lint_knows_the_drivers_of_real_kernels(lab: Lab) -> None:
    """Ours has what AWS's has; Debian's has NSM and vsock as modules, and devices by ACPI alone. No guest
    is needed to see that; that they boot is seen elsewhere."""
    found = {}
    for kernel in ("own", "prebuilt"):
        argv = [
            sys.executable,
            "-m",
            "nitroctl",
            "eif",
            "lint",
            "--json",
            str(lab.image("hello", kernel=kernel)),
        ]
        done = subprocess.run(argv, env=lab.environment(), capture_output=True, text=True)
        found[kernel] = {item["rule"] for item in json.loads(done.stdout)["items"]}
    assert found == {"own": {"other-pcrs"}, "prebuilt": {"other-pcrs", "kernel-virtio-mmio"}}
