# SPDX-License-Identifier: MIT
"""Where a boot's time went: the milestones of one run, as text and as a picture.

Milestones are moments in an enclave's record, which its supervisor writes down as they come. The time from
one to the next is a phase. The picture is SVG without anything that has to be loaded, in colours that can be
seen on a light ground and on a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves.records import Record

# Each milestone in its order, and what has been done when it is reached. One that nobody could see (QEMU's,
# with a QEMU of another making; init's, with a quiet kernel) is left out, and its phase is the next one's.
MILESTONES = {
    "backend": "the vsock backend listens",
    "qemu": "QEMU has been started",
    "begun": "QEMU has set itself up, and opens the EIF",
    "loaded": "the EIF has been read, measured and judged",
    "guest": "the devices are there, and the vCPUs run",
    "console": "the kernel was unpacked, and prints",
    "init": "the kernel is up, and starts init",
    "heartbeat": "init has sent the heartbeat",
    "connection": "the application has its first connection",
}

# Of the loading: what the times in microseconds are, which QEMU's threads spend side by side.
LOADING = {
    "read": "reading the file to its place",
    "crc": "CRC-32",
    "wait": "waiting for the digests",
    "pcr0": "PCR0 and PCR1",
    "pcr2": "PCR2",
    "signature": "signature",
}

_BAR = 40  # characters


class Phase(NamedTuple):
    """It ends with its milestone. Seconds since the start."""

    name: str
    text: str
    begin: float
    end: float


def boot_times(text: str) -> tuple[dict[str, float], dict[str, int]]:
    """The machine's own milestones in seconds since 1970, and its times of loading in microseconds, from the
    property boot-times (docs/machine.md)."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if value.isdecimal():
            found[name] = int(value)
    names = {"begun": "begun", "loaded": "loaded", "runs": "guest"}
    moments = {new: found[old] / 1e6 for old, new in names.items() if found.get(old)}
    return moments, {name: found[name] for name in LOADING if name in found}


def phases(record: Record) -> list[Phase]:
    """Those that have ended, in order. Raises EnclaveError for a record without any."""
    found, before = [], record.started
    for name, text in MILESTONES.items():
        at = record.milestones.get(name)
        if at is None:
            continue
        # Clocks of two processes are one clock, but a word about something may come after the next word.
        at = max(at, before)
        found.append(Phase(name, text, before - record.started, at - record.started))
        before = at
    if not found:
        raise EnclaveError(
            f"nothing is known of the boot of {record.name}: it has just begun, or an older nitroctl ran it",
            record=record,
        )
    return found


def to_json(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "id": record.id,
        "accel": record.accel,
        "items": [
            {
                "milestone": p.name,
                "text": p.text,
                "seconds": round(p.end, 6),
                "phase": round(p.end - p.begin, 6),
            }
            for p in phases(record)
        ],
        "loading": record.loading,
    }


def rows(found: Sequence[Phase]) -> list[tuple[str, str, str, str, str]]:
    """For a table: when, how long, a bar, the milestone, its text."""
    whole = found[-1].end or 1.0
    return [(f"{p.end:.3f}", f"+{p.end - p.begin:.3f}", _bar(p, whole), p.name, p.text) for p in found]


def _bar(phase: Phase, whole: float) -> str:
    begin = min(_BAR - 1, int(phase.begin / whole * _BAR))
    end = max(begin + 1, round(phase.end / whole * _BAR))
    return "." * begin + "#" * (end - begin) + "." * (_BAR - end)


def loading_words(loading: Mapping[str, int]) -> list[str]:
    """What loading the EIF was made of."""
    return [f"{text} {loading[name] / 1000:.1f} ms" for name, text in LOADING.items() if loading.get(name)]


# ---- the picture ----

_WIDTH = 900
_LEFT = 330  # of the bars
_RIGHT = 90  # beside them, for the numbers
_ROW = 26
_TOP = 64
_PARTS = 4  # of the loading, on a line

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 }
.number { font-variant-numeric: tabular-nums }
.faint { fill: #6a737d }
.grid { stroke: #8c959f; stroke-opacity: .35 }
.host { fill: #2f81f7 } .guest { fill: #2da44e } .app { fill: #bf8700 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .faint { fill: #9198a1 } }
"""

# Whose time it is.
_WHO = {
    "backend": "host", "qemu": "host", "begun": "host", "loaded": "host", "guest": "host",
    "console": "guest", "init": "guest", "heartbeat": "guest", "connection": "app",
}  # fmt: skip


def svg(record: Record) -> str:
    """The picture, a whole file."""
    found = phases(record)
    whole = found[-1].end or 1.0
    parts = loading_words(record.loading)
    details = ["; ".join(parts[n : n + _PARTS]) for n in range(0, len(parts), _PARTS)]
    height = _TOP + _ROW * len(found) + 40 + 20 * len(details)
    scale = (_WIDTH - _LEFT - _RIGHT) / whole
    title = f"Boot of {record.name}: {whole:.2f} s ({record.accel.upper()}, {record.memory_mib} MiB)"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="16" y="30">{_text(title)}</text>',
    ]
    step = _step(whole)
    count = 0
    while count * step <= whole:
        x = _LEFT + count * step * scale
        bottom = _TOP + _ROW * len(found)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom}"/>')
        label = f"{count * step:g} s"
        out.append(
            f'<text class="faint number" x="{x:.1f}" y="{_TOP - 14}" text-anchor="middle">{label}</text>'
        )
        count += 1
    for number, phase in enumerate(found):
        y = _TOP + number * _ROW
        x = _LEFT + phase.begin * scale
        took = phase.end - phase.begin
        width = max(1.5, took * scale)
        box = f'x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="16" rx="2"'
        out.append(f'<text x="{_LEFT - 14}" y="{y + 15}" text-anchor="end">{_text(phase.text)}</text>')
        out.append(f'<rect class="{_WHO[phase.name]}" {box}/>')
        out.append(f'<text class="number" x="{x + width + 6:.1f}" y="{y + 15}">{took:.3f} s</text>')
    y = _TOP + _ROW * len(found) + 4
    for number, text in enumerate(details):
        y += 20
        said = text if number else f"EIF: {text}"
        out.append(f'<text class="faint" x="16" y="{y}">{_text(said)}</text>')
    for x, name, text in (
        (16, "host", "this host"),
        (116, "guest", "the guest"),
        (216, "app", "the application"),
    ):
        out.append(f'<rect class="{name}" x="{x}" y="{y + 11}" width="12" height="12" rx="2"/>')
        out.append(f'<text class="faint" x="{x + 18}" y="{y + 21}">{text}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _step(whole: float) -> float:
    """Seconds between two lines: 1, 2 or 5 of a power of ten, for about six lines."""
    step = 1e-3
    while True:
        for factor in (1, 2, 5):
            if whole / (step * factor) <= 8:
                return step * factor
        step *= 10


def _text(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape("".join(c if c.isprintable() else "?" for c in text))
