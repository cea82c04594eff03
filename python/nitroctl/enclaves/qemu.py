# SPDX-License-Identifier: MIT
"""QEMU's command line for one enclave: a frozen configuration in, a list of arguments out.

No enclave is started here and nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nitroctl.base.accelerator import Accelerator


class QemuConfig(NamedTuple):
    """All that the command line depends on. Sockets are paths, or numbers of such that QEMU inherits: `vsock`
    and `qmp` connected ones, None for no monitor; `gdb` one that listens. The guest's serial port is QEMU's
    standard output."""

    binary: Path
    eif: Path
    vsock: Path | int
    name: str
    module_id: str
    accel: Accelerator
    memory_mib: int
    cpus: int = 1
    parent_id: str | None = None
    parent_role: str | None = None
    append: str | None = None
    acpi: bool = False
    debug: bool = False
    ignore_signature: bool = False
    cert_chain: Path | None = None  # PEM, root first; with it goes `cert_key`
    cert_key: Path | None = None
    overlay: Path | None = None
    keep_pcrs: bool = False
    document_form: str = "2025"  # of attestation documents; the default is not passed on
    qmp: int | None = None
    gdb: Path | int | None = None  # the socket of the debugger's stub
    gdb_wait: bool = False  # the CPUs stand still until it says so
    core: bool = True  # the guest's memory may come into a core dump of QEMU
    sandbox: str | None = None  # QEMU's own
    extra: Sequence[str] = ()


def escape(value: str | os.PathLike[str]) -> str:
    """A value inside a comma-separated QEMU option: commas are doubled."""
    return os.fspath(value).replace(",", ",,")


def _socket(socket: Path | int) -> str:
    return f"fd={socket}" if isinstance(socket, int) else f"path={escape(socket)}"


def _machine(config: QemuConfig) -> str:
    options = ["nitro-enclave", "vsock=vsock", f"id={escape(config.module_id)}"]
    if config.parent_id is not None:
        options.append(f"parent-id={escape(config.parent_id)}")
    if config.parent_role is not None:
        options.append(f"parent-role={escape(config.parent_role)}")
    if config.acpi:
        options.append("acpi=on")
    if config.debug:
        options.append("debug-mode=on")
    if config.ignore_signature:
        options.append("eif-signature=ignore")
    if config.cert_chain is not None and config.cert_key is not None:
        options.append(f"cert-chain={escape(config.cert_chain)}")
        options.append(f"cert-key={escape(config.cert_key)}")
    if config.overlay is not None:
        options.append(f"overlay={escape(config.overlay)}")
    if config.keep_pcrs:
        options.append("overlay-keep-pcrs=on")
    if config.document_form != "2025":
        options.append(f"document-form={escape(config.document_form)}")
    if not config.core:
        options.append("dump-guest-core=off")
    return ",".join(options)


def signs_documents(binary: Path) -> bool:
    """Whether this QEMU's nitro-enclave machine takes a certificate chain. Upstream's does not."""
    from nitroctl.base import proc

    said = proc.run([binary, "-M", "nitro-enclave,help"], check=False).stdout.decode(errors="replace")
    return "cert-chain=" in said


def argv(config: QemuConfig) -> list[str]:
    """The command line. None of QEMU's defaults is left: no display, no monitor but QMP, no user config."""
    args = [os.fspath(config.binary)]
    args += ["-M", _machine(config)]
    args += ["-name", f"guest={escape(config.name)}"]
    args += ["-accel", config.accel.name, "-cpu", config.accel.cpu]
    args += ["-smp", str(config.cpus), "-m", f"{config.memory_mib}M"]
    args += ["-kernel", os.fspath(config.eif)]
    if config.append is not None:
        args += ["-append", config.append]
    args += ["-nodefaults", "-no-user-config", "-display", "none"]
    args += ["-chardev", f"socket,id=vsock,{_socket(config.vsock)}"]
    args += ["-serial", "stdio"]
    if config.qmp is not None:
        args += ["-chardev", f"socket,id=qmp,fd={config.qmp}", "-mon", "chardev=qmp,mode=control"]
    if config.gdb is not None:
        args += ["-chardev", f"socket,id=gdb,{_socket(config.gdb)},server=on,wait=off"]
        args += ["-gdb", "chardev:gdb"]
        args += ["-S"] if config.gdb_wait else []
    if config.sandbox is not None:
        args += ["-sandbox", config.sandbox]
    return [*args, *config.extra]
