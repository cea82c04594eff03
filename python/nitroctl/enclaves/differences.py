# SPDX-License-Identifier: MIT
"""What of a run there is not on AWS, as far as request, image and what is asked of the enclave tell it: by
names, which docs/differences.md explains. For tests that shall not depend on any of it (`strict`); nothing is
forbidden here otherwise.

What a program inside finds out for itself, the CPU's name for instance, cannot be seen from here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base.errors import NitroError, UsageError
from nitroctl.base.memory import default_memory
from nitroctl.enclaves.request import RunRequest

IMAGE = "lint:"  # before the names of rules of `nitroctl eif lint`


@dataclass(frozen=True)
class Difference:
    name: str
    text: str


class DiffersFromAws(NitroError):
    """A strict enclave was asked for what there is not on AWS. `names` are those of the differences."""

    def __init__(self, found: Collection[Difference]) -> None:
        self.names = tuple(one.name for one in found)
        lines = [f"{one.text} [{one.name}]" for one in found]
        super().__init__(
            "this depends on what there is not on AWS",
            lines=lines,
            hint="docs/differences.md says more; where it is meant, allow it: differs=" + repr(self.names),
        )


# Options of a run that AWS has in the same sense, or that change nothing which an enclave could notice.
SAME = frozenset(
    {
        "eif", "memory", "cid", "name", "role", "instance_id", "boot_timeout", "debug_mode", "ca_days",
        "proxy", "listen_port", "connect_port", "kms", "kms_allow_unmeasured", "accel", "qemu",
        "qemu_build", "vsock_backend", "sandbox", "snaplen", "pcap_limit", "nsm_log",
    }
)  # fmt: skip

# The others: the difference's name, what it says, and whether a value makes it.
OPTIONS: dict[str, tuple[str, str, Callable[[object], bool]]] = {
    "memory_check": (
        "memory-check",
        "less memory than four times the EIF is allowed, which nitro-cli refuses (E26)",
        lambda value: not value,
    ),
    "cpus": (
        "cpu-count",
        "an odd number of CPUs: AWS gives whole cores, two CPUs each, on most instances (E29)",
        lambda value: isinstance(value, int) and value % 2 == 1,
    ),
    "overlay": ("overlay", "something is unpacked over the image, unmeasured", bool),
    "overlay_keep_pcrs": ("overlay", "the PCRs are the image's, and something else runs as well", bool),
    "tools": ("tools", "an agent of ours and busybox run beside the application, unmeasured", bool),
    "trust_kms_ca": ("overlay", "the image trusts the local KMS's CA, unmeasured", bool),
    "append": ("append", "words are added to the kernel's command line, unmeasured", bool),
    "document_form": (
        "document-form",
        "attestation documents have the shape that AWS's had in 2023",
        lambda value: value != "2025",
    ),
    "ignore_signature": ("ignore-signature", "a bad signature does not keep the image from starting", bool),
    "publish": (
        "publish",
        "a port of the enclave's is joined to TCP or a path, which nothing on AWS does",
        bool,
    ),
    "pcap": ("capture", "packets of vsock are captured, which nothing on AWS does", bool),
    "gdb": ("gdb", "a debugger can stop the enclave, and look into it", bool),
    "gdb_wait": ("gdb", "the enclave waits for a debugger", bool),
    "forward_cid": ("host-vsock", "ports of the parent's are those of this host's own AF_VSOCK", bool),
    "forward_listen": ("host-vsock", "ports of the enclave's are joined to this host's own AF_VSOCK", bool),
}

# What is asked of a running enclave.
USES = {
    "console": "the console is read, which AWS has in debug mode alone",
    "app-status": "the application's status is asked for, which AWS tells nobody",
    "capture": "packets of vsock are captured, which nothing on AWS does",
    "faults": "something is made to go wrong, which nobody can on AWS",
    "stats": "what its ports and processes have counted is asked for, which AWS tells nobody",
}

NAMES = frozenset({*USES, *(name for name, _, _ in OPTIONS.values())})


def checked(names: Iterable[str]) -> frozenset[str]:
    """Names of differences as a user gives them. Raises UsageError for unknown ones."""
    if isinstance(names, str):
        raise UsageError(f"differs is a list: differs=[{names!r}]")
    for name in (found := frozenset(names)):
        if name not in NAMES and not name.startswith(IMAGE):
            known = ", ".join(sorted(NAMES))
            raise UsageError(f"there is no difference {name!r}; there are {known}, and {IMAGE}RULE")
    return found


def of_request(request: RunRequest) -> list[Difference]:
    return [
        Difference(name, text)
        for option, (name, text, differs) in OPTIONS.items()
        if differs(getattr(request, option))
    ]


def of_image(eif: Path, memory: int | None) -> list[Difference]:
    """What `eif lint` finds that is more than a note."""
    try:
        status = eif.stat()
    except OSError as e:
        raise NitroError(f"cannot read {eif}: {e.strerror}") from e
    given = default_memory(status.st_size) if memory is None else memory
    return list(_linted(os.fspath(eif.absolute()), status.st_mtime_ns, status.st_size, given))


@functools.lru_cache(maxsize=64)
def _linted(path: str, mtime: int, size: int, memory: int) -> tuple[Difference, ...]:
    from nitroctl.eif.lint import lint

    found = lint(Path(path), memory=memory)
    return tuple(Difference(IMAGE + one.rule, one.text) for one in found if one.severity != "note")
