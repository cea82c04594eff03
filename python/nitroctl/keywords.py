# SPDX-License-Identifier: MIT
"""The keywords of the Python API, as type checkers and editors want them. Made by tools/generate from the
requests' fields (`base.options`): not to be edited, and nothing is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from nitroctl.eif.build import FileSigner

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

    overlay: Sequence[StrPath]
    """A folder, or a cpio archive (newc), unpacked over the image's ramdisks, unmeasured: PCR0, 1, 2 and 8
    read as zeros."""

    overlay_keep_pcrs: bool
    """Keep the image's PCRs although it runs unmeasured; documents are issued under a certificate that says
    so."""

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

    kms: bool
    """The parent's port 8000 is the local KMS, started with it; see `nitroctl kms`."""

    kms_allow_unmeasured: bool
    """That KMS takes documents of an enclave that keeps its PCRs unmeasured."""

    trust_kms_ca: bool
    """The image's own bundles of roots have that KMS's CA as well, by an overlay: unmeasured."""

    pcap: StrPath | None
    """Capture all packets of its vsock into FILE, for wireshark; see `nitroctl vsock dump`. Default: none."""

    snaplen: int
    """Bytes of each packet's data in that capture. Default: 65536."""

    pcap_limit: str | int
    """Where that capture ends. Default: 1024."""

    tools: bool
    """A shell, files, processes and core dumps of the running enclave: `nitroctl shell`, `cp`, `top`. It runs
    unmeasured then."""

    nsm_log: StrPath | None
    """A line of JSON for each request to the NSM."""

    gdb: bool
    """Let a debugger in, at a socket; there is no boot timeout then."""

    gdb_wait: bool
    """Start with the CPUs stopped, for the debugger."""

    accel: Literal["kvm", "tcg"] | None
    """Force an accelerator. Default: KVM where it works."""

    qemu: StrPath | None
    """The QEMU to use. Default: as --qemu-build says."""

    qemu_build: Literal["plugin", "bundled", "tree"] | None
    """Which QEMU that nitroctl has. Default: the plugin, the bundled one or the tree's: the first that is
    there."""

    vsock_backend: StrPath | None
    """The vhost-user-vsock to use. Default: the bundled one, or that of `nitroctl build`."""

    sandbox: bool
    """False: give QEMU and the vsock backend all that their user has on this host. Default: True."""


class BuildKeywords(TypedDict, total=False):
    """Of nitroctl.build_eif and the fixture nitro_eif."""

    image: StrPath | None
    """A container image: OCI layout, oci-archive, `docker save`; or docker://NAME."""

    arch: Literal["x86_64", "aarch64"] | None
    """What it is for. Default: as --platform, --blobs or the kernel's file say, else this host's."""

    platform: str | None
    """linux/amd64/v3, for instance, where there are several."""

    directory: StrPath | None
    """A folder that becomes the root file system."""

    cmd: Sequence[str]
    """With a directory: program and arguments, one each."""

    env: Mapping[str, str] | None
    """With a directory: a variable."""

    workdir: str
    """With a directory: where the program starts."""

    user: str
    """With a directory: who it runs as."""

    as_aws: bool
    """Make what AWS's build-enclave makes, byte for byte: its PCRs."""

    trust_ca: StrPath | None
    """CA certificates in PEM that the image trusts as well, as that of `nitroctl kms ca`; measured."""

    aws_cmd: bool
    """Start the image as AWS does: CMD alone, as root, in /."""

    allow_missing_program: bool
    """Make it also if the program to start is not in it."""

    kernel: StrPath | None
    """An x86 bzImage or arm64 Image; with an application also own or prebuilt. Default: own if it was built,
    else prebuilt."""

    cmdline: str | None
    """The kernel's command line. Default: AWS's."""

    blobs: StrPath | None
    """Start with AWS's kernel and init: their folder, a checkout of aws-nitro-enclaves-cli, or Amazon Linux's
    RPM aws-nitro-enclaves-cli-devel."""

    ramdisk: Sequence[StrPath]
    """From parts: a cpio archive, of which there may be several."""

    compress: bool
    """Compress the ramdisks (gzip), the same bytes every time."""

    name: str | None
    """The image's name in its metadata. Default: that of kernel or application."""

    version: str | None
    """The image's version in its metadata. Default: 1.0, or the image's id."""

    metadata: StrPath | None
    """JSON file (up to 4 KiB) for the image's custom metadata."""

    build_time: str | None
    """RFC 3339 or "now". Default: SOURCE_DATE_EPOCH, else 1970, so that builds repeat."""

    signing_certificate: StrPath | None
    """PEM certificate, to sign the image with."""

    private_key: StrPath | None
    """PEM key of that certificate."""

    signer: FileSigner | str | None
    """Command that signs its standard input, in place of a key."""

    kernel_check: bool
    """False: take any file for the kernel. Default: True."""
