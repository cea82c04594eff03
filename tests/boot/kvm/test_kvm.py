# SPDX-License-Identifier: MIT
"""What only a guest under KVM shows. Needs a host where KVM works: `make check-kvm` makes one."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import Lab

pytestmark = pytest.mark.boot

VSOCK_REGISTERS, QUEUE_NOTIFY = 0xFEB00000, 0x50  # transport 0; virtio 1.2, 4.2.2
CLOCK_TOLERANCE = 0.5  # seconds: that of a guest whose clock was never set; an emulated host is slow


def model(cpuinfo: str) -> list[str]:
    return re.findall(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)[:1]


def check_cpus(agent: Agent) -> None:
    """-cpu host is this host's, and both of them are up."""
    cpuinfo = agent.probe("cat", "/proc/cpuinfo")
    assert agent.probe("cpus").strip() == "2"
    assert model(cpuinfo) == model(Path("/proc/cpuinfo").read_text())
    assert re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.M)


def check_clock(agent: Agent) -> None:
    facts = agent.facts("clock")
    assert facts["source"] == "kvm-clock"
    for _ in range(20):
        before = time.time()
        us = int(agent.facts("clock")["us"])
        assert before - CLOCK_TOLERANCE < us / 1e6 < time.time() + CLOCK_TOLERANCE


def check_kicks(trace: str) -> None:
    """The kernel itself tells the backend of a kick (ioeventfd): QEMU has given it a descriptor for each of
    vsock's queues, in place of an exit. (Interrupts QEMU raises itself: its virtio-mmio has no irqfd.)"""
    notify = VSOCK_REGISTERS + QUEUE_NOTIFY
    found = re.findall(rf"^kvm_set_ioeventfd_mmio fd: \d+ @0x{notify:x} val=0x(\d) assign: 1 ", trace, re.M)
    assert {int(queue) for queue in found} >= {0, 1}


def test_what_kvm_gives_a_guest(lab: Lab) -> None:
    """Two CPUs of this host's model, its clock, and kicks past QEMU."""
    assert lab.accel.name == "kvm", lab.accel.reason
    trace = lab.folder / "kvm.trace"
    options = ("-smp", "2", "-trace", "kvm_set_ioeventfd_mmio", "-D", str(trace))
    with lab.agent(args=options, memory="512M") as (_, agent):
        check_cpus(agent)
        check_clock(agent)
        check_kicks(trace.read_text())
