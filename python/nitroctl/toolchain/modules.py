# SPDX-License-Identifier: MIT
"""Kernel modules for a ramdisk: which ones, in what order, and by what names a kernel asks for them.

A kernel of a distribution has as modules what AWS's has built in. Three lists of them:

    DEVICES   what the enclave's devices need: loaded before the heartbeat
    LATE      what no kernel asks for: loaded after the heartbeat
    DEMAND    the rest, by the option that AWS's kernel has them by: loaded when the kernel asks

The guest's side is guest/modules.c, which says what the files look like. Where packages come from is not
known here.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError

# In the order in which they are wanted.
DEVICES = ("virtio_mmio", "vmw_vsock_virtio_transport", "nsm")

# CID 1 and the PTP clock of KVM are not asked for by any kernel, nor what iptables first asks its tables of.
LATE = {
    "CONFIG_VSOCKETS_LOOPBACK": "vsock_loopback",
    "CONFIG_IP_NF_IPTABLES": "ip_tables",
    "CONFIG_IP6_NF_IPTABLES": "ip6_tables",
    "CONFIG_PTP_1588_CLOCK_KVM": "ptp_kvm",
}

DEMAND = {
    "CONFIG_TUN": "tun",
    "CONFIG_VETH": "veth",
    "CONFIG_BRIDGE": "bridge",
    "CONFIG_BRIDGE_NETFILTER": "br_netfilter",
    "CONFIG_VSOCKETS_DIAG": "vsock_diag",
    "CONFIG_INET_DIAG": "tcp_diag",
    "CONFIG_NF_CONNTRACK": "nf_conntrack",
    "CONFIG_NF_LOG_SYSLOG": "nf_log_syslog",
    "CONFIG_NETFILTER_XTABLES": "x_tables",
    "CONFIG_NETFILTER_XT_NAT": "xt_nat",
    "CONFIG_NETFILTER_XT_TARGET_NETMAP": "xt_NETMAP",
    "CONFIG_NETFILTER_XT_TARGET_REDIRECT": "xt_REDIRECT",
    "CONFIG_NETFILTER_XT_TARGET_MASQUERADE": "xt_MASQUERADE",
    "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE": "xt_addrtype",
    "CONFIG_NETFILTER_XT_MATCH_CONNTRACK": "xt_conntrack",
    "CONFIG_IP_NF_FILTER": "iptable_filter",
    "CONFIG_IP_NF_MANGLE": "iptable_mangle",
    "CONFIG_IP_NF_NAT": "iptable_nat",
    "CONFIG_IP_NF_TARGET_REJECT": "ipt_REJECT",
    "CONFIG_IP_NF_TARGET_SYNPROXY": "ipt_SYNPROXY",
    "CONFIG_IP6_NF_FILTER": "ip6table_filter",
    "CONFIG_IP6_NF_MANGLE": "ip6table_mangle",
    "CONFIG_IP6_NF_NAT": "ip6table_nat",
    "CONFIG_IP6_NF_TARGET_REJECT": "ip6t_REJECT",
    "CONFIG_IP6_NF_TARGET_SYNPROXY": "ip6t_SYNPROXY",
    "CONFIG_BLK_DEV_LOOP": "loop",
    "CONFIG_BINFMT_MISC": "binfmt_misc",
    "CONFIG_OVERLAY_FS": "overlay",
    "CONFIG_CONFIGFS_FS": "configfs",
    "CONFIG_SQUASHFS": "squashfs",
}

# Asked for by the name of another: what a bridge hands to iptables depends on it.
_WITH = {"bridge": ("br_netfilter",)}

# What a program can miss where an option is off, or is a module that is not on these lists.
_MEANING = {
    "CONFIG_MEMCG_V1": "memory control groups of version 1",
    "CONFIG_CPUSETS_V1": "CPU sets of version 1",
    "CONFIG_RT_GROUP_SCHED": "control groups of real-time processes",
    "CONFIG_LEGACY_TIOCSTI": "TIOCSTI",
    "CONFIG_DNS_RESOLVER": "keys of the type dns_resolver",
    "CONFIG_DEFAULT_SECURITY_SELINUX": "SELinux",
    "CONFIG_BPF_SYSCALL": "bpf()",
    "CONFIG_USER_NS": "user namespaces",
    "CONFIG_AUDIT": "audit",
    "CONFIG_TUN": "tun devices",
    "CONFIG_VETH": "veth devices",
    "CONFIG_BRIDGE": "bridges",
    "CONFIG_OVERLAY_FS": "overlayfs",
    "CONFIG_IP_NF_NAT": "iptables' nat table",
    "CONFIG_IP6_NF_NAT": "ip6tables' nat table",
    "CONFIG_NF_CONNTRACK": "connection tracking",
    "CONFIG_VSOCKETS_LOOPBACK": "vsock loopback",
    "CONFIG_BLK_DEV_LOOP": "loop devices",
    "CONFIG_BINFMT_MISC": "binfmt_misc",
}
# The same, of what only this architecture can have.
_MEANING_OF: dict[Arch, dict[str, str]] = {
    "x86_64": {
        "CONFIG_X86_MSR": "/dev/cpu/N/msr",
        "CONFIG_X86_CPUID": "/dev/cpu/N/cpuid",
        "CONFIG_X86_16BIT": "16-bit segments",
        "CONFIG_LEGACY_VSYSCALL_XONLY": "vsyscalls of old static programs",
        "CONFIG_DEVPORT": "/dev/port",
        "CONFIG_IA32_EMULATION": "32-bit programs",
    },
    "aarch64": {"CONFIG_COMPAT": "32-bit programs"},
}


def lacking(options: str, folder: ModuleFolder, arch: Arch = "x86_64") -> list[str]:
    """What a program can miss of AWS's kernel in one with this configuration and these modules."""
    values = dict(line.split("=", 1) for line in options.splitlines() if re.match(r"CONFIG_\w+=", line))

    def there(option: str) -> bool:
        if values.get(option) == "m":
            module = {**LATE, **DEMAND}.get(option)
            return module is not None and folder.has(module)
        return values.get(option) == "y"

    meanings = {**_MEANING, **_MEANING_OF[arch]}
    return [meaning for option, meaning in meanings.items() if not there(option)]


class ModuleFolder:
    """A kernel's folder of modules as packages carry it. modules.dep is made on installation, so the modules
    themselves are asked: modinfo's "depends" and "alias"."""

    def __init__(self, folder: Path) -> None:
        self.release = folder.name
        self._files = {_plain(p.name.split(".")[0]): p for p in folder.rglob("*.ko*")}
        builtin = (folder / "modules.builtin").read_text().split()
        self._builtin = {_plain(Path(line).stem) for line in builtin}
        self._content: dict[str, bytes] = {}

    def has(self, name: str) -> bool:
        return _plain(name) in self._files or _plain(name) in self._builtin

    def path(self, name: str) -> Path:
        return self._files[_plain(name)]

    def content(self, name: str) -> bytes:
        """The module, uncompressed."""
        if name not in self._content:
            if name not in self._files:
                raise NitroError(f"the kernel {self.release} has no module {name}, and it is not built in")
            self._content[name] = _read(self._files[name])
        return self._content[name]

    def in_order(self, wanted: Iterable[str]) -> list[str]:
        """The modules and all that they depend on, in an order in which they can be loaded. What is built
        into the kernel is left out."""
        order: dict[str, None] = {}
        reading: set[str] = set()
        stack = [(name, False) for name in reversed([_plain(name) for name in wanted])]
        while stack:
            name, ready = stack.pop()
            if name in order or name in self._builtin:
                continue
            if ready:
                reading.remove(name)
                order[name] = None
                continue
            if name in reading:
                raise NitroError(f"the kernel's module {name} depends on itself")
            depends = [_plain(need) for need in modinfo(self.content(name), b"depends", b",")]
            reading.add(name)
            stack.append((name, True))
            stack += [(need, False) for need in depends]
        return list(order)


def demand(folder: ModuleFolder, file_of: Mapping[str, str], loaded: Iterable[str]) -> list[str]:
    """The lines of /modules.demand. `file_of`: where each module is in the ramdisk; `loaded`: those that are
    loaded before. What the kernel does not have is left out: `lacking` tells."""
    before = set(loaded)
    lines = [f"late {file_of[name]}" for name in late(folder) if name not in before]
    before.update(late(folder))
    for name in filter(folder.has, DEMAND.values()):
        together = (name, *(more for more in _WITH.get(name, ()) if folder.has(more)))
        order = [need for need in folder.in_order(together) if need not in before]
        if not order:
            continue  # built in, or there already
        aliases = modinfo(folder.content(_plain(name)), b"alias")
        lines += _node(aliases)
        paths = " ".join(file_of[need] for need in order)
        for alias in dict.fromkeys([_plain(name), *map(_pattern, aliases)]):
            if not alias.startswith("devname:") and not re.search(r"\s", alias):
                lines.append(f"need {alias} {paths}")
    return lines


def late(folder: ModuleFolder) -> list[str]:
    """What is loaded in each boot, after the heartbeat; some of it may be loaded before."""
    return folder.in_order(filter(folder.has, LATE.values()))


def wanted(folder: ModuleFolder) -> list[str]:
    """All modules that `demand` names, each once."""
    more = [name for names in _WITH.values() for name in names]
    return folder.in_order(filter(folder.has, (*LATE.values(), *DEMAND.values(), *more)))


def _node(aliases: Iterable[str]) -> Iterator[str]:
    """The device that a driver is loaded by, once somebody opens it (Linux: MODULE_ALIAS_MISCDEV and
    devname:, which stands for a file below /dev)."""
    text = "\n".join(aliases)
    name = re.search(r"^devname:([\w/-]+)$", text, re.MULTILINE)
    number = re.search(r"^char-major-(\d+)-(\d+)$", text, re.MULTILINE)
    if name and number:
        yield f"node {name[1]} {number[1]} {number[2]}"


def _plain(name: str) -> str:
    return name.replace("-", "_")  # as the kernel compares them


def _pattern(alias: str) -> str:
    """The same outside of a pattern's brackets."""
    return re.sub(r"\[[^\]]*\]|-", lambda match: "_" if match[0] == "-" else match[0], alias)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    elif path.suffix != ".ko":
        raise NitroError(f"the module {path.name} is compressed in a way that nitroctl does not read")
    if not content.startswith(b"\x7fELF"):
        raise NitroError(f"the module {path.name} is no ELF file")
    return content


def modinfo(module: bytes, key: bytes, separator: bytes = b"\0") -> list[str]:
    """The values of a key in a module's section .modinfo (NUL-terminated "key=value" strings), those of one
    string apart where they have a separator."""
    found = re.findall(rb"(?:^|(?<=\0))" + key + rb"=([^\0]*)\0", module)
    return [name.decode() for value in found for name in value.split(separator) if name]
