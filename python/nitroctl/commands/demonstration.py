# SPDX-License-Identifier: MIT
"""The demonstration: from nothing to a running enclave whose PCRs are those computed from its file, and
whose attestation document verifies under the local CA.

It only calls what the commands call, in order; each step finds its result if it has been done before.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nitroctl.base import progress
from nitroctl.base.config import default_prefix
from nitroctl.base.errors import NitroError
from nitroctl.base.place import place
from nitroctl.toolchain import programs, tree

if TYPE_CHECKING:
    from nitroctl.attestation import Document
    from nitroctl.enclaves.records import Record

PCRS = ("PCR0", "PCR1", "PCR2", "PCR8")
ZERO = "00" * 48  # a PCR that nothing was measured into

# guest/hello.c: where it looks for a verifier, and what it reads there.
VERIFIER_PORT = 7001
NONCE_SIZE = 16
DOCUMENT_SECONDS = 60.0  # for a document that is on its way, not for the boot before it

# The lines of guest/hello.c.
_PCR_LINE = re.compile(rb"^(PCR\d+): ([0-9a-f]{96})\r*$", re.MULTILINE)


@dataclass(frozen=True)
class Compared:
    name: str
    enclave: str | None  # hex, as the application printed it; None if it did not
    file: str  # hex, as computed from the file

    @property
    def equal(self) -> bool:
        return self.enclave == self.file


def printed_pcrs(console: bytes) -> dict[str, str]:
    """PCR name -> hex, from the console's output."""
    return {m[1].decode(): m[2].decode() for m in _PCR_LINE.finditer(console)}


def compare(console: bytes, computed: Mapping[str, str]) -> list[Compared]:
    """The PCRs of the file next to what the application printed of them; a PCR without a value is zero."""
    printed = printed_pcrs(console)
    return [Compared(name, printed.get(name), computed.get(name, ZERO)) for name in PCRS]


class _Kept:
    """Console bytes, for the comparison at the end."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data


class Verifier:
    """Waits at the parent's port for the application's attestation document. A context manager."""

    def __init__(self) -> None:
        self.nonce = secrets.token_bytes(NONCE_SIZE)
        self.document = b""
        self._thread: threading.Thread | None = None

    def listen(self, record: Record) -> None:
        """Called for each state of the enclave; the sockets' folder is there from the first one on."""
        from nitroctl.vsock import sockets

        if self._thread is None:
            self._listener = sockets.listen(record.uds, VERIFIER_PORT)
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        from nitroctl.attestation.document import DOCUMENT_MAX

        try:
            with self._listener.accept() as connection:
                connection.settimeout(DOCUMENT_SECONDS)
                connection.sendall(self.nonce)
                while data := connection.recv(65536):
                    self.document += data
                    if len(self.document) > DOCUMENT_MAX:
                        break
        except OSError:
            pass  # closed below, or the enclave is gone: what came is judged by whoever verifies it

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            with contextlib.suppress(OSError):
                self._listener.socket.shutdown(socket.SHUT_RDWR)  # ends a waiting accept
            self._thread.join()
            self._listener.close()


def prepare(image: Path, *, jobs: int | None = None) -> None:
    """QEMU, the backend, a kernel and the hello image, each made if it is not there."""
    from nitroctl.eif import testimage

    qemu, backend = programs.make(jobs)
    for link, program, changed in tree.link_programs([qemu, backend], default_prefix()):
        if changed:
            progress.say(f"linked {link} -> {program}")
    made = testimage.make("hello", image)
    progress.say(f"{made.path}: {progress.amount(made.size, 'bytes')}")


@dataclass(frozen=True)
class Outcome:
    """What the enclave showed: its PCRs beside the file's, and its verified document, kept in `path`."""

    pcrs: list[Compared]
    document: Document
    path: Path


def run(image: Path) -> Outcome:
    """Run the image with its console on standard output, and verify what it says.

    Raises EnclaveError if it does not end well, and AttestationError for a document that does not verify.
    """
    from nitroctl import attestation
    from nitroctl.attestation import pki
    from nitroctl.eif.measure import measure
    from nitroctl.enclaves import foreground
    from nitroctl.enclaves.plan import make_plan
    from nitroctl.enclaves.ready import ready
    from nitroctl.enclaves.request import RunRequest
    from nitroctl.enclaves.sink import FdSink

    kept = _Kept()
    plan = make_plan(ready(RunRequest(image)))
    progress.say(f"Running {image} with {plan.accel}")
    sys.stdout.flush()
    console = FdSink(sys.stdout.fileno())
    with Verifier() as verifier:
        try:
            result = foreground.run(plan, sinks=[console, kept], on_state=verifier.listen)
        finally:
            console.close()
    result.check()
    if result.status:
        raise NitroError(f"the enclave {result.message}", hint=result.hint)
    computed = dict(measure(image).items())
    policy = attestation.Policy(
        nonce=verifier.nonce, pcrs={int(name[3:]): bytes.fromhex(pcr) for name, pcr in computed.items()}
    )
    document = attestation.verify(verifier.document, pki.load_or_init().pem, policy)
    path = image.with_name(f"{image.stem}-attestation.cose")
    with place(path):
        path.write_bytes(verifier.document)
    return Outcome(compare(bytes(kept.data), computed), document, path)
