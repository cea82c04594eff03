# SPDX-License-Identifier: MIT
"""What is written down of one enclave's life beside its record, and what can be asked of it meanwhile:
events, milestones of the boot, its NSM's log and the faults that a test wants.

It belongs to the life (`lifecycle`), which tells it what happens and ends the enclave where a fault says so.
Each part is a module of its own: `events`, `moments`, `nsm`; here they are joined, and given to `control`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base import shown
from nitroctl.base.errors import EnclaveError, NitroError, UsageError
from nitroctl.enclaves import tools
from nitroctl.enclaves.backend import Backend
from nitroctl.enclaves.control import Control
from nitroctl.enclaves.events import Events
from nitroctl.enclaves.moments import Moments
from nitroctl.enclaves.monitor import MACHINE, Qmp
from nitroctl.enclaves.nsm import Nsm
from nitroctl.enclaves.records import Record, State
from nitroctl.vsock import sockets

if TYPE_CHECKING:
    from nitroctl.enclaves.faults import Death

# Ports that are init's or those of our tools, and no application's.
_OURS = {("parent", sockets.HEARTBEAT_PORT), ("parent", sockets.APP_STATUS_PORT), ("enclave", tools.PORT)}

FAULTS_MAX = 1000  # that the record names


class Chronicle:
    """`changed`: the record has to be written again. `die`: a fault wants the end now, in these words."""

    def __init__(
        self, record: Record, *, changed: Callable[[], None], die: Callable[[str], None], nsm_log: Path | None
    ) -> None:
        self.moments = Moments()
        self._home = record.home
        self._changed = changed
        self._die = die
        self._nsm_log = nsm_log
        self._events = Events(record.home, record.name, record.id)
        self._nsm: Nsm | None = None
        self._disturbed = False  # its NSM was told of faults

    def close(self) -> None:
        if self._nsm:
            self._nsm.close()
        self._events.close()

    def drain(self) -> None:
        """QEMU is gone: take what it has said last."""
        if self._nsm:
            self._nsm.drain()

    def facts(self) -> dict[str, Any]:
        """Members of the record."""
        return {
            "milestones": dict(self.moments.milestones),
            "loading": self.moments.loading,
            "faults": tuple(self.moments.faults),
        }

    # -- what happens

    def state(self, record: Record) -> None:
        names = {State.RUNNING: "heartbeat", State.ENDED: "stopped", State.STARTING: "started"}
        if record.state is State.STOPPING:
            return
        self._events.tell(names.get(record.state, record.state.value), message=record.message)

    def reach(self, name: str) -> None:
        """A milestone; to be called as often as one likes."""
        if self.moments.reach(name):
            self._changed()

    def booted(self) -> None:
        self._if_it_dies("heartbeat")

    def console_line(self, line: bytes) -> None:
        if self.moments.console_line(line):
            self._changed()

    def vsock(self, event: dict[str, Any]) -> None:
        """The vsock backend tells an event."""
        name, side, port = event.get("event"), event.get("side"), event.get("port")
        if name not in ("connected", "refused") or not isinstance(side, str) or not isinstance(port, int):
            return
        if name == "refused":
            self._events.tell(name, side=side, port=port, cause=event.get("cause"))
            return
        if (side, port) not in _OURS and self.moments.first_connection(side, port):
            self._events.tell(name, side=side, port=port)
            self.reach("connection")
        self._if_it_dies("connection", port)

    async def up(self, qmp: Qmp) -> None:
        """QEMU can be asked."""
        from nitroctl.enclaves.timeline import boot_times

        self._nsm = Nsm(qmp, self._home, self._events.tell_request)
        with contextlib.suppress(EnclaveError):  # another QEMU's machine does not know
            found, self.moments.loading = boot_times(str(await qmp.get(MACHINE, "boot-times")))
            for name, at in found.items():
                self.moments.reach(name, at)
            self._changed()
        if self._nsm_log is not None:
            try:
                await self._nsm.log(self._nsm_log)
            except NitroError as e:
                shown.say(f"warning: --nsm-log: {e}")

    def died_by_itself(self, shutdown: dict[str, Any] | None) -> str | None:
        """The words of the fault that QEMU itself has carried out, if that is why it ended."""
        death = self.moments.dies("nsm")
        if death is None or shutdown is None or shutdown.get("reason") != "host-error":
            return None
        return _killed(death)

    def _if_it_dies(self, moment: str, number: int = 0) -> None:
        if death := self.moments.dies(moment, number):
            self._die(_killed(death))

    # -- what is asked

    def offer(self, control: Control, backend: Backend) -> None:
        """Let others ask for all of it."""

        async def vsock(request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
            asked = request.get("request")
            if not isinstance(asked, dict):
                raise UsageError("the request for the vsock backend is no JSON object")
            answer = await backend.ask(asked, fds)
            self._note_vsock(asked)
            return answer

        control.offer("vsock", vsock)
        control.offer("nsm", self._ask_nsm)
        control.offer("fault", self._ask_fault)

    async def _ask_nsm(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Its log, from now on."""
        await self._its_nsm().log()
        return {}

    async def _ask_fault(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        from nitroctl.enclaves.faults import ClockFault, Death, NsmFault

        kind, options = request.get("fault"), request.get("options", {})
        try:
            if kind in ("nsm", "clock", "die"):
                self._disturbed = True
            if kind == "nsm":
                fault = NsmFault.of(**options)
                await self._its_nsm().fault(fault)
                self._note(fault.words())
            elif kind == "clock":
                clock = ClockFault.of(**options)
                await self._its_nsm().clock(clock)
                self._note(clock.words())
            elif kind == "guest-clock":  # done already, by its agent
                self._note(f"guest-{ClockFault.of(**options).words()}")
            elif kind == "die":
                await self._sentence(Death.of(**options))
            elif kind == "clear":
                self.moments.pardon()
                if self._disturbed:
                    await self._its_nsm().clear()
                self._note("clear")
            elif kind == "list":
                return {"nsm": await self._nsm_state(), "faults": self.moments.faults}
            else:
                raise UsageError(f"there is no fault {str(kind)[:80]!r}")
        except TypeError as e:
            raise UsageError(f"these options cannot be understood: {e}") from e
        return {}

    async def _sentence(self, death: Death) -> None:
        if death.moment == "nsm":
            await self._its_nsm().die_after(death.number)
        elif death.moment == "heartbeat" and "heartbeat" in self.moments.milestones:
            raise UsageError("it has had its heartbeat already", hint="die now, or ask for that at its start")
        self.moments.sentence(death)
        self._note(death.words())
        self._if_it_dies("now")

    def _note(self, fault: str) -> None:
        """A fault was asked for: whoever looks at the record or the events shall know."""
        if len(self.moments.faults) < FAULTS_MAX:
            self.moments.faults.append(fault)
        self._events.tell("fault", fault=fault)
        self._changed()

    def _note_vsock(self, request: dict[str, Any]) -> None:
        """The vsock backend has done what it was asked for."""
        if request.get("do") == "fault":
            given = (f"{name}={value}" for name, value in request.items() if name not in ("do", "kind"))
            self._note(" ".join([f"vsock {request.get('kind')}", *given])[:200])
        elif request.get("do") == "fault-clear":
            self._note("vsock clear")

    async def _nsm_state(self) -> Mapping[str, Any] | None:
        """None from an NSM that knows no faults."""
        try:
            return await self._its_nsm().state()
        except EnclaveError:
            return None

    def _its_nsm(self) -> Nsm:
        if self._nsm is None:
            raise EnclaveError("its QEMU is not up yet, or gone")
        return self._nsm


def _killed(death: Death) -> str:
    return f"killed by a fault that was asked for: {death.words()}"
