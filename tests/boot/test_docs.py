# SPDX-License-Identifier: MIT
"""Blocks of README and docs that want kernel and init (`with images`), and those that want guests or minutes
(`check-docs`), as they are written, in a fresh home; the latter by `make check-docs` alone. How a page says
so is in tests/python/docpage.py; tests/python/test_docs_run.py has the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import docgiven
import docpage
import imagemodel as im
from nitroctl.base.config import cache_dir
from nitroctl.eif import testimage
from nitroctl.testing.lab import Lab
from nitroctl.toolchain import guest

pytestmark = [pytest.mark.boot, pytest.mark.ours("pages show what our kernel and init say")]

KINDS = {"images"} | ({"check-docs"} if os.environ.get("NITRO_CHECK_DOCS") else set())
PAGES = [page for page in docpage.PAGES if any(one.kind() in KINDS for one in docpage.blocks(page))]
MINUTES = 15  # for a block: the torture kit starts hundreds of programs


class Reader:
    """A home, and what a page says that its reader has in it."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab, self.home = lab, home
        self.env = docpage.environment(home, docpage.programs(home / "bin"))
        # What was built is the host's; else the reader would build QEMU first.
        self.env |= {"XDG_CACHE_HOME": str(cache_dir().parent), "XDG_RUNTIME_DIR": str(lab.runtime)}

    def sh(self, script: str) -> None:
        docpage.sh(script, self.home, self.env)

    def give(self, name: str) -> None:
        special = getattr(self, "give_" + name.replace(".", "_"), None)
        maker = (lambda _: special()) if special else docgiven.MAKERS[name]
        more: Mapping[str, str] | None = maker(self.home)
        self.env |= more or {}

    def give_app_eif(self) -> None:
        shutil.copyfile(self.lab.image("hello"), self.home / "app.eif")

    def give_bzImage(self) -> None:
        kernel = self.lab.kernels["own"]
        assert isinstance(kernel, str)
        testimage.make("hello", self.home / "h.eif", kernel=kernel)
        self.sh("rm -rf own; nitroctl eif extract h.eif -C own; cp own/*kernel* bzImage")

    def give_init_cpio(self) -> None:
        self.give_bzImage()
        self.sh("set -- own/*ramdisk*; cp $1 init.cpio; shift; cp $1 app.cpio")

    def give_app_tar(self) -> None:
        layer = im.layer(im.entry("agent", guest.locate("agent").read_bytes(), mode=0o755))
        im.docker(self.home / "app.tar", [layer], run={"Cmd": ["/agent", "7000"]})

    def give_parent(self) -> None:
        (self.home / "parent").write_text("#!/bin/sh\nexec test $# -le 2\n")
        (self.home / "parent").chmod(0o755)
        (self.home / "parent.py").write_text("import socket\nsocket.socket(socket.AF_VSOCK).close()\n")

    def give_document(self) -> None:
        self.sh("nitroctl demo && cp hello-attestation.cose document && cp hello.eif app.eif")

    def give_NAME(self) -> None:
        self._run("NAME")

    def give_app(self) -> None:
        self._run("app")

    def _run(self, name: str) -> None:
        shutil.copyfile(self.lab.image("agent"), self.home / "agent.eif")
        self.sh(f"nitroctl run agent.eif --name {name} --tools --detach")

    def give_greeter_eif(self) -> None:
        """docs/debugging.md's, mended as the page has it."""
        page = docpage.ROOT / "docs/debugging.md"
        script = next(block.body for block in docpage.blocks(page) if "> greeter.c" in block.body)
        self.sh(script.replace("before->before;", "before;"))

    def give_greeter(self) -> None:
        if not (self.home / "greeter.eif").is_file():
            self.give_greeter_eif()
        self.sh("nitroctl run greeter.eif --detach && echo ann | nitroctl vsock connect greeter 5000")

    def end(self) -> None:
        self.sh("nitroctl stop --all; nitroctl rm --all || true")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(lab: Lab, page: Path, tmp_path: Path) -> None:
    reader = Reader(lab, tmp_path)
    wrong: list[str] = []
    for block in docpage.blocks(page):
        if block.kind() in KINDS:
            try:
                for name in block.given():
                    reader.give(name)
                wrong += docpage.run(block, tmp_path, reader.env, MINUTES * 60.0)
            finally:
                if block.kind() == "check-docs":
                    reader.end()
    assert not wrong, "\n".join(wrong)
    lab.check_nothing_left()


def test_the_demonstration_of_the_front_page(lab: Lab, tmp_path: Path) -> None:
    """The PCR0 that README shows is that of the image which `nitroctl demo` makes, wherever it is made with
    the compiler and libraries of the wheels, Debian 12's."""
    if "bookworm" not in Path("/etc/os-release").read_text():
        return
    (block,) = [one for one in docpage.blocks(docpage.ROOT / "README.md") if "nitroctl demo" in one.body]
    made = testimage.make("hello", tmp_path / "hello.eif", kernel="own")
    said = made.measurements.pcr0.hex()
    shown = {word for line in block.body.splitlines() for word in line.split() if len(word) == 96}
    assert shown == {said}, "README shows another PCR0 than this checkout's image has"
