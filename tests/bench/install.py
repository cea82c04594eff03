# SPDX-License-Identifier: MIT
"""How long a user waits from pip to the first heartbeat, with the wheels of `make dist` at hand.

    python tests/bench/install.py [--runs 3]

Each run has a fresh virtual environment, whose making is not counted, and folders of its own: nothing is in a
cache. pip looks at no index. The image is made within the time, as `nitroctl eif test-image hello`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from common import table

from nitroctl.toolchain import cache

ROOT = Path(__file__).resolve().parents[2]
GOAL = 10.0


def wheels() -> list[str]:
    return [os.fspath(path) for path in sorted((ROOT / "dist").glob("nitroctl*.whl"))]


def seconds(house: Path) -> tuple[float, float]:
    """Of pip, and from there to the heartbeat."""
    with tempfile.TemporaryDirectory(prefix="n-") as folder:
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        home = {f"XDG_{kind}_HOME": f"{folder}/{kind}" for kind in ("CACHE", "DATA", "STATE")}
        env = {**os.environ, **home, "PATH": "/usr/bin:/bin"}
        program = f"{folder}/venv/bin"
        begin = time.monotonic()
        pip = [f"{program}/pip", "install", "-q", "--no-index", "--find-links", str(house), "nitroctl[qemu]"]
        subprocess.run(pip, check=True, env=env)
        installed = time.monotonic() - begin
        image = [f"{program}/nitroctl", "eif", "test-image", "hello", "-o", f"{folder}/hello.eif"]
        subprocess.run(image, check=True, env=env, stdout=subprocess.DEVNULL)
        run = [f"{program}/nitroctl", "run", "--qemu-build", "bundled", f"{folder}/hello.eif"]
        with subprocess.Popen(
            run, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as p:
            assert p.stderr
            for line in p.stderr:
                if "heartbeat after" in line:
                    break
            else:
                raise SystemExit("there was no heartbeat")
            found = time.monotonic() - begin
            p.stderr.read()
        return installed, found - installed


def main() -> None:
    parser = argparse.ArgumentParser(description="From pip to the first heartbeat.")
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    ours = wheels()
    if len(ours) != 2:
        print("\nFrom pip to the first heartbeat: not measured, there are no wheels (make dist)")
        return
    house = cache.entry("dist-wheels", "bench")
    house.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--dest", str(house)]
    subprocess.run([*download, *ours], check=True)
    found = [machine.undisturbed(lambda: seconds(house), "install") for _ in range(runs)]
    pip, boot = (statistics.median(column) for column in zip(*found, strict=True))
    table(
        "From pip to the first heartbeat",
        [("pip", f"{pip:.1f} s"), ("image and boot", f"{boot:.1f} s"),
         ("together", f"{pip + boot:.1f} s  (goal: {GOAL:g} s)")],
    )  # fmt: skip
    table("The machine meanwhile", machine.rows())


if __name__ == "__main__":
    main()
