# SPDX-License-Identifier: MIT
"""Fuzz targets for what the package reads of strangers, for atheris, which is libFuzzer for Python:
readers.py NAME [OPTIONS] CORPUS.

Each takes bytes and may raise a NitroError, nothing else. `read_agree` judges an image by the C core as well:
both must have the same verdict, the same rule, and for a good image the same PCRs. tools/fuzz runs them;
tests/python/test_fuzz_readers.py tries each on its seeds, without atheris.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests/python")]


def _instrumented() -> contextlib.AbstractContextManager[object]:
    """Of the package's modules atheris sees the branches, if it is here and asked for."""
    if __name__ != "__main__":
        return contextlib.nullcontext()
    import atheris

    found: contextlib.AbstractContextManager[object] = atheris.instrument_imports(include=["nitroctl"])
    return found


with _instrumented():
    from nitroctl.attestation import certificate, document, nsm, text
    from nitroctl.attestation.verification import Policy, load_root, verify
    from nitroctl.base import arch, cbor, elf
    from nitroctl.base.errors import EifError, NitroError
    from nitroctl.base.instants import UTC
    from nitroctl.eif import image, measure, newc, signature
    from nitroctl.eif.format import read_layout
    from nitroctl.eif.verify import judge


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="n-fuzz-"))


@contextlib.contextmanager
def _memory(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("input")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def read_eif(data: bytes) -> None:
    with _memory(data) as fd:
        read_layout(fd, len(data))
        measure.scan_fd(fd, len(data)).check()


@functools.cache
def _core() -> Any:
    from eifsigner import NOW
    from eifverdict import Core

    return Core("--structure", "--now", str(int(NOW.timestamp()))), NOW


def read_agree(data: bytes) -> None:
    """By the rules of files alone, at the time that the tests' certificates are valid."""
    core, now = _core()
    theirs = core.ask(data)
    with _memory(data) as fd:
        try:
            found = judge(measure.scan_fd(fd, len(data)), now, file_rules_only=True)
        except EifError as e:
            assert e.rule == theirs[0], f"{e.rule}: {e}, and the core: {theirs}"
            return
    pcrs = (found.pcr0, found.pcr1, found.pcr2, found.pcr8)
    ours = ["ok", *("-" if pcr is None else pcr.hex() for pcr in pcrs)]
    assert ours == theirs, (ours, theirs)


def read_signature(data: bytes) -> None:
    found = signature.decode(data)
    signature.check(found, None, datetime.now(UTC))


def read_cpio(data: bytes) -> None:
    with contextlib.suppress(newc.NotReadable):
        for _, pieces in newc.read(io.BytesIO(data)):
            for _ in pieces:
                pass


def read_oci(data: bytes) -> None:
    path = _folder() / "image.tar"
    path.write_bytes(data)
    found = image.open_image(path, arch=arch.default())
    for layer in found.layers:
        del layer


def read_cbor(data: bytes) -> None:
    with contextlib.suppress(cbor.CborError):
        cbor.loads(data)


def read_document(data: bytes) -> None:
    document.decode(text.undress(data))


@functools.cache
def _root() -> Any:
    return load_root("aws")


def read_verify(data: bytes) -> None:
    with contextlib.suppress(NitroError):
        verify(data, _root(), Policy(at="document"))


def read_certificate(data: bytes) -> None:
    with contextlib.suppress(certificate.Fault):
        certificate.parse(data)


def read_nsm(data: bytes) -> None:
    nsm.entry(data)


def read_elf(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        elf.read(io.BytesIO(data))


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("read_"): function
    for name, function in list(globals().items())
    if name.startswith("read_") and name != "read_layout"
}


def one(name: str, data: bytes) -> None:
    with contextlib.suppress(NitroError):
        TARGETS[name](data)


def main() -> None:
    import atheris

    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: one(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
