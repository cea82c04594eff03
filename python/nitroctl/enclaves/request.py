# SPDX-License-Identifier: MIT
"""What a user asks for when an enclave shall run: values only, nothing decided, nothing checked.

The rules are `preflight`'s, and what becomes of it is a `plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nitroctl.attestation import pki
from nitroctl.base.accelerator import Accelerator

DEFAULT_INSTANCE_ID = "i-0000000000000000"


@dataclass(frozen=True)
class EnclaveConfig:
    """What a user asks for; None means the default. Memory in MiB, times in seconds."""

    eif: Path
    qemu: Path
    backend: Path
    name: str | None = None
    memory_mib: int | None = None
    cpus: int = 1
    cid: int | None = None
    role: str | None = None
    instance_id: str = DEFAULT_INSTANCE_ID
    append: str | None = None
    boot_timeout: float | None = None
    accel: Accelerator | None = None
    debug: bool = False  # PCR0, 1, 2 and 8 read as zeros
    ignore_signature: bool = False  # start an image whose signature is bad
    # How long the certificates live under which QEMU issues attestation documents; they are minted from the
    # user's local CA. None: none are, for a QEMU that takes none, or one that shall make its own.
    chain_days: int | None = pki.DEFAULT_DAYS
    document_form: pki.DocumentForm = "2025"  # the shape of attestation documents: AWS's of that year
    memory_check: bool = True  # AWS's rule: at least four times the EIF
    forwards: tuple[str, ...] = ()  # see nitroctl.vsock.forwards
