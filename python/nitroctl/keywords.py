# SPDX-License-Identifier: MIT
"""The keywords of the Python API, as type checkers and editors want them. Made by tools/generate from the
requests' fields (`base.options`): not to be edited, and nothing is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

StrPath = str | os.PathLike[str]


class RunKeywords(TypedDict, total=False):
    """Of nitroctl.Enclave and the fixtures that start one."""

    memory: str | int | None
    """Memory: 512, 512M, 4G (bare numbers are MiB). Default: four times the EIF, at least 512M."""

    memory_check: bool
    """False: allow less memory than four times the EIF. Default: True."""

    cpus: int
    """Virtual CPUs. Default: 1."""

    cid: int | None
    """Context ID. Default: the lowest free one from 16."""

    name: str | None
    """Name of the enclave. Default: the file's, without .eif."""

    role: str | None
    """IAM role of the parent instance: PCR3."""

    instance_id: str
    """ID of the parent instance: PCR4. Default: i-0000000000000000."""

    append: str | None
    """Added to the kernel command line of the EIF."""

    boot_timeout: float | None
    """How long to wait for the heartbeat. Default: AWS's rule, 180 s for most."""

    debug_mode: bool
    """PCR0, 1, 2 and 8 read as zeros, as in AWS's debug mode."""

    ca_days: int | None
    """How long the enclave can issue attestation documents. Default: 30."""

    document_form: Literal["2025", "2023"]
    """Shape of attestation documents: as AWS made them in that year. Default: 2025."""

    ignore_signature: bool
    """Start an image whose signature is bad, and warn."""

    publish: Sequence[str]
    """Join clients of ADDR, HOST:PORT or a path, to the enclave's PORT."""

    proxy: Sequence[str]
    """The parent's PORT is that TCP service."""

    listen_port: Sequence[str]
    """The parent's PORT is served by the unix socket PATH."""

    connect_port: Sequence[str]
    """Join clients of the unix socket PATH, which is made, to the enclave's PORT."""

    forward_cid: int | None
    """Ports that nothing else serves are CID's by this host's own AF_VSOCK; 1 is the host."""

    forward_listen: Sequence[str]
    """Join CID's clients of these ports of this host's AF_VSOCK to the enclave's."""

    accel: Literal["kvm", "tcg"] | None
    """Force an accelerator. Default: KVM where it works."""

    qemu: StrPath | None
    """The QEMU to use. Default: as --qemu-build says."""

    qemu_build: Literal["plugin", "bundled", "tree"] | None
    """Which QEMU that nitroctl has. Default: the plugin, the bundled one or the tree's: the first that is
    there."""

    vsock_backend: StrPath | None
    """The vhost-user-vsock to use. Default: the bundled one, or that of `nitroctl build`."""
