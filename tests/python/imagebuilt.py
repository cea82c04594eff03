# SPDX-License-Identifier: MIT
"""What becomes of a container image: the files that an enclave will see, as they are before they are an EIF,
and a build in a process of its own. Made from images of imagemodel.py; no tests.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpiomodel
import eifmodel as model
import imagemodel as im
from cpiomade import Memory
from nitroctl.eif import compose

REG, DIR, LNK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
BASE = {"dev", "proc", "run", "sys", "tmp", "var"}
# What linuxkit, of which AWS's builder is made, writes there.
HOSTS = b"""\
127.0.0.1       localhost
::1     localhost ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""
ETC = {"etc/hosts": HOSTS, "etc/mtab": b"/proc/mounts"}


def contents(application: compose.Application) -> dict[str, cpiomodel.Item]:
    """The root file system as the kernel will see it, but for the mount points and AWS's files in /etc that
    every image gets."""
    sink = Memory()
    compose._write_application(sink, application)
    items = {i.name.decode("utf-8", "surrogateescape"): i for i in cpiomodel.read(sink.data)}
    names = list(items)
    for name in names:  # folders first, or the kernel cannot make what is in them
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    inside = {n.removeprefix("rootfs/"): i for n, i in items.items() if n.startswith("rootfs/")}
    found = {n: i for n, i in inside.items() if n not in BASE and i.data != ETC.get(n)}
    if "etc" in found and not any(n.startswith("etc/") for n in found):
        del found["etc"]
    return found


def files(application: compose.Application) -> dict[str, bytes | None]:
    """name -> content, a link's target, or None for a folder."""
    found = contents(application)
    by_inode = {i.ino: i.data for i in found.values() if i.data}
    return {n: None if stat.S_ISDIR(i.mode) else by_inode.get(i.ino, b"") for n, i in found.items()}


def bootstrap(folder: Path) -> compose.Bootstrap:
    (folder / "bzImage").write_bytes(model.bzimage())
    (folder / "init").write_bytes(b"init")
    return compose.Bootstrap(compose.Kernel(folder / "bzImage"), folder / "init", "quiet")


def opened(path: Path, *layers: bytes, **config: Any) -> dict[str, bytes | None]:
    return files(compose.from_image(im.docker(path / "app.tar", layers, **config)))


APP = im.entry("app", b"binary", mode=0o755)


PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/sh\n"
GROUP = b"root:x:0:\nweb:x:34:\ndata:x:50:web,root2\nmore:x:51:x,web\n"


def running(folder: Path, run: dict[str, Any], *entries: Any, aws_cmd: bool = False) -> compose.Application:
    layer = im.layer(
        APP, im.entry("etc/passwd", PASSWD), im.entry("etc/group", GROUP), im.entry("srv/web"),
        im.entry("usr/bin/tool", b"#!", mode=0o755), im.entry("usr/bin/plain", b"", mode=0o644), *entries,
    )  # fmt: skip
    return compose.from_image(im.docker(folder / "app.tar", [layer], run=run), aws_cmd=aws_cmd)


CHILD = r"""
import os, re, sys
from pathlib import Path
from nitroctl.base import progress
from nitroctl.toolchain import guest
from nitroctl.toolchain import prebuilt as prebuilt_kernel
from nitroctl.eif import compose, reference
folder, given, out = map(Path, sys.argv[1:4])

def make(out):
    start = compose.Bootstrap(compose.Kernel(folder / "bzImage"), folder / "init", "quiet")
    if (given / "app").exists():
        application = compose.from_directory(given, ("/app",))
    else:
        application = compose.from_image(given)
    with progress.quiet():
        compose.compose(application, start, out, compose.Options(name="x", compress="compress" in sys.argv))

if "nobody" in sys.argv:
    make(Path(f"{out}.first"))  # imports what it takes, where nobody may read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
make(out)
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def child(*arguments: str | Path, user: bool = False, **settings: str) -> int:
    """Build in a process of its own; with `user` that of somebody else. Returns its most memory in KiB."""
    argv: list[str | Path] = [sys.executable, "-c", CHILD, *arguments]
    if user:  # root becomes nobody; others become whom the kernel shows in a name space that knows no users
        argv = [*argv, "nobody"] if os.geteuid() == 0 else ["unshare", "--user", *argv]
    umask = int(settings.pop("umask", "022"), 8)
    done = subprocess.run(argv, env={**os.environ, **settings}, umask=umask, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def start_in(folder: Path) -> None:
    im.folder(folder, {"bzImage": model.bzimage(), "init": b"init"})
