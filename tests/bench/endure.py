# SPDX-License-Identifier: MIT
"""Much of one thing for long, and whether anything grows: what `make soak` runs beside the tests.

    endure.py life         enclaves come and go  [--seconds 1200 --enclaves 50 --at-once 8]
    endure.py documents    attestation documents from one enclave [--count 100000]
    endure.py connections  vsock connections behind the fake front end [--count 1000000]

Each takes samples of what it must not keep: memory (anonymous, KiB) and descriptors of each process that
stays, Python's objects in this one, folders and records of enclaves that have ended. The second quarter of
the samples is the measure of the last: before it everything is being made for the first time. One line of
figures at the end; status 1 if they grew.

Of this process's own memory glibc would make an arena for each thread that ever allocated, up to eight for
each processor, and each grows to the most that its threads had at once: megabytes of nothing. It has one.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import resource
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

# What libraries keep of what they gave back, in KiB: caches of threads, pieces of heaps.
SLACK_KIB = 2048
# Of Python's own, as of a module that was imported late. Fifty enclaves that leave one object each are more.
SLACK_OBJECTS = 40

M_ARENA_MAX = -8  # glibc's malloc.h


class Samples:
    """Of one process: memory and descriptors over time, and objects if it is this one."""

    def __init__(self, what: str, pid: int | None = None) -> None:
        self.what, self.pid = what, pid or os.getpid()
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self.objects: list[int] = []

    def take(self) -> None:
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        assert match
        self.memory.append(int(match[1]))
        self.descriptors.append(len(os.listdir(f"/proc/{self.pid}/fd")))
        if self.pid == os.getpid():
            gc.collect()
            self.objects.append(len(gc.get_objects()))

    def grown(self) -> bool:
        return (
            _growth(self.memory) > SLACK_KIB
            or _growth(self.descriptors) > 0
            or _growth(self.objects) > SLACK_OBJECTS
        )

    def __str__(self) -> str:
        objects = f", objects {self.objects[0]} to {self.objects[-1]}" if self.objects else ""
        return (
            f"{self.what}: memory {self.memory[0]} to {self.memory[-1]} KiB (most {max(self.memory)}), "
            f"descriptors {self.descriptors[0]} to {self.descriptors[-1]}{objects}"
        )


def _growth(samples: list[int]) -> int:
    """From the second quarter to the last; 0 where there are too few to tell."""
    quarter = max(1, len(samples) // 4)
    before = samples[quarter : 2 * quarter]
    return max(samples[-quarter:]) - max(before) if before else 0


def told(what: str, samples: list[Samples], left: list[str]) -> int:
    grew = [one.what for one in samples if one.grown()]
    print("; ".join([what, *map(str, samples), f"left behind: {', '.join(left) if left else 'nothing'}"]))
    if grew:
        print(f"error: {' and '.join(grew)} grew")
    return 1 if grew or left else 0


def life(seconds: float, enclaves: int, at_once: int) -> int:
    """In a state and runtime folder of its own, so that what is left is this program's."""
    from nitroctl import Enclave
    from nitroctl.base import config
    from nitroctl.enclaves import records
    from nitroctl.testing.lab import Lab
    from nitroctl.toolchain import places

    with (
        tempfile.TemporaryDirectory(prefix="n-") as folder,
        Lab(places.locate("qemu"), places.locate("vsock")) as lab,
    ):
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME"):
            path = Path(folder, name[4:8])
            path.mkdir(mode=0o700)
            os.environ[name] = str(path)
        eif = lab.image("agent")
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
        own, until = Samples("this process"), time.monotonic() + seconds
        lock, done, boots = threading.Lock(), 0, []

        def one(number: int) -> None:
            nonlocal done
            started = time.monotonic()
            with Enclave(
                eif, memory=256, qemu=lab.qemu, vsock_backend=lab.backend, name=f"e{number % enclaves}"
            ):
                taken = time.monotonic() - started
            with lock:
                done += 1
                boots.append(taken)

        number = 0
        while time.monotonic() < until or number == 0:
            # A turn is as many as there are names; then all are gone, and a sample is taken.
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(one, range(number, number + enclaves)))
            number += enclaves
            own.take()
        left = [str(path) for path in config.runtime_dir().glob("[0-9]*")]
        left += [record.name for record in records.every()]
        left += list(map(str, lab.processes().values()))
    boots.sort()
    what = (
        f"{done} enclaves, {at_once} at once, {seconds:.0f} s, heartbeat after {boots[len(boots) // 2]:.1f} s"
    )
    return told(what, [own], left)


def documents(count: int) -> int:
    import cbor2

    from nitroctl.testing.lab import Lab
    from nitroctl.toolchain import places

    request = cbor2.dumps({"Attestation": {"user_data": bytes(64), "nonce": bytes(32), "public_key": None}})
    with Lab(places.locate("qemu"), places.locate("vsock")) as lab, lab.agent() as (_, agent):
        samples = [Samples("QEMU", lab.process(lab.qemu)), Samples("the backend", lab.process(lab.backend))]
        made, step, spent = 0, max(1, count // 20), 0
        while made < count:
            facts = agent.facts("nsm-loop", 1, step, request.hex())
            if int(facts["ok"]) != step:
                print(f"error: {facts['errors']} of {step} requests were refused")
                return 1
            made += step
            spent += int(facts["us"])
            for one in samples:
                one.take()
    return told(f"{made} attestation documents, {made * 1e6 / spent:.0f}/s", samples, [])


def connections(count: int) -> int:
    """From both sides in turn, with some bytes, ended by either."""
    from vhost_backend import find_binary, running
    from vhost_guest import Reset, dial, guest

    with running(find_binary()) as backend, backend.listen(5000) as listener, guest(backend) as g:
        g.listen(7000)
        own = Samples("the backend", backend.process.pid)
        started, step = time.monotonic(), max(1, count // 40)
        for number in range(count):
            if number % 2:
                peer, stream = dial(backend, g, 7000)
            else:
                stream = g.connect(5000)
                peer = listener.accept()[0]
            with peer:
                stream.send(b"question")
                assert peer.recv(100) == b"question"
                if number % 3:
                    peer.close()
                    try:
                        stream.recv_all()
                    except Reset:
                        pass
                else:
                    stream.close()
                    assert peer.recv(1) == b""
            if (number + 1) % step == 0:
                g.pump()
                own.take()
        rate = count / (time.monotonic() - started)
    return told(f"{count} connections, {rate:.0f}/s", [own], [])


def main() -> int:
    parser = argparse.ArgumentParser(description="Much of one thing for long, and whether anything grows.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    of_life = kinds.add_parser("life")
    of_life.add_argument("--seconds", type=float, default=1200)
    of_life.add_argument("--enclaves", type=int, default=50)
    of_life.add_argument("--at-once", type=int, default=8)
    kinds.add_parser("documents").add_argument("--count", type=int, default=100_000)
    kinds.add_parser("connections").add_argument("--count", type=int, default=1_000_000)
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    if given.kind == "life":
        return life(given.seconds, given.enclaves, given.at_once)
    return documents(given.count) if given.kind == "documents" else connections(given.count)


if __name__ == "__main__":
    sys.exit(main())
