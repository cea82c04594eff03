# SPDX-License-Identifier: MIT
"""What this host has and lacks for enclaves: findings, each with the command that mends it.

Only looks; nothing is made, fetched or installed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from nitroctl.base import arch as arches
from nitroctl.base.config import UNIX_PATH_MAX, cache_dir, data_dir, runtime_dir, state_dir
from nitroctl.base.errors import NitroError, NotBuilt
from nitroctl.toolchain import aws_blobs, cache, packages

# ok: nothing to do. slow: works, but could be better. lacks: something does not work without it.
State = Literal["ok", "slow", "lacks"]

# What a socket of an enclave adds to the socket folder: "/CID/vsock_PORT", both numbers 32 bits wide.
SOCKET_NAME = len("/4294967295/vsock_4294967295")
# A full set of products, sources and build folders.
SPACE = 4 * 10**9
# Days after which security fixes of a bundled QEMU are likely to be missing.
OLD_QEMU = 120

_OTHER_SOCKETS = "export XDG_RUNTIME_DIR=$(mktemp -d /tmp/XXXXXXXX)"


@dataclass(frozen=True)
class Finding:
    topic: str
    state: State
    text: str
    mend: str = ""  # a command, which may have a comment behind it
    needed_to_run: bool = False


def _located(topic: str, find: Callable[[], Path], *, needed: bool) -> Finding:
    """A finding about a file that another module makes; that module says how."""
    try:
        return Finding(topic, "ok", str(find()))
    except NotBuilt as e:
        return Finding(topic, "lacks", "not built", e.hint or "", needed_to_run=needed)
    except NitroError as e:
        return Finding(topic, "lacks", str(e), e.hint or "", needed_to_run=needed)


def _accelerator(kvm: Path = Path("/dev/kvm")) -> Finding:
    from nitroctl.base import accelerator

    chosen = accelerator.choose(kvm=kvm)
    if chosen.name == "kvm":
        return Finding("accelerator", "ok", str(chosen))
    mend = ""
    # Only where the device is the reason: a CPU without virtualisation is helped by no group.
    if chosen.reason.startswith(f"{kvm}:"):
        if not kvm.exists():
            mend = "sudo modprobe -a kvm_intel kvm_amd  # one of them fits, or the BIOS has it off"
        elif not os.access(kvm, os.R_OK | os.W_OK):
            mend = "sudo usermod -aG kvm $USER  # and log in again"
    return Finding("accelerator", "slow", str(chosen), mend)


def _sandbox() -> Finding:
    from nitroctl.base import confine

    there = confine.kinds()
    lacks = [name for name in confine.KINDS if not any(kind.startswith(name) for kind in there)]
    if not lacks:
        return Finding("sandbox", "ok", f"QEMU is confined by {' and '.join(there)}")
    text = (
        f"this kernel, or what it lets us use, lacks {' and '.join(lacks)}: a guest that breaks out of QEMU "
    )
    if "Landlock" in lacks:
        return Finding(
            "sandbox", "slow", text + "can open your files", "cat /sys/kernel/security/lsm  # landlock?"
        )
    return Finding("sandbox", "slow", text + "can start programs and connect to services")


def _folders() -> list[Finding]:
    """Those that are written to; the socket folder is looked at by itself."""
    return [
        _writable("cache folder", cache_dir(), "XDG_CACHE_HOME", needed=False),
        _writable("data folder", data_dir(), "XDG_DATA_HOME", needed=True),  # the local CA
        _writable("state folder", state_dir(), "XDG_STATE_HOME", needed=True),  # records of enclaves
    ]


def _writable(topic: str, folder: Path, variable: str, *, needed: bool) -> Finding:
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding(topic, "ok", str(folder))
    mend = f"export {variable}=FOLDER  # one that you can write to"
    if not there.is_dir():
        return Finding(topic, "lacks", f"{there} is no folder", mend, needed_to_run=needed)
    text = f"{folder}: you cannot write to {there}"
    if there == folder and folder.stat().st_uid == 0:  # what a command under sudo leaves
        mend = f'sudo chown -R "$USER" {shlex.quote(str(folder))}'
    return Finding(topic, "lacks", text, mend, needed_to_run=needed)


def _qemu() -> list[Finding]:
    """The plugin, the one that came with nitroctl, the tree build; one of them is enough."""
    from nitroctl.toolchain import plugin

    found = [*_qemu_in_use(), *_qemu_bundled()]
    if brought := plugin.prebuilt():
        return [*found, Finding("QEMU plugin", "ok", f"{brought}, came with nitroctl")]
    others = _qemu_built()
    if any(finding.topic == "QEMU bundled" and finding.state != "lacks" for finding in found):
        # What a build would bring is not missed.
        others = [f for f in others if f.state == "ok" or not f.needed_to_run]
    return [*found, *others]


def _qemu_in_use() -> list[Finding]:
    from nitroctl.toolchain import plugin

    try:
        return [Finding("QEMU in use", "ok", str(plugin.in_use()))]
    except NitroError:
        return []  # the others say what to do


def _qemu_bundled() -> list[Finding]:
    from nitroctl.toolchain import bundle

    try:
        found = bundle.installed_qemu()
    except NitroError as e:
        return [Finding("QEMU bundled", "lacks", str(e), e.hint or "")]
    if found is None:
        return []
    if found.misfit:
        return [Finding("QEMU bundled", "slow", found.misfit, "pip install --upgrade 'nitroctl[qemu]'")]
    text = f"{found.path}: QEMU {found.version}, {found.source} of {found.revised}, {found.age} days old"
    if found.age > OLD_QEMU:
        return [Finding("QEMU bundled", "slow", text, "pip install --upgrade 'nitroctl[qemu]'")]
    return [Finding("QEMU bundled", "ok", text)]


def _qemu_built() -> list[Finding]:
    """What `nitroctl build` made."""
    from nitroctl.toolchain import places, plugin

    built = plugin.manifest()
    reason = plugin.misfit(built) if built else None
    usable = built is not None and reason is None
    if built is None:
        findings = [
            Finding(
                "QEMU plugin", "slow", "not built", "nitroctl build --plugin  # for the distribution's QEMU"
            )
        ]
    elif reason:
        findings = [Finding("QEMU plugin", "slow", reason, f"nitroctl build --plugin --qemu {built.qemu}")]
    else:
        text = f"{built.launcher}, for {built.package} {built.version}"
        findings = [Finding("QEMU plugin", "ok", text)]
    own = _located("QEMU tree", lambda: places.locate("qemu"), needed=not usable)
    if usable and own.state == "lacks":
        return [*findings, Finding("QEMU tree", "slow", "not built; the plugin does", own.mend)]
    return [*findings, own, _firmware()]


def _firmware() -> Finding:
    """Of the tree build; the distribution's QEMU brings its own."""
    from nitroctl.toolchain import places, source

    try:
        folder = places.locate("qemu").resolve().parents[1] / "share/qemu"
    except NitroError:
        why = "not built: it comes with the tree"
        return Finding("firmware", "lacks", why, "nitroctl build", needed_to_run=True)
    absent = [name for name in source.FIRMWARE_FILES if not (folder / name).is_file()]
    if absent:
        return Finding(
            "firmware",
            "lacks",
            f"{folder} lacks {', '.join(absent)}",
            "nitroctl cache clean --yes && nitroctl build",
            needed_to_run=True,
        )
    return Finding("firmware", "ok", str(folder))


def _foreign() -> list[Finding]:
    """For enclaves of the other architecture, which this host emulates: nobody needs it who has none."""
    from nitroctl.toolchain import bundle, guest, plugin

    found = []
    for arch in (one for one in arches.ARCHES if one != arches.host()):
        qemu = _located(f"QEMU for {arch}", partial(plugin.in_use, arch=arch), needed=False)
        with contextlib.suppress(NitroError):
            other = bundle.installed_qemu(arch)
            if qemu.state == "lacks" and other and other.misfit:
                qemu = replace(qemu, text=other.misfit, mend="pip install --upgrade 'nitroctl[qemu]'")
        # The one that its images get: ours where it was built, else Debian's.
        which = "kernel" if guest.default_kernel(arch) == "own" else "prebuilt"
        kernel = _located(f"guest kernel, {arch}", partial(guest.locate, which, arch), needed=False)
        init = _located(f"guest init, {arch}", partial(guest.locate, "init", arch), needed=False)
        found += [qemu, kernel, init]
    return [replace(one, state="slow") if one.state == "lacks" else one for one in found]


def _backend() -> Finding:
    from nitroctl.toolchain import places

    return _located("vsock backend", lambda: places.locate("vsock"), needed=True)


def _kernels() -> list[Finding]:
    from nitroctl.toolchain import busybox, guest

    # An EIF brings its own kernel: these are for the images that nitroctl makes.
    return [
        _located("guest kernel", lambda: guest.locate("kernel"), needed=False),
        _located("prebuilt kernel", lambda: guest.locate("prebuilt"), needed=False),
        _located("guest init", lambda: guest.locate("init"), needed=False),
        _located("guest tools", busybox.locate, needed=False),
    ]


def _blobs() -> Finding:
    """AWS's own kernel and init, which no enclave needs here."""
    topic = "AWS's blobs"
    named = aws_blobs.named()
    folder = named or aws_blobs.installed()
    if folder is None:
        mend = f"sudo dnf install {aws_blobs.PACKAGE}  # on Amazon Linux; elsewhere give its RPM to --blobs"
        return Finding(topic, "slow", f"not in {aws_blobs.INSTALLED}, and NITRO_CLI_BLOBS is not set", mend)
    why = " (NITRO_CLI_BLOBS)" if named else ""
    kernel = arches.facts(aws_blobs.arch_of(aws_blobs.found(folder)) or arches.host() or "x86_64").image
    absent = [n for n in (kernel, "cmdline", "init") if not (aws_blobs.found(folder) / n).is_file()]
    if absent and not folder.is_file():
        mend = f"sudo dnf reinstall {aws_blobs.PACKAGE}"
        if named:
            mend = "unset NITRO_CLI_BLOBS  # or let it name AWS's folder"
        return Finding(topic, "lacks", f"{folder}{why} lacks {', '.join(absent)}", mend)
    facts = [str(folder) + why]
    if not folder.is_file():
        system, version = aws_blobs.kernel_facts(aws_blobs.found(folder) / kernel)
        facts.append(f"kernel {version}" if system == "Linux" else "kernel of unknown version")
    if not named and (package := aws_blobs.package_version()):
        facts.append(f"{aws_blobs.PACKAGE} {package}")
    return Finding(topic, "ok", ", ".join(facts))


def _disk() -> Finding:
    from nitroctl.base.progress import amount

    free = cache.free_space()
    text = f"{amount(free, 'bytes')} free for {cache_dir()}"
    if free < SPACE:
        return Finding(
            "disk",
            "slow",
            f"{text}; a full build takes {amount(SPACE, 'bytes')}",
            "nitroctl cache prune  # or export XDG_CACHE_HOME=FOLDER",
        )
    return Finding("disk", "ok", text)


def _sockets() -> Finding:
    try:
        folder = runtime_dir()
    except NitroError as e:
        return Finding("socket folder", "lacks", str(e), _OTHER_SOCKETS, needed_to_run=True)
    longest = len(os.fsencode(folder)) + SOCKET_NAME
    if longest > UNIX_PATH_MAX:
        return Finding(
            "socket folder",
            "lacks",
            f"{folder}: sockets below would have {longest} bytes, unix(7) allows {UNIX_PATH_MAX}",
            _OTHER_SOCKETS,
            needed_to_run=True,
        )
    return Finding("socket folder", "ok", str(folder))


def _packages() -> list[Finding]:
    findings = []
    for topic, needs in (
        ("packages: QEMU", packages.BUILD + packages.DEBIAN_SOURCE),
        ("packages: kernel", packages.KERNEL),
        ("packages: tests", packages.CHECK),
    ):
        lacking = packages.missing(needs)
        if lacking:
            text = "missing: " + ", ".join(need.what for need in lacking)
            findings.append(Finding(topic, "lacks", text, packages.install_line(lacking)))
        else:
            findings.append(Finding(topic, "ok", f"all {len(needs)} there"))
    return findings


def examine() -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    places = [_disk(), *_folders(), _sockets()]
    found = [
        _accelerator(),
        _sandbox(),
        *_packages(),
        *places,
        *_qemu(),
        _backend(),
        *_kernels(),
        *_foreign(),
        _blobs(),
    ]
    if not _brought():
        return found
    # What builds would need is not missed where nothing has to be built.
    return [replace(f, state="slow") if f.state == "lacks" and not f.needed_to_run else f for f in found]


def _brought() -> bool:
    from nitroctl.toolchain import bundle

    try:
        return bundle.root() is not None
    except NitroError:
        return False  # said where it is used
