# SPDX-License-Identifier: MIT
"""Two users of one machine, each with an enclave of the same name and context ID: neither sees, reaches or
ends the other's.

Real processes around the fake programs. Only root can start processes of two users.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enclave_fakes import HANG, HEARTBEAT, PYTHON, install, steps, write_eif

NOBODY = 65534


# What all users can run: this interpreter may be in somebody's home.
INTERPRETERS = (sys.executable, "/usr/bin/python3")


@dataclass
class User:
    uid: int
    home: Path
    shared: Path
    interpreter: str = ""

    def environment(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
            "HOME": str(self.home),
            "TMPDIR": str(self.shared),
            "PYTHONPATH": os.pathsep.join([str(PYTHON), *site.getsitepackages()]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NITROCTL_QEMU": str(self.shared / "fake-qemu"),
            "NITROCTL_VSOCK_BACKEND": str(self.shared / "fake-backend"),
            **steps(HEARTBEAT),
        }

    def python(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.interpreter, *argv], user=self.uid, group=self.uid, extra_groups=[], cwd="/", timeout=HANG,
            env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip

    def nitro_cli(self, *argv: str) -> Any:
        done = self.python("-m", "nitroctl.nitro_cli", *argv)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run_enclave(self) -> Any:
        eif = str(self.shared / "app.eif")
        return self.nitro_cli("run-enclave", "--eif-path", eif, "--memory", "64", "--cpu-count", "1")


@pytest.fixture
def users() -> Iterator[tuple[User, User]]:
    """Without XDG folders, as after `su`: all that they share is the folder for temporary files."""
    if os.getuid() != 0:
        pytest.skip("only root can start processes of two users")
    shared = Path(tempfile.gettempdir(), f"n{os.getpid()}-{time.monotonic_ns()}")
    shared.mkdir()
    shared.chmod(0o1777)
    write_eif(shared / "app.eif").chmod(0o644)
    made = []
    for uid in (0, NOBODY):
        home = shared / f"home-{uid}"
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)
        made.append(User(uid, home, shared))
    try:
        interpreter = _for_all(made[1])
        for user in made:
            user.interpreter = interpreter
        for program in ("fake_qemu.py", "fake_backend.py"):
            path = install(program, shared)
            path.write_text(path.read_text().replace(sys.executable, interpreter, 1))
        yield made[0], made[1]
        for user in made:
            user.nitro_cli("terminate-enclave", "--all")
    finally:
        shutil.rmtree(shared)


def _for_all(user: User) -> str:
    said = ""
    for user.interpreter in INTERPRETERS:
        try:
            done = user.python("-c", "import nitroctl.enclaves.supervisor, cryptography.x509")
        except PermissionError as e:
            said = str(e)
            continue
        if done.returncode == 0:
            return user.interpreter
        said = done.stderr
    pytest.skip(f"no Python that another user can run has what nitroctl needs: {said[-200:]}")


def test_each_has_enclaves_of_their_own(users: tuple[User, User]) -> None:
    one, other = users
    mine, theirs = one.run_enclave(), other.run_enclave()
    assert (mine["EnclaveName"], mine["EnclaveCID"]) == (theirs["EnclaveName"], theirs["EnclaveCID"])
    assert [found["EnclaveID"] for found in one.nitro_cli("describe-enclaves")] == [mine["EnclaveID"]]
    assert [found["EnclaveID"] for found in other.nitro_cli("describe-enclaves")] == [theirs["EnclaveID"]]

    done = other.python("-m", "nitroctl.nitro_cli", "terminate-enclave", "--enclave-id", mine["EnclaveID"])
    assert done.returncode == 11 and mine["EnclaveID"] in done.stderr
    (ended,) = other.nitro_cli("terminate-enclave", "--all")
    assert ended["EnclaveID"] == theirs["EnclaveID"]
    assert [found["State"] for found in one.nitro_cli("describe-enclaves")] == ["RUNNING"]


def test_sockets_records_and_logs_are_private(users: tuple[User, User]) -> None:
    one, other = users
    one.run_enclave()
    record = json.loads(one.python("-m", "nitroctl", "inspect", "app").stdout)
    with socket.socket(socket.AF_UNIX) as parent:
        parent.connect(record["uds"])  # its own user can
    for code in (
        f"import socket; socket.socket(socket.AF_UNIX).connect({record['uds']!r})",
        f"open({record['home'] + '/record.json'!r})",
        f"open({record['home'] + '/console.log'!r})",
        f"import os; os.kill({record['supervisor_pid']}, 15)",
    ):
        done = other.python("-c", code)
        assert done.returncode == 1 and "PermissionError" in done.stderr, code
