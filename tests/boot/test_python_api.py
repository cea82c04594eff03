# SPDX-License-Identifier: MIT
"""The Python API with real guests: what its unit tests do over fakes, once in earnest."""

from __future__ import annotations

import os

import pytest

import nitroctl
from nitroctl import attestation
from nitroctl.testing.lab import Lab

pytestmark = pytest.mark.boot


@pytest.fixture
def world(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    return lab


def test_attestation_and_console(world: Lab) -> None:
    enclave = nitroctl.Enclave(world.image("agent"), qemu=world.qemu, vsock_backend=world.backend)
    nonce = os.urandom(20)
    with enclave:
        document = enclave.attestation(nonce=nonce, user_data=b"from the API")
        found = enclave.verify(document, nonce=nonce)
        assert found.user_data == b"from the API"
        assert {index: found.pcrs[index] for index in enclave.pcrs()} == enclave.pcrs()
        with pytest.raises(attestation.NonceMismatch):
            enclave.verify(document, nonce=b"another")
        assert enclave.console.wait_for("agent: listening on vsock port ([0-9]+)")[1] == "7000"
    world.check_nothing_left()


def test_a_parent_that_listens_before_the_boot(world: Lab) -> None:
    """The hello image proves itself to whoever listens on port 7001, right after its start."""
    enclave = nitroctl.Enclave(world.image("hello"), qemu=world.qemu, vsock_backend=world.backend)
    nonce = os.urandom(16)
    with enclave.listen(7001) as verifier, enclave:
        with verifier.accept() as sock:
            sock.sendall(nonce)
            document = b"".join(iter(lambda: sock.recv(65536), b""))
        enclave.verify(document, nonce=nonce)
        enclave.wait(120).check()
    world.check_nothing_left()
