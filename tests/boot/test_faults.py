# SPDX-License-Identifier: MIT
"""What a user makes go wrong, as an application in a real guest feels it; one guest for all of it.

Which requests a fault befalls is known beforehand: its chances are SplitMix64's, whose first numbers for the
seed 1234567 (Rosetta Code) end with 317, 973, 423, 431, 821 in thousands.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import cbor2
import pytest

import nitroctl
from nitroctl.enclaves.folder import Folder
from nitroctl.testing.agent import Agent
from nitroctl.testing.lab import Lab

pytestmark = pytest.mark.boot

ATTESTATION = cbor2.dumps({"Attestation": {"user_data": b"here", "nonce": None, "public_key": None}})

# A second's delay, in seconds: the device's timer counts whole milliseconds, and the first has begun.
LATE = 0.999


def fails(agent: Agent) -> bool:
    return bool(cbor2.loads(agent.nsm(ATTESTATION)) == {"Error": "InternalError"})


def gdb(path: Path, *packets: str) -> list[str]:
    """The answers of a debugger's stub (GDB's remote protocol), which stops the guest until it is let go."""

    def answer(packet: str) -> str:
        while True:
            before = until(b"$")
            text = until(b"#").decode()
            assert file.read(2) and before.strip(b"+") == b""
            sock.sendall(b"+")
            # The stub of QEMU 7.2 tells, unasked, that the guest has stopped since we connected.
            if packet == "?" or not text.startswith("T"):
                return text

    def until(mark: bytes) -> bytes:
        found = b""
        while (byte := file.read(1)) != mark:
            assert byte, f"the stub has gone after {found!r}"
            found += byte
        return found

    answers = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        file = sock.makefile("rb")
        for packet in packets:
            sock.sendall(b"$%s#%02x" % (packet.encode(), sum(packet.encode()) % 256))
            answers.append(answer(packet))
    return answers


def test_each_fault_is_felt(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    enclave = nitroctl.Enclave(
        lab.image("agent"), qemu=lab.qemu, vsock_backend=lab.backend, nsm_log=tmp_path / "nsm", gdb=True
    )
    with enclave:
        faults = enclave.faults
        enclave.connect(7000).close()
        with Agent(enclave.uds) as agent:
            # The next two documents, and nothing else.
            faults.nsm(error=True, kind="Attestation", count=2)
            assert fails(agent) and "GetRandom" in cbor2.loads(agent.nsm(cbor2.dumps("GetRandom")))
            assert fails(agent) and not fails(agent)

            # By chance, and the same each time.
            for _ in range(2):
                faults.nsm(error=True, kind="Attestation", rate=0.432, seed=1234567)
                assert [fails(agent) for _ in range(5)] == [True, False, True, True, False]

            # Late; the machine goes on meanwhile, and can be asked.
            faults.nsm(delay=1.0, kind="Attestation", count=1)
            begun = time.monotonic()
            agent.send(b"N", ATTESTATION)
            assert faults.state()["nsm"]["fault_delay_ms"] == 1000
            assert b"document" in agent.receive(b"N") and time.monotonic() - begun >= LATE

            faults.nsm(expired=True)
            with pytest.raises(nitroctl.CertificateExpired):
                enclave.verify(agent.attestation())
            faults.clear()
            enclave.verify(agent.attestation())

            # Its clock: an hour behind, and at half speed from then on.
            faults.clock(jump=-3600, drift=-500000)
            before = time.time()
            stamps = [cbor2.loads(cbor2.loads(agent.attestation())[2])["timestamp"] / 1000 for _ in range(2)]
            after = time.time()
            assert stamps[1] >= stamps[0] >= before - 3600 - 60 and stamps[1] <= after - 3600
            faults.clear()

            # A debugger stops the guest, looks, and lets it go.
            record = enclave.record
            supported, halted, gone = gdb(Folder(record.cid, record.folder).gdb, "qSupported", "?", "D")
            assert "PacketSize" in supported and halted[0] in "ST" and gone == "OK"
            enclave.verify(agent.attestation())

            faults.die("nsm:1")
            with pytest.raises(nitroctl.EnclaveError):
                for _ in range(2):  # the answer may still come, and is the last one
                    agent.nsm(ATTESTATION)
        ended = enclave.wait(60)
        assert (ended.cause, ended.ending, ended.faults[-1]) == ("fault", "failed", "die nsm:1")

        # What was felt is marked, for whoever reads the log.
        entries = enclave.nsm.entries()
        asked = [entry for entry in entries if entry.kind == "Attestation"]
        assert [e.faults for e in asked if e.faults] == [
            *[("error",)] * 2, *[("error",)] * 6, ("delay",), ("expired",), ("clock",), ("clock",), ("die",),
        ]  # fmt: skip
        (late,) = (e for e in asked if e.faults == ("delay",))
        assert late.microseconds >= LATE * 1_000_000 and late.user_data == b"here" and late.document
        assert {"qemu", "loaded", "guest", "console", "heartbeat", "connection"} <= set(ended.milestones)
        assert ended.loading["pcr0"] > 0
    assert (tmp_path / "nsm").read_text().count("\n") == len(entries)
    lab.check_nothing_left()
