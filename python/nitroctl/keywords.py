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
    """Memory of the enclave: 512, 512M, 4G (a bare number is MiB). Default: four times the EIF, at least
    512M."""

    memory_check: bool
    """False: allow less memory than four times the EIF. Default: True."""

    cpus: int
    """Virtual CPUs. Default: 1."""

    cid: int | None
    """Context ID (CID) of the enclave's vsock. Default: the lowest free one from 16."""

    name: str | None
    """Name of the enclave. Default: that of the file, without .eif."""

    role: str | None
    """IAM role of the parent instance, measured into PCR3."""

    instance_id: str
    """ID of the parent instance, measured into PCR4. Default: i-0000000000000000."""

    append: str | None
    """Text to add to the EIF's kernel command line; not measured."""

    overlay: Sequence[StrPath]
    """A folder or cpio archive (newc) to unpack over the image's ramdisks. The enclave is unmeasured then:
    PCR0, 1, 2 and 8 read as zeros."""

    overlay_keep_pcrs: bool
    """Keep the image's PCRs in an unmeasured enclave; the certificate above its attestation documents says
    that it is unmeasured."""

    boot_timeout: float | None
    """How long to wait for the heartbeat, with which init reports that it runs. Default: AWS's rule, 180 s
    for most images."""

    debug_mode: bool
    """PCR0, 1, 2 and 8 read as zeros, as in AWS's debug mode."""

    ca_days: int | None
    """For how many days the enclave can issue attestation documents. Default: 30."""

    document_form: Literal["2025", "2023"]
    """Form of attestation documents: as AWS issued them in that year. Default: 2025."""

    ignore_signature: bool
    """Start an image with a bad signature, with a warning."""

    publish: Sequence[str]
    """Forward connections to ADDR (HOST:PORT or a socket's path) to the enclave's PORT."""

    proxy: Sequence[str]
    """Forward the enclave's connections to the parent's PORT to this TCP service."""

    listen_port: Sequence[str]
    """Forward the enclave's connections to the parent's PORT to the unix socket PATH."""

    connect_port: Sequence[str]
    """Create the unix socket PATH and forward its connections to the enclave's PORT."""

    forward_cid: int | None
    """Connect parent ports that nothing else serves to CID's, over this host's AF_VSOCK; 1: the host."""

    forward_listen: Sequence[str]
    """Listen on these ports of this host's AF_VSOCK and forward CID's connections to the enclave."""

    kms: bool
    """Start a local KMS on the parent's port 8000; see `nitroctl kms`."""

    kms_allow_unmeasured: bool
    """Let that KMS accept documents of an unmeasured enclave that keeps its PCRs."""

    trust_kms_ca: bool
    """Add that KMS's CA to the image's CA bundles by an overlay; the enclave is unmeasured then."""

    pcap: StrPath | None
    """Capture all vsock packets into FILE, for Wireshark; see `nitroctl vsock dump`. Default: none."""

    snaplen: int
    """Keep at most so many bytes of data of each captured packet. Default: 65536."""

    pcap_limit: str | int
    """Stop the capture at this size (a bare number is MiB). Default: 1024."""

    tools: bool
    """Add an agent and busybox, for `nitroctl shell`, `cp`, `top` and core dumps. The enclave is unmeasured
    then."""

    nsm_log: StrPath | None
    """Log each NSM request and its answer to FILE, as lines of JSON."""

    gdb: bool
    """Let gdb attach to the guest, at a unix socket; the default boot timeout is off."""

    gdb_wait: bool
    """Start with the CPUs stopped, until gdb continues."""

    accel: Literal["kvm", "tcg"] | None
    """Accelerator to use. Default: KVM where it works."""

    qemu: StrPath | None
    """QEMU program to run. Default: as --qemu-build says."""

    qemu_build: Literal["plugin", "bundled", "tree"] | None
    """QEMU to run: the distribution's with the plugin, the bundled one, or one built from source. Default:
    the first of these that exists."""

    vsock_backend: StrPath | None
    """vhost-user-vsock program to run. Default: the bundled one, or that of `nitroctl build`."""

    sandbox: bool
    """False: run QEMU and the vsock backend without their sandbox. Default: True."""


class BuildKeywords(TypedDict, total=False):
    """Of nitroctl.build_eif and the fixture nitro_eif."""

    image: StrPath | None
    """Container image: an OCI layout, oci-archive, `docker save` archive, or docker://NAME."""

    arch: Literal["x86_64", "aarch64"] | None
    """Architecture of the enclave. Default: that of --platform, --blobs or the kernel file, else this
    host's."""

    platform: str | None
    """Platform to take from a multi-platform image, such as linux/amd64/v3."""

    directory: StrPath | None
    """Folder that becomes the application's root file system."""

    cmd: Sequence[str]
    """With a directory: the program and its arguments, one word each."""

    env: Mapping[str, str] | None
    """With a directory: an environment variable."""

    workdir: str
    """With a directory: the program's working directory."""

    user: str
    """With a directory: the user that the program runs as."""

    as_aws: bool
    """Make the ramdisks that AWS's build-enclave makes, byte for byte, for its PCRs."""

    trust_ca: StrPath | None
    """CA certificates (PEM) to add to the image's CA bundles, such as `nitroctl kms ca`'s; measured."""

    aws_cmd: bool
    """Start the image as AWS does: CMD without ENTRYPOINT, as root, in /."""

    allow_missing_program: bool
    """Build even if the program to start is not in the image."""

    kernel: StrPath | None
    """Kernel file (x86 bzImage, arm64 Image), or nitroctl's (own), or Debian's (prebuilt). Default: own if it
    was built, else prebuilt."""

    cmdline: str | None
    """Kernel command line. Default: AWS's."""

    blobs: StrPath | None
    """Use AWS's kernel and init: their folder, a checkout of aws-nitro-enclaves-cli, or Amazon Linux's RPM
    aws-nitro-enclaves-cli-devel."""

    ramdisk: Sequence[StrPath]
    """Without an image or directory: ramdisks (cpio archives), one or more."""

    compress: bool
    """Compress the ramdisks (gzip); the same input gives the same bytes."""

    name: str | None
    """Image name in the metadata. Default: that of the kernel or application."""

    version: str | None
    """Image version in the metadata. Default: 1.0, or the image's id."""

    metadata: StrPath | None
    """JSON file (up to 4 KiB) with custom metadata."""

    build_time: str | None
    """Build time in the metadata: RFC 3339 or "now". Default: SOURCE_DATE_EPOCH, else 1970, for reproducible
    builds."""

    signing_certificate: StrPath | None
    """PEM certificate to sign the image with."""

    private_key: StrPath | None
    """PEM key of that certificate."""

    signer: FileSigner | str | None
    """Command that signs its standard input, instead of a key file."""

    kernel_check: bool
    """False: do not check that the kernel can be booted. Default: True."""
