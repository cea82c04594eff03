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
            "Memory: 512, 512M, 4G (bare numbers are MiB).",
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
        Option("Context ID.", unset="the lowest free one from 16", check=_check_cid, nitro_cli="enclave_cid"),
    ] = None
    name: Annotated[
        str | None,
        Option(
            "Name of the enclave.",
            unset="the file's, without .eif",
            check=_check_name,
            nitro_cli="enclave_name",
        ),
    ] = None
    role: Annotated[
        str | None, Option("IAM role of the parent instance: PCR3.", metavar="ARN", check=_check_role)
    ] = None
    instance_id: Annotated[
        str, Option("ID of the parent instance: PCR4.", metavar="ID", check=_check_instance_id)
    ] = "i-0000000000000000"
    append: Annotated[
        str | None, Option("Added to the kernel command line of the EIF.", check=_check_append)
    ] = None
    overlay: Annotated[
        tuple[Path, ...],
        Option(
            "A folder, or a cpio archive (newc), unpacked over the image's ramdisks, unmeasured: PCR0, 1, 2 "
            "and 8 read as zeros.",
            metavar="DIR|FILE.cpio",
        ),
    ] = ()
    overlay_keep_pcrs: Annotated[
        bool,
        Option(
            "Keep the image's PCRs although it runs unmeasured; documents are issued under a certificate "
            "that says so.",
            excludes=("debug_mode",),
            needs=("overlay", "append", "tools", "trust_kms_ca"),
        ),
    ] = False
    boot_timeout: Annotated[
        float | None,
        Option(
            "How long to wait for the heartbeat.",
            metavar="SECONDS",
            unit="s",
            unset="AWS's rule, 180 s for most",
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
            "How long the enclave can issue attestation documents.",
            metavar="DAYS",
            unit="days",
            check=_check_ca_days,
        ),
    ] = 30
    document_form: Annotated[
        Literal["2025", "2023"], Option("Shape of attestation documents: as AWS made them in that year.")
    ] = "2025"
    ignore_signature: Annotated[bool, Option("Start an image whose signature is bad, and warn.")] = False
    publish: Annotated[
        tuple[str, ...],
        Option("Join clients of ADDR, HOST:PORT or a path, to the enclave's PORT.", metavar="ADDR=PORT"),
    ] = ()
    proxy: Annotated[
        tuple[str, ...], Option("The parent's PORT is that TCP service.", metavar="PORT=HOST:PORT")
    ] = ()
    listen_port: Annotated[
        tuple[str, ...],
        Option("The parent's PORT is served by the unix socket PATH.", metavar="PORT=PATH"),
    ] = ()
    connect_port: Annotated[
        tuple[str, ...],
        Option(
            "Join clients of the unix socket PATH, which is made, to the enclave's PORT.",
            metavar="PORT=PATH",
        ),
    ] = ()
    forward_cid: Annotated[
        int | None,
        Option(
            "Ports that nothing else serves are CID's by this host's own AF_VSOCK; 1 is the host.",
            metavar="CID",
        ),
    ] = None
    forward_listen: Annotated[
        tuple[str, ...],
        Option(
            "Join CID's clients of these ports of this host's AF_VSOCK to the enclave's.",
            metavar="PORT+PORT...",
        ),
    ] = ()
    kms: Annotated[
        bool, Option("The parent's port 8000 is the local KMS, started with it; see `nitroctl kms`.")
    ] = False
    kms_allow_unmeasured: Annotated[
        bool,
        Option("That KMS takes documents of an enclave that keeps its PCRs unmeasured.", needs=("kms",)),
    ] = False
    trust_kms_ca: Annotated[
        bool,
        Option(
            "The image's own bundles of roots have that KMS's CA as well, by an overlay: unmeasured.",
            needs=("kms",),
        ),
    ] = False
    pcap: Annotated[
        Path | None,
        Option("Capture all packets of its vsock into FILE, for wireshark; see `nitroctl vsock dump`.",
               metavar="FILE", unset="none"),
    ] = None  # fmt: skip
    snaplen: Annotated[
        int,
        Option("Bytes of each packet's data in that capture.", metavar="BYTES", check=_check_snaplen),
    ] = 65536
    pcap_limit: Annotated[
        int,
        Option("Where that capture ends.", metavar="SIZE", unit="MiB", parse=parse_memory),
    ] = 1024
    tools: Annotated[
        bool,
        Option(
            "A shell, files, processes and core dumps of the running enclave: `nitroctl shell`, `cp`, `top`. "
            "It runs unmeasured then."
        ),
    ] = False
    nsm_log: Annotated[
        Path | None,
        Option("A line of JSON for each request to the NSM.", metavar="FILE", nitro_cli=False),
    ] = None
    gdb: Annotated[
        bool, Option("Let a debugger in, at a socket; there is no boot timeout then.", nitro_cli=False)
    ] = False
    gdb_wait: Annotated[
        bool,
        Option(
            "Start with the CPUs stopped, for the debugger.", flag="--wait", needs=("gdb",), nitro_cli=False
        ),
    ] = False
    accel: Annotated[
        Literal["kvm", "tcg"] | None,
        Option("Force an accelerator.", unset="KVM where it works", session=True),
    ] = None
    qemu: Annotated[Path | None, Option("The QEMU to use.", unset="as --qemu-build says", session=True)] = (
        None
    )
    qemu_build: Annotated[
        Literal["plugin", "bundled", "tree"] | None,
        Option(
            "Which QEMU that nitroctl has.",
            unset="the plugin, the bundled one or the tree's: the first that is there",
            excludes=("qemu",),
            session=True,
        ),
    ] = None
    vsock_backend: Annotated[
        Path | None,
        Option(
            "The vhost-user-vsock to use.", unset="the bundled one, or that of `nitroctl build`", session=True
        ),
    ] = None

    sandbox: Annotated[
        bool,
        Option("Give QEMU and the vsock backend all that their user has on this host."),
    ] = True

    # What `publish` and its kin come to, with absolute paths (`vsock.forwards`); `ready` fills it in.
    forwards: tuple[str, ...] = ()
