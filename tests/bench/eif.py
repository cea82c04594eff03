# SPDX-License-Identifier: MIT
"""How long the EIF tools take: `describe` against one SHA-384 pass, `build --image` against unpacking.

    python tests/bench/eif.py [--size 1000] [--runs 5]

`describe` digests nearly all of the file twice, for PCR0 and for PCR2: on two free cores it can take as long
as one digest. A gzip layer is unpacked twice (names first, then content) and digested twice. Contenders take
turns; all input is in the page cache. Where something else uses the cores, the processor time says what two
free ones would give: half of it at best.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import machine
from common import alternate, seconds_of, table, warm

from nitroctl.base import files, progress
from nitroctl.eif import testimage

NITROCTL = [sys.executable, "-m", "nitroctl", "eif"]


def layer(size: int) -> bytes:
    """A tar of files that gzip halves: what images are like."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(size // (1 << 18)):
            data = hashlib.shake_128(b"%d" % i).digest(1 << 17)
            info = tarfile.TarInfo(f"usr/share/files/{i % 100}/{i}")
            info.size = 1 << 18
            info.mode = 0o755
            tar.addfile(info, io.BytesIO(data.hex().encode()))
    return out.getvalue()


def image(path: Path, size: int) -> Path:
    """Make an oci-archive of one gzip layer; returns the layer by itself."""
    plain = layer(size)
    packed = gzip.compress(plain, 6)
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    diff = "sha256:" + hashlib.sha256(plain).hexdigest()
    config: dict[str, object] = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [diff]}}
    config["config"] = {"Cmd": ["/usr/share/files/0/0"]}
    manifest = {"config": put(json.dumps(config).encode()), "layers": [put(packed)]}
    blobs["index.json"] = json.dumps({"manifests": [put(json.dumps(manifest).encode())]}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in blobs.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    alone = path.with_suffix(".gz")
    alone.write_bytes(packed)
    return alone


def hashlib_seconds(path: Path) -> float:
    """One SHA-384 pass by Python's hashlib, without a start of Python."""
    begin = time.monotonic()
    with open(path, "rb") as f:
        files.digest(f, "sha384")
    return time.monotonic() - begin


def processor_seconds(argv: list[str]) -> float:
    """Processor time of one command, on all cores together."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    begin = spent()
    seconds_of(argv)
    return spent() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="how long the EIF tools take")
    parser.add_argument("--size", type=int, default=1000, help="MB (default: 1000)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kernel", default="own", help="own, prebuilt, or a bzImage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nitroctl-bench-") as name:
        folder = Path(name)
        eif = folder / "big.eif"
        testimage.make("big", eif, kernel=options.kernel, size=options.size * 10**6)
        tar = folder / "image.tar"
        packed = image(tar, options.size * 10**6)
        for path in (eif, tar, packed):
            warm(path)
        made = folder / "made.eif"
        describe = [*NITROCTL, "describe", "--json", os.fspath(eif)]
        build = [*NITROCTL, "build", "--image", str(tar), "--kernel", options.kernel, "-o", str(made)]
        openssl = ["openssl", "dgst", "-sha384", os.fspath(eif)]
        unpack = ["sh", "-c", f"gzip -dc '{packed}' > /dev/null"]
        found = alternate(
            {
                "describe": lambda: seconds_of(describe),
                "openssl": lambda: seconds_of(openssl),
                "hashlib": lambda: hashlib_seconds(eif),
                "build": lambda: seconds_of(build),
                "gunzip": lambda: seconds_of(unpack),
            },
            options.runs,
        )
        spent = {
            name: machine.undisturbed(functools.partial(processor_seconds, argv), f"processor time of {name}")
            for name, argv in (("describe", describe), ("openssl", openssl))
        }
        halved = spent["describe"] / 2 / spent["openssl"]
        measured = subprocess.run([*NITROCTL, "verify", made], capture_output=True, text=True)
        assert measured.returncode == 0, measured.stderr
    median = {name: series.median for name, series in found.items()}
    table(
        f"EIF tools, {options.size} MB",
        [
            ("nitroctl eif describe", f"{found['describe']} s"),
            ("openssl dgst -sha384", f"{found['openssl']} s"),
            ("hashlib.sha384", f"{found['hashlib']} s"),
            (
                "describe, in digests of the file",
                f"{median['describe'] / median['openssl']:.2f} openssl's, "
                f"{median['describe'] / median['hashlib']:.2f} hashlib's  (goal on two free cores: 1.2)",
            ),
            ("half its processor time, in openssl's", f"{halved:.2f}"),
            ("nitroctl eif build --image, gzip layer", f"{found['build']} s"),
            ("gzip -dc of the layer", f"{found['gunzip']} s"),
            ("build, in unpackings of the layer", f"{median['build'] / median['gunzip']:.2f}"),
        ],
    )
    table("The machine meanwhile", machine.rows())


if __name__ == "__main__":
    with progress.quiet():
        main()
