# SPDX-License-Identifier: MIT
"""What an enclave runs beside its image, unmeasured: which overlays a request asks for, and the one archive
that QEMU gets of them. How an archive is made is `eif.overlay`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nitroctl.enclaves.request import RunRequest

if TYPE_CHECKING:
    from nitroctl.eif.cpio import Entry
    from nitroctl.eif.overlay import Image, Source


def sources(request: RunRequest) -> tuple[Source, ...]:
    """In the order in which they are unpacked: what the user brings wins."""
    found: list[Source] = []
    if request.trust_kms_ca:
        found.append(_trusting_kms)
    return (*found, *request.overlay)


def _trusting_kms(image: Image) -> Iterator[Entry]:
    from nitroctl.eif import overlay
    from nitroctl.enclaves import kms

    return overlay.trusting(kms.ca(), image)


def reasons(request: RunRequest) -> list[str]:
    """Why an enclave is unmeasured, in words; none: it is measured. The machine has the same rule."""
    found = []
    if request.overlay:
        found.append("an overlay")
    if request.trust_kms_ca:
        found.append("the local KMS's CA among its roots")
    if request.append and _names_init(request.append):
        found.append("another init on the kernel's command line")
    if request.tools:
        found.append("our tools")
    return found


def _names_init(text: str) -> bool:
    from nitroctl.eif import overlay

    return overlay.names_init(text)


def whole(found: Sequence[Source]) -> Path | None:
    """The one overlay that is a file already, and needs no copy."""
    if len(found) == 1 and isinstance(found[0], Path) and not found[0].is_dir():
        return found[0]
    return None


def prepare(found: Sequence[Source], eif: Path, place: Path) -> Path | None:
    """The archive for QEMU; made at `place` unless it is there. None: there is no overlay. Raises
    NitroError."""
    if not found:
        return None
    if (ready := whole(found)) is not None:
        return ready
    with contextlib.suppress(FileNotFoundError):
        place.unlink()
    from nitroctl.eif import overlay

    overlay.compose(found, eif, place)
    return place
