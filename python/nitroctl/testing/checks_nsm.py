# SPDX-License-Identifier: MIT
"""What must hold of the NSM and its PCRs in a real guest, but for attestation; more of `checks`.

The expected values are AWS's nsm-check's, and PCRs computed here from the file's sections.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from nitroctl.testing import agent
from nitroctl.testing.claims import (
    BOOT_PCRS,
    FREE_PCRS,
    INSTANCE,
    NSM_ID,
    PCR_COUNT,
    ZERO,
    Nsm,
    boot_check,
)
from nitroctl.testing.lab import (
    Lab,
    check,
    check_equal,
)


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(parts)).digest()


@boot_check
def nsm_conformance(lab: Lab) -> None:
    """What AWS's nsm-check asserts on a real enclave (all but attestation), from inside a real guest."""
    with lab.agent(machine=f",parent-id={INSTANCE}") as (_, client):
        nsm = Nsm(client)
        described = nsm.ok("DescribeNSM")
        check_equal(described["max_pcrs"], PCR_COUNT, "max_pcrs")
        check(described["module_id"], "module_id is empty")
        check_equal(described["digest"], "SHA384", "digest")
        check_equal(described["locked_pcrs"], list(BOOT_PCRS), "locked_pcrs")
        measured = (0, 1, 2, 4)
        for index in range(PCR_COUNT):
            value, locked = nsm.pcr(index)
            check_equal(value != ZERO, index in measured, f"PCR{index} is not zero")
            check_equal(locked, index in BOOT_PCRS, f"PCR{index} is locked")
        for index in BOOT_PCRS:
            nsm.refused("LockPCR", {"index": index})
        expected = ZERO
        for _ in range(10):
            expected = _digest(expected, b"\1\2\3")
            for index in FREE_PCRS:
                got = nsm.ok("ExtendPCR", {"index": index, "data": b"\1\2\3"})["data"]
                check_equal(got, expected, f"PCR{index} extended")
        for index in FREE_PCRS:
            nsm.ok("LockPCR", {"index": index})
        nsm.ok("LockPCRs", {"range": PCR_COUNT})
        nsm.refused("LockPCRs", {"range": PCR_COUNT + 1})
        for index in range(PCR_COUNT):
            nsm.refused("ExtendPCR", {"index": index, "data": b"\1\2\3"})
        for index in range(PCR_COUNT):
            value, locked = nsm.pcr(index)
            check(locked, f"PCR{index} is not locked")
            if index in FREE_PCRS:
                check_equal(value, expected, f"PCR{index} at the end")
            else:
                check_equal(value != ZERO, index in measured, f"PCR{index} is not zero")
        last = b""
        for _ in range(16):
            random = nsm.ok("GetRandom")["random"]
            check_equal(len(random), 256, "random bytes")
            check(random != last, "the same random bytes twice")
            last = random


@boot_check
def nsm_survives_its_guest(lab: Lab) -> None:
    """Nothing that a user of the guest sends by ioctl stops the device: no bytes, rubbish, a response buffer
    that is too small, the longest request."""
    with lab.agent() as (_, client):
        nsm = Nsm(client)
        before = nsm.pcr(0)
        requests: list[tuple[bytes, int | None]] = [
            (b"", None), (b"\xff" * 100, None), (b"\x81" * 4096, None), (b"\x69GetRandom", 1),
        ]  # fmt: skip
        for request, capacity in requests:
            with contextlib.suppress(agent.AgentError):  # what the ioctl says is the guest kernel's business
                client.nsm(request, capacity=capacity)
            check_equal(nsm.pcr(0), before, f"PCR0 after the request {request[:8]!r}")


@boot_check
def nsm_random_reaches_the_kernel(lab: Lab) -> None:
    """The NSM is the kernel's hardware random number generator."""
    with lab.agent() as (_, client):
        first, second = client.probe("hwrng", 64), client.probe("hwrng", 64)
        check(first != second and len(bytes.fromhex(first.strip())) == 64, f"not random: {first} {second}")


@boot_check
def rebinding_the_driver(lab: Lab) -> None:
    """Unbinding the NSM's driver and binding it again resets the virtio device, and changes no PCR and no
    lock."""
    with lab.agent() as (_, client):
        nsm = Nsm(client)
        nsm.ok("ExtendPCR", {"index": 16, "data": b"x"})
        nsm.ok("LockPCR", {"index": 17})
        before = [nsm.pcr(index) for index in range(PCR_COUNT)]
        check_equal(before[16], (_digest(ZERO, b"x"), False), "PCR16")
        client.probe("rebind", NSM_ID)
        check_equal([nsm.pcr(index) for index in range(PCR_COUNT)], before, "the PCRs after it")
        nsm.refused("LockPCR", {"index": 17})


@boot_check
def initrd_is_measured(lab: Lab) -> None:
    """-initrd is appended to the initramfs, where the guest finds it, and measured like a further application
    ramdisk: PCR0 and PCR2 are those of an EIF that has it as its last ramdisk."""
    from nitroctl.eif import cpio

    extra = lab.folder / "extra.cpio"
    archive = _Archive()
    cpio.write(archive, [cpio.directory("rootfs"), cpio.file("rootfs/extra", b"from outside", 0o644)])
    extra.write_bytes(archive.data)
    eif = lab.image("agent")
    expected = _pcrs_with_ramdisk(eif, extra.read_bytes())
    with lab.agent(args=("-initrd", os.fspath(extra))) as (_, client):
        nsm = Nsm(client)
        check_equal([nsm.pcr(i)[0].hex() for i in range(3)], expected, "PCR0 to PCR2")
        check_equal(client.probe("cat", "/extra"), "from outside", "/extra in the guest")


class _Archive:
    """A cpio archive in memory, of entries that have their content with them."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data

    def copy(self, fd: int, size: int | None, name: str) -> None:
        raise NotImplementedError("no files here")


def _pcrs_with_ramdisk(eif: Path, ramdisk: bytes) -> list[str]:
    """By AWS's rules from the file's sections: PCR0 of all, PCR1 of kernel, command line and the first
    ramdisk, PCR2 of the other ramdisks; each SHA384(zeros, SHA384(data))."""
    from nitroctl.eif.format import SectionType, open_eif, read_layout

    whole, boot, application = hashlib.sha384(), hashlib.sha384(), hashlib.sha384()
    with open_eif(eif) as (fd, size):
        layout = read_layout(fd, size, eif)
        ramdisks = 0
        for section in layout.sections:
            data = os.pread(fd, section.size, section.data_offset)
            if section.type in (SectionType.KERNEL, SectionType.CMDLINE):
                whole.update(data)
                boot.update(data)
            elif section.type is SectionType.RAMDISK:
                whole.update(data)
                (boot if ramdisks == 0 else application).update(data)
                ramdisks += 1
    whole.update(ramdisk)
    application.update(ramdisk)
    return [_digest(ZERO, each.digest()).hex() for each in (whole, boot, application)]
