# SPDX-License-Identifier: MIT
"""Moments in the life of one enclave, as its supervisor counts them: milestones of the boot, first
connections of ports, and whether it shall die now. Nothing is ended or written here.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitroctl.enclaves.faults import Death

# The kernel's own word for it, where its console level lets it through.
_INIT = rb"Run \S+ as init process"

PORTS_MAX = 4096  # ports of which the first connection is remembered


class Moments:
    def __init__(self) -> None:
        self.milestones: dict[str, float] = {}
        self.loading: dict[str, int] = {}
        self.faults: list[str] = []
        self._deaths: list[Death] = []
        self._ports: set[tuple[str, int]] = set()

    def reach(self, name: str, at: float | None = None) -> bool:
        """True the first time."""
        if name in self.milestones:
            return False
        self.milestones[name] = time.time() if at is None else at
        return True

    def console_line(self, line: bytes) -> bool:
        """True if it tells a milestone."""
        told = "init" not in self.milestones and b" as init process" in line and re.search(_INIT, line)
        return bool(told) and self.reach("init")

    def first_connection(self, direction: str, port: int) -> bool:
        """Whether this is the first one of the port, as far as is remembered."""
        if (direction, port) in self._ports or len(self._ports) >= PORTS_MAX:
            return False
        self._ports.add((direction, port))
        return True

    def sentence(self, death: Death) -> None:
        self._deaths.append(death)

    def pardon(self) -> None:
        self._deaths.clear()

    def dies(self, moment: str, number: int = 0) -> Death | None:
        """The wish that this moment fulfils."""
        for death in self._deaths:
            # Which request was the last one is QEMU's to count.
            if death.moment == moment and (moment == "nsm" or death.number == number):
                return death
        return None
