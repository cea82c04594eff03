# SPDX-License-Identifier: MIT
"""Why a ramdisk of AWS's builder differs from ours for the same image: the rules, and how each changes an
entry. A rule explains a difference only if it produces exactly what AWS's ramdisk contains.

`export` and `linuxkit` follow the same rules when they build; here they are recognised afterwards.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
from collections.abc import Mapping
from dataclasses import replace

from nitroctl.eif import linuxkit
from nitroctl.eif.listing import Entry

# name of the rule -> how it explains a difference
RULES = {
    "archive-form": "AWS's archive has another form: order, inode numbers, slashes behind folders, padding",
    "blobs": "AWS's kernel and init are not ours: give --blobs to build with AWS's",
    "command": "AWS's builder takes CMD and ignores ENTRYPOINT",
    "container-folder": "a container has this folder, and so has AWS's image",
    "folder-time": "no layer lists this folder, so Docker gives it the time of unpacking: it may change from "
    "one of AWS's builds to the next",
    "hard-link": "AWS's builder turns all names of a file but the first into symbolic links",
    "hosts": "AWS replaces /etc/hosts",
    "left-out": "AWS's builder leaves this file out",
    "metadata": "metadata are in no PCR; BuildTime and DockerInfo change with each of AWS's builds",
    "mount-point": "AWS's builder makes /dev, /proc, /run, /sys, /tmp, /var and the root anew: 0755, root's",
    "mtab": "AWS makes /etc/mtab a link to /proc/mounts",
    "own-init": "only our init knows this file: AWS's builder has no place for WORKDIR, USER and line breaks",
    "own-time": "AWS's builder gives this a time of its own, 2017-04-18 16:30 UTC",
    "resolv-conf": "AWS replaces /etc/resolv.conf by a link to /run/resolvconf/resolv.conf",
    "variables": "AWS's builder adds neither PATH nor HOME to the image's variables, as containers do",
}

_OWN_FILES = {b"cwd", b"user", b"program", b"cmd0", b"env0"}
_LEFT_OUT = {b"rootfs/" + name for name in linuxkit.LEFT_OUT}
_MOUNT_POINTS = set(linuxkit.ALWAYS)
_CONTAINER = {b"rootfs/dev/pts", b"rootfs/dev/shm", b"rootfs/etc"}


def _made(kind: int, mode: int, content: bytes = b"") -> Entry:
    digest = hashlib.sha256(content).digest()
    return Entry(kind | mode, 0, 0, (0, 0), len(content), digest, linuxkit.TIME, text=content)


_REPLACED = {
    b"rootfs/etc/hosts": ("hosts", _made(stat.S_IFREG, 0o755, linuxkit.HOSTS)),
    b"rootfs/etc/resolv.conf": ("resolv-conf", _made(stat.S_IFLNK, 0o755, linuxkit.RESOLV_CONF)),
    b"rootfs/etc/mtab": ("mtab", _made(stat.S_IFLNK, 0o777, b"/proc/mounts")),
}


def of_application(
    name: bytes, aws: Entry | None, ours: Entry | None, all_of_ours: Mapping[bytes, Entry]
) -> str | None:
    """The rule that explains why AWS's application ramdisk has `aws` where ours has `ours`; None if none
    does."""
    if name in _REPLACED:
        rule, made = _REPLACED[name]
    elif name in _LEFT_OUT:
        return "left-out" if aws is None else None
    elif name in _OWN_FILES:
        return "own-init" if aws is None else None
    elif name in _MOUNT_POINTS:
        rule, made = "mount-point", _made(stat.S_IFDIR, 0o755)
    elif name in _CONTAINER:
        rule = "own-time" if ours else "container-folder"
        made = replace(ours, mtime=linuxkit.TIME) if ours else _made(stat.S_IFDIR, 0o755)
    elif ours is None or aws is None:
        return None
    elif name in (b"cmd", b"env"):
        text = _text(name, ours, all_of_ours)
        rule, text = _command(text, aws.text) if name == b"cmd" else _variables(text, aws.text)
        made = _made(stat.S_IFREG, 0o644, text)
    elif stat.S_ISLNK(aws.mode) and (other := _other_name(name, aws, ours, all_of_ours)):
        mode = stat.S_IFLNK | stat.S_IMODE(other.mode)
        rule = "hard-link"
        made = replace(other, mode=mode, device=(0, 0), size=aws.size, digest=aws.digest)
    else:
        return folder_time(aws, ours)
    return rule if aws and aws.said == made.said else None


def folder_time(a: Entry, b: Entry) -> str | None:
    """The rule about folder times, the only thing that Docker does not derive from the image."""
    same = stat.S_ISDIR(a.mode) and replace(a, mtime=0).said == replace(b, mtime=0).said
    return "folder-time" if same else None


def of_bootstrap(name: bytes, aws: Entry | None, ours: Entry | None) -> str:
    """The same for the bootstrap ramdisk."""
    if aws and ours and replace(ours, mtime=linuxkit.TIME).said == aws.said:
        return "own-time"
    return "blobs"


def _text(name: bytes, ours: Entry, all_of_ours: Mapping[bytes, Entry]) -> bytes:
    """A text that our init reads, as lines: AWS's init reads no other form."""
    whole = all_of_ours.get(name + b"0")
    return whole.text.replace(b"\0", b"\n") if whole else ours.text


def _command(ours: bytes, aws: bytes) -> tuple[str, bytes]:
    """AWS's cmd is the end of ours, which is ENTRYPOINT followed by CMD; CMD may be empty."""
    if ours == aws:
        return "own-time", ours
    return "command", aws if not aws or ours.endswith(b"\n" + aws) else ours


def _variables(ours: bytes, aws: bytes) -> tuple[str, bytes]:
    """AWS's env lacks our first or last line, the PATH and HOME of a container."""
    if ours == aws:
        return "own-time", ours
    lines = ours.splitlines(keepends=True)
    mine = set(aws.splitlines(keepends=True))
    if lines and lines[0].startswith(b"PATH=") and lines[0] not in mine:
        del lines[0]
    if lines and lines[-1].startswith(b"HOME=") and lines[-1] not in mine:
        del lines[-1]
    return "variables", b"".join(lines)


def _other_name(name: bytes, aws: Entry, ours: Entry, all_of_ours: Mapping[bytes, Entry]) -> Entry | None:
    """The target of AWS's symbolic link, if in our ramdisk it is another name of the same file."""
    if aws.text.startswith(b"/") or aws.text == ours.text:
        return None
    other = all_of_ours.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), aws.text)))
    # Of a link with several names the kernel makes several links.
    same = other and (other.ino == ours.ino or (stat.S_ISLNK(ours.mode) and other.said == ours.said))
    return ours if same else None
