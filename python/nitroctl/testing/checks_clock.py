# SPDX-License-Identifier: MIT
"""What must hold of time in a guest: its clock is the host's, at the start and later, also on a busy host.

The host asks the guest for its time and looks at its own before and after: the difference lies between the
two. Of several such bounds the narrowest are taken, since it does not change meanwhile. The other claims are
in `nitroctl.testing.checks`. SOAK_SECONDS says how long `clock-keeps-time` watches: in `make soak`, five
minutes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nitroctl.base import proc
from nitroctl.testing.agent import Agent
from nitroctl.testing.claims import Nsm, boot_check
from nitroctl.testing.lab import LIMIT, Lab, check

CMOS = 0.55  # seconds: read in whole ones, and half a one ahead
OURS = 0.05
DRIFT = 0.05
BUSY = 4  # processes

_SHARP = 0.005  # bounds that are closer together than this are good enough
_PAUSE = 5.0


@dataclass(frozen=True)
class Difference:
    """The guest's clock minus the host's, in seconds: somewhere between these."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low * 1000:.1f} to {self.high * 1000:.1f} ms"

    def within(self, limit: float) -> bool:
        return -limit < self.low and self.high < limit


def difference(client: Agent) -> Difference:
    low, high = float("-inf"), float("inf")
    until = time.monotonic() + LIMIT / 2
    while high - low > _SHARP and time.monotonic() < until:
        before = time.time()
        guest = int(client.facts("clock")["us"]) / 1e6
        low, high = max(low, guest - time.time()), min(high, guest - before)
    return Difference(low, high)


@contextlib.contextmanager
def busy_host() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(BUSY):
            process = proc.start([sys.executable, "-c", "while True: pass"], stdout=subprocess.DEVNULL)
            stack.callback(proc.stop, process)
        yield


@functools.partial(boot_check, built_in=True)
def clock_at_boot(lab: Lab) -> None:
    """With any init, here one that does nothing about it, the guest's clock starts from the host's to half a
    second, and is within 1.5 s of it where the host lets the kernel start; it counts time with the TSC, with
    two CPUs as well, or with KVM's clock; arm64 with its architected timer."""
    started = time.time()
    with lab.guest(lab.image("no-heartbeat"), args=("-smp", "2")) as guest, guest.agent() as client:
        facts = client.facts("clock")
        now = time.time()
        # tsc-early is the same counter, for the first moments.
        sources = ("kvm-clock",) if lab.accel.name == "kvm" else ("tsc", "tsc-early")
        if lab.arch == "aarch64":
            sources = ("arch_sys_counter",)
        check(facts["source"] in sources, f"the clock source is {facts['source']}")
        # Linux reads the CMOS clock when it begins to count, and loses what it is kept from running then.
        uptime = int(facts["uptime"]) / 1e6
        read = int(facts["us"]) / 1e6 - uptime
        seen = f"{read:.3f} was read between {started:.3f} and {now - uptime:.3f}"
        check(started - CMOS < read < now - uptime + CMOS, f"the guest's clock began wrong: {seen}")


@functools.partial(boot_check, guests=2, ours="AWS's init does not set the clock")
def clock_keeps_time(lab: Lab) -> None:
    """Under four busy processes our init sets the guest's clock to within 50 ms of the host's and of its
    documents' dates, and in twenty seconds (in `make soak` five minutes) moves less; both kernels."""
    seconds = float(os.environ.get("SOAK_SECONDS", "20"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(busy_host())
        clients = {}
        for kernel, machine, cpus in (("own", "", "2"), ("prebuilt", lab.acpi, "1")):
            image = lab.image("agent", kernel=kernel)
            guest = stack.enter_context(lab.guest(image, machine=machine, args=("-smp", cpus)))
            clients[kernel] = stack.enter_context(guest.agent())
        first = {kernel: difference(client) for kernel, client in clients.items()}
        for kernel, client in clients.items():
            check(first[kernel].within(OURS), f"{kernel} kernel: the clock begins off by {first[kernel]}")
            _check_documents(kernel, client)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(_PAUSE, max(0.0, until - time.monotonic())))
            for kernel, client in clients.items():
                now = difference(client)
                moved = Difference(now.low - first[kernel].high, now.high - first[kernel].low)
                check(moved.within(DRIFT), f"{kernel} kernel: the clock moved by {moved}")
        for kernel, client in clients.items():
            _check_documents(kernel, client)


def _check_documents(kernel: str, client: Agent) -> None:
    """An attestation document is dated between two looks at the guest's clock."""
    import cbor2

    before = int(client.facts("clock")["us"]) / 1e6
    answer = Nsm(client).ok("Attestation", {"user_data": None, "nonce": None, "public_key": None})
    after = int(client.facts("clock")["us"]) / 1e6
    dated = cbor2.loads(cbor2.loads(answer["document"])[2])["timestamp"] / 1e3
    check(
        before - 2 * OURS < dated < after + 2 * OURS,
        f"{kernel} kernel: a document of {dated:.3f} was made between {before:.3f} and {after:.3f}",
    )
