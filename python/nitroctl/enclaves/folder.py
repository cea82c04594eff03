# SPDX-License-Identifier: MIT
"""Context IDs, and the folders that go with them: who has one is decided here, race-free and crash-proof.

The folder `runtime_dir()/CID` is the reservation: whoever holds the lock on it has the ID. The lock ends with
its last holder (`locks`), so what a crash left behind is recognised and reused. What is put into the folder
is `lifecycle`'s business.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from nitroctl.base import config, locks, shown
from nitroctl.base.errors import EnclaveError, NitroError
from nitroctl.vsock import sockets

FIRST_CID = 16
LAST_AUTOMATIC_CID = FIRST_CID + 4095
KMS_PORT = 8000  # where AWS's vsock-proxy serves KMS, and its clients look for it


class Folder(NamedTuple):
    """Where an enclave's sockets are. `cid` is 0 for one that has none yet, `lock` the locked descriptor of
    the folder; -1: none."""

    cid: int
    path: Path
    lock: int = -1

    @property
    def device(self) -> Path:
        """The vhost-user socket between QEMU and the backend."""
        return self.path / "device"

    @property
    def uds(self) -> Path:
        """The parent's socket; `vsock_N` beside it serves the parent's port N."""
        return self.path / "vsock"

    @property
    def control(self) -> Path:
        """Where the enclave's supervisor is asked (`control`)."""
        return self.path / "control"

    @property
    def gdb(self) -> Path:
        """Where a debugger connects, if one may."""
        return self.path / "gdb"

    @property
    def kms(self) -> Path:
        """Where the local KMS serves the parent's port for it, if it has one."""
        return sockets.port_path(self.uds, KMS_PORT)

    @property
    def cert_chain(self) -> Path:
        """The certificates that QEMU issues attestation documents under."""
        return self.path / "chain.pem"

    @property
    def cert_key(self) -> Path:
        """The key of the last of them."""
        return self.path / "chain.key"

    @property
    def overlay(self) -> Path:
        """What QEMU unpacks over the image, where it had to be made; gone once QEMU has read it."""
        return self.path / "overlay.cpio"


def reserve(cid: int | None, taken: Collection[int] = ()) -> Folder:
    """Take context ID `cid`, or the lowest free one from 16, together with its folder. `taken`: those of
    enclaves that have their folder elsewhere, as after a login that gave us another runtime folder."""
    base = config.runtime_dir()
    longest = base / f"{cid or LAST_AUTOMATIC_CID}" / f"vsock_{sockets.PORT_MAX}"
    sockets.check_path(longest)
    for candidate in [cid] if cid is not None else range(FIRST_CID, LAST_AUTOMATIC_CID + 1):
        if candidate in taken:
            continue
        path = base / str(candidate)
        lock = _lock_folder(path)
        if lock is not None:
            return Folder(candidate, path, lock)
    if cid is not None:
        raise EnclaveError(
            f"context ID {cid} is in use by another enclave of yours",
            hint="without a context ID it gets a free one",
        )
    raise EnclaveError(
        f"all context IDs from {FIRST_CID} to {LAST_AUTOMATIC_CID} are in use",
        hint="give another one with --cid, or end some: nitroctl ps, nitroctl stop",
    )


def reserve_early() -> Folder:
    """A folder for sockets that must be there before their enclave, which has no context ID yet. What killed
    processes left of such folders is removed."""
    base = config.runtime_dir()
    for path in base.glob("early-*"):
        lock = _lock_folder(path)
        if lock is not None:
            release(Folder(0, path, lock))
    number = 0
    while (lock := _lock_folder(path := base / f"early-{number}")) is None:
        number += 1
    return Folder(0, path, lock)


def _lock_folder(path: Path) -> int | None:
    """Make the folder if need be, lock and empty it; None: somebody else has it. Raises NitroError."""
    try:
        return _locked(path)
    except OSError as e:
        raise NitroError(f"cannot make the folder {path}: {e.strerror}") from e


def _locked(path: Path) -> int | None:
    def make() -> Path:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        return path

    fd = locks.take_folder(make, wait=False)
    if fd is None:
        return None
    try:
        _empty(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _empty(path: Path) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def release(folder: Folder) -> None:
    """Remove the folder and give the context ID back, if it has one."""
    try:
        with contextlib.suppress(FileNotFoundError):
            _empty(folder.path)
            os.rmdir(folder.path)
    except OSError as e:
        shown.say(f"warning: cannot remove {folder.path}: {e.strerror}")
    finally:
        os.close(folder.lock)
