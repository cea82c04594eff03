# SPDX-License-Identifier: MIT
"""The kit: its cases by name, each made when it is asked for, under one root.

    kit = Kit()                      keys of its own, for now; Kit(seed="x", at=...) is the same every time
    for case in kit.cases(): ...     what a verifier is given, and what it has to say to it

The tables (`envelope`, `payload`, `path`, `expectations`) say which cases there are.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

from nitroctl.base.errors import UsageError
from nitroctl.base.instants import UTC
from nitroctl.torture import certificates, envelope, expectations, path, payload
from nitroctl.torture.bench import Bench, Made
from nitroctl.torture.rows import NEEDS, Expected, Need, Row, accept

CONTROL = "control"
YEARS = range(2001, 2039)  # the chain's dates are UTCTime, and so from 1950 to 2049

TABLE: dict[str, Row] = {
    row.name: row
    for row in (
        accept(
            CONTROL, "like AWS's of today", "nothing is wrong with it", "AWS's documents",
            lambda b: b.document(),
        ),
        *envelope.ROWS,
        *payload.ROWS,
        *path.ROWS,
        *expectations.ROWS,
    )
}  # fmt: skip


class Misjudged(AssertionError):
    """A verifier has accepted what is to be refused, or refused what is to be accepted."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One document, and what a verifier has to say to it: `accepted` is True or False, or None where good
    verifiers differ."""

    name: str
    expected: Expected
    what: str
    reason: str
    source: str
    needs: tuple[Need, ...]  # without which it says nothing about a verifier
    forged: bool  # who accepts it can be made to accept anything, by anybody
    document: bytes = dataclasses.field(repr=False)
    root: bytes = dataclasses.field(repr=False)  # DER
    time: datetime  # aware; for which certificates must be valid
    nonce: bytes
    pcr0: bytes = dataclasses.field(repr=False)

    @property
    def accepted(self) -> bool | None:
        return {"accept": True, "refuse": False, "either": None}[self.expected]

    @property
    def root_pem(self) -> bytes:
        return pem(self.root)

    def judge(self, accepted: object) -> None:
        """Raise Misjudged, an AssertionError, if a verifier should have said something else."""
        __tracebackhide__ = True  # of pytest's
        if self.accepted not in (None, bool(accepted)):
            how = "accepted" if accepted else "refused"
            raise Misjudged(f"wrongly {how} {self.name}: {self.what} ({self.reason}; {self.source})")

    @contextlib.contextmanager
    def judged(self, *refusals: type[Exception]) -> Iterator[None]:
        """Judge the verifier in the body, which refuses by raising one of these. Any other error passes."""
        __tracebackhide__ = True
        try:
            yield
        except refusals as e:
            try:
                self.judge(False)
            except Misjudged as wrong:
                raise wrong from e
        else:
            self.judge(True)


class Kit:
    """Raises UsageError for a time that chains cannot have."""

    def __init__(self, seed: str | None = None, at: datetime | None = None) -> None:
        time = (at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
        if time.year not in YEARS:
            raise UsageError(f"a kit for {time:%F} is out of range: the years {YEARS[0]} to {YEARS[-1]}")
        self.time = time
        self.seed = seed
        entropy = secrets.token_bytes(32) if seed is None else seed.encode(errors="surrogatepass")
        self._bench = Bench(hashlib.sha256(b"nitroctl torture kit\0" + entropy).digest(), time)
        self._made: dict[str, Case] = {}

    @functools.cached_property
    def root(self) -> bytes:
        """The root certificate in DER, which a verifier has to trust."""
        return certificates.encoded(self._bench.chain[:1])[0]

    @property
    def root_pem(self) -> bytes:
        return pem(self.root)

    def case(self, name: str) -> Case:
        if name not in self._made:
            row, bench = TABLE[name], self._bench
            made = row.make(bench)
            if not isinstance(made, Made):
                made = Made(made)
            self._made[name] = Case(
                row.name, row.expected, row.what, row.reason, row.source, row.needs, row.forged,
                document=made.document,
                root=self.root,
                time=made.time or self.time,
                nonce=bench.nonce if made.nonce is None else made.nonce,
                pcr0=bench.pcr0 if made.pcr0 is None else made.pcr0,
            )  # fmt: skip
        return self._made[name]

    def cases(self, chosen: Iterable[str] | None = None) -> Iterator[Case]:
        """Those, or all of them; the control first."""
        return map(self.case, TABLE if chosen is None else chosen)


def names(
    patterns: Sequence[str] = (), checks: Collection[str] = NEEDS, leave_out: Collection[str] = ()
) -> list[str]:
    """Of the cases that match a pattern, or of all, those that need nothing but `checks`, in their order.
    Raises UsageError for a pattern that matches none."""
    for pattern in (*patterns, *leave_out):
        if not fnmatch.filter(TABLE, pattern):
            raise UsageError(
                f"no case is named {pattern!r}", hint="`nitroctl attest torture --list` has them all"
            )
    for check in checks:
        if check not in NEEDS:
            raise UsageError(f"{check!r} is nothing to check: {', '.join(NEEDS)}")
    return [
        name
        for name, row in TABLE.items()
        if (not patterns or any(fnmatch.fnmatchcase(name, one) for one in patterns))
        and not any(fnmatch.fnmatchcase(name, one) for one in leave_out)
        and set(row.needs) <= set(checks)
    ]


def pem(der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    body = "\n".join(lines)
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n".encode()
