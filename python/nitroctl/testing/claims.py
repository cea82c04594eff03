# SPDX-License-Identifier: MIT
"""The register of boot checks, and what several of them share. No check is here.

A check is a function whose docstring is its claim; `boot_check` and `generic_check` put it into CHECKS. It
gets a Lab, starts what it needs, and raises CheckFailed when its claim does not hold.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError
from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import Lab, check, check_equal

ZERO = bytes(48)
PCR_COUNT = 32
BOOT_PCRS = range(16)  # locked when the enclave starts
FREE_PCRS = range(16, 32)
VSOCK_ID, NSM_ID = 19, 33  # virtio device IDs
ROLE = "arn:aws:iam::123456789012:role/enclave"
INSTANCE = "i-1234567890abcdef0"


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[Lab], None]
    generic: bool
    guests: int = 1  # at once
    ours: str = ""  # why it cannot hold with AWS's kernel and init, if it is about ours
    x86: str = ""  # why it is asked of x86_64's machine alone, if it is
    built_in: bool = False  # whether its image's init loads no modules: the kernel must have the drivers

    def left_out(self, arch: Arch) -> str:
        """Why it is not asked of a machine for that architecture; empty: it is."""
        if arch == "x86_64":
            return ""
        from nitroctl.toolchain import guest

        if self.built_in and guest.default_kernel(arch) != "own":
            return f"it takes a kernel of ours: nitroctl guest kernel --arch {arch}"
        return self.x86

    @property
    def claim(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


CHECKS: list[Check] = []


def boot_check(run: Callable[[Lab], None], **more: Any) -> Callable[[Lab], None]:
    CHECKS.append(Check(run.__name__.replace("_", "-"), run, **{"generic": False, **more}))
    return run


generic_check = functools.partial(boot_check, generic=True)


def selected(*, user_eif: bool, arch: Arch = "x86_64") -> list[Check]:
    """The checks that make sense for that machine: all, or those for an EIF of which we know nothing."""
    return [c for c in CHECKS if (c.generic or not user_eif) and not c.left_out(arch)]


@dataclass(frozen=True)
class Outcome:
    check: Check
    seconds: float
    error: str | None = None
    evidence: str = ""


def perform(one: Check, lab: Lab) -> Outcome:
    """Run a check; an expected failure becomes part of the outcome, with what the guests said."""
    lab.forget()
    started = time.monotonic()
    try:
        one.run(lab)
    except (NitroError, OSError) as e:
        return Outcome(one, time.monotonic() - started, str(e), lab.evidence())
    return Outcome(one, time.monotonic() - started)


class Nsm:
    """Requests as CBOR, the answers decoded; every name and shape is AWS's API's."""

    def __init__(self, client: Agent) -> None:
        self._client = client

    def call(self, request: object) -> Any:
        import cbor2

        return cbor2.loads(self._client.nsm(cbor2.dumps(request)))

    def ok(self, name: str, fields: dict[str, object] | None = None) -> Any:
        """The fields of a response of the same name (empty for those that have none)."""
        answer = self.call({name: fields} if fields is not None else name)
        if answer == name:
            return {}
        check(isinstance(answer, dict) and list(answer) == [name], f"{name} {fields}: {answer!r}")
        return answer[name]

    def refused(self, name: str, fields: dict[str, object]) -> None:
        answer = self.call({name: fields})
        check(isinstance(answer, dict) and list(answer) == ["Error"], f"{name} {fields}: {answer!r}")

    def pcr(self, index: int) -> tuple[bytes, bool]:
        fields = self.ok("DescribePCR", {"index": index})
        check_equal(len(fields["data"]), 48, f"bytes of PCR{index}")
        return fields["data"], fields["lock"]
