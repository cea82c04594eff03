# SPDX-License-Identifier: MIT
"""`nitroctl run`: an enclave in the foreground, its console on standard output, or detached."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nitroctl.base import shown
from nitroctl.commands import PATH

if TYPE_CHECKING:
    from nitroctl.enclaves.records import Record


@click.command()
@click.argument("file", type=PATH)
@click.option("--memory", metavar="SIZE", help="Memory: 512, 512M, 4G (bare numbers are MiB). "
              "Default: four times the EIF, at least 512M.")  # fmt: skip
@click.option("--no-memory-check", is_flag=True, help="Allow less memory than four times the EIF.")
@click.option("--cpus", type=click.IntRange(1, 255), default=1, show_default=True, help="Virtual CPUs.")
@click.option("--cid", type=int, help="Context ID. Default: the lowest free one from 16.")
@click.option("--name", help="Name of the enclave. Default: the file's, without .eif.")
@click.option("--role", metavar="ARN", help="IAM role of the parent instance: PCR3.")
@click.option("--instance-id", metavar="ID", default="i-0000000000000000", show_default=True,
              help="ID of the parent instance: PCR4.")  # fmt: skip
@click.option("--append", metavar="TEXT", help="Added to the kernel command line of the EIF.")
@click.option("--boot-timeout", type=float, metavar="SECONDS",
              help="How long to wait for the heartbeat. Default: AWS's rule, 180 s for most.")  # fmt: skip
@click.option("--debug-mode", is_flag=True, help="PCR0, 1, 2 and 8 read as zeros, as in AWS's debug mode.")
@click.option("--ca-days", type=click.IntRange(1, 3650), default=30, show_default=True, metavar="DAYS",
              help="How long the enclave can issue attestation documents.")  # fmt: skip
@click.option(
    "--document-form",
    type=click.Choice(["2025", "2023"]),
    default="2025",
    show_default=True,
    help="Shape of attestation documents: as AWS made them in that year.",
)
@click.option("--ignore-signature", is_flag=True, help="Start an image whose signature is bad, and warn.")
@click.option(
    "--publish",
    metavar="ADDR=PORT",
    multiple=True,
    help="Join clients of ADDR, HOST:PORT or a path, to the enclave's PORT.",
)
@click.option(
    "--proxy", metavar="PORT=HOST:PORT", multiple=True, help="The parent's PORT is that TCP service."
)
@click.option(
    "--listen-port",
    metavar="PORT=PATH",
    multiple=True,
    help="The parent's PORT is served by the unix socket PATH.",
)
@click.option(
    "--connect-port",
    metavar="PORT=PATH",
    multiple=True,
    help="Join clients of the unix socket PATH, which is made, to the enclave's PORT.",
)
@click.option(
    "--forward-cid",
    type=int,
    metavar="CID",
    help="Ports that nothing else serves are CID's by this host's own AF_VSOCK; 1 is the host.",
)
@click.option(
    "--forward-listen",
    metavar="PORT+PORT...",
    multiple=True,
    help="Join CID's clients of these ports of this host's AF_VSOCK to the enclave's.",
)
@click.option(
    "--app-status",
    is_flag=True,
    help="End with the application's own exit status, where it is known, instead of 0 or 5.",
)
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Leave it running once it has booted, and print its ID; see `nitroctl ps`.",
)
@click.option("--json", "as_json", is_flag=True, help="With --detach: print its record in JSON.")
@click.option("--dry-run", is_flag=True, help="Print the command lines of backend and QEMU, start nothing.")
@click.option("--qemu", type=PATH, help="The QEMU to use.")
@click.option(
    "--qemu-build",
    type=click.Choice(["plugin", "tree"]),
    help="Which QEMU of `nitroctl build`. Default: the plugin, if there is one, else the tree.",
)
@click.option("--vsock-backend", type=PATH, help="The vhost-user-vsock to use.")
def run(
    file: Path,
    memory: str | None,
    no_memory_check: bool,
    cpus: int,
    cid: int | None,
    name: str | None,
    role: str | None,
    instance_id: str,
    append: str | None,
    boot_timeout: float | None,
    debug_mode: bool,
    ca_days: int,
    document_form: Literal["2025", "2023"],
    ignore_signature: bool,
    publish: tuple[str, ...],
    proxy: tuple[str, ...],
    listen_port: tuple[str, ...],
    connect_port: tuple[str, ...],
    forward_cid: int | None,
    forward_listen: tuple[str, ...],
    app_status: bool,
    detach: bool,
    as_json: bool,
    dry_run: bool,
    qemu: Path | None,
    qemu_build: Literal["plugin", "tree"] | None,
    vsock_backend: Path | None,
) -> int:
    """Run the enclave FILE, print its console, and end with it; with --detach only wait for its heartbeat.

    Exit status: 0 after a heartbeat and an orderly end, 2 for a wrong request, 3 without a heartbeat, 4 after
    a panic of the guest's kernel, 5 if the application failed, 130 after Ctrl-C, 143 after SIGTERM, 1 for
    everything else that went wrong.
    """
    from nitroctl.base.memory import parse_memory
    from nitroctl.enclaves import foreground, supervisor
    from nitroctl.enclaves.plan import by_hand, make_plan
    from nitroctl.enclaves.qemu import signs_documents
    from nitroctl.enclaves.request import EnclaveConfig
    from nitroctl.enclaves.sink import FdSink
    from nitroctl.vsock.forwards import forwards

    if as_json and not detach:
        raise click.UsageError("--json goes with --detach; in the foreground, standard output is the console")
    if app_status and detach:
        raise click.UsageError("--app-status is for the end; with --detach, give it to `nitroctl wait`")
    if qemu and qemu_build:
        raise click.UsageError("--qemu-build chooses a QEMU, and so does --qemu")
    chain_days: int | None = ca_days
    if qemu is not None and not signs_documents(qemu):
        chain_days = None
        shown.say(f"note: {qemu} takes no certificates: it cannot sign attestation documents")
    request = EnclaveConfig(
        eif=file,
        qemu=qemu or _qemu(qemu_build),
        backend=vsock_backend or _backend(),
        name=name,
        memory_mib=None if memory is None else parse_memory(memory),
        memory_check=not no_memory_check,
        cpus=cpus,
        cid=cid,
        role=role,
        instance_id=instance_id,
        append=append,
        boot_timeout=boot_timeout,
        debug=debug_mode,
        ignore_signature=ignore_signature,
        chain_days=chain_days,
        document_form=document_form,
        forwards=forwards(publish, proxy, listen_port, connect_port, forward_cid, forward_listen),
    )
    plan = make_plan(request)
    for note in plan.notes:
        shown.say(f"note: {note}")
    if dry_run:
        for argv in by_hand(plan):
            shown.data(shown.command(argv))
        return 0
    if detach:
        record = supervisor.start(request, _tell)
        shown.data(json.dumps(record.to_json(), indent=2) if as_json else record.id)
        return 0
    with contextlib.ExitStack() as stack:
        sinks = []
        if sys.stdout is not None:  # None where it was closed: `>&-`
            sys.stdout.flush()
            sinks.append(FdSink(sys.stdout.fileno()))
            stack.callback(sinks[0].close)
        result = foreground.run(plan, sinks=sinks, on_state=_tell)
    if not app_status or result.app_status is None:
        result.check()
    shown.say(f"Enclave {plan.name}: {result.message}")
    return result.status if not app_status or result.app_status is None else result.app_status


def _qemu(kind: Literal["plugin", "tree"] | None) -> Path:
    from nitroctl.toolchain import plugin

    return plugin.choose(kind)


def _backend() -> Path:
    from nitroctl.toolchain import tree

    return tree.locate("vsock")


def _tell(record: Record) -> None:
    """One line on standard error for each state that a user waits for."""
    from nitroctl.enclaves.records import State

    if record.state is State.STARTING:
        cpus = "1 CPU" if record.cpus == 1 else f"{record.cpus} CPUs"
        accel = f"{record.accel.upper()} ({record.accel_reason})"
        text = f"CID {record.cid}, {record.memory_mib} MiB, {cpus}, {accel}, vsock {record.uds}"
    elif record.state is State.RUNNING and record.booted:
        text = f"heartbeat after {record.booted - record.started:.1f} s"
    else:
        return
    shown.say(f"Enclave {record.name}: {text}")
