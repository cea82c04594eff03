# SPDX-License-Identifier: MIT
"""What an application finds where our init has started it, beside what it finds under a stand-in for AWS's:
every mount, mode, limit, variable and descriptor, from a program that lists them (environment.c)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nitroctl.base import proc
from nitroctl.eif import cpio, testimage
from nitroctl.eif.compose import Kernel, locate_kernel
from nitroctl.eif.testimage import Programs
from nitroctl.testing.lab import Lab
from nitroctl.toolchain import guest

pytestmark = pytest.mark.boot

HERE = Path(__file__).parent


def compiled(folder: Path, name: str) -> Path:
    program = folder / name
    proc.run(["cc", *guest.PROGRAM_FLAGS, "-o", str(program), str(HERE / f"{name}.c")])
    return program


def facts(lab: Lab, eif: Path, last: bytes) -> list[str]:
    """What the program lists; `last`: how init says that it failed."""
    with lab.run(eif) as run:
        run.expect(rb"environment: done\r*\n")
        run.expect(b"(?:\n|^)" + last + b"\r*\n")
        run.check_ends(5)
        text = run.console.seen.decode(errors="replace").replace("\r", "")
    listed = re.search(r"^(argument: .*?\n)environment: done$", text, re.DOTALL | re.MULTILINE)
    assert listed
    # How much memory is left for files depends on the size of init.
    lines = re.sub(r",size=\d+k,nr_inodes=\d+", "", listed[1]).splitlines()
    # The kernel may say something in between.
    return [line for line in lines if not re.match(r"\[ *\d+\.\d+\] ", line)]


def test_our_init_beside_a_stand_in_for_awss(lab: Lab, tmp_path: Path) -> None:
    programs = replace(Programs.in_folder(guest.build_init()), hello=compiled(tmp_path, "environment"))
    kernel = lab.kernels["own"]
    kernel = kernel if isinstance(kernel, Kernel) else locate_kernel(kernel)
    marked = replace(kernel, files=(*kernel.files, cpio.file("as-aws", b"")))

    def image(name: str, kernel: Kernel, programs: Programs) -> Path:
        testimage.make("hello", tmp_path / name, kernel=kernel, programs=programs)
        return tmp_path / name

    stand_in = replace(programs, init=compiled(tmp_path, "stand-in"))
    aws = facts(lab, image("aws.eif", kernel, stand_in), b"child exited with error")
    # What is known of AWS's by itself, so that the two are not wrong together.
    for fact in (
        "variable: PATH=/sbin:/usr/sbin:/bin:/usr/bin",
        "mount: / /tmp rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw",
        "path: /run 40755 0:0 0 ",
        "descriptor: 0 /dev/console 100000 0",  # O_RDONLY, O_LARGEFILE
        "descriptor: 1 /dev/console 100001 0",  # O_WRONLY
        "session: 1 1",
        "lo: 8",  # IFF_LOOPBACK, not IFF_UP
        "processes: 2",
    ):
        assert fact in aws, fact

    as_aws = facts(lab, image("as-aws.eif", marked, programs), b"child exited with error")
    assert sorted(set(as_aws) ^ set(aws)) == []
    assert as_aws == aws
    # By default there is one thing to see: the connection on which init tells how the application ended.
    ours = facts(lab, image("ours.eif", kernel, programs), b"init: child exited with error: status 3")
    assert sorted(set(ours) ^ set(aws)) == ["init's descriptor: 3 socket:"]
