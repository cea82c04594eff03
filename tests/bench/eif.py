# SPDX-License-Identifier: MIT
"""How long the EIF tools take: `describe` against one SHA-384 pass, `build --image` against unpacking.

    python tests/bench/eif.py [--size 400] [--runs 5]

`describe` digests nearly all of the file twice, for PCR0 and for PCR2, and sums it: on two free cores it can
take as long as one digest. An image is read twice (names first, then content) and digested twice. Contenders
take turns; all input is in the page cache. Both figures need two free cores.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from common import alternate, seconds_of, table, warm

from nitroctl import progress
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


def main() -> None:
    parser = argparse.ArgumentParser(description="how long the EIF tools take")
    parser.add_argument("--size", type=int, default=400, help="MB (default: 400)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kernel", default="own", help="own, prebuilt, or a bzImage")
    options = parser.parse_args()
    progress.set_quiet(True)
    with tempfile.TemporaryDirectory(prefix="nitroctl-bench-") as name:
        folder = Path(name)
        eif = folder / "big.eif"
        testimage.make("big", eif, kernel=options.kernel, size=options.size * 10**6)
        tar = folder / "image.tar"
        packed = image(tar, options.size * 10**6)
        for path in (eif, tar, packed):
            warm(path)
        made = folder / "made.eif"
        build = [*NITROCTL, "build", "--image", str(tar), "--kernel", options.kernel, "-o", str(made)]
        unpack = f"gzip -dc '{packed}' > /dev/null"
        found = alternate(
            {
                "describe": lambda: seconds_of([*NITROCTL, "describe", "--json", os.fspath(eif)]),
                "sha384": lambda: seconds_of(["openssl", "dgst", "-sha384", eif]),
                "build": lambda: seconds_of(build),
                "gunzip": lambda: seconds_of(["sh", "-c", unpack]),
            },
            options.runs,
        )
        measured = subprocess.run([*NITROCTL, "verify", made], capture_output=True, text=True)
        assert measured.returncode == 0, measured.stderr
    describe, sha384 = found["describe"].median, found["sha384"].median
    table(
        f"EIF tools, {options.size} MB, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        [
            ("nitroctl eif describe", f"{found['describe']} s"),
            ("openssl dgst -sha384", f"{found['sha384']} s"),
            ("describe, in digests of the file", f"{describe / sha384:.2f}  (goal on two free cores: 1.2)"),
            ("nitroctl eif build --image, gzip layer", f"{found['build']} s"),
            ("gzip -dc of the layer", f"{found['gunzip']} s"),
            ("build, in unpackings of the layer", f"{found['build'].median / found['gunzip'].median:.2f}"),
        ],
    )


if __name__ == "__main__":
    main()
