# SPDX-License-Identifier: MIT
"""`nitroctl run --kms`, with fake programs for QEMU and backend: the KMS comes and goes with its enclave.
What an enclave has of it is in tests/boot/test_kms.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, install, make_bench, steps
from nitroctl.enclaves import kms
from nitroctl.enclaves.request import RunRequest

REQUEST = b"POST / HTTP/1.1\r\nHost: kms\r\nX-Amz-Target: TrentService.ListKeys\r\nConnection: close\r\n\r\n"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with make_bench(tmp_path, install("fake_backend.py", tmp_path)) as made:
        made.env["XDG_DATA_HOME"] = str(tmp_path / "data")
        yield made


def ask(path: Path) -> bytes:
    """As the backend does when the guest connects to the parent's port 8000."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(HANG)
        sock.connect(str(path))
        sock.sendall(REQUEST)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_it_is_there_before_the_guest_and_goes_with_it(bench: Bench) -> None:
    with bench.start("--kms", **steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        assert b'"__type": "MissingAuthenticationTokenException"' in ask(
            bench.runtime / "nitroctl/16/vsock_8000"
        )
        run.process.terminate()
        assert run.wait() == 143
        assert "ListKeys by an unknown caller: MissingAuthenticationTokenException" in run.err.decode()
    assert bench.left() == []
    store = bench.tmp / "data" / "nitroctl" / "kms"
    assert (store / "kms.sqlite3").exists() and (store / "tls" / "ca.pem").exists()


def test_its_failure_is_the_run_s(bench: Bench) -> None:
    (bench.tmp / "data" / "nitroctl" / "kms").mkdir(parents=True, mode=0o700)
    (bench.tmp / "data" / "nitroctl" / "kms" / "kms.sqlite3").write_bytes(b"no database, no keys" * 99)
    done = bench.run("--kms", **steps(HEARTBEAT))
    assert done.returncode == 1, done.stderr
    assert "the local KMS ended with status 1" in done.stderr and "file is not a database" in done.stderr
    assert bench.left() == []


def test_its_port_is_its_own(bench: Bench) -> None:
    done = bench.run("--kms", "--proxy", "8000=localhost:1", **steps(HEARTBEAT, RESET))
    assert done.returncode == 2
    assert "port 8000 is served by --proxy and by --kms" in done.stderr


def test_a_production_image_gets_its_ca_by_an_overlay(bench: Bench) -> None:
    """One archive for QEMU, with the CA behind the image's roots; the KMS may be asked all the same."""
    options = ("--kms", "--trust-kms-ca", "--overlay-keep-pcrs", "--kms-allow-unmeasured")
    with bench.start(*options, **steps(HEARTBEAT, ["print", "up"])) as run:
        run.until("up")
        assert "unmeasured, because of the local KMS's CA among its roots" in run.err.decode()
        words = Path(f"/proc/{bench.pid_of(bench.qemu)}/cmdline").read_bytes()
        assert f",overlay={bench.runtime}/nitroctl/16/overlay.cpio,overlay-keep-pcrs=on".encode() in words
        run.process.terminate()
        assert run.wait() == 143
    assert bench.left() == []
    plain, more = (
        kms.command(RunRequest(bench.eif, kms=True, kms_allow_unmeasured=more)) for more in (False, True)
    )
    assert more == [*plain, "--allow-unmeasured"]


def test_it_can_be_asked_for_everywhere() -> None:
    assert RunRequest.from_keywords("Enclave", eif="x", kms=True).kms
