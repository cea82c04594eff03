# SPDX-License-Identifier: MIT
"""All cases given to one verifier, and what it got wrong. How it is given them is the business of `ways`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from nitroctl.base.errors import NitroError
from nitroctl.torture.kit import CONTROL, Case, Kit
from nitroctl.torture.ways import Answer

ADVICE = (
    "it is not wired up: it has to trust the root in {root} or $ATTESTATION_ROOT, and to end with status 0 "
    "(HTTP: 200) for a good document; `nitroctl attest torture --output DIR` writes both, to try it by hand"
)


class Verifier(Protocol):
    def ask(self, case: Case) -> Answer: ...


@dataclasses.dataclass(frozen=True)
class Judgement:
    case: Case
    answer: Answer

    @property
    def fault(self) -> str | None:
        """Wrongly accepted, wrongly refused, or no verdict."""
        if self.answer.verdict == "none":
            return "no verdict"
        accepted = self.answer.verdict == "accepted"
        return None if self.case.accepted in (None, accepted) else f"wrongly {self.answer.verdict}"


@dataclasses.dataclass(frozen=True)
class Trial:
    judgements: Sequence[Judgement]
    allowed: Collection[str]  # faults that are known and meant

    def faults(self, kind: str) -> list[Judgement]:
        return [one for one in self.judgements if one.fault == kind and one.case.name not in self.allowed]

    @property
    def tolerated(self) -> list[Judgement]:
        return [one for one in self.judgements if one.fault and one.case.name in self.allowed]

    @property
    def either(self) -> list[Judgement]:
        return [one for one in self.judgements if one.case.accepted is None and not one.fault]

    @property
    def right(self) -> list[Judgement]:
        return [one for one in self.judgements if one.case.accepted is not None and not one.fault]

    @property
    def failed(self) -> bool:
        return any(self.faults(kind) for kind in FAULTS)

    @property
    def accepts_everything(self) -> bool:
        """As one does whose verdict is not its exit status."""
        return len(self.judgements) > 1 and all(one.answer.verdict == "accepted" for one in self.judgements)


FAULTS = ("wrongly accepted", "wrongly refused", "no verdict")


def run(
    kit: Kit,
    names: Sequence[str],
    verifier: Verifier,
    *,
    allowed: Collection[str] = (),
    on_case: Callable[[int], None] = lambda done: None,
) -> Trial:
    """Give them to the verifier one by one, the control first. Raises NitroError if it does not
    accept that: so it would refuse all others."""
    judgements = []
    for number, case in enumerate(kit.cases([CONTROL, *(name for name in names if name != CONTROL)])):
        answer = verifier.ask(case)
        if case.name == CONTROL and answer.verdict != "accepted":
            lines = [f"it said: {answer.said}"] if answer.said else []
            message = f"the verifier does not accept the control document, which is good: {answer.how}"
            raise NitroError(message, hint=ADVICE, lines=lines)
        judgements.append(Judgement(case, answer))
        on_case(number + 1)
    return Trial(judgements, allowed)
