# SPDX-License-Identifier: MIT
"""What a user asks for when an enclave shall run: one line here is one option everywhere (`base.options`).

    commands.run          an option                 supervisor        a key of its JSON
    nitroctl.Enclave      a keyword                 nitro_cli         AWS's option, or a variable
    nitro_enclave         a keyword                 docs              a line of the tables

After a change, `tools/generate` writes the keywords' types and the tables. Rules about one value stand here;
those about the file and this host are `preflight`'s, and what becomes of it all is a `plan`.
"""

# No `from __future__ import annotations`: types that are texts would be compiled at each start.

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from nitroctl.base.errors import UsageError
from nitroctl.base.memory import parse_memory
from nitroctl.base.options import Option, Request

CPUS_MAX = 255
CID_MAX = 0xFFFFFFFE
# Taken by virtio-vsock (0 hypervisor, 1 loopback, 2 host, 0xffffffff any) and by Nitro (3 parent).
RESERVED_CIDS = frozenset({0, 1, 2, 3, 0xFFFFFFFF})
NAME_MAX = 255
CA_DAYS_MAX = 3650
SNAPLEN_MAX = 65536  # bytes of a packet's data

# The machine's limits for what becomes PCR4 and PCR3.
INSTANCE_ID_MAX = 79
ROLE_MAX = 1024


def _check_cpus(cpus: int) -> None:
    if not 1 <= cpus <= CPUS_MAX:
        many = "few" if cpus < 1 else "many"
        raise UsageError(f"{cpus} CPUs are too {many}; an enclave has at least 1, at most {CPUS_MAX}")


def _check_cid(cid: int) -> None:
    if cid in RESERVED_CIDS or not 0 <= cid <= CID_MAX:
        raise UsageError(
            f"context ID {cid} is reserved; use one from 4 to {CID_MAX}",
            hint="leave it out to get the lowest free one from 16",
        )


def _check_name(name: str) -> None:
    if not (0 < len(name) <= NAME_MAX and name.isprintable()):
        raise UsageError(f"the name {name!r} must have 1 to {NAME_MAX} characters, all of them printable")


def _check_measured(what: str, value: str, longest: int) -> None:
    if not 1 <= len(value) <= longest or not all("!" <= c <= "~" for c in value):
        raise UsageError(
            f"the {what} {value[:80]!r} must have 1 to {longest} characters, printable ASCII without spaces"
        )


def _check_role(role: str) -> None:
    _check_measured("role", role, ROLE_MAX)


def _check_instance_id(instance_id: str) -> None:
    _check_measured("instance ID", instance_id, INSTANCE_ID_MAX)


def _check_append(text: str) -> None:
    if not text.isprintable():
        raise UsageError(f"the text {text!r} for the kernel command line is not printable")


def _check_boot_timeout(seconds: float) -> None:
    if not seconds > 0:
        raise UsageError(f"a boot timeout of {seconds:g} s leaves no time to boot")
    if seconds == math.inf:
        raise UsageError("a boot timeout of inf s is no limit", hint="leave it out for AWS's rule")


def _check_ca_days(days: int) -> None:
    if not 1 <= days <= CA_DAYS_MAX:
        raise UsageError(f"certificates for {days} days cannot be had; 1 to {CA_DAYS_MAX} are possible")


def _check_snaplen(snaplen: int) -> None:
    if not 0 <= snaplen <= SNAPLEN_MAX:
        raise UsageError(
            f"a packet has from 0 to {SNAPLEN_MAX} bytes of data; a snaplen of {snaplen} is none"
        )


@dataclass(frozen=True)
class RunRequest(Request):
    """What a user asks for; None means that somebody else shall choose."""

    eif: Annotated[
        Path, Option("The Enclave Image File.", metavar="FILE", argument=True, nitro_cli="eif_path")
    ]
    memory: Annotated[
        int | None,
        Option(
            "Memory of the enclave: 512, 512M, 4G (a bare number is MiB).",
            metavar="SIZE",
            unit="MiB",
            unset="four times the EIF, at least 512M",
            parse=parse_memory,
            nitro_cli="memory_mib",
        ),
    ] = None
    # AWS's rule, which nitro-cli always has.
    memory_check: Annotated[bool, Option("Allow less memory than four times the EIF.", nitro_cli=False)] = (
        True
    )
    cpus: Annotated[int, Option("Virtual CPUs.", check=_check_cpus, nitro_cli="cpu_count")] = 1
    cid: Annotated[
        int | None,
        Option(
            "Context ID (CID) of the enclave's vsock.",
            unset="the lowest free one from 16",
            check=_check_cid,
            nitro_cli="enclave_cid",
        ),
    ] = None
    name: Annotated[
        str | None,
        Option(
            "Name of the enclave.",
            unset="that of the file, without .eif",
            check=_check_name,
            nitro_cli="enclave_name",
        ),
    ] = None
    role: Annotated[
        str | None,
        Option("IAM role of the parent instance, measured into PCR3.", metavar="ARN", check=_check_role),
    ] = None
    instance_id: Annotated[
        str, Option("ID of the parent instance, measured into PCR4.", metavar="ID", check=_check_instance_id)
    ] = "i-0000000000000000"
    append: Annotated[
        str | None, Option("Text to add to the EIF's kernel command line; not measured.", check=_check_append)
    ] = None
    overlay: Annotated[
        tuple[Path, ...],
        Option(
            "A folder or cpio archive (newc) to unpack over the image's ramdisks. The enclave is unmeasured "
            "then: PCR0, 1, 2 and 8 read as zeros.",
            metavar="DIR|FILE.cpio",
        ),
    ] = ()
    overlay_keep_pcrs: Annotated[
        bool,
        Option(
            "Keep the image's PCRs in an unmeasured enclave; the certificate above its attestation documents "
            "says that it is unmeasured.",
            excludes=("debug_mode",),
            needs=("overlay", "append", "tools", "trust_kms_ca"),
        ),
    ] = False
    boot_timeout: Annotated[
        float | None,
        Option(
            "How long to wait for the heartbeat, with which init reports that it runs.",
            metavar="SECONDS",
            unit="s",
            unset="AWS's rule, 180 s for most images",
            check=_check_boot_timeout,
            session=True,
        ),
    ] = None
    debug_mode: Annotated[
        bool,
        Option("PCR0, 1, 2 and 8 read as zeros, as in AWS's debug mode.", nitro_cli="debug_mode"),
    ] = False
    # Certificates are minted from the user's local CA. None: none are, for a QEMU that takes none, or one
    # that shall make its own.
    ca_days: Annotated[
        int | None,
        Option(
            "For how many days the enclave can issue attestation documents.",
            metavar="DAYS",
            unit="days",
            check=_check_ca_days,
        ),
    ] = 30
    document_form: Annotated[
        Literal["2025", "2023"], Option("Form of attestation documents: as AWS issued them in that year.")
    ] = "2025"
    ignore_signature: Annotated[bool, Option("Start an image with a bad signature, with a warning.")] = False
    publish: Annotated[
        tuple[str, ...],
        Option(
            "Forward connections to ADDR (HOST:PORT or a socket's path) to the enclave's PORT.",
            metavar="ADDR=PORT",
        ),
    ] = ()
    proxy: Annotated[
        tuple[str, ...],
        Option(
            "Forward the enclave's connections to the parent's PORT to this TCP service.",
            metavar="PORT=HOST:PORT",
        ),
    ] = ()
    listen_port: Annotated[
        tuple[str, ...],
        Option(
            "Forward the enclave's connections to the parent's PORT to the unix socket PATH.",
            metavar="PORT=PATH",
        ),
    ] = ()
    connect_port: Annotated[
        tuple[str, ...],
        Option(
            "Create the unix socket PATH and forward its connections to the enclave's PORT.",
            metavar="PORT=PATH",
        ),
    ] = ()
    forward_cid: Annotated[
        int | None,
        Option(
            "Connect parent ports that nothing else serves to CID's, over this host's AF_VSOCK; 1: the host.",
            metavar="CID",
        ),
    ] = None
    forward_listen: Annotated[
        tuple[str, ...],
        Option(
            "Listen on these ports of this host's AF_VSOCK and forward CID's connections to the enclave.",
            metavar="PORT+PORT...",
        ),
    ] = ()
    kms: Annotated[bool, Option("Start a local KMS on the parent's port 8000; see `nitroctl kms`.")] = False
    kms_allow_unmeasured: Annotated[
        bool,
        Option("Let that KMS accept documents of an unmeasured enclave that keeps its PCRs.", needs=("kms",)),
    ] = False
    trust_kms_ca: Annotated[
        bool,
        Option(
            "Add that KMS's CA to the image's CA bundles by an overlay; the enclave is unmeasured then.",
            needs=("kms",),
        ),
    ] = False
    pcap: Annotated[
        Path | None,
        Option("Capture all vsock packets into FILE, for Wireshark; see `nitroctl vsock dump`.",
               metavar="FILE", unset="none"),
    ] = None  # fmt: skip
    snaplen: Annotated[
        int,
        Option(
            "Keep at most so many bytes of data of each captured packet.",
            metavar="BYTES",
            check=_check_snaplen,
        ),
    ] = 65536
    pcap_limit: Annotated[
        int,
        Option(
            "Stop the capture at this size (a bare number is MiB).",
            metavar="SIZE",
            unit="MiB",
            parse=parse_memory,
        ),
    ] = 1024
    tools: Annotated[
        bool,
        Option(
            "Add an agent and busybox, for `nitroctl shell`, `cp`, `top` and core dumps. The enclave is "
            "unmeasured then."
        ),
    ] = False
    nsm_log: Annotated[
        Path | None,
        Option(
            "Log each NSM request and its answer to FILE, as lines of JSON.", metavar="FILE", nitro_cli=False
        ),
    ] = None
    gdb: Annotated[
        bool,
        Option(
            "Let gdb attach to the guest, at a unix socket; the default boot timeout is off.", nitro_cli=False
        ),
    ] = False
    gdb_wait: Annotated[
        bool,
        Option(
            "Start with the CPUs stopped, until gdb continues.",
            flag="--wait",
            needs=("gdb",),
            nitro_cli=False,
        ),
    ] = False
    accel: Annotated[
        Literal["kvm", "tcg"] | None,
        Option("Accelerator to use.", unset="KVM where it works", session=True),
    ] = None
    qemu: Annotated[
        Path | None,
        Option("QEMU program to run.", unset="as --qemu-build says", program=True, session=True),
    ] = None
    qemu_build: Annotated[
        Literal["plugin", "bundled", "tree"] | None,
        Option(
            "QEMU to run: the distribution's with the plugin, the bundled one, or one built from source.",
            unset="the first of these that exists",
            excludes=("qemu",),
            session=True,
        ),
    ] = None
    vsock_backend: Annotated[
        Path | None,
        Option(
            "vhost-user-vsock program to run.",
            unset="the bundled one, or that of `nitroctl build`",
            program=True,
            session=True,
        ),
    ] = None

    sandbox: Annotated[
        bool,
        Option("Run QEMU and the vsock backend without their sandbox."),
    ] = True

    # What `publish` and its kin come to, with absolute paths (`vsock.forwards`); `ready` fills it in.
    forwards: tuple[str, ...] = ()
