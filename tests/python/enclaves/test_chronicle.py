# SPDX-License-Identifier: MIT
"""What is written down and asked of an enclave beside its record, with a QMP of ours in the place of QEMU's:
devices of older versions, a log that breaks, deaths that QEMU carries out itself. The whole of it, with
commands, is test_see's."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from nitroctl.attestation import nsm as words
from nitroctl.attestation.nsm import Entry
from nitroctl.base.errors import EnclaveError, UsageError
from nitroctl.enclaves import chronicle, events, faults, logs
from nitroctl.enclaves.chronicle import Chronicle
from nitroctl.enclaves.monitor import Qmp
from nitroctl.enclaves.nsm import Nsm
from nitroctl.enclaves.records import Record
from recorded import record

# {"LockPCR": {"index": 3}}, and the answer "LockPCR"
LOCKED = b"1 1769860800000000 45 0 - 17 a1674c6f636b504352a165696e64657803 674c6f636b504352"


class FakeQmp:
    """QEMU's part: `lacks` are the properties that this NSM does not have, with QEMU's words for that."""

    def __init__(self, *lacks: str) -> None:
        self.lacks = set(lacks)
        self.set_to: dict[str, Any] = {}
        self.chardevs: dict[str, socket.socket] = {}

    def _property(self, name: str, command: str) -> None:
        if name in self.lacks or "everything" in self.lacks:
            raise EnclaveError(f"QEMU refuses {command}: Property 'nsm.{name}' not found")

    async def get(self, path: str, name: str) -> Any:
        self._property(name, "qom-get")
        return self.set_to.get(name, 0)

    async def set(self, path: str, name: str, value: object) -> None:
        self._property(name, "qom-set")
        if value == "wrong":
            raise EnclaveError(f"QEMU refuses qom-set: property '{name}': 'wrong' is no kind of request")
        self.set_to[name] = value

    async def add_socket(self, name: str, sock: socket.socket) -> None:
        if name in self.chardevs:
            raise EnclaveError(f"QEMU refuses chardev-add: Chardev with id '{name}' already exists")
        self.chardevs[name] = sock.dup()

    async def execute(self, command: str, **arguments: Any) -> None:
        assert command == "chardev-remove"
        self.chardevs.pop(arguments["id"]).close()

    def as_qmp(self) -> Qmp:
        return cast(Qmp, self)


@pytest.fixture
def made(tmp_path: Path) -> Record:
    return record(home=tmp_path)


class World:
    """A chronicle, and what it told."""

    def __init__(self, record: Record, nsm_log: Path | None = None) -> None:
        self.record = record
        self.deaths: list[str] = []
        self.chronicle = Chronicle(record, changed=lambda: None, die=self.deaths.append, nsm_log=nsm_log)

    async def ask(self, fault: object, **options: object) -> dict[str, Any]:
        return await self.chronicle._ask_fault({"fault": fault, "options": options}, [])

    def events(self) -> list[events.Event]:
        return list(events.of(self.record, follow=False))


def test_a_log_in_pieces(tmp_path: Path) -> None:
    """Lines come as the socket has them; one that is far too long is dropped, and the next one read; what
    QEMU said last is taken once it is gone."""
    found: list[Entry] = []

    async def main() -> None:
        qmp = FakeQmp()
        nsm = Nsm(qmp.as_qmp(), tmp_path, found.append)
        await nsm.log()
        await nsm.log()  # there is one
        (qemu,) = qmp.chardevs.values()
        with qemu:
            qemu.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(qemu, LOCKED[:30])
            await loop.sock_sendall(qemu, LOCKED[30:] + b"\n" + b"x" * (3 * words.LINE_MAX))
            await loop.sock_sendall(qemu, b"\n" + LOCKED + b"\n")
            await loop.sock_sendall(qemu, LOCKED[:-1] + b"\n" + LOCKED)  # a short answer; a cut line
        nsm.drain()
        nsm.close()
        nsm.drain()

    asyncio.run(main())
    assert [(entry.kind, entry.index) for entry in found] == [("LockPCR", 3)] * 2
    lines = b"".join(logs.read(tmp_path, logs.NSM)).splitlines()
    assert [json.loads(line)["schema"] for line in lines] == [1, 1]


def test_a_qemu_that_is_gone_ends_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        qmp = FakeQmp()
        nsm = Nsm(qmp.as_qmp(), tmp_path, lambda entry: None)
        await nsm.log()
        assert nsm._ours
        for qemu in qmp.chardevs.values():
            qemu.close()
        loop = asyncio.get_running_loop()
        reading = loop.create_future()
        real = nsm._read

        def read() -> None:
            real()
            reading.set_result(None)

        loop.add_reader(nsm._ours, read)
        await reading
        assert not loop.remove_reader(nsm._ours)  # nobody spins on the end
        nsm.close()

    asyncio.run(main())


def test_an_nsm_of_an_older_version(made: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says the same when it is asked again; the enclave goes on without what it lacks."""

    async def main() -> None:
        world = World(made, nsm_log=tmp_path / "mine.json")
        with pytest.raises(EnclaveError, match="its QEMU is not up yet, or gone"):
            await world.ask("nsm", error=True)
        assert await world.ask("list") == {"nsm": None, "faults": []}
        await world.chronicle.up(FakeQmp("everything").as_qmp())
        with pytest.raises(EnclaveError) as caught:
            await world.ask("clock", drift=5)
        assert str(caught.value) == (
            "this QEMU's NSM has no clock-drift-ppm: it is of an older version, or not ours"
        )
        assert caught.value.hint == "`nitroctl build` makes one that has"
        assert await world.ask("list") == {"nsm": None, "faults": []}
        for _ in range(2):
            with pytest.raises(EnclaveError, match="this QEMU's NSM has no log: "):
                await world.chronicle._ask_nsm({}, [])
        world.chronicle.close()

    asyncio.run(main())
    assert capsys.readouterr().err == (
        "warning: --nsm-log: this QEMU's NSM has no log: it is of an older version, or not ours\n"
    )


def test_faults_are_noted(made: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the record, up to a limit, and as events; what is refused is not."""
    monkeypatch.setattr(chronicle, "FAULTS_MAX", 3)
    given: list[tuple[str, dict[str, object]]] = [
        ("die", {"text": "nsm:3"}), ("guest-clock", {"jump": 1.5}), ("clock", {"drift": 7}),
    ]  # fmt: skip
    noted = ["die nsm:3", "guest-clock jump=1.5", "clock drift=7"]

    async def main() -> World:
        world, qmp = World(made), FakeQmp()
        await world.chronicle.up(qmp.as_qmp())
        for kind, options in given:
            assert await world.ask(kind, **options) == {}
        assert qmp.set_to["fault-die-after"] == 3 and qmp.set_to["clock-drift-ppm"] == 7
        assert (await world.ask("list"))["nsm"]["fault_die_after"] == 3
        wrong: list[tuple[object, dict[str, object], str]] = [
            ("flood", {}, "there is no fault 'flood'"),
            (None, {}, "there is no fault 'None'"),
            ("die", {"when": 3}, "these options cannot be understood: "),
            ("clock", {"jump": "late"}, "these options cannot be understood: "),
            ("die", {"text": "nsm:0"}, "the number of a request of 0 cannot be had"),
        ]
        for fault, options, said in wrong:
            with pytest.raises(UsageError, match=said):
                await world.ask(fault, **options)
        monkeypatch.setattr(faults, "KINDS", ("wrong",))
        with pytest.raises(UsageError, match="'wrong' is no kind of request"):
            await world.ask("nsm", error=True, kind="wrong")
        await world.ask("clear")
        assert qmp.set_to["fault-die-after"] == 0 == qmp.set_to["clock-drift-ppm"]
        world.chronicle.close()
        return world

    world = asyncio.run(main())
    assert list(world.chronicle.facts()["faults"]) == noted
    assert [event["fault"] for event in world.events() if event["event"] == "fault"] == [*noted, "clear"]


def test_qemu_itself_has_carried_out_a_death(made: Record) -> None:
    """Only one that was asked for, and an end that is QEMU's own (QAPI's ShutdownCause)."""

    async def main() -> None:
        world = World(made)
        died = world.chronicle.died_by_itself
        assert died({"reason": "host-error"}) is None
        await world.chronicle.up(FakeQmp().as_qmp())
        await world.ask("die", text="nsm:2")
        assert died(None) is None is died({"reason": "guest-reset"})
        assert died({"reason": "host-error"}) == "killed by a fault that was asked for: die nsm:2"
        await world.ask("clear")
        assert died({"reason": "host-error"}) is None and world.deaths == []
        world.chronicle.close()

    asyncio.run(main())


def test_connections(made: Record) -> None:
    """The first one to each port is an event, the heartbeat's and the tools' are not; one may be deadly."""
    world = World(made)
    world.chronicle.moments.sentence(faults.Death.of("connection:7"))
    for event in (
        {"event": "connected", "side": "parent", "port": 9000},
        {"event": "connected", "side": "enclave", "port": 5},
        {"event": "connected", "side": "enclave", "port": 5},
        {"event": "connected", "side": "enclave", "port": "5"},
        {"event": "dump-ended", "side": "enclave", "port": 5},
        {"event": "refused", "side": "enclave", "port": 6, "cause": "no-listener"},
        {"event": "connected", "side": "enclave", "port": 7},
    ):
        world.chronicle.vsock(event)
    world.chronicle.close()
    assert [(e["event"], e["port"], e["cause"]) for e in world.events()] == [
        ("connected", 5, None), ("refused", 6, "no-listener"), ("connected", 7, None),
    ]  # fmt: skip
    assert world.deaths == ["killed by a fault that was asked for: die connection:7"]


def test_the_nsm_s_faults_for_people() -> None:
    quiet = dict.fromkeys(
        ("fault_errors", "fault_delays", "fault_delay_ms", "fault_hits", "fault_expired", "fault_die_after",
         "clock_offset_ms", "clock_drift_ppm"), 0,
    )  # fmt: skip
    state: dict[str, Any] = {"fault_kind": "", **quiet}
    assert faults.nsm_words(None) == [] == faults.nsm_words(state)
    more = {"fault_kind": "Attestation", "fault_errors": 2, "fault_delays": faults.ALWAYS}
    assert faults.nsm_words(state | more | {"fault_delay_ms": 1500, "fault_hits": 4}) == [
        "nsm: Attestation, InternalError, 2 more; 4 so far",
        "nsm: Attestation, late by 1500 ms, all; 4 so far",
    ]
    assert faults.nsm_words(state | {"fault_errors": 1})[0].startswith("nsm: any request, InternalError, 1")
    assert faults.nsm_words(state | {"fault_expired": True, "fault_die_after": 3}) == [
        "nsm: documents have expired", "nsm: dies with the answer to request 3 from now",
    ]  # fmt: skip
    # A clock that has just begun to drift is not ahead yet.
    assert faults.nsm_words(state | {"clock_drift_ppm": 100}) == ["clock: +0 s, +100 ppm"]
    assert faults.nsm_words(state | {"clock_offset_ms": -5500}) == ["clock: -5.5 s, +0 ppm"]
