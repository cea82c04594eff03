# SPDX-License-Identifier: MIT
"""What the application promises, asked over its vsock as its parent does."""

import asyncio
import os

import pytest

from nitroctl import attestation


def ask(enclave, request):
    with enclave.connect(5000) as sock:
        sock.sendall(request.encode() + b"\n")
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_greets(greeter):
    assert ask(greeter, "greet Ada") == b"Hello, Ada!\n"
    greeter.console.wait_for("asked: greet Ada")


def test_takes_its_words_from_the_parent(nitro_enclave, greeter_eif):
    enclave = nitro_enclave(greeter_eif, start=False)
    with enclave.listen(9001) as config, enclave:
        with config.accept() as sock:
            sock.sendall(b"Good morning\n")
        assert ask(enclave, "greet Ada") == b"Good morning, Ada!\n"


def test_proves_what_it_is(greeter):
    nonce = os.urandom(16)
    document = ask(greeter, f"attest {nonce.hex()}")
    # Or by your own verifier, with the local root (`nitroctl attest ca export`) in the place of AWS's.
    greeter.verify(document, nonce=nonce)
    with pytest.raises(attestation.NonceMismatch):
        greeter.verify(document, nonce=b"that of another request")


def test_many_clients(greeter):
    async def client(name):
        reader, writer = await greeter.open_connection(5000)
        writer.write(f"greet {name}\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def main():
        return await asyncio.gather(*(client(f"number {n}") for n in range(50)))

    assert asyncio.run(main()) == [f"Hello, number {n}!\n".encode() for n in range(50)]
