# SPDX-License-Identifier: MIT
"""What must hold of attestation documents that a real guest gets from its NSM; more of `checks`.

The documents are judged by `nitroctl.attestation` and, from their bytes, by the openssl program, which knows
nothing of it. The rules are AWS's attestation guide and nsm-check.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from nitroctl import attestation
from nitroctl.attestation import Policy, errors
from nitroctl.testing import agent
from nitroctl.testing.claims import INSTANCE, ROLE, ZERO, Nsm, boot_check
from nitroctl.testing.lab import CheckFailed, Lab, check, check_equal, openssl

HAMMER_SECONDS = float(os.environ.get("SOAK_SECONDS", "15"))  # AWS's nsm-multithread runs until stopped
HAMMER_THREADS = 90
FIELD = 1024  # bytes in each of user_data, nonce and public_key: what nsm-check asks for


def request(
    user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
) -> dict[str, object]:
    return {"user_data": user_data, "nonce": nonce, "public_key": public_key}


def document(nsm: Nsm, **fields: bytes) -> bytes:
    data = nsm.ok("Attestation", request(**fields))["document"]
    check(isinstance(data, bytes) and data, f"the document is {data!r}")
    return bytes(data)


def check_by_openssl(lab: Lab, data: bytes) -> None:
    """Chain and signature, by the openssl program alone."""
    import cbor2

    protected, _, payload, signature = cbor2.loads(data)
    fields = cbor2.loads(payload)
    names = []
    for i, der in enumerate([*fields["cabundle"], fields["certificate"]]):
        names.append(f"certificate-{i}.pem")
        (lab.folder / names[-1]).write_bytes(openssl(lab, "x509", "-inform", "DER", input=der))
    (lab.folder / "between.pem").write_bytes(b"".join((lab.folder / n).read_bytes() for n in names[1:-1]))
    openssl(lab, "verify", "-CAfile", names[0], "-untrusted", "between.pem", names[-1])
    key = openssl(lab, "x509", "-noout", "-pubkey", "-in", names[-1])
    (lab.folder / "key.pem").write_bytes(key)
    r, s = (int.from_bytes(signature[i : i + 48], "big") for i in (0, 48))
    description = f"asn1=SEQUENCE:pair\n[pair]\nr=INTEGER:0x{r:x}\ns=INTEGER:0x{s:x}\n"
    (lab.folder / "pair.cnf").write_text(description)
    openssl(lab, "asn1parse", "-genconf", "pair.cnf", "-noout", "-out", "signature.der")
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    openssl(lab, "dgst", "-sha384", "-verify", "key.pem", "-signature", "signature.der", input=signed)


@boot_check
def attestation_under_the_local_ca(lab: Lab) -> None:
    """A document of an enclave that `nitroctl run` started verifies under the user's CA and the file's PCRs,
    as nitroctl and as openssl see it, with a kilobyte in every field."""
    eif = lab.image("agent")
    with lab.run(eif, "--instance-id", INSTANCE, "--role", ROLE) as run:
        uds = run.uds()
        with run.agent(uds) as client:
            data = document(Nsm(client), user_data=b"u" * FIELD, nonce=b"n" * FIELD, public_key=b"k" * FIELD)
    root = Path(lab.environment()["XDG_DATA_HOME"], "nitroctl/ca/root.pem").read_bytes()
    from nitroctl.eif.measure import measure

    pcrs = {int(name[3:]): bytes.fromhex(pcr) for name, pcr in measure(eif).items()}
    for index, text in ((3, ROLE), (4, INSTANCE)):
        pcrs[index] = hashlib.sha384(ZERO + text.encode()).digest()
    policy = Policy(pcrs=pcrs, user_data=b"u" * FIELD, nonce=b"n" * FIELD, public_key=b"k" * FIELD)
    found = attestation.verify(data, root, policy)
    check(data.startswith(bytes.fromhex("8444a1013822a059")), f"it begins with {data[:8].hex()}")
    check_equal(list(found.pcrs), list(range(16)), "PCRs in the document")
    check(re.fullmatch(rf"{INSTANCE}-enc[0-9a-f]{{16}}", found.module_id), f"module id {found.module_id}")
    check(abs(found.timestamp / 1000 - time.time()) < 600, f"issued at {found.time}")
    check_by_openssl(lab, data)


def attest(lab: Lab, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "nitroctl", "attest", *(os.fspath(a) for a in arguments)]
    return subprocess.run(command, env=lab.environment(), stdin=subprocess.DEVNULL, capture_output=True)


@boot_check
def attestation_by_command(lab: Lab) -> None:
    """`nitroctl attest get` fetches a document from a running enclave by name, and `attest verify --eif`
    accepts it with the right nonce and no other."""
    eif, path = lab.image("agent"), lab.folder / "document"
    with lab.run(eif, "--name", "proof") as run:
        run.expect(agent.READY_LINE.encode())
        got = attest(lab, "get", "proof", "--nonce", "00ff", "-o", path)
        check_equal(got.returncode, 0, f"status of attest get ({got.stderr.decode()})")
        printed = attest(lab, "get", "proof").stdout
        missing = attest(lab, "get", "disproof")
    check_equal(missing.returncode, 1, "status of attest get for an enclave that is not there")
    check(b"running: proof (CID 16)" in missing.stderr, missing.stderr.decode())
    check(base64.b64decode(printed).startswith(b"\x84\x44"), "the printed document is no COSE_Sign1")
    good = attest(lab, "verify", path, "--eif", eif, "--nonce", "00ff", "--max-age", "600")
    check_equal(good.returncode, 0, f"status of attest verify ({good.stderr.decode()})")
    bad = attest(lab, "verify", path, "--eif", eif, "--nonce", "00fe")
    check_equal((bad.returncode, b"nonce" in bad.stderr), (1, True), "status for another nonce, its reason")


def qom_get(path: Path, name: str) -> Any:
    """A property of the NSM over QMP, and the guest goes on."""
    with closing(socket.socket(socket.AF_UNIX)) as qmp:
        qmp.connect(os.fspath(path))
        lines = qmp.makefile("rw", encoding="utf-8")
        lines.readline()
        for command, arguments in (
            ("qmp_capabilities", {}),
            ("qom-get", {"path": "/machine/nsm", "property": name}),
        ):
            lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            lines.flush()
            while "event" in (answer := json.loads(lines.readline())):
                pass
        if "return" not in answer:
            raise CheckFailed(f"qom-get {name}: {answer}")
        return answer["return"]


@boot_check
def attestation_without_a_chain(lab: Lab) -> None:
    """Without certificates QEMU makes a chain of its own, whose root QMP tells; locked PCRs of the
    application's are in the document, others are not."""
    path = lab.folder / "qmp"
    with lab.agent(args=("-qmp", f"unix:{path},server=on,wait=off")) as (_, client):
        nsm = Nsm(client)
        root = qom_get(path, "root-certificate").encode()
        first = attestation.verify(document(nsm), root)
        check_equal(list(first.pcrs), list(range(16)), "PCRs in the document")
        check_equal((first.user_data, first.nonce, first.public_key), (None, None, None), "optional fields")
        nsm.ok("ExtendPCR", {"index": 17, "data": b"x"})
        nsm.ok("ExtendPCR", {"index": 20, "data": b"x"})
        nsm.ok("LockPCR", {"index": 20})
        second = attestation.verify(document(nsm, nonce=b"n"), root, Policy(nonce=b"n"))
        check_equal(list(second.pcrs), [*range(16), 20], "PCRs in the document")
        check_equal(second.pcrs[20], hashlib.sha384(ZERO + b"x").digest(), "PCR20")
        check_equal(second.certificate, first.certificate, "the enclave's certificate, used again")
        check(second.timestamp >= first.timestamp, "the second document is older than the first")
    path.unlink(missing_ok=True)


@boot_check
def attestation_in_debug_mode(lab: Lab) -> None:
    """In debug mode PCR0, 1 and 2 are zero and 4 is not; documents are still signed, and told apart."""
    with lab.run(lab.image("agent"), "--debug-mode") as run:
        uds = run.uds()
        with run.agent(uds) as client:
            data = document(Nsm(client))
    root = Path(lab.environment()["XDG_DATA_HOME"], "nitroctl/ca/root.pem").read_bytes()
    found = attestation.verify(data, root, Policy(allow_debug=True))
    check_equal([any(found.pcrs[i]) for i in (0, 1, 2, 4, 8)], [False] * 3 + [True, False], "PCRs set")
    try:
        attestation.verify(data, root)
    except errors.DebugEnclave:
        return
    raise CheckFailed("a document of a debug enclave was accepted as another's")


@boot_check
def attestation_conformance(lab: Lab) -> None:
    """What nsm-check asserts of attestation: 1024 bytes in one, two and three fields; and what does not fit a
    request is an error, not the end of the device."""
    with lab.agent() as (_, client):
        nsm = Nsm(client)
        big = b"\x80" * FIELD
        for fields in ({}, {"user_data": big}, {"user_data": big, "nonce": big},
                       {"user_data": big, "nonce": big, "public_key": big}):  # fmt: skip
            found = attestation.decode(document(nsm, **fields))
            for name in request():
                check_equal(getattr(found, name), fields.get(name), name)
        nsm.refused("Attestation", request() | {"user_data": 1})
        check(document(nsm), "no document after an error")


@boot_check
def attestation_hammered(lab: Lab) -> None:
    """Ninety threads of one process get documents from one descriptor for a while, and every one answers."""
    import cbor2

    encoded = cbor2.dumps({"Attestation": request(user_data=b"\x80" * FIELD)}).hex()
    with lab.agent(args=("-smp", "2")) as (_, client):
        end = time.monotonic() + HAMMER_SECONDS
        while time.monotonic() < end:
            facts = client.facts("nsm-loop", HAMMER_THREADS, 50, encoded)
            check_equal((facts["errors"], facts["failed"]), ("0", "0"), "refused and failed requests")
            check_equal(int(facts["ok"]), HAMMER_THREADS * 50, "documents")
        last = cbor2.loads(bytes.fromhex(facts["last"]))["Attestation"]["document"]
        check_equal(attestation.decode(last).user_data, b"\x80" * FIELD, "user data of the last document")
