# SPDX-License-Identifier: MIT
"""The programs in docs/parent, which no library can stand before, with an enclave: C, linked statically, in
every run; Go and Rust, whose compilers are large, by `make check-parents` (CHECK_PARENTS=1)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_fakes import HANG
from enclave_world import enclave, listens, world
from nitroctl.base.config import source_root
from nitroctl.vsock import parent

FOLDER = source_root() / "docs/parent"
COMPILERS = {"c": ["cc", "-static", "-Wall", "-Wextra", "-Werror", "-o"]}
if os.environ.get("CHECK_PARENTS"):
    COMPILERS |= {"go": ["go", "build", "-o"], "rs": ["rustc", "-O", "-o"]}


@pytest.fixture
def program(language: str, tmp_path: Path) -> Path:
    command = COMPILERS[language]
    if not shutil.which(command[0]):
        pytest.fail(f"no {command[0]}: sudo apt-get install golang-go rustc")
    made = tmp_path / f"parent-{language}"
    subprocess.run([*command, made, FOLDER / f"parent.{language}"], check=True)
    return made


@pytest.mark.parametrize("language", COMPILERS)
def test_it_talks_to_its_enclave(program: Path, language: str, tmp_path: Path) -> None:
    if language != "rs":  # rustc's own target is linked with glibc; the program is the same for musl
        with pytest.raises(parent.UnsuitableProgram):
            parent.check([os.fspath(program)], Path(sys.executable))
    with world(tmp_path) as bench, enclave(bench) as guest:
        path = bench.runtime / "nitroctl/16/vsock"
        guest.listen(5000)
        process = subprocess.Popen([program, path, "5000", "5001"], stdout=subprocess.PIPE, text=True)
        try:
            asked = guest.accept(5000)
            assert asked.recv_all() == b"hello from the parent\n"
            asked.send(b"hello from the enclave\n")
            asked.close()
            listens(path.with_name("vsock_5001"))
            stream = guest.connect(5001)
            stream.send(b"is anybody there?\n")
            stream.close()
            out = process.communicate(timeout=HANG)[0]
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, out) == (0, "hello from the enclave\nis anybody there?\n")
