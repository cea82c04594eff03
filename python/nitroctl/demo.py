# SPDX-License-Identifier: MIT
"""The demonstration: from nothing to a running enclave whose PCRs are those computed from its file.

It only calls what the commands call, in order; each step finds its result if it has been done before.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nitroctl import build, progress
from nitroctl.config import default_prefix
from nitroctl.errors import NitroError

PCRS = ("PCR0", "PCR1", "PCR2", "PCR8")
ZERO = "00" * 48  # a PCR that nothing was measured into

# The lines of guest/hello.c.
_PCR_LINE = re.compile(rb"^(PCR\d+): ([0-9a-f]{96})\r*$", re.MULTILINE)


@dataclass(frozen=True)
class Compared:
    name: str
    enclave: str | None  # hex, as the application printed it; None if it did not
    file: str  # hex, as computed from the file

    @property
    def equal(self) -> bool:
        return self.enclave == self.file


def printed_pcrs(console: bytes) -> dict[str, str]:
    """PCR name -> hex, from the console's output."""
    return {m[1].decode(): m[2].decode() for m in _PCR_LINE.finditer(console)}


def compare(console: bytes, computed: Mapping[str, str]) -> list[Compared]:
    """The PCRs of the file next to what the application printed of them; a PCR without a value is zero."""
    printed = printed_pcrs(console)
    return [Compared(name, printed.get(name), computed.get(name, ZERO)) for name in PCRS]


class _Kept:
    """Console bytes, for the comparison at the end."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data


def _kernel() -> str:
    """Our own guest kernel if it has been built; else Debian's, which needs no compiling."""
    from nitroctl import guest

    try:
        guest.locate("kernel")
    except NitroError:
        return "prebuilt"
    return "own"


def prepare(image: Path, *, jobs: int | None = None) -> None:
    """QEMU, the backend, a kernel and the hello image, each made if it is not there."""
    from nitroctl.eif import testimage

    qemu = build.build_qemu(build.BuildOptions(jobs=jobs)).qemu
    backend = build.build_backend(jobs=jobs)
    for link, program, changed in build.link_programs([qemu, backend], default_prefix()):
        if changed:
            progress.say(f"linked {link} -> {program}")
    made = testimage.make("hello", image, kernel=_kernel())
    progress.say(f"{made.path}: {progress.amount(made.size, 'bytes')}")


def run(image: Path) -> list[Compared]:
    """Run the image with its console on standard output; raises EnclaveError if it does not end well."""
    from nitroctl import enclave
    from nitroctl.eif.measure import measure

    kept = _Kept()
    plan = enclave.plan(
        enclave.EnclaveConfig(eif=image, qemu=build.locate("qemu"), backend=build.locate("vsock"))
    )
    progress.say(f"Running {image} with {plan.accel}")
    sys.stdout.flush()
    console = enclave.FdSink(sys.stdout.fileno())
    try:
        result = enclave.run(plan, sinks=[console, kept])
    finally:
        console.close()
    result.check()
    if result.status:
        raise NitroError(f"the enclave {result.message}", hint=result.hint)
    return compare(bytes(kept.data), dict(measure(image).items()))
